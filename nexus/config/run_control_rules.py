"""What pauses, heat limits and checkpoints ask of each other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from nexus.errors import Problem

_THERMAL = "callbacks.thermal_pause"


def run_control_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Settings of the callbacks that hold a run that cannot go together.

    Args:
        config: resolved, plain containers whose shape is right.

    Yields:
        Problems.
    """
    thermal = config["callbacks"].get("thermal_pause")
    if thermal is not None:
        yield from _heat_problems(thermal)
    quiet = config["callbacks"].get("quiet_hours")
    if quiet is not None and {"begins", "ends"} <= quiet.keys():
        yield from _clock_problems(quiet)


def _clock_problems(quiet: Mapping[str, Any]) -> Iterator[Problem]:
    """`E-CFG-02`: times that no clock shows, or that leave no hour to train in."""
    key, remedy = "callbacks.quiet_hours", 'a time of day such as "22:00"'
    for name in ("begins", "ends"):
        try:
            time.strptime(quiet[name], "%H:%M")
        except ValueError:
            yield Problem("E-CFG-02", f"{key}.{name}", f"= {quiet[name]!r} is no time of day", remedy)
    if quiet["begins"] == quiet["ends"]:
        yield Problem("E-CFG-02", f"{key}.ends", f"= {quiet['ends']!r} is when they begin", "another time")


def _heat_problems(thermal: Mapping[str, Any]) -> Iterator[Problem]:
    """`E-THM-02`: pauses that would never end, or never begin."""
    pairs = [(f"{chip}_resume_at", f"{chip}_pause_at", "a pause ends at or below it") for chip in ("gpu", "cpu")]
    pairs += [
        ("min_pause_seconds", "max_pause_seconds", "the shortest pause"),
        ("seconds_between_polls", "unknown_after_seconds", "every reading would be too old"),
    ]
    for low, high, why in pairs:
        if low in thermal and high in thermal and thermal[low] >= thermal[high]:
            yield Problem(
                "E-THM-02",
                f"{_THERMAL}.{low}",
                f"= {thermal[low]:g} is not below {high}={thermal[high]:g}: {why}",
                f"a lower value, or a higher {_THERMAL}.{high}",
            )
