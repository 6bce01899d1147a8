"""What pauses, heat limits and checkpoints ask of each other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nexus.errors import Problem

_THERMAL = "callbacks.thermal_pause"
#: A setting, one that it must be below, and why.
_HEAT_PAIRS = (
    ("gpu_resume_at", "gpu_pause_at", "a pause ends at or below it"),
    ("cpu_resume_at", "cpu_pause_at", "a pause ends at or below it"),
    ("min_pause_seconds", "max_pause_seconds", "the shortest pause"),
    ("seconds_between_polls", "unknown_after_seconds", "every reading would be too old"),
)
_POWER_PAIRS = (
    ("resume_watts", "watts", "a rest ends at or below it"),
    ("seconds_between_polls", "window_seconds", "the mean of a window needs readings in it"),
)


def run_control_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Settings of the callbacks that hold a run that cannot go together.

    Args:
        config: resolved, plain containers whose shape is right.

    Yields:
        Problems.
    """
    thermal = config["callbacks"].get("thermal_pause")
    if thermal is not None:
        yield from _pairs_problems(_THERMAL, thermal, _HEAT_PAIRS)
    power = config["callbacks"].get("power_budget")
    if power is not None:
        yield from _pairs_problems("callbacks.power_budget", power, _POWER_PAIRS)
    quiet = config["callbacks"].get("quiet_hours")
    if quiet is not None and {"begins", "ends"} <= quiet.keys():
        yield from _clock_problems(quiet)


def validation_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Validation while training that has no loss to measure, or no checkpoint to take the best weights from.

    Args:
        config: resolved, plain containers whose shape is right.

    Yields:
        Problems.
    """
    validation, method = config["callbacks"].get("validation"), config["method"]
    if validation is None:
        return
    key, wanted = "callbacks.validation", bool(validation.get("enabled"))
    if wanted and method["view"] != "sft":
        reads = {"prompts": "its answers are sampled"}.get(method["view"], "it reads pairs of answers")
        yield Problem(
            "E-CFG-03",
            f"{key}.enabled",
            f"method={method['name']} has no loss on held-out rows: {reads}",
            f"{key}.enabled=false; scores before and after stand in the report",
        )
    if wanted and config["base_model"]["rope"]["type"] == "dynamic":
        yield Problem(
            "E-CFG-03",
            f"{key}.enabled",
            "with base_model.rope.type=dynamic the longest row so far decides about the positions of the next ones, so "
            "that held-out rows would change what is trained",
            f"base_model.rope.type=yarn, or {key}.enabled=false",
        )
    if not validation.get("restore_best"):
        return
    if not wanted:
        yield Problem("E-CFG-03", f"{key}.restore_best", "nothing says which step is the best", f"{key}.enabled=true")
    elif config["callbacks"].get("checkpoint") is None:
        yield Problem(
            "E-CFG-03",
            f"{key}.restore_best",
            "the best weights are those of a checkpoint, and callbacks.checkpoint is null",
            f"leave callbacks.checkpoint as it is, or {key}.restore_best=false",
        )


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


def _pairs_problems(key: str, settings: Mapping[str, Any], pairs: Sequence[tuple[str, str, str]]) -> Iterator[Problem]:
    """`E-THM-02`: pauses that would never end, or never begin."""
    for low, high, why in pairs:
        if low in settings and high in settings and settings[low] >= settings[high]:
            yield Problem(
                "E-THM-02",
                f"{key}.{low}",
                f"= {settings[low]:g} is not below {high}={settings[high]:g}: {why}",
                f"a lower value, or a higher {key}.{high}",
            )
