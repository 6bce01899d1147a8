"""Storms of signals: a run pauses, saves and leaves at step boundaries only, and its weights do not notice."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from nexus.callbacks.checkpoint import checkpoints, newest_whole
from nexus.callbacks.cooldown import Cooldown
from nexus.callbacks.hold import Desk, RunStopped
from nexus.callbacks.quiet_hours import QuietHours
from nexus.callbacks.run_control import RunControl
from nexus.flags import FLAGS, Flags
from nexus.models.saved_state import TENSORS_NAME, verify_state
from nexus.storage.manifest import file_sha256
from nexus.storage.run_status import Board
from tests import faults, runs

pytestmark = pytest.mark.faults

PAUSES = faults.count(6, 100)
STORM_STEPS = 3 * PAUSES + 30
#: A step of a storm takes no less, so that the run outlasts all pauses on any machine.
STORM_STEP_SECONDS = 0.1
STOPS = faults.count(6, 100)
STOP_STEPS = 40
COOLDOWNS = faults.count(4, 20)
#: A request is answered after at most one step and this many seconds, where nothing else uses the processor.
SLACK = 0.2


class Reports(Callback):
    """Writes what happens in a child to a pipe, one JSON line each, with the step and a clock that both share."""

    def __init__(self, pipe: int, *, least_seconds: float) -> None:
        self.pipe = pipe
        self.least_seconds = least_seconds
        self.step = 0

    def tell(self, event: str, **more: Any) -> None:
        """One line, whole also when a handler interrupts another's line."""
        os.write(
            self.pipe, (json.dumps({"event": event, "step": self.step, "at": time.monotonic(), **more}) + "\n").encode()
        )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Signals are taken from here on at the latest."""
        self.step = trainer.global_step
        self.tell("started")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """A step boundary."""
        time.sleep(self.least_seconds)
        self.step = trainer.global_step


class ToldDesk(Desk):
    """A desk that tells when it begins and ends to hold."""

    def __init__(self, reports: Reports, **common: Any) -> None:
        super().__init__(**common)
        self.reports = reports

    def hold(self, *args: Any, **kwargs: Any) -> None:
        """As it is, with a line before and after."""
        self.reports.tell("held", state=kwargs["state"])
        try:
            super().hold(*args, **kwargs)
        finally:
            self.reports.tell("released")


def controlled(
    folder: Path, pipe: int, *, steps: int, ambient: int, every: int, cooldown: float = 0.0, least_seconds: float = 0.0
) -> None:
    """In a child: a run under the control of signals, which ends as `stages.run` would end it."""
    import nexus.signals

    folder.mkdir(exist_ok=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    nexus.signals._IGNORED.clear()
    nexus.signals.install()
    FLAGS.reset()
    reports = Reports(pipe, least_seconds=least_seconds)
    toggle = FLAGS.toggle
    FLAGS.toggle = lambda reason: (reports.tell("asked"), toggle(reason))[1]  # type: ignore[method-assign]
    desk = ToldDesk(reports, board=Board(folder), flags=FLAGS)
    callbacks: tuple[Callback, ...] = (reports, RunControl(pause_offload=False, desk=desk))
    if cooldown:
        callbacks += (Cooldown(enabled=True, every_n_steps=1, seconds=cooldown, desk=desk),)
    try:
        with FLAGS.served():
            shape = {"steps": steps, "every_n_steps": every, "keep": 1000, "layers": 1}
            runs.go_on("lora", folder, ambient=ambient, callbacks=callbacks, **shape)
    except RunStopped as error:
        sys.exit(error.stop.status)
    except KeyboardInterrupt as error:
        sys.exit(error.args[0] if error.args else 130)


class Child:
    """A controlled run in a child process, and what it tells."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.read, write = os.pipe()
        self.pid = faults.in_a_child(lambda: controlled(folder, write, **settings))
        os.close(write)
        self.lines: list[dict[str, Any]] = []
        self.rest = b""

    def events(self, seconds: float = 120.0) -> Iterator[dict[str, Any]]:
        """What the child tells, as it comes; ends when the child ends."""
        while True:
            while b"\n" in self.rest:
                line, self.rest = self.rest.split(b"\n", 1)
                self.lines.append(json.loads(line))
                yield self.lines[-1]
            ready, _, _ = select.select([self.read], [], [], seconds)
            assert ready, "the child hangs"
            more = os.read(self.read, 65536)
            if not more:
                return
            self.rest += more

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next of these; empty if the child ends before."""
        return next((told for told in self.events() if told["event"] == event), {})

    def send(self, *numbers: int) -> float:
        """Signals, one after the other; returns when."""
        for number in numbers:
            os.kill(self.pid, number)
        return time.monotonic()

    def end(self) -> int:
        """Read to the end and wait."""
        for _ in self.events():
            pass
        os.close(self.read)
        return faults.end_of(self.pid)


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load what a first step loads, once, before children are forked."""
    runs.train("lora", tmp_path_factory.mktemp("warm"), steps=1, ambient=1, layers=1)


