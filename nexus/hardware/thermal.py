"""When to pause for heat and when to go on: a state machine without clock, thread or sensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from nexus.hardware.sensors import Reading

#: What a working sensor can say, in degrees Celsius; drivers report failures as -1, 0 or 255.
_COLDEST, _HOTTEST = 0.0, 130.0


class Verdict(Enum):
    """What training may do."""

    TRAIN = "train"
    PAUSE = "pause"
    STOP = "stop"


@dataclass(frozen=True)
class HeatLimits:
    """Limits of one sensor.

    Attributes:
        pause_at: training pauses above, in degrees Celsius.
        resume_at: it goes on at or below.
        min_pause: shortest pause, in seconds.
        max_pause: a pause that is still needed after so many seconds stops the run.
        unknown_after: a reading older than so many seconds is none.
        stuck_after: a sensor that says the same for so many seconds is not believed to be cool.
        on_unknown: what training does while a sensor that was not hot is unknown or stuck.
    """

    pause_at: float
    resume_at: float
    min_pause: float
    max_pause: float
    unknown_after: float
    stuck_after: float
    on_unknown: Verdict

    def __post_init__(self) -> None:
        if not _COLDEST < self.resume_at < self.pause_at < _HOTTEST:
            raise ValueError("temperatures must be above 0 and below 130 degrees, resume_at below pause_at")
        if not 0 <= self.min_pause < self.max_pause:
            raise ValueError("min_pause must be at least 0 and below max_pause")
        if self.unknown_after <= 0 or self.stuck_after <= 0:
            raise ValueError("unknown_after and stuck_after must be above 0")


@dataclass(frozen=True)
class Heat:
    """What is remembered of one sensor.

    Attributes:
        verdict: the last one.
        known: whether the last reading could be believed.
        paused_since: None while training.
        celsius: last value that a sensor can have.
        same_since: since when it says that.
    """

    verdict: Verdict = Verdict.TRAIN
    known: bool = True
    paused_since: float | None = None
    celsius: float | None = None
    same_since: float = 0.0


def advance(heat: Heat, limits: HeatLimits, reading: Reading, now: float) -> Heat:
    """Judge a reading.

    A value above the limit is believed even from a stuck sensor. Once paused, an unknown sensor never lets training go
    on: the pause lasts until it says cool, or until its longest duration stops the run. A stop is final.

    Args:
        heat: what is remembered.
        limits: of this sensor.
        reading: its latest.
        now: seconds on the clock of the reading.

    Returns:
        The new memory with its verdict.
    """
    if heat.verdict is Verdict.STOP:
        return heat
    value = reading.value
    possible = value is not None and math.isfinite(value) and _COLDEST < value < _HOTTEST
    fresh = possible and now - reading.at <= limits.unknown_after
    if fresh and value != heat.celsius:
        heat = replace(heat, celsius=value, same_since=now)
    known = fresh and now - heat.same_since < limits.stuck_after
    heat = replace(heat, known=known)
    if heat.paused_since is None:
        hot = fresh and value is not None and value > limits.pause_at
        verdict = Verdict.PAUSE if hot else Verdict.TRAIN if known else limits.on_unknown
        return replace(heat, verdict=verdict, paused_since=now if verdict is Verdict.PAUSE else None)
    held = now - heat.paused_since
    cool = fresh and value is not None and value <= limits.resume_at
    if cool and held >= limits.min_pause and (known or limits.on_unknown is Verdict.TRAIN):
        return replace(heat, verdict=Verdict.TRAIN, paused_since=None)
    return replace(heat, verdict=Verdict.STOP if held >= limits.max_pause else Verdict.PAUSE)
