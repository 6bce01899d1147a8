"""Notices a training step that does not end: tells where every thread stands, and leaves so that it can be resumed."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nexus.callbacks.hold import Desk

#: Exit status of a run that hung: try again.
HUNG = 75
_TICKS = 20


class HangWatch(Callback):
    """Ends the process with status 75 when a step takes far longer than any before it.

    A thread counts its own ticks, so time in which the whole process stood still (SIGSTOP, a laptop that sleeps) is
    none, and neither is a pause. A call that never gives Python's lock back stops the thread too and is not noticed.

    Args:
        enabled: whether it does anything.
        seconds: a step may always take so long.
        factor: and so many times the longest step of this process.
        desk: of the training; given by the run.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, *, enabled: bool, seconds: float, factor: float, desk: Desk) -> None:
        if seconds <= 0 or factor < 1:
            raise ValueError("seconds must be above 0, factor at least 1")
        self.enabled = enabled
        self.seconds = seconds
        self.factor = factor
        self.desk = desk
        self.longest = 0.0
        self._waited = 0.0
        self._began = 0.0
        self._held_before = 0.0
        self._ended: threading.Event | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch."""
        if self.enabled and self._ended is None:
            self._beat()
            self._ended = threading.Event()
            threading.Thread(target=self._watch, args=(self._ended,), name="nexus-hang-watch", daemon=True).start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step has ended."""
        taken = time.monotonic() - self._began - (self.desk.held_seconds - self._held_before)
        self.longest = max(self.longest, taken)
        self._beat()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching."""
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching."""
        self.close()

    def close(self) -> None:
        """End the thread; a second call does nothing."""
        if self._ended is not None:
            self._ended.set()
            self._ended = None

    @property
    def limit(self) -> float:
        """Seconds that a step may take now."""
        return max(self.seconds, self.factor * self.longest)

    def _beat(self) -> None:
        self._waited, self._began, self._held_before = 0.0, time.monotonic(), self.desk.held_seconds

    def _watch(self, ended: threading.Event) -> None:
        tick = min(1.0, self.seconds / _TICKS)
        while not ended.wait(tick):
            self._waited = 0.0 if self.desk.holding else self._waited + tick
            if self._waited > self.limit:
                self._leave()

    def _leave(self) -> None:
        reason = f"a step did not end in {self.limit:.0f} s"
        print(f"E-RUN-04  {reason}; where every thread stands:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        print("the last checkpoint is intact: go on with resume=RUN", file=sys.stderr, flush=True)
        self.desk.show("failed", reason)
        os._exit(HUNG)