def test_pauses_and_checkpoints_at_random_instants(tmp_path: Path) -> None:
    """Each pause is asked for by SIGUSR1 and ended by another; one SIGUSR2 comes anywhere, one within the pause."""
    whole, folder, rng = tmp_path / "whole", tmp_path / "run", random.Random(11)
    runs.go_on("lora", whole, steps=STORM_STEPS, ambient=1, every_n_steps=1, keep=1000, layers=1)
    child = Child(folder, steps=STORM_STEPS, ambient=2, every=10**6, least_seconds=STORM_STEP_SECONDS)
    latencies = []
    with faults.never_outliving(child.pid):
        child.wait_for("started")
        for _ in range(PAUSES):
            time.sleep(rng.uniform(0, 0.1))
            child.send(signal.SIGUSR2)
            time.sleep(rng.uniform(0, 0.05))
            child.send(signal.SIGUSR1)
            held = child.wait_for("held")
            assert held["state"] == "paused"
            asked = [line for line in child.lines if line["event"] == "asked"][-1]
            assert held["step"] - asked["step"] in (0, 1)
            latencies.append(held["at"] - asked["at"])
            child.send(signal.SIGUSR2)
            time.sleep(rng.uniform(0.05, 0.2))
            child.send(signal.SIGUSR1)
            child.wait_for("released")
        status = child.end()
    assert status == 0
    assert runs.same_weights(folder, whole)
    found = checkpoints(folder / "checkpoints")
    assert len(found) > PAUSES // 2
    for step, path in found:
        verify_state(path)
        theirs = whole / "checkpoints" / path.name
        assert file_sha256(path / TENSORS_NAME) == file_sha256(theirs / TENSORS_NAME), f"step {step}"
    late = max(latencies)
    print(f"P11: {2 * PAUSES} SIGUSR1, {PAUSES} pauses at the next boundary, {late:.2f} s later at most; equal weights")
    print(f"P12: {2 * PAUSES} SIGUSR2, {len(found)} checkpoints, each equal to that of the run left alone at its step")


def test_stopped_at_random_instants(tmp_path: Path) -> None:
    whole, rng = tmp_path / "whole", random.Random(14)
    runs.go_on("lora", whole, steps=STOP_STEPS, ambient=1, every_n_steps=100, layers=1)
    counts, number, stops = {"SIGTERM": 0, "SIGINT": 0, "twice": 0}, 0, 0
    while stops < STOPS:
        folder = tmp_path / str(number)
        number += 1
        while True:
            kind = ("SIGTERM", "SIGINT", "SIGTERM", "SIGINT", "twice")[stops % 5]
            child = Child(folder, steps=STOP_STEPS, ambient=number, every=10**6)
            with faults.never_outliving(child.pid):
                started = child.wait_for("started")
                if started:  # else the stop before came at the last step, and nothing was left to do
                    time.sleep(rng.uniform(0, 0.4))
                    child.send(signal.SIGTERM if kind == "SIGTERM" else signal.SIGINT)
                    if kind == "twice":
                        time.sleep(0.01)
                        child.send(signal.SIGINT)
                status = child.end()
            found = newest_whole(folder / "checkpoints", tell=print)
            if status == 0:  # it had come to its end before
                break
            assert status == (143 if kind == "SIGTERM" else 130), kind
            step = found[0] if found else 0
            assert step >= started["step"], kind
            if kind != "twice":
                last = max((line["step"] for line in child.lines), default=0)
                assert step >= last, "a stop saves the step that it ends"
            counts[kind] += 1
            stops += 1
            if stops >= STOPS:
                runs.go_on("lora", folder, steps=STOP_STEPS, ambient=3, every_n_steps=100, layers=1)
                break
        assert runs.same_weights(folder, whole)
    assert min(counts.values()) > 0
    print(f"P14: {stops} stops ({counts}), exit status 143 or 130; {number} runs went on to equal weights")


