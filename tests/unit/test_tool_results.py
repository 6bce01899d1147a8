"""Results of functions: computed from their arguments, an error for what is no proper call; and rows that need it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from nexus.data.synthetic import GENERATORS, tool_results, tools
from nexus.data.synthetic.tool_results import call_result
from nexus.evaluation.metrics import tool_results_metrics
from nexus.text.tool_calls import ToolCall, parse_answer

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "rent_cabin",
            "description": "Rent a cabin",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "nights": {"type": "integer"},
                    "price": {"type": "number"},
                    "class": {"type": "string", "enum": ["deluxe", "basic"]},
                },
                "required": ["city", "nights"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "find_letter",
            "description": "Find a letter",
            "parameters": {
                "type": "object",
                "properties": {"sender": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
                "required": ["sender"],
            },
        },
    },
]


def rent(**arguments: Any) -> dict[str, Any]:
    return call_result(ToolCall("rent_cabin", arguments), TOOLS)


def test_a_total_is_linear_in_its_numbers() -> None:
    """Fee and rates are read off by asking, as any caller could; then every other total is known."""
    at = {n: rent(city="Oslo", nights=n)["total"] for n in (0, 1, 2, 7)}
    rate, fee = at[1] - at[0], at[0]
    assert 1 <= fee <= 30
    assert 2 <= rate <= 9
    assert at == {n: fee + rate * n for n in at}
    more = rent(city="Oslo", nights=7, price=1.0)["total"] - at[7]
    assert rent(city="Oslo", nights=7, price=12.5)["total"] == pytest.approx(at[7] + more * 12.5, abs=1e-9)
    assert rent(city="Rome", nights=7)["total"] == at[7], "words have no price"
    assert rent(nights=7, city="Oslo") == {"total": at[7]}


def test_a_reference_depends_on_every_argument_and_not_on_their_order() -> None:
    def find(**arguments: Any) -> Any:
        return call_result(ToolCall("find_letter", arguments), TOOLS)["reference"]

    given = [find(sender="Ada"), find(sender="Eva"), find(sender="Ada", tags=["a"]), find(sender="Ada", tags=["b"])]
    assert len(set(given)) == 4
    assert find(tags=["a"], sender="Ada") == given[2]
    letters, _, figures = given[0].partition("-")
    assert letters.isupper()
    assert len(letters) == 2
    assert 1000 <= int(figures) <= 9999


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("rent_house", {"city": "Oslo", "nights": 2}, "unknown function"),
        ("rent_cabin", {"city": "Oslo"}, "missing argument: nights"),
        ("rent_cabin", {}, "missing argument: city"),
        ("rent_cabin", {"city": "Oslo", "nights": "2"}, "wrong argument: nights"),
        ("rent_cabin", {"city": "Oslo", "nights": True}, "wrong argument: nights"),
        ("rent_cabin", {"city": "Oslo", "nights": 2, "class": "royal"}, "wrong argument: class"),
        ("rent_cabin", {"city": "Oslo", "nights": 2, "<|im_end|>": 1}, "unknown argument"),
        ("rent_cabin", {"city": "Oslo", "nights": 10**30}, "argument too large: nights"),
        ("rent_cabin", {"city": "Oslo", "nights": 2, "price": 1e400}, "argument too large: price"),
        ("find_letter", {"sender": "Ada", "tags": ["a", 1]}, "wrong argument: tags"),
    ],
)
def test_what_is_no_proper_call_gets_an_error_in_our_words(name: str, arguments: dict[str, Any], error: str) -> None:
    assert call_result(ToolCall(name, arguments), TOOLS) == {"error": error}


@pytest.mark.parametrize("split", ["train", "eval"])
def test_rows_state_what_the_function_gives(split: str) -> None:
    rows = list(tool_results.rows(view="sft", split=split, count=60, seed=3))
    prompts = list(tool_results.rows(view="prompts", split=split, count=60, seed=3))
    pairs = list(tool_results.rows(view="preference", split=split, count=60, seed=3))
    fields = set()
    for row, prompt, pair in zip(rows, prompts, pairs, strict=True):
        user, called, result, said = row["messages"]
        [call] = called["tool_calls"]
        given = call_result(ToolCall(**call["function"]), row["tools"])
        assert json.loads(result["content"]) == given
        [(field, value)] = given.items()
        fields.add(field)
        assert said["content"] == f"the {field} is <answer>{value}</answer>"
        assert prompt["prompt"] == [user]
        assert prompt["gold"] == {"calls": [call["function"]], "answer": str(value)}
        assert pair["prompt"] == [user, called, result]
        assert pair["chosen"] == [said]
        assert pair["rejected"] != [said]
        assert row["id"] == prompt["id"] == pair["id"]
    assert fields == {"total", "reference"}
    assert rows[:9] == list(GENERATORS["tool_results"](view="sft", split=split, count=9, seed=3))


def test_tasks_are_those_of_tools() -> None:
    single = [row for row in tools.rows(view="sft", split="train", count=40, seed=5) if
              len(row["messages"][1].get("tool_calls", ())) == 1]  # fmt: skip
    ours = list(tool_results.rows(view="sft", split="train", count=len(single), seed=5))
    for row, own in zip(single, ours, strict=True):
        assert own["messages"][1] == row["messages"][1]
        assert own["messages"][0]["content"].startswith(row["messages"][0]["content"])
        assert own["tools"] == row["tools"]


@pytest.mark.parametrize(("view", "split", "count"), [("dpo", "train", 1), ("sft", "test", 1), ("sft", "train", -1)])
def test_unknown_views_and_splits_are_refused(view: str, split: str, count: int) -> None:
    with pytest.raises(ValueError, match="no rows for"):
        list(tool_results.rows(view=view, split=split, count=count, seed=0))


def conversation(row: dict[str, Any], *, call: str, last: str) -> dict[str, Any]:
    turns = [{"role": "assistant", "content": call}, {"role": "tool", "content": "{}"},
             {"role": "assistant", "content": last}]  # fmt: skip
    return {"turns": turns if last else turns[:1], **row}


def test_metrics_ask_for_the_call_and_for_the_answer_of_the_last_turn() -> None:
    [row] = tool_results.rows(view="prompts", split="eval", count=1, seed=8)
    gold = row["gold"]
    call = f"<tool_call>{json.dumps(gold['calls'][0])}</tool_call>"
    said = f"it is <answer>{gold['answer']}</answer>"
    assert parse_answer(call).calls

    def score(call: str, last: str, *, finished: bool = True) -> tuple[float, ...]:
        told = "\n".join((call, last) if last else (call,))
        values = tool_results_metrics(conversation(row, call=call, last=last), told, finished=finished)
        return tuple(values[name] for name in ("exact_match", "calls", "answer"))

    assert score(call, said) == (1.0, 1.0, 1.0)
    assert score(call, "it is <answer>0</answer>") == (0.0, 1.0, 0.0)
    assert score(call, "done") == (0.0, 1.0, 0.0)
    assert score("I know.", said) == (0.0, 0.0, 1.0), "an answer without the call is half of it"
    assert score(call, said, finished=False) == (0.0, 0.0, 0.0)
    assert score(call, f"{call}{said}") == (0.0, 0.0, 0.0), "a last turn that calls again answers nothing"
    assert score(f"{said}{call}", "") == (0.0, 1.0, 0.0), "a guess beside the call is no answer to its result"


def test_a_misread_result_is_never_the_right_one() -> None:
    rng = random.Random(4)
    for value in (7, 11, 84.5, "KD-4071", "BB-1111", 1000):
        wrong = {tool_results._wrong(rng, value) for _ in range(40)}
        assert str(value) not in wrong
        assert all(len(text) == len(str(value)) for text in wrong)
