"""The power budget: its window by hand and on traces, the driver's units, and rests within real runs."""

from __future__ import annotations

import importlib.machinery
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nexus.callbacks.checkpoint import checkpoints
from nexus.callbacks.hold import Desk
from nexus.callbacks.power_budget import PowerBudget
from nexus.errors import NexusError
from nexus.flags import Flags
from nexus.hardware.power import DrawWindow, must_rest
from nexus.hardware.sensors import Sensor, find_power
from nexus.storage.run_status import STATUS_NAME, Board
from tests import faults, runs

TRACES = faults.count(100, 500)


def test_the_window_by_hand() -> None:
    window = DrawWindow(20)
    assert window.mean(7) == 0
    window.add(0, 100)
    assert window.mean(5) == 25, "nothing is known of the time before"
    window.add(10, 200)
    assert window.mean(20) == 150
    assert window.mean(25) == 175
    window.add(40, 0)
    assert window.mean(40) == 200
    assert window.mean(60) == 0
    with pytest.raises(ValueError, match="above 0"):
        DrawWindow(0)


def test_the_window_is_the_integral_over_it() -> None:
    rng = random.Random(1)
    for _ in range(TRACES):
        seconds = rng.randint(1, 40)
        window = DrawWindow(seconds)
        drawn, now, watts = np.zeros(400), 40, 0.0
        for _ in range(rng.randint(1, 30)):
            step = rng.randint(0, 9)
            drawn[now : now + step] = watts
            now += step
            watts = rng.choice((0.0, 30.0, rng.uniform(0, 600)))
            window.add(now, watts)
            assert window.mean(now) == pytest.approx(drawn[now - seconds : now].sum() / seconds)


@pytest.mark.faults
def test_no_window_draws_more_than_the_budget_one_step_and_a_rest() -> None:
    """Random cards, budgets and steps: seconds of load or of rest, a poll a second, decisions at step boundaries."""
    rng, rests = random.Random(2), 0
    for trace in range(TRACES):
        idle, seconds, step = rng.uniform(5, 60), rng.randint(20, 120), rng.randint(1, 10)
        loaded = rng.uniform(200, 600)
        watts = rng.uniform(idle * 1.3, loaded)
        resume_watts = rng.uniform(idle * 1.1, watts * 0.95)
        window, resting, rested = DrawWindow(seconds), False, 0
        for now in range(1200):
            window.add(now, idle if resting else loaded)
            mean = window.mean(now)
            most = watts + loaded * (step + 1) / seconds + idle  # the rest draws too, while the window fills
            assert mean <= most + 1e-6, f"trace {trace} at {now}"
            if resting or now % step == 0:
                was, resting = resting, must_rest(mean, resting=resting, watts=watts, resume_watts=resume_watts)
                rests += resting and not was
                assert resting or mean <= (resume_watts if was else watts)
            rested = rested + 1 if resting else 0
            assert rested <= seconds + 1, "an idle card gets below any limit above its own draw within a window"
    assert rests > TRACES
    print(f"{TRACES} traces of 20 minutes, {rests} rests")


class Driver(types.ModuleType):
    """The three calls of nvidia-ml-py, with a card that draws 123.456 W."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.__spec__ = importlib.machinery.ModuleSpec("pynvml", None)
        self.milliwatts: int | None = 123_456

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-1":
            raise self.NVMLError("not found")
        return uuid

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        if self.milliwatts is None:
            raise self.NVMLError("not supported")
        return self.milliwatts


def test_the_driver_counts_in_thousandths(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    sensor = find_power("GPU-1")
    assert sensor is not None
    assert sensor.read() == 123.456
    assert find_power("GPU-2") is None
    assert find_power(None) is None
    driver.milliwatts = None
    assert sensor.read() is None, "and never 0 W"
    assert find_power("GPU-1") is None


class Card:
    """Draws 300 W while its run trains, and something else while it rests."""

    def __init__(self, folder: Path, *, idle: float | None) -> None:
        self.status = folder / STATUS_NAME
        self.idle = idle

    def read(self) -> float | None:
        resting = self.status.exists() and json.loads(self.status.read_text())["state"] == "power budget"
        return self.idle if resting else 300.0


def train(folder: Path, sensor: Sensor | None, **changes: Any) -> tuple[Any, Desk]:
    folder.mkdir(exist_ok=True)
    desk = Desk(board=Board(folder), flags=Flags())
    given: dict[str, Any] = {
        "enabled": True, "watts": 200.0, "resume_watts": 150.0, "window_seconds": 0.3, "seconds_between_polls": 0.05,
        "max_pause_seconds": 60.0, "find_power": lambda: sensor, "desk": desk,
    }  # fmt: skip
    budget = PowerBudget(**(given | changes))
    return runs.train("lora", folder, steps=40, ambient=1, callbacks=(budget,)), desk


def test_a_run_rests_and_its_weights_do_not_notice(tmp_path: Path) -> None:
    plain, _ = train(tmp_path / "plain", None, enabled=False)
    rested, desk = train(tmp_path / "rested", Card(tmp_path / "rested", idle=10.0))
    assert desk.held_seconds > 0.05
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), rested.parameters(), strict=True))


def test_a_card_that_idles_above_the_budget_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NexusError) as caught:
        train(tmp_path, Card(tmp_path, idle=190.0), max_pause_seconds=0.7)
    assert (caught.value.code, caught.value.status) == ("E-THM-04", 75)
    assert "resume_watts=150" in caught.value.remedy
    [(step, _)] = checkpoints(tmp_path / "checkpoints")
    assert 0 < step < 40


def test_a_power_that_is_unknown_ends_no_rest(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match="is not known after a rest"):
        train(tmp_path, Card(tmp_path, idle=None), max_pause_seconds=0.7)


def test_without_a_sensor_it_says_so_once_and_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, None)
    assert caplog.text.count("W-THM-04") == 1