def test_a_cooldown_ends_when_asked(tmp_path: Path) -> None:
    """A rest of a minute after each step; SIGUSR1 ends it, SIGUSR2 saves within it, SIGTERM leaves."""
    child, reactions = Child(tmp_path / "run", steps=COOLDOWNS + 2, ambient=1, every=10**6, cooldown=60.0), []
    with faults.never_outliving(child.pid):
        for index in range(COOLDOWNS):
            held = child.wait_for("held")
            assert held["state"] == "cooling down"
            time.sleep(0.02)
            if index % 2:
                child.send(signal.SIGUSR2)
                deadline = time.monotonic() + 60
                while not (tmp_path / "run" / "checkpoints" / f"step={held['step']:08d}").exists():
                    assert time.monotonic() < deadline
                    time.sleep(0.002)
            asked = child.send(signal.SIGUSR1)
            reactions.append(child.wait_for("released")["at"] - asked)
        child.wait_for("held")
        asked = child.send(signal.SIGTERM)
        assert child.end() == 143
        left = time.monotonic() - asked
    reactions.sort()
    # twenty looks a second; a busy machine may let a process wait longer than it looks
    assert reactions[len(reactions) // 2] < SLACK
    assert left < 30
    print(
        f"P16: {COOLDOWNS} rests of 60 s ended after {reactions[len(reactions) // 2]:.3f} s in the middle, "
        f"{reactions[-1]:.3f} s at most; SIGTERM saved and left in {left:.2f} s"
    )


def test_the_remaining_time_counts_every_rest(tmp_path: Path) -> None:
    """What `seconds_ahead` says is what a run of that length will rest."""
    for steps in range(1, 40):
        for every in range(1, 12):
            desk = Desk(board=Board(tmp_path), flags=FLAGS)
            rest = Cooldown(enabled=True, every_n_steps=every, seconds=7.0, desk=desk)
            taken = [step for step in range(1, steps) if step % every == 0]
            for step in range(steps + 1):
                assert rest.seconds_ahead(step, steps) == 7.0 * sum(later > step for later in taken)


def test_quiet_hours_hold_until_morning_or_a_resume(tmp_path: Path) -> None:
    """The first night is broken by a resume before the first step, the second ends by the clock."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    runs.go_on("lora", whole, steps=6, ambient=1, layers=1)
    run.mkdir()
    desk, looks = Desk(board=Board(run), flags=Flags()), []

    class Clock(Callback):
        minute = 23 * 60

        def now(self) -> int:
            """It is 23:00 until a resume, noon after the second step, 22:00 after the fourth, 7:00 five looks later."""
            looks.append((desk.board.fields["state"], desk.board.fields["step"]))
            night = [look for look in looks if look == ("quiet hours", 4)]
            if looks.count(("quiet hours", 0)) == 5:
                desk.flags.ask("resume")
            return 7 * 60 if len(night) > 5 else self.minute

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.minute = {2: 12 * 60, 4: 22 * 60}.get(trainer.global_step, self.minute)

    clock = Clock()
    hours = QuietHours(enabled=True, begins="22:00", ends="07:00", now=clock.now, desk=desk)
    desk.board.update(state="training", step=0)
    runs.go_on(
        "lora", run, steps=6, ambient=2, layers=1, callbacks=(clock, hours, RunControl(pause_offload=False, desk=desk))
    )
    assert runs.same_weights(run, whole)
    assert {look for look in looks if look[0] == "quiet hours"} == {("quiet hours", 0), ("quiet hours", 4)}
    assert desk.held_seconds > 0
