"""The state machine of heat on generated traces, and sensors that lie, hang or are missing."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from nexus.hardware.sensors import HwmonSensor, Poller, Reading, find_sensors
from nexus.hardware.thermal import Heat, HeatLimits, Verdict, advance

LIMITS = HeatLimits(
    pause_at=83, resume_at=75, min_pause=10, max_pause=120, unknown_after=10, stuck_after=600, on_unknown=Verdict.TRAIN
)
TRACES = 3_334  # for each of three policies
BROKEN = (None, -1.0, 0.0, 255.0, math.nan, math.inf)


def trace(rng: random.Random) -> list[tuple[float, float | None, float]]:
    """(now, reading, age): a card that heats and cools at random rates, with a sensor that fails now and then."""
    now, celsius, readings = rng.uniform(0, 1e6), rng.uniform(30, 95), []
    rate, fault = 0.0, 0
    for _ in range(rng.randint(20, 60)):
        now += rng.choice((0.05, 1.0, 2.0, 15.0))
        rate = rng.uniform(-4, 4) if rng.random() < 0.3 else rate
        celsius = min(120.0, max(25.0, celsius + rate))
        fault = rng.randint(1, 8) if rng.random() < 0.05 else max(0, fault - 1)
        broken = fault > 0 and rng.random() < 0.9
        age = rng.choice((0.0, 2.0, 11.0)) if rng.random() < 0.1 else 0.0
        readings.append((now, rng.choice(BROKEN) if broken else round(celsius), age))
    return readings


@pytest.mark.faults
@pytest.mark.parametrize("policy", list(Verdict))
def test_ten_thousand_traces_in_all(policy: Verdict) -> None:
    rng = random.Random(f"heat {policy}")
    limits = replace(LIMITS, on_unknown=policy)
    pauses = resumes = stops = 0
    for number in range(TRACES):
        heat, began = Heat(), None
        for now, value, age in trace(rng):
            before = heat
            heat = advance(heat, limits, Reading(value, now - age), now)
            place = f"trace {number} at {now}"
            good = value is not None and math.isfinite(value) and 0 < value < 130 and age <= limits.unknown_after
            if before.verdict is Verdict.STOP:
                assert heat.verdict is Verdict.STOP, place
                break
            if good and value is not None and value > limits.pause_at:
                assert heat.verdict is not Verdict.TRAIN, place  # from the first reading on
            if heat.verdict is Verdict.TRAIN and not good:
                assert began is None, place  # an unknown sensor never ends a pause
                assert policy is Verdict.TRAIN, place
            if before.verdict is Verdict.TRAIN and heat.verdict is Verdict.PAUSE:
                began, pauses = now, pauses + 1
            if before.verdict is Verdict.PAUSE:
                assert began is not None
                if heat.verdict is Verdict.TRAIN:
                    assert good, place
                    assert value is not None and value <= limits.resume_at, place  # noqa: PT018
                    assert now - began >= limits.min_pause, place
                    began, resumes = None, resumes + 1
                elif heat.verdict is Verdict.PAUSE:
                    assert now - began < limits.max_pause, place
                else:
                    assert now - began >= limits.max_pause, place
            stops += heat.verdict is Verdict.STOP
    assert min(pauses, resumes, stops) > 100, (pauses, resumes, stops)
    print(f"P15: {TRACES} traces, unknown means {policy.value}: {pauses} pauses, {resumes} resumed, {stops} stops")


def walk(limits: HeatLimits, *points: tuple[float, float | None]) -> list[Verdict]:
    heat, verdicts = Heat(), []
    for now, value in points:
        heat = advance(heat, limits, Reading(value, now), now)
        verdicts.append(heat.verdict)
    return verdicts


def test_by_hand() -> None:
    train, pause, stop = Verdict.TRAIN, Verdict.PAUSE, Verdict.STOP
    assert walk(LIMITS, (0, 83), (2, 84), (4, 74), (11, 74), (12, 74)) == [train, pause, pause, pause, train]
    assert walk(LIMITS, (0, 84), (12, 76), (14, 75)) == [pause, pause, train]
    assert walk(LIMITS, (0, 84), (60, None), (119, 255), (120, None), (130, 40)) == [pause, pause, pause, stop, stop]
    steady = [(float(now), 60.0) for now in range(0, 700, 100)]
    assert set(walk(LIMITS, *steady)) == {train}
    assert walk(replace(LIMITS, on_unknown=pause), *steady)[-2:] == [train, pause]  # the same value for 600 s
    assert walk(LIMITS, *[(now, 90.0) for now, _ in steady])[0] is pause  # stuck, but hot


def test_the_reference_card_pauses_no_more_than_sixty_times_an_hour() -> None:
    """A card that would reach 90 C under load and 42 C idle, with time constants of 75 and 45 s, noise 0.7 C."""
    rng, heat, celsius, pauses, peak = random.Random(1), Heat(), 42.0, 0, 0.0
    for second in range(0, 3600, 2):
        loaded = heat.verdict is Verdict.TRAIN
        target, constant = (90.0, 75.0) if loaded else (42.0, 45.0)
        celsius += (target - celsius) * (1 - math.exp(-2 / constant))
        peak = max(peak, celsius)
        heat = advance(heat, replace(LIMITS, max_pause=900), Reading(celsius + rng.gauss(0, 0.7), second), second)
        pauses += loaded and heat.verdict is Verdict.PAUSE
    assert 20 <= pauses <= 60
    assert peak < 84.5


@pytest.mark.parametrize(
    "change", [{"resume_at": 83}, {"pause_at": 130}, {"min_pause": 120}, {"stuck_after": 0}, {"resume_at": -1}]
)
def test_limits_that_cannot_be(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        replace(LIMITS, **change)


def test_the_kernel_s_files(tmp_path: Path) -> None:
    for folder, name, values in (("hwmon0", "nvme", ["99000"]), ("hwmon1", "k10temp", ["61500", "58000", "broken"])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(f"{name}\n")
        for index, value in enumerate(values):
            (tmp_path / folder / f"temp{index}_input").write_text(value)
    found = find_sensors(None, hwmon=tmp_path)
    assert list(found) == ["cpu"]
    assert found["cpu"].read() == 61.5
    assert HwmonSensor([tmp_path / "gone"]).read() is None


def test_a_poller_reads_beside_and_closes_twice() -> None:
    class Rising:
        celsius = 40.0

        def read(self) -> float:
            self.celsius += 1
            return self.celsius

    sensor = Rising()
    poller = Poller({"cpu": sensor}, seconds=0.01)
    poller.start()
    first = poller.readings["cpu"]
    while poller.readings["cpu"].value == first.value:
        pass
    poller.close()
    poller.close()
    assert poller.readings["cpu"].at > first.at
