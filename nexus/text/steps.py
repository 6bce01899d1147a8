"""Written reasoning: its steps, the level of its depth, and the review of a draft.

A step names where one stands and where it leads: `owl -> lamp`, `lamp = wolf`, `3 + 2 = 5`. The three levels write the
same way in three depths:

    low       owl, lamp, wolf
    medium    owl -> lamp
              lamp = wolf
    high      1. owl -> lamp
              2. lamp = wolf
              Check: owl, lamp, wolf

A review holds a draft against the facts, step by step, until a mistake is found; from there on it goes its own way:

    owl, fox? owl -> lamp: no
    lamp = wolf
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LEVELS = ("low", "medium", "high")
CHECK = "Check: "
YES, NO = "yes", "no"

_STATE = r"[^\W_]+"
_STEP = re.compile(rf"(?P<source>{_STATE}) (?:->|=|[-+*] \d+ =) (?P<target>{_STATE})")
_NUMBERED = re.compile(r"(\d+)\. (.+)")
_WAY = re.compile(rf"{_STATE}(?:, {_STATE})+")
_REVIEWED = re.compile(rf"(?P<at>{_STATE}), (?P<claim>{_STATE})\? (?P<step>.+): (?P<verdict>{YES}|{NO})")


@dataclass(frozen=True)
class WrittenStep:
    """One step.

    Attributes:
        source: where it starts.
        target: where it leads.
        text: the step as written.
    """

    source: str
    target: str
    text: str


@dataclass(frozen=True)
class WrittenWork:
    """Reasoning that has the form of a level.

    Attributes:
        level: one of `LEVELS`.
        units: what the level writes: the states of the way (low), or the steps as text.
    """

    level: str
    units: tuple[str, ...]


@dataclass(frozen=True)
class ReviewedStep:
    """One line of a review.

    Attributes:
        step: what the facts say.
        claim: where the draft went; None once the draft is known to be wrong.
        verdict: `yes` or `no`; None where there is no claim.
    """

    step: WrittenStep
    claim: str | None
    verdict: str | None


def read_step(line: str) -> WrittenStep | None:
    """The step that a line is.

    Args:
        line: one line, white space around it does not matter.

    Returns:
        The step; None if the line is anything else.
    """
    found = _STEP.fullmatch(line.strip())
    return WrittenStep(found["source"], found["target"], line.strip()) if found else None


def read_work(thinking: str) -> WrittenWork | None:
    """What a thought wrote down, and at which level.

    Args:
        thinking: what stands between the think tags.

    Returns:
        Level and units; None if the thought has the form of no level. The check of the level `high` must go through as
        many states as there were steps, whatever they are.
    """
    lines = [line.strip() for line in thinking.strip().splitlines()]
    if len(lines) == 1 and _WAY.fullmatch(lines[0]):
        return WrittenWork("low", tuple(lines[0].split(", ")))
    if lines and lines[-1].startswith(CHECK):
        numbered = [_NUMBERED.fullmatch(line) for line in lines[:-1]]
        written = [match[2] for match in numbered if match]
        counted = [int(match[1]) for match in numbered if match] == list(range(1, len(lines)))
        way = lines[-1].removeprefix(CHECK)
        whole = _WAY.fullmatch(way) is not None and way.count(", ") == len(written)
        level, lines = "high", written if counted and whole else []
    else:
        level = "medium"
    steps = [read_step(line) for line in lines]
    if not steps or None in steps:
        return None
    return WrittenWork(level, tuple(lines))


def read_review(thinking: str) -> tuple[ReviewedStep, ...] | None:
    """The review of a draft that a thought is.

    Args:
        thinking: what stands between the think tags.

    Returns:
        Its lines in order; None if a line is neither a reviewed step nor, after a `no`, a step alone.
    """
    found: list[ReviewedStep] = []
    for line in thinking.strip().splitlines():
        rejected = bool(found) and (found[-1].verdict == NO or found[-1].claim is None)
        match = _REVIEWED.fullmatch(line.strip())
        if rejected == (match is not None):
            return None
        step = read_step(match["step"] if match else line)
        if step is None or (match is not None and match["at"] != step.source):
            return None
        found.append(ReviewedStep(step, match["claim"] if match else None, match["verdict"] if match else None))
    return tuple(found) or None


def shared_start(written: Sequence[str], right: Sequence[str]) -> float:
    """How far two lists agree from their beginning.

    Args:
        written: what was written.
        right: what should have been; not empty.

    Returns:
        Equal leading entries over the length of the longer list, 0 to 1.
    """
    equal = 0
    for one, other in zip(written, right, strict=False):
        if one != other:
            break
        equal += 1
    return equal / max(len(written), len(right))
