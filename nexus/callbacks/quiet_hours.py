"""No training at certain hours: for bedrooms, offices and dear electricity."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nexus.callbacks.hold import Desk

_MINUTES_OF_A_DAY = 24 * 60


class QuietHours(Callback):
    """Holds training from one time of day to another; `resume` and a stop end it early.

    A resume lasts until the quiet hours that it broke are over.

    Args:
        enabled: whether it does anything.
        begins: first quiet minute, `HH:MM`.
        ends: first minute after; earlier than `begins` means on the next day.
        now: minute of the day; given by the run.
        desk: of the training; given by the run.

    Raises:
        ValueError: for a time that no clock shows, or hours that are none or the whole day.
    """

    def __init__(self, *, enabled: bool, begins: str, ends: str, now: Callable[[], int], desk: Desk) -> None:
        self.enabled = enabled
        self.begins, self.ends = _minute(begins), _minute(ends)
        if self.begins == self.ends:
            raise ValueError("begins and ends must differ")
        self.words = f"{begins} to {ends}"
        self.now = now
        self.desk = desk
        self._broken = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that is started at night waits too."""
        self._rest(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock."""
        if trainer.global_step < trainer.max_steps:
            self._rest(trainer)

    def is_quiet(self) -> bool:
        """Whether it is a quiet hour now."""
        since = (self.now() - self.begins) % _MINUTES_OF_A_DAY
        return since < (self.ends - self.begins) % _MINUTES_OF_A_DAY

    def _rest(self, trainer: Trainer) -> None:
        if not self.enabled:
            return
        if not self.is_quiet():
            self._broken = False
            return
        if self._broken:
            return
        flags = self.desk.flags
        resumes = flags.resumes
        flags.cooling = True
        try:
            self.desk.hold(
                trainer,
                state="quiet hours",
                reason=self.words,
                until=lambda: flags.resumes != resumes or not self.is_quiet(),
            )
        finally:
            flags.cooling = False
        self._broken = self.is_quiet()


def minute_of_day() -> int:
    """Minutes since midnight, as this machine's clock says."""
    now = time.localtime()
    return 60 * now.tm_hour + now.tm_min


def _minute(text: str) -> int:
    clock = time.strptime(text, "%H:%M")
    return 60 * clock.tm_hour + clock.tm_min
