"""What a signal or a control file asks of this process: plain values that handlers set and step boundaries read.

It is loaded before a door has handlers, so it loads next to nothing: no dataclasses, for one, which load a parser.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: What can be asked of a run, by control file or by door; applied in this order if several were laid at once.
WORDS = ("pause", "resume", "checkpoint", "stop")
#: Exit status of a run that was told to stop, as a shell reports a process that the signal ended.
TERMINATED, INTERRUPTED = 143, 130


class Stop:
    """A run is to save and leave.

    Args:
        status: exit status.
        reason: who asked.
    """

    __slots__ = ("reason", "status")

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason


class Flags:
    """Requests to one process. No lock: a handler that waited for one could wait for the very code it interrupted.

    Attributes:
        paused: whether training is to stand still.
        pause_reason: who asked for that.
        resumes: how often somebody asked to go on.
        checkpoints: how many checkpoints were asked for.
        checkpoints_served: how many of them were answered; several at one boundary are one.
        stop: set once, never taken back.
        stop_asked: why the next SIGTERM comes, if it is this process's own; empty for one from outside.
        interrupts: how often Ctrl-C was pressed.
        at_boundaries: True while step boundaries read these flags; otherwise a stop is an exception at once.
        cooling: True while a cooldown holds training, which SIGUSR1 then ends instead of beginning a pause.
        handled: True if this process has the handlers of `nexus.signals`.
    """

    def __init__(self) -> None:
        self.handled = False
        self.reset()

    def reset(self) -> None:
        """As in a fresh process, except for `handled`."""
        self.paused = False
        self.pause_reason = ""
        self.resumes = 0
        self.checkpoints = 0
        self.checkpoints_served = 0
        self.stop: Stop | None = None
        self.stop_asked = ""
        self.interrupts = 0
        self.at_boundaries = False
        self.cooling = False

    def toggle(self, reason: str) -> None:
        """Pause or go on, whichever it is not doing."""
        if self.cooling:
            self.resumes += 1
        else:
            self.pause_reason = reason
            self.paused = not self.paused

    def ask(self, word: str) -> None:
        """Take a request that means the same however often it comes.

        Args:
            word: one of `WORDS`.
        """
        if word == "pause":
            self.pause_reason = f"control/{word}"
            self.paused = True
        elif word == "resume":
            self.paused = False
            self.resumes += 1
        elif word == "checkpoint":
            self.checkpoints += 1
        else:
            self.request_stop(TERMINATED, f"control/{word}")

    def request_stop(self, status: int, reason: str) -> bool:
        """Note that the run is to end; the first request counts.

        Args:
            status: exit status.
            reason: who asked.

        Returns:
            True if it is the first.
        """
        first = self.stop is None
        if first:
            self.stop = Stop(status, reason)
        return first

    @contextmanager
    def served(self) -> Iterator[None]:
        """While training runs: a stop waits for the next step boundary.

        Yields:
            Nothing.

        Raises:
            KeyboardInterrupt: with the exit status, if a stop came that no boundary served any more.
        """
        self.at_boundaries = True
        try:
            yield
        finally:
            self.at_boundaries = False
        if self.stop is not None:
            raise KeyboardInterrupt(self.stop.status)


FLAGS = Flags()
