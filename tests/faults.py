"""Kills at any instant, in children of a warm process, and how often tests do so."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus.storage.atomic import TEMPORARY_PREFIX

#: `make test-faults` asks for the full counts.
FULL = os.environ.get("NEXUS_FAULTS") == "full"


def count(few: int, full: int) -> int:
    """Trials in the usual tests, and in the full ones."""
    return full if FULL else few


def in_a_child(work: Callable[[], Any], *, quiet: bool = True) -> int:
    """Fork, so that the libraries are loaded already.

    Args:
        work: what the child does.
        quiet: throw away what it prints; errors are shown.

    Returns:
        The child's process id; it ends with 0, or 1 after an exception.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        if quiet:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        work()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end_of(child: int) -> int:
    """Wait for a child: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    """Be killed, now."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_call(number: int, *, after: bool) -> None:
    """In a child: SIGKILL before (or after) the `number`th call that makes a write last or gives it its name."""
    calls = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            mine = calls == number
            if mine and not after:
                die()
            result = real(*args, **kwargs)
            if mine:
                die()
            return result

        return called

    for name in ("fsync", "rename", "replace"):
        setattr(os, name, wrap(getattr(os, name)))


def kill_in_forward(kind: type, number: int, *, after: bool) -> None:
    """In a child: SIGKILL before (or after) a method's `number`th forward pass over a micro-batch."""
    real, calls = kind.loss, 0

    def loss(self: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            die()
        output = real(self, batch)
        if calls == number:
            die()
        return output

    kind.loss = loss


@dataclass
class Tally:
    """Kills that took effect.

    Attributes:
        kills: all of them.
        in_saves: those inside a save: a counted call of one, or a half-written folder was there.
        runs: finished afterwards.
    """

    kills: int = 0
    in_saves: int = 0
    runs: int = 0

    def __str__(self) -> str:
        return f"{self.kills} kills in {self.runs} runs, {self.in_saves} of them inside a save"


def killed_run(
    folder: Path, work: Callable[[int], None], *, rng: random.Random, kills: int, span: float, tally: Tally
) -> None:
    """Kill a run again and again, half the time inside a save and half the time at any instant, then let it finish.

    Args:
        folder: of the run, its checkpoints in `checkpoints`.
        work: trains from wherever it stands to the end; takes the state of generators that the process happens to have.
        rng: chooses instants.
        kills: how often; fewer if the run ends before.
        span: kills at any instant come at most so many seconds after a start.
        tally: counts them.
    """
    for attempt in range(kills):
        # a save of a checkpoint has some twelve calls that last; at least one is finished before most kills
        inside, number, after = attempt % 2 == 0, rng.randint(1, 36), rng.random() < 0.5
        ambient = rng.randrange(2**31)

        def die_working(
            inside: bool = inside, number: int = number, after: bool = after, ambient: int = ambient
        ) -> None:
            if inside:
                kill_at_call(number, after=after)
            work(ambient)

        child = in_a_child(die_working)
        if not inside:
            time.sleep(rng.uniform(0, span))
            os.kill(child, signal.SIGKILL)
        status = end_of(child)
        assert status in (-signal.SIGKILL, 0), f"attempt {attempt} in {folder} ended with {status}"
        if status == 0:
            break
        half = [path for path in folder.glob("checkpoints/*") if path.name.startswith(TEMPORARY_PREFIX)]
        tally.kills += 1
        tally.in_saves += inside or bool(half)
    assert end_of(in_a_child(lambda: work(7))) == 0
    left = [path.name for path in folder.rglob("*") if path.name.startswith(TEMPORARY_PREFIX) or ".bad" in path.name]
    assert left == [], "a run cleans up what its killed processes left, and no checkpoint was damaged"
    tally.runs += 1


def _die_working(work: Callable[[int], None], ambient: int, call: tuple[int, bool] | None) -> None:
    if call is not None:
        kill_at_call(call[0], after=call[1])
    work(ambient)


@contextlib.contextmanager
def never_outliving(child: int) -> Any:
    """Kill a child that is still there when the block ends, so that a failed test leaves no process behind.

    Args:
        child: process id.

    Yields:
        Nothing.
    """
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
