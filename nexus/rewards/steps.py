"""Reward of steps that are consistent: every equation is true, rests on something, and the last gives the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from nexus.text.answers import Equation, equations, final_answer, normalize_number
from nexus.text.equality import same_answer
from nexus.text.think import split_think

_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+")


def steps(
    completion: str, prompt: Sequence[Mapping[str, Any]], *, finished: bool, grounded: bool, smallest: int
) -> float:
    """Share of good steps, if they lead to the answer that was given.

    A step is a line `a op b = c`, in the thinking or outside. It is good if it is true and, with `grounded`, if both
    operands stand in the prompt or are results of earlier steps; without that, "1 + 1 = 2" would earn as much as work
    on the question. A step counts once, however often it is written. Whether the answer is right is for `answer` to
    say: this function needs no gold and also rewards a flawless calculation of the wrong thing.

    Args:
        completion: what the model wrote.
        prompt: chat turns; numbers of any turn but the system's are given.
        finished: False if the token limit ended the completion; it is worth 0.
        grounded: an operand from nowhere makes a step bad.
        smallest: fewer different steps than this are worth nothing.

    Returns:
        0 to 1; 0 without a step, without an answer, or if the last step is not the answer.
    """
    thought = split_think(completion)
    written = equations(f"{thought.thinking or ''}\n{thought.answer}")
    said = final_answer(completion)
    if not finished or said is None or not written or len(set(written)) < smallest:
        return 0.0
    if not same_answer(said, _plain(written[-1].result), 0.0):
        return 0.0
    known = _numbers(prompt) if grounded else None
    good: dict[Equation, bool] = {}
    for step in written:
        based = known is None or {abs(step.left), abs(step.right)} <= known
        good[step] = step.holds and based and good.get(step, True)
        if known is not None:
            known.add(abs(step.result))
    return sum(good.values()) / len(good)


def _plain(number: Fraction) -> str:
    return f"{number.numerator}/{number.denominator}" if number.denominator != 1 else str(number.numerator)


def _numbers(prompt: Sequence[Mapping[str, Any]]) -> set[Fraction]:
    found = set()
    for turn in prompt:
        if turn["role"] != "system":
            values = map(normalize_number, _NUMBER.findall(str(turn["content"])))
            found |= {abs(value) for value in values if value is not None}
    return found
