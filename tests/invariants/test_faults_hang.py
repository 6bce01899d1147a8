"""A step that never ends is noticed; a process that was stopped, or a pause, is not taken for one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nexus.callbacks.hang_watch import HUNG, HangWatch
from nexus.callbacks.hold import Desk
from nexus.callbacks.run_control import RunControl
from nexus.flags import Flags
from nexus.storage.run_status import Board, read_status
from tests import faults, runs

pytestmark = pytest.mark.faults

STEPS = 5
LIMIT = 6.0  # a busy machine needs a second for a step


class AtStep(runs.Callback):
    """Does something at a step boundary."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Within the step, as a loader or a kernel would."""
        if trainer.global_step == self.step:
            self.action()


def a_lock_that_nobody_gives_back() -> None:
    threading.Event().wait()


def go_on(
    folder: Path, action: Any, *, flags: Flags | None = None, errors: Path | None = None, limit: float = LIMIT
) -> None:
    if errors is not None:
        sys.stderr = errors.open("w", buffering=1)
    folder.mkdir(exist_ok=True)
    desk = Desk(board=Board(folder), flags=flags or Flags())
    watch = HangWatch(enabled=True, seconds=limit, factor=1.0, desk=desk)
    callbacks = (AtStep(3, action), watch, RunControl(pause_offload=False, desk=desk))
    runs.go_on("lora", folder, steps=STEPS, ambient=2, every_n_steps=1, layers=1, callbacks=callbacks)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs; it also loads what children need."""
    folder = tmp_path_factory.mktemp("whole")
    runs.go_on("lora", folder, steps=STEPS, ambient=1, layers=1)
    return folder


def test_a_hang_tells_every_stack_and_leaves_with_75(tmp_path: Path, whole: Path) -> None:
    run, errors = tmp_path / "run", tmp_path / "errors"
    child = faults.in_a_child(lambda: go_on(run, a_lock_that_nobody_gives_back, errors=errors))
    assert faults.end_of(child) == HUNG
    told = errors.read_text()
    assert "E-RUN-04" in told
    assert "a_lock_that_nobody_gives_back" in told
    assert told.lower().count("thread 0x") >= 2
    assert read_status(run)["state"] == "failed"
    assert "did not end" in read_status(run)["reason"]
    go_on(run, lambda: None, limit=600.0)
    assert runs.same_weights(run, whole)
    print("P23: a step that hung was noticed, all stacks told, status 75; the resumed run ended with equal weights")


def test_a_process_that_was_stopped_is_no_hang(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    child = faults.in_a_child(lambda: go_on(run, lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    with faults.never_outliving(child):
        assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
        time.sleep(LIMIT + 1)
        os.kill(child, signal.SIGCONT)
        assert faults.end_of(child) == 0
    assert runs.same_weights(run, whole)


def test_a_pause_is_no_hang(tmp_path: Path, whole: Path) -> None:
    flags = Flags()

    def pause() -> None:
        flags.ask("pause")
        threading.Timer(LIMIT + 1, lambda: flags.ask("resume")).start()

    go_on(tmp_path / "run", pause, flags=flags)
    assert runs.same_weights(tmp_path / "run", whole)
