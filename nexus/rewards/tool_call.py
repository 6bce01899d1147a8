"""Reward of tool calls, in graded shares: form, names, arguments, schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nexus.config.kinds import NotNegative, PartialShare
from nexus.rewards.gold import Gold, gold_value
from nexus.text.call_match import call_problems, count_matches, declines, equal_values, parameters_of
from nexus.text.tool_calls import ToolCall, parse_answer


def tool_call(
    completion: str,
    gold: Gold,
    prompt: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    *,
    finished: bool,
    parse: NotNegative,
    name: NotNegative,
    arguments: NotNegative,
    schema: NotNegative,
    partial: PartialShare,
) -> float:
    """How much of the right calls was made.

    Exactly the right calls, in any order, give 1. Less gives `partial` times a weighted mean of four shares, each of
    which divides by the longer of the two lists, so that a call too many costs as much as one too few:

    - `parse`: things that began as a call and are one;
    - `name`: right names, each as often as needed;
    - `arguments`: for each right call the share of its arguments in the best call of that name, an argument too many
      counting as a wrong one;
    - `schema`: calls that fit the schema of an offered tool.

    Where no tool fits, a sentence of one's own gives 1 and a call 0.

    The larger `partial`, the better it pays not to try. At 0.99, leaving out one of two arguments beats trying it with
    less than four hits in ten, and a policy that was trained so left arguments out and declined less often.

    Args:
        completion: what the model wrote.
        gold: holds `calls`, a list of `{"name", "arguments"}`, empty if no tool fits.
        prompt: chat turns; a copy of the request declines nothing.
        tools: definitions on offer, in the HF form.
        finished: False if the token limit ended the completion; it is worth 0.
        parse: weight of the form.
        name: weight of the names.
        arguments: weight of the arguments.
        schema: weight of the schema.
        partial: the most that calls that are not all right can earn.

    Returns:
        0 to 1.

    Raises:
        NexusError: `E-DAT-31` without right calls, `E-DAT-30` for a schema of an unknown type.
        ValueError: all weights are 0.
    """
    right: Sequence[Mapping[str, Any]] = gold_value(gold, "calls")
    weights = parse + name + arguments + schema
    if weights <= 0:
        raise ValueError("parse, name, arguments and schema are all 0")
    parsed = parse_answer(completion)
    if not finished:
        return 0.0
    if not right:
        return float(not parsed.malformed and declines(parsed, tools, prompt))
    calls = parsed.calls
    if not calls:
        return 0.0
    if not parsed.malformed and count_matches(calls, right, tools) == len(right) == len(calls):
        return 1.0
    longer = max(len(right), len(calls) + len(parsed.malformed))
    names = Counter(call.name for call in calls) & Counter(call["name"] for call in right)
    valid = sum(not call_problems(call, tools) for call in calls)
    shares = (
        parse * min(len(calls), len(right)) / longer
        + name * names.total() / longer
        + arguments * _argument_share(calls, right, tools) / longer
        + schema * min(valid, len(right)) / longer
    )
    return partial * shares / weights


def _argument_share(
    calls: Sequence[ToolCall], right: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> float:
    """Sum over the right calls of the share of their arguments, each call serving one of them, the best pairs first."""
    offered = parameters_of(tools)
    pairs = []
    for index, call in enumerate(calls):
        for number, wanted in enumerate(right):
            if call.name == wanted["name"]:
                schemas = offered.get(call.name, {}).get("properties", {})
                values = wanted["arguments"]
                hits = sum(
                    key in call.arguments and equal_values(call.arguments[key], value, schemas.get(key, {}))
                    for key, value in values.items()
                )
                union = len(values.keys() | call.arguments.keys())
                pairs.append((hits / union if union else 1.0, index, number))
    total, used, served = 0.0, set(), set()
    for share, index, number in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if index not in used and number not in served:
            used.add(index)
            served.add(number)
            total += share
    return total
