"""Tool calls whose result is needed: what the functions of `tools` give back, and rows that end with stating it.

A function computes its result from its name and its arguments, so that the same call gives the same result on every
machine. One with a numeric parameter has a `total`: a fee of its own, and for each number that was given a rate of its
own times that number. Any other has a `reference`, a code that depends on every argument. What is no proper call gets
an `error`. The words of a result are ours: nothing that a caller wrote stands in it, so it carries no tag into a
prompt.

The rows are the single calls of `tools` with a question about the result; functions and values are split as there.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from nexus.data.synthetic import words
from nexus.data.synthetic.tools import VIEWS, Task, sample_task
from nexus.text.answers import ANSWER_CLOSE, ANSWER_OPEN
from nexus.text.call_match import parameters_of, value_problems
from nexus.text.tool_calls import ToolCall

#: Larger numbers are refused as arguments; a caller could make a result of any length otherwise.
LARGEST = 10**6
_QUESTIONS = (
    "What is the {f}?",
    "Tell me the {f}.",
    "I need to know the {f}.",
    "What {f} do I get?",
    "Give me the {f}.",
)
_CONSONANTS = "BCDFGHJKLMNPQRSTVWXZ"


def call_result(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a function gives back.

    Args:
        call: what was called.
        tools: definitions on offer, in the HF form.

    Returns:
        `{"total": number}`, `{"reference": text}`, or `{"error": text}` for a function that is not on offer and for
        arguments that are missing, wrong, unknown or too large.

    Raises:
        NexusError: `E-DAT-30` if a schema has an unknown type.
    """
    offered = parameters_of(tools)
    if call.name not in offered:
        return {"error": "unknown function"}
    parameters = offered[call.name]
    problem = _argument_problem(call.arguments, parameters)
    if problem:
        return {"error": problem}
    if _has_total(parameters):
        return {"total": _total(call)}
    return {"reference": _reference(call)}


def _argument_problem(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with the arguments, in the words of the schema."""
    schemas = parameters.get("properties", {})
    for name in parameters.get("required", ()):
        if name not in arguments:
            return f"missing argument: {name}"
    if arguments.keys() - schemas.keys():
        return "unknown argument"
    for name, schema in schemas.items():
        if name in arguments and value_problems(arguments[name], schema, name):
            return f"wrong argument: {name}"
        if _is_number(arguments.get(name)) and not abs(arguments[name]) <= LARGEST:
            return f"argument too large: {name}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_total(parameters: Mapping[str, Any]) -> bool:
    return any(schema.get("type") in ("integer", "number") for schema in parameters.get("properties", {}).values())


def _rate(*name: str, low: int, high: int) -> int:
    """A number that belongs to a function, or to one of its arguments, for good."""
    return random.Random("nexus-tool-results:" + ":".join(name)).randint(low, high)


def _total(call: ToolCall) -> int | float:
    """Fee plus rate times number over the numeric arguments, in tenths, which is exact for the numbers of the rows."""
    total = Fraction(_rate(call.name, low=1, high=30))
    for name, value in call.arguments.items():
        if _is_number(value):
            total += _rate(call.name, name, low=2, high=9) * Fraction(str(value))
    tenths = math.floor(total * 10 + Fraction(1, 2))
    return tenths / 10 if tenths % 10 else tenths // 10


def _reference(call: ToolCall) -> str:
    """Two letters and four digits; the order of the arguments does not matter."""
    text = json.dumps([call.name, call.arguments], sort_keys=True, ensure_ascii=False)
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    letters = _CONSONANTS[number % 20] + _CONSONANTS[number // 20 % 20]
    return f"{letters}-{1000 + number // 400 % 9000}"


def _statement(field: str, value: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": f"the {field} is {ANSWER_OPEN}{value}{ANSWER_CLOSE}"}


def _wrong(rng: random.Random, value: Any) -> str:
    """A result that was misread: two neighboring figures in each other's place, or another last one."""
    text = str(value)
    swaps = [
        text[:i] + text[i + 1] + text[i] + text[i + 2 :]
        for i in range(len(text) - 1)
        if text[i] != text[i + 1] and text[i : i + 2].isdigit()
    ]
    if swaps and rng.random() < 0.5:
        return rng.choice(swaps)
    return text[:-1] + str((int(text[-1]) + rng.randint(1, 9)) % 10)


def _row(task: Task, view: str) -> dict[str, Any]:
    tools = [function.schema() for function in task.offered]
    [call] = task.calls
    result = call_result(ToolCall(call.function.name, call.arguments), tools)
    [(field, value)] = result.items()
    rng = random.Random(f"nexus-tool-results-row:{task.id}")
    request = f"{task.request} {rng.choice(_QUESTIONS).format(f=field)}"
    turns = [
        {"role": "user", "content": request},
        {"role": "assistant", "content": task.plan, "tool_calls": [call.as_tool_call()]},
        {"role": "tool", "name": call.function.name, "content": json.dumps(result)},
    ]
    row: dict[str, Any] = {"id": task.id.replace("tools-", "tool-results-", 1), "tools": tools}
    if view == "sft":
        return row | {"messages": [*turns, _statement(field, value)]}
    if view == "prompts":
        return row | {"prompt": turns[:1], "gold": {"calls": [call.as_gold()], "answer": str(value)}}
    wrong = _statement(field, _wrong(rng, value))
    return row | {"prompt": turns, "chosen": [_statement(field, value)], "rejected": [wrong]}


def rows(*, view: str, split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of the embedded tool results.

    Args:
        view: "sft" (call, result and statement), "preference" (the statement after a result) or "prompts".
        split: "train" or "eval".
        count: number of rows; row i does not depend on it.
        seed: seed of the tasks, which are the single calls among those of `tools`.

    Yields:
        Rows as the project's data contract describes them; gold is `{"calls", "answer"}`.

    Raises:
        ValueError: an unknown view or split, or a negative count.
    """
    if view not in VIEWS or split not in words.SPLITS or count < 0:
        raise ValueError(f"no rows for view={view!r} (of {VIEWS}), split={split!r} (of {words.SPLITS}), count={count}")
    index = made = 0
    while made < count:
        task = sample_task(split, seed, index)
        index += 1
        if len(task.calls) == 1:
            made += 1
            yield _row(task, view)
