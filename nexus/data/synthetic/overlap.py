"""Checks that evaluation rows do not occur in training rows: n-grams, functions, argument sets and values.

The n-gram check follows Brown et al. 2020 (GPT-3), appendix C: lower-cased words without punctuation, an evaluation
row is dirty if it shares one n-gram (13 there) with the training rows. Unlike there, frequent n-grams are not excused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class OverlapReport:
    """What evaluation rows share with training rows.

    Attributes:
        ngrams: shared n-grams, as text.
        dirty_rows: share of evaluation rows with at least one shared n-gram, 0 to 1.
        functions: names of functions on offer in both.
        argument_sets: sets of argument names of functions on offer in both.
        values: argument values in answers of both, as text; booleans, of which there are only two, are left out.
        train_rows: rows read.
        eval_rows: rows read.
    """

    ngrams: frozenset[str]
    dirty_rows: float
    functions: frozenset[str]
    argument_sets: frozenset[frozenset[str]]
    values: frozenset[str]
    train_rows: int
    eval_rows: int

    @property
    def clean(self) -> bool:
        """Whether nothing is shared."""
        return not (self.ngrams or self.functions or self.argument_sets or self.values)


def _turns(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [turn for key in ("messages", "prompt", "chosen") for turn in row.get(key, ())]


def _calls(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    calls = [call["function"] for turn in _turns(row) for call in turn.get("tool_calls", ())]
    return calls + list(row.get("gold", {}).get("calls", ()))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif not isinstance(value, bool):
        yield str(value)


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    """The parts of a row that n-grams must not cross: turns, calls, tools, gold steps."""
    for turn in _turns(row):
        yield str(turn["content"])
    for call in _calls(row):
        yield f"{call['name']} {call['arguments']}"
    for tool in row.get("tools", ()):
        function = tool["function"]
        yield f"{function['name']} {' '.join(function['parameters']['properties'])} {function['description']}"
    yield " ".join(row.get("gold", {}).get("steps", ()))


def _ngrams(row: Mapping[str, Any], n: int) -> set[str]:
    found: set[str] = set()
    for text in _texts(row):
        parts = _WORD.findall(text.lower())
        found.update(" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1))
    return found


@dataclass
class _Content:
    ngrams: set[str]
    functions: set[str]
    argument_sets: set[frozenset[str]]
    values: set[str]


def _read(row: Mapping[str, Any], n: int) -> _Content:
    functions = [tool["function"] for tool in row.get("tools", ())]
    return _Content(
        _ngrams(row, n),
        {function["name"] for function in functions},
        {frozenset(function["parameters"]["properties"]) for function in functions},
        {leaf for call in _calls(row) for leaf in _leaves(call["arguments"])},
    )


def overlap_report(
    train_rows: Iterable[Mapping[str, Any]], eval_rows: Iterable[Mapping[str, Any]], *, n: int = 13
) -> OverlapReport:
    """Compare evaluation rows with training rows of any view.

    Args:
        train_rows: rows of the data contract.
        eval_rows: rows of the data contract.
        n: words of an n-gram.

    Returns:
        What is shared.

    Raises:
        ValueError: there are no rows on one side, or n is not positive: nothing would be checked.
    """
    if n < 1:
        raise ValueError(f"n must be positive, not {n}")
    seen = _Content(set(), set(), set(), set())
    train_count = dirty = eval_count = 0
    for row in train_rows:
        train_count += 1
        content = _read(row, n)
        seen.ngrams |= content.ngrams
        seen.functions |= content.functions
        seen.argument_sets |= content.argument_sets
        seen.values |= content.values
    shared = _Content(set(), set(), set(), set())
    for row in eval_rows:
        eval_count += 1
        content = _read(row, n)
        dirty += bool(content.ngrams & seen.ngrams)
        shared.ngrams |= content.ngrams & seen.ngrams
        shared.functions |= content.functions & seen.functions
        shared.argument_sets |= content.argument_sets & seen.argument_sets
        shared.values |= content.values & seen.values
    if not train_count or not eval_count:
        raise ValueError(f"nothing to compare: {train_count} training rows, {eval_count} evaluation rows")
    return OverlapReport(
        frozenset(shared.ngrams),
        dirty / eval_count,
        frozenset(shared.functions),
        frozenset(shared.argument_sets),
        frozenset(shared.values),
        train_count,
        eval_count,
    )
