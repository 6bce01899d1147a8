"""How often each source is seen, and which rows are held out: formulas of the arguments, so a resumed run agrees."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from typing import TypeVar

from nexus.types import Example

T = TypeVar("T")


def weighted(rows: Sequence[T], weight: float, *, seed: int, name: str) -> list[T]:
    """Rows as often as a weight says: every row `floor(weight)` times, and a sample for the fraction that is left.

    Args:
        rows: of one source.
        weight: above 0; 1 leaves the rows as they are, 0.25 takes a quarter of them, 2.5 all twice and half of them
            a third time.
        seed: seed of the sample.
        name: of the source, so that two sources draw different samples.

    Returns:
        `round(weight * len(rows))` rows, up to rounding, and at least one if there is one: the copies one after the
        other, each in the old order; the order of an epoch mixes the sources.
    """
    whole = int(weight)
    part = round((weight - whole) * len(rows))
    if not whole and not part:
        part = min(1, len(rows))
    chosen = sorted(random.Random(f"nexus/mixture/{seed}/{name}").sample(range(len(rows)), part))
    return [*(list(rows) * whole), *(rows[i] for i in chosen)]


def split_held_out(
    examples: Sequence[Example], fraction: float, *, seed: int, pairs_only: bool = False
) -> tuple[list[Example], list[Example]]:
    """Hold out a share of the rows, chosen by the seed, the same in every run; equal rows fall on one side.

    Args:
        examples: the rows.
        fraction: share to hold out, of the rows that differ; above 0, at least one is held out if there are two.
        seed: seed of the choice.
        pairs_only: hold out only rows with two answers, and count the share of those: what is measured is which of
            two answers is preferred, and a single one would be lost to training for nothing.

    Returns:
        Rows to train on and held-out rows, both in their old order.
    """
    alike: dict[str, list[int]] = {}  # places of rows by what they say
    for i, example in enumerate(examples):
        if not pairs_only or (example.chosen and example.rejected):
            alike.setdefault(content(example), []).append(i)
    able = list(alike.values())
    most = len(able) - (sum(map(len, able)) == len(examples))  # something is left to train on
    count = min(most, max(1, round(fraction * len(able)))) if fraction > 0 and able else 0
    drawn = random.Random(f"nexus/held-out/{seed}").sample(range(len(able)), count)
    chosen = {i for group in drawn for i in able[group]}
    train = [example for i, example in enumerate(examples) if i not in chosen]
    return train, [example for i, example in enumerate(examples) if i in chosen]


def content(example: Example) -> str:
    """What a row says, whatever it is called: equal for equal rows."""
    said = (example.messages, example.text, example.tools, example.chosen, example.rejected, example.gold)
    return json.dumps(said, sort_keys=True, default=str)


def smaller(limit: int | None, other: int | None) -> int | None:
    """The smaller of two limits; None is no limit."""
    return min((value for value in (limit, other) if value is not None), default=None)


def count_steps(num_rows: int, *, global_batch_size: int, epochs: float | None, max_steps: int | None) -> int:
    """Optimizer steps of a phase: all epochs, but at most `max_steps`.

    Args:
        num_rows: rows of the data set.
        global_batch_size: rows of a step.
        epochs: passes over the rows; a fraction stops within one. None: only `max_steps` counts.
        max_steps: upper limit; None is no limit.

    Returns:
        At least 1.

    Raises:
        ValueError: if neither limit is given.
    """
    limits = [] if max_steps is None else [max_steps]
    if epochs is not None:
        limits.append(math.ceil(epochs * math.ceil(num_rows / global_batch_size)))
    if not limits:
        raise ValueError("give epochs, max_steps or both")
    return max(1, min(limits))
