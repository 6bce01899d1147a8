"""Pause, resume, checkpoint and stop at step boundaries, as signals and control files ask."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nexus.callbacks.cooldown import Cooldown
from nexus.callbacks.hold import Desk
from nexus.hardware.parking import Parking


class RunControl(Callback):
    """Acts on the flags of the process, and keeps step and remaining time on the run's status.

    Args:
        pause_offload: whether a pause that was asked for gives the GPU away: weights and optimizer state wait in host
            memory. Without a GPU there is nothing to give.
        desk: of the training; given by the run.
    """

    def __init__(self, *, pause_offload: bool, desk: Desk) -> None:
        self.pause_offload = pause_offload
        self.desk = desk
        self._began = (0.0, 0)
        self._cooldowns: list[Cooldown] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a pause or stop that was asked for before the first step holds from here."""
        if self.desk.flags.handled:
            from nexus.signals import install  # here, because loading it takes the signals, as a door does first

            install()
        if self.pause_offload and self._parking(trainer) is None:
            self.desk.tell("W-RUN-06  pause_offload changes nothing: this run is on no GPU that could be freed")
        self._cooldowns = [one for one in trainer.callbacks if isinstance(one, Cooldown)]  # type: ignore[attr-defined]
        self._began = (time.perf_counter() - self.desk.held_seconds, trainer.global_step)
        self.desk.board.update(step=trainer.global_step, steps=trainer.max_steps, eta_seconds=None)
        self._act(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell where the run is, then do what was asked."""
        step = trainer.global_step
        start, first = self._began
        seconds = time.perf_counter() - start - self.desk.held_seconds
        left = seconds / (step - first) * (trainer.max_steps - step)
        for cooldown in self._cooldowns:
            left += cooldown.seconds_ahead(step, trainer.max_steps)
        self.desk.note_checkpoint(trainer)
        self.desk.board.update(step=step, eta_seconds=round(left, 1))
        self._act(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell of the last checkpoint."""
        self.desk.note_checkpoint(trainer)

    def measured(self) -> dict[str, float]:
        """How long training was held so far, once it was."""
        held = self.desk.held_seconds
        return {"perf/paused_seconds": round(held, 3)} if held else {}

    def _act(self, trainer: Trainer) -> None:
        flags = self.desk.flags
        self.desk.serve(trainer)
        if flags.paused:
            self.desk.hold(
                trainer,
                state="paused",
                reason=flags.pause_reason,
                until=lambda: not flags.paused,
                parking=self._parking(trainer) if self.pause_offload else None,
            )

    @staticmethod
    def _parking(trainer: Trainer) -> Parking | None:
        """What can leave the GPU: the model with its head, and a reward model; None on a processor."""
        judge = getattr(trainer.datamodule, "judge", None)  # type: ignore[attr-defined]
        modules = [trainer.lightning_module, *([] if judge is None else [judge.model])]
        parking = Parking(modules, trainer.optimizers)
        return parking if parking.is_needed else None
