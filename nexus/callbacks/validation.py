"""The loss on held-out rows while training, and which step had the least of it; training does not notice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nexus.callbacks.hold import Desk, keeper_of
from nexus.callbacks.metrics_csv import VALIDATION_LOSS, MetricsCsv
from nexus.types import MicroBatch


class Validation(Callback):
    """Measures every `every_n_steps` optimizer steps and after the last one; the checkpoint of the best step is kept.

    The loss is that of the report's `held_out` group, as the model is then: in evaluation mode, nothing is drawn, so
    that the trained weights are the same to the bit without it.

    Args:
        enabled: whether it does anything.
        every_n_steps: optimizer steps between two measurements.
        max_rows: held-out rows that are looked at, evenly chosen; None for all of them.
        restore_best: whether the run ends with the weights of the best step, which are then scored and packaged,
            instead of those of the last; `stages.best` sees to it.
        loss_of: mean loss of a model's target tokens over micro-batches, in nats; given by the run.
        desk: of the training; given by the run.

    Attributes:
        best: step and loss (nats per token) of the least loss so far, the earliest of equal ones; None before the
            first measurement.
        last: step and loss of the newest one.
        count: measurements so far, over interruptions.
        seconds: that they took, over interruptions.
        seconds_here: of them, in this process.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(
        self,
        *,
        enabled: bool,
        every_n_steps: int,
        max_rows: int | None,
        restore_best: bool,
        loss_of: Callable[[Any, Sequence[MicroBatch]], float],
        desk: Desk,
    ) -> None:
        if every_n_steps < 1 or (max_rows is not None and max_rows < 1):
            raise ValueError("every_n_steps and max_rows must be at least 1")
        self.enabled = enabled
        self.every_n_steps = every_n_steps
        self.max_rows = max_rows
        self.restore_best = restore_best
        self.loss_of = loss_of
        self.desk = desk
        self.best: tuple[int, float] | None = None
        self.last: tuple[int, float] | None = None
        self.count = 0
        self.seconds = 0.0
        self.seconds_here = 0.0
        self._batches: list[MicroBatch] = []

    @property
    def rows(self) -> int:
        """Rows of one measurement; 0 before training starts."""
        return sum(len(batch.ids) for batch in self._batches)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay out the rows; a resumed run goes on protecting the best checkpoint."""
        if self.enabled:
            self._batches = trainer.datamodule.validation_batches(self.max_rows)  # type: ignore[attr-defined]
            self._protect(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure at the step boundary; the loss stands beside the step's own in `metrics.csv`."""
        step = trainer.global_step
        if not self.enabled or (step % self.every_n_steps and step != pl_module.total_steps):
            return
        began = time.perf_counter()
        loss = self.measure(pl_module)
        seconds = time.perf_counter() - began
        self.count += 1
        self.seconds += seconds
        self.seconds_here += seconds
        self.last = (step, loss)
        is_best = self.best is None or loss < self.best[1]
        if is_best:
            self.best = self.last
            self._protect(trainer)
        pl_module.step_metrics |= {VALIDATION_LOSS: loss, "val/seconds": round(seconds, 3)}  # type: ignore[operator]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, MetricsCsv):
                callback.skip_seconds(seconds)  # its speed is that of training
        self.desk.tell(f"held-out loss at step {step}: {loss:.4f}{', the least so far' if is_best else ''}")

    def measure(self, pl_module: LightningModule) -> float:
        """Loss of the rows under the model as it is; it is then in the mode in which it was.

        Args:
            pl_module: the method.

        Returns:
            Nats per token.
        """
        model: Any = pl_module.model
        was_training = model.training
        model.eval()
        loss = self.loss_of(model, pl_module.within_limit(self._batches))  # type: ignore[operator]
        model.train(was_training)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """What was found so far; Lightning puts it into every checkpoint."""
        return {"best": self.best, "last": self.last, "count": self.count, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what an earlier process found.

        Args:
            state_dict: as `state_dict` gave it.
        """
        self.best, self.last = state_dict["best"], state_dict["last"]
        self.count, self.seconds = state_dict["count"], state_dict["seconds"]

    def summary(self) -> dict[str, Any]:
        """Counts and losses as they stand in the report."""
        best, last = (None if found is None else dict(zip(("step", "loss"), found, strict=True))
                      for found in (self.best, self.last))  # fmt: skip
        return {"best": best, "last": last, "measurements": self.count, "seconds": round(self.seconds, 1)}

    def _protect(self, trainer: Trainer) -> None:
        """Have the checkpoint of the best step written, and kept beside the newest ones."""
        keeper = keeper_of(trainer)
        if keeper is not None and self.best is not None:
            keeper.best_step = self.best[0]
