"""Holds training at a step boundary, and serves checkpoints and stops there."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from lightning.pytorch import Trainer
from rich.console import Console

from nexus.callbacks.checkpoint import StepCheckpoint, checkpoints
from nexus.errors import NexusError
from nexus.flags import Flags, Stop
from nexus.hardware.parking import Parking
from nexus.storage.run_status import Board

log = logging.getLogger(__name__)

#: How often a held run looks for requests. Waiting on an event instead could deadlock: its lock, taken by the main
#: thread, would be wanted by a handler that runs in the same thread.
_LOOK_SECONDS = 0.05
#: How often a parked run looks whether the GPU has room for it again.
_RETURN_SECONDS = 5.0


class RunStopped(Exception):
    """Training ended at a boundary because it was asked to; not an interrupt, which Lightning would answer itself.

    Args:
        stop: who asked, and the exit status.
    """

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.reason)
        self.stop = stop


@runtime_checkable
class Timed(Protocol):
    """A callback with a clock of its own."""

    def skip_seconds(self, seconds: float) -> None:
        """Leave out time in which training was held."""


@runtime_checkable
class Measured(Protocol):
    """A callback with numbers for `metrics.csv`."""

    def measured(self) -> dict[str, float]:
        """Numbers by column, as they are now."""


class Desk:
    """Where the callbacks of one training hold it, each for its own reason.

    Args:
        board: the run's status.
        flags: what was asked of the process.

    Attributes:
        held_seconds: how long training was held so far.
    """

    def __init__(self, *, board: Board, flags: Flags) -> None:
        self.board = board
        self.flags = flags
        self.held_seconds = 0.0
        self._depth = 0
        self._next_return = 0.0
        self._console = Console()

    @property
    def holding(self) -> bool:
        """Whether training stands still now."""
        return self._depth > 0

    def tell(self, line: str) -> None:
        """Print a line without markup or colors."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def serve(self, trainer: Trainer) -> None:
        """Write a checkpoint if one was asked for; save and leave if that was asked for.

        Args:
            trainer: at a step boundary.

        Raises:
            RunStopped: after the checkpoint.
        """
        asked = self.flags.checkpoints
        if asked != self.flags.checkpoints_served and trainer.global_step:
            self.flags.checkpoints_served = asked
            self.save(trainer)
        if self.flags.stop is not None:
            self.save(trainer)
            raise RunStopped(self.flags.stop)

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of this step unless there is one, by the run's own checkpoint callback.

        Args:
            trainer: at a step boundary.
        """
        step = trainer.global_step
        keeper = keeper_of(trainer)
        if keeper is None:
            self.tell("W-RUN-01  no checkpoint was written: callbacks.checkpoint is null")
            return
        if step and checkpoints(keeper.folder)[-1:] != [(step, keeper.path(step))]:
            keeper.save(trainer)
            self.tell(f"checkpoint of step {step}")
        self.note_checkpoint(trainer)
        self.board.publish()

    def note_checkpoint(self, trainer: Trainer) -> None:
        """Put a checkpoint of this step on the status, if there is one.

        Args:
            trainer: at a step boundary.
        """
        keeper = keeper_of(trainer)
        if keeper is not None and keeper.path(trainer.global_step).exists():
            path = keeper.path(trainer.global_step)
            self.board.update(last_checkpoint=os.path.relpath(path, self.board.path.parent))

    def hold(
        self,
        trainer: Trainer,
        *,
        state: str,
        reason: str,
        until: Callable[[], bool],
        parking: Parking | None = None,
    ) -> None:
        """Stand still at a step boundary; checkpoints are still written and a stop is obeyed.

        Args:
            trainer: at a step boundary.
            state: for the status.
            reason: for the status.
            until: asked about twenty times a second; True ends the hold.
            parking: what leaves the GPU meanwhile; None leaves it there. The hold lasts until it has come back.

        Raises:
            RunStopped: if the run is to stop meanwhile.
        """
        self.tell(f"{state} at step {trainer.global_step}: {reason}")
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        self._next_return = 0.0
        with self._held(trainer, state, reason):
            if parking is not None:
                parking.park()
                self.tell("weights and optimizer state are in host memory; the GPU is free")
            while True:
                self.serve(trainer)
                if until() and (parking is None or self._comes_back(parking)):
                    break
                time.sleep(_LOOK_SECONDS)

    def _comes_back(self, parking: Parking) -> bool:
        """Whether what was parked is on the GPU again; tries it now and then, since something else may fill the GPU."""
        if time.monotonic() < self._next_return:
            return False
        if parking.bring_back():
            return True
        if not self._next_return:
            self.tell("W-RUN-05  the GPU has no room to go on; waiting for it")
        self._next_return = time.monotonic() + _RETURN_SECONDS
        return False

    def wait_for(
        self,
        trainer: Trainer,
        attempt: Callable[[], NexusError | None],
        *,
        reason: str,
        seconds: float,
        seconds_between_tries: float,
    ) -> None:
        """Stand still, as a pause, until something that the user must make possible succeeds; a stop is obeyed.

        Args:
            trainer: at a step boundary.
            attempt: tries it; None if it succeeded, else what is wrong.
            reason: for the status.
            seconds: when to give up.
            seconds_between_tries: between two attempts.

        Raises:
            RunStopped: if the run is to stop meanwhile.
            NexusError: of the last attempt.
        """
        began = tried = time.monotonic()
        with self._held(trainer, "paused", reason):
            while True:
                if self.flags.stop is not None:
                    raise RunStopped(self.flags.stop)
                if time.monotonic() - tried >= seconds_between_tries:
                    error, tried = attempt(), time.monotonic()
                    if error is None:
                        return
                    if tried - began >= seconds:
                        raise error
                time.sleep(min(_LOOK_SECONDS, seconds_between_tries))

    @contextmanager
    def _held(self, trainer: Trainer, state: str, reason: str) -> Iterator[None]:
        """Tell the status, and leave the time out of every clock; within a hold only the outer one counts time."""
        began = time.perf_counter()
        earlier = self.board.fields["state"], self.board.fields["reason"]
        self.board.update(step=trainer.global_step)
        self.show(state, reason)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            seconds = time.perf_counter() - began
            self.held_seconds += 0.0 if self._depth else seconds
            self.board.update(paused_seconds=round(self.held_seconds, 1))
        for callback in () if self._depth else trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timed):
                callback.skip_seconds(seconds)
        self.show(*earlier)
        self.tell(f"going on after {seconds:.1f} s")

    def show(self, state: str, reason: str) -> None:
        """Put a state on the status; a full disk, which is what training may be waiting for, is only told.

        Args:
            state: one or two words.
            reason: why.
        """
        try:
            self.board.set_state(state, reason)
        except NexusError as error:
            log.warning("W-RUN-02  status.json is not up to date: %s", error)


def keeper_of(trainer: Trainer) -> StepCheckpoint | None:
    """The callback that writes the checkpoints of a training; None where it is switched off."""
    return next((one for one in trainer.callbacks if isinstance(one, StepCheckpoint)), None)  # type: ignore[attr-defined]
