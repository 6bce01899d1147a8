"""A hot machine within real training runs: it pauses, cools, goes on or gives up, and the weights do not notice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexus.callbacks.checkpoint import checkpoints
from nexus.callbacks.hold import Desk, RunStopped
from nexus.callbacks.metrics_csv import MetricsCsv, read_metrics
from nexus.callbacks.run_control import RunControl
from nexus.callbacks.thermal_pause import ThermalPause
from nexus.errors import NexusError
from nexus.flags import TERMINATED, Flags
from nexus.hardware.sensors import Sensor
from nexus.storage.run_status import STATUS_NAME, Board
from tests import runs

pytestmark = pytest.mark.faults

STEPS = 6
#: Degrees by reading: hot from the third step boundary on, then falling.
COOLING = [60.0, 60.0, 84.0, 90.0, 84.0, 80.0, 76.0, 75.0]


class Script(runs.Callback):
    """A sensor whose value a run moves on: one entry a step boundary, then one a look while training is held."""

    def __init__(self, values: list[Any], folder: Path) -> None:
        self.values = values
        self.place = 0
        self.status = folder / STATUS_NAME
        self.seen: list[dict[str, Any]] = []

    def read(self) -> float | None:
        """Degrees, or what a broken sensor does."""
        value = self.values[min(self.place, len(self.values) - 1)]
        if isinstance(value, Exception):
            raise value
        told = json.loads(self.status.read_text()) if self.status.exists() else {"state": ""}
        if told["state"] == "too hot":
            self.place += 1
            self.seen.append(told)
        return value  # type: ignore[no-any-return]

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Before the other callbacks look: this step's value, once the thread has read it."""
        self.place = min(self.place + 1, len(self.values) - 1)
        thermal = next(one for one in trainer.callbacks if isinstance(one, ThermalPause))
        thermal.poller._round()


def train(folder: Path, values: list[Any], *, flags: Flags | None = None, **limits: Any) -> tuple[Script, ThermalPause]:
    folder.mkdir(exist_ok=True)
    desk, script = Desk(board=Board(folder), flags=flags or Flags()), Script(values, folder)
    chosen: dict[str, Any] = {
        "enabled": True, "gpu_pause_at": 83.0, "gpu_resume_at": 75.0, "cpu_pause_at": 83.0, "cpu_resume_at": 75.0,
        "seconds_between_polls": 0.02, "min_pause_seconds": 0.0, "max_pause_seconds": 30.0,
        "unknown_after_seconds": 20.0, "stuck_after_seconds": 600.0, "on_unknown": "train",
    }  # fmt: skip
    find: Callable[[], dict[str, Sensor]] = lambda: {"cpu": script}  # noqa: E731
    thermal = ThermalPause(**(chosen | limits), find_sensors=find, desk=desk)
    metrics = MetricsCsv(every_n_steps=1, path=str(folder / "metrics.csv"))
    desk.board.set_state("training")
    runs.go_on(
        "lora",
        folder,
        steps=STEPS,
        ambient=2,
        layers=1,
        callbacks=(script, thermal, metrics, RunControl(pause_offload=False, desk=desk)),
    )
    return script, thermal


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stays cool."""
    folder = tmp_path_factory.mktemp("whole")
    runs.go_on("lora", folder, steps=STEPS, ambient=1, layers=1)
    return folder


def test_it_pauses_above_and_goes_on_at_the_lower_limit(tmp_path: Path, whole: Path) -> None:
    script, thermal = train(tmp_path / "run", COOLING)
    assert runs.same_weights(tmp_path / "run", whole)
    reasons = {told["reason"] for told in script.seen}
    assert reasons == {"cpu 84 C, limits 83/75"}
    assert {told["step"] for told in script.seen} == {2}
    assert script.place >= len(COOLING) - 1
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["perf/cpu_celsius"] == 60
    assert rows[2]["perf/paused_seconds"] > 0
    assert rows[-1]["perf/cpu_celsius"] == 75
    assert thermal.poller is None
    print(
        f"P15: a training paused above 83 C and went on at 75 C after {thermal.desk.held_seconds:.2f} s; equal weights"
    )


def test_still_hot_saves_and_ends_with_75(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(NexusError) as caught:
        train(tmp_path / "run", [60.0, 60.0, 90.0], max_pause_seconds=0.3)
    assert (caught.value.code, caught.value.status) == ("E-THM-03", 75)
    assert "cpu 90 C, limits 83/75" in caught.value.message
    assert [step for step, _ in checkpoints(tmp_path / "run" / "checkpoints")] == [2]
    train(tmp_path / "run", [60.0])  # cool again, it goes on from there
    assert runs.same_weights(tmp_path / "run", whole)


@pytest.mark.parametrize("broken", [None, -1.0, 255.0, OSError("driver gone")])
def test_a_sensor_that_breaks_while_hot_keeps_the_pause(
    tmp_path: Path, broken: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NexusError) as caught:
        train(tmp_path / "run", [60.0, 90.0, broken], max_pause_seconds=0.4)
    assert caught.value.code == "E-THM-03"
    assert "unknown" in caught.value.message
    told = [record.getMessage() for record in caplog.records]
    assert sum("W-THM-03" in line for line in told) == isinstance(broken, OSError)


@pytest.mark.parametrize(("policy", "ends"), [("train", None), ("stop", "E-THM-03")])
def test_a_sensor_that_breaks_while_cool_follows_the_policy(
    tmp_path: Path, whole: Path, policy: str, ends: str | None
) -> None:
    if ends is None:
        train(tmp_path / "run", [60.0, None], on_unknown=policy)
        assert runs.same_weights(tmp_path / "run", whole)
        return
    with pytest.raises(NexusError) as caught:
        train(tmp_path / "run", [60.0, None], on_unknown=policy)
    assert caught.value.code == ends


def test_a_stop_is_obeyed_while_it_is_hot(tmp_path: Path) -> None:
    flags = Flags()
    threading.Timer(1.5, lambda: flags.request_stop(TERMINATED, "SIGTERM")).start()
    with pytest.raises(RunStopped):
        train(tmp_path / "run", [60.0, 90.0], flags=flags)
    assert [step for step, _ in checkpoints(tmp_path / "run" / "checkpoints")] == [1]
