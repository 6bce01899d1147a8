"""Progress of a fit: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from nexus.hardware.usage import memory_in_use_bytes


class TrainingProgress(Callback):
    """Shows step, loss (and reward where there is one), tokens per second, memory and the time that is left.

    Args:
        seconds_between_updates: values leave the device no more often than this.
        seconds_between_lines: interval of the lines that replace the bar where the output is no terminal.

    Raises:
        ValueError: if an interval is not positive.
    """

    def __init__(self, *, seconds_between_updates: float, seconds_between_lines: float) -> None:
        if seconds_between_updates <= 0 or seconds_between_lines <= 0:
            raise ValueError("intervals must be positive")
        self.seconds_between_updates = seconds_between_updates
        self.seconds_between_lines = seconds_between_lines
        self.console = Console()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last = 0.0
        self._start = (0.0, 0, 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        now = time.perf_counter()
        self._start = (now, int(pl_module.tokens_seen), trainer.global_step)  # type: ignore[arg-type]
        self._last = now
        if self.console.is_terminal and trainer.is_global_zero:
            self._bar = Progress(
                TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("train", total=trainer.max_steps, completed=trainer.global_step, numbers="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar or print a line, if it is time."""
        interval = self.seconds_between_updates if self._bar else self.seconds_between_lines
        if time.perf_counter() - self._last >= interval:
            self._last = time.perf_counter()
            self.show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last step and close the bar."""
        self.show(trainer, pl_module)
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back before the error is printed."""
        self.close()

    def skip_seconds(self, seconds: float) -> None:
        """Leave held time out of the speed and of the time that is left."""
        start, tokens, step = self._start
        self._start = (start + seconds, tokens, step)

    def close(self) -> None:
        """Stop the bar; a second call does nothing."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the present state once."""
        if not trainer.is_global_zero or "train/loss" not in pl_module.step_metrics:  # type: ignore[operator]
            return
        start_time, start_tokens, start_step = self._start
        seconds = max(1e-9, time.perf_counter() - start_time)
        speed = (int(pl_module.tokens_seen) - start_tokens) / seconds  # type: ignore[arg-type]
        loss = float(pl_module.step_metrics["train/loss"])  # type: ignore[index]
        reward = pl_module.step_metrics.get("reward/mean")  # type: ignore[operator,union-attr]
        earned = "" if reward is None else f"reward {float(reward):.3f}  "
        numbers = f"{earned}loss {loss:.4f}  {speed:,.0f} tokens/s  {memory_in_use_bytes() / 2**30:.2f} GiB"
        if self._bar:
            self._bar.update(self._task, completed=trainer.global_step, numbers=numbers)
            return
        done = trainer.global_step - start_step
        left = seconds / max(1, done) * (trainer.max_steps - trainer.global_step)
        line = f"step {trainer.global_step}/{trainer.max_steps}  {numbers}  {left:.0f} s left"
        self.console.print(line, highlight=False, soft_wrap=True)
