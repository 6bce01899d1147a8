"""Each built-in reward against values by hand and, where TRL has it, against TRL's own."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from nexus.errors import NexusError
from nexus.rewards.answer import answer
from nexus.rewards.format import format_tags
from nexus.rewards.length import cosine_length, length_window, overlong
from nexus.rewards.repetition import repetition
from nexus.rewards.steps import steps
from nexus.rewards.tool_call import tool_call

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}}}
    for name in ("weather", "hotel")
]  # fmt: skip
PROMPT = [{"role": "user", "content": "Weather in Oslo for 3 days"}]
PARTIAL = 0.3
SHARES = {"parse": 0.1, "name": 0.2, "arguments": 0.6, "schema": 0.1, "partial": PARTIAL}


def written(*calls: tuple[str, dict[str, Any]]) -> str:
    return "".join(f"<tool_call>{json.dumps({'name': n, 'arguments': a})}</tool_call>" for n, a in calls)


def calls_reward(text: str, gold: list[tuple[str, dict[str, Any]]], *, finished: bool = True, **shares: float) -> float:
    calls = [{"name": name, "arguments": arguments} for name, arguments in gold]
    return tool_call(text, {"calls": calls}, PROMPT, TOOLS, finished=finished, **(SHARES | shares))


RIGHT = ("weather", {"city": "Oslo", "days": 3})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (written(RIGHT), 1.0),
        (f"I look. {written(RIGHT)}", 1.0),
        (written(("weather", {"days": 3, "city": "Oslo"})), 1.0),
        (written(("weather", {"city": "Oslo"})), 0.1 + 0.2 + 0.6 / 2 + 0.1),
        (written(("weather", {"city": "Oslo", "days": 3, "x": 1})), 0.1 + 0.2 + 0.6 * 2 / 3),
        (written(("weather", {"city": "Oslo", "days": "3"})), 0.1 + 0.2 + 0.6 / 2),
        (written(("weather", {"city": "Bergen", "days": 4})), 0.1 + 0.2 + 0.1),
        (written(("hotel", {"city": "Oslo", "days": 3})), 0.1 + 0.1),
        (written(("car", {"city": "Oslo", "days": 3})), 0.1),
        (written(RIGHT, RIGHT), 0.5),
        (written(RIGHT) + "<tool_call>{</tool_call>", 0.5),
        (written(*[("weather", {"city": "Oslo", "days": n}) for n in range(10)]), 0.1),
        ("<tool_call>{}</tool_call>", 0.0),
        ("weather(city='Oslo', days=3)", 0.0),
        ("", 0.0),
    ],
)
def test_tool_call_shares(text: str, expected: float) -> None:
    assert calls_reward(text, [RIGHT]) == pytest.approx(expected if expected == 1 else PARTIAL * expected)
    assert calls_reward(text, [RIGHT], finished=False) == 0.0


def test_tool_call_of_two() -> None:
    other = ("hotel", {"city": "Bergen"})
    assert calls_reward(written(other, RIGHT), [RIGHT, other]) == 1.0
    assert calls_reward(written(RIGHT), [RIGHT, other]) == pytest.approx(PARTIAL * 0.5)
    near = ("weather", {"city": "Oslo", "days": 4})
    # each call serves one right call, the best pair first
    assert calls_reward(written(near, RIGHT), [RIGHT, RIGHT]) == pytest.approx(PARTIAL * (0.1 + 0.2 + 0.6 * 0.75 + 0.1))


def test_tool_call_where_no_tool_fits() -> None:
    assert calls_reward("None of the tools can do that.", []) == 1.0
    for text in (
        "",
        "no",
        "no no",
        "<answer>5 6</answer>",
        "1 + 1 = 2",
        written(RIGHT),
        PROMPT[0]["content"],
        "weather(city='Oslo') it is",
    ):
        assert calls_reward(text, []) == 0.0


def test_a_wrong_call_never_looks_right() -> None:
    wrong = written(("weather", {"city": "Bergen", "days": 3}))
    assert calls_reward(wrong, [RIGHT], arguments=0.0) == pytest.approx(PARTIAL)
    with pytest.raises(ValueError, match="all 0"):
        calls_reward(wrong, [RIGHT], parse=0, name=0, arguments=0, schema=0)


def test_answer_counts_what_is_marked() -> None:
    gold = {"answer": "19"}

    def one(text: str, **options: Any) -> float:
        return answer(text, gold, **({"finished": True, "tolerance": 0.0, "marked": True} | options))

    assert one("12 + 7 = 19\n<answer>19</answer>") == one(r"so \boxed{19.0}") == one("#### 19 apples") == 1.0
    assert one("It is 19.") == one("<think><answer>19</answer></think>") == one("<answer>19 or 20</answer>") == 0.0
    assert one("It is 19.", marked=False) == 1.0
    assert one("<answer>19</answer>", finished=False) == 0.0
    assert one("<answer>19</answer><answer>20</answer>") == 0.0
    assert one("<answer>19.1</answer>") == 0.0
    assert one("<answer>19.1</answer>", tolerance=0.01) == 1.0
    assert answer("<answer>7</answer>", {"answer": 7}, finished=True, tolerance=0.0, marked=True) == 1.0
    for lacking in ({}, {"answer": None}, {"answer": " "}):
        with pytest.raises(NexusError, match="no gold 'answer'") as caught:
            answer("<answer>19</answer>", lacking, finished=True, tolerance=0.0, marked=True)
        assert caught.value.code == "E-DAT-31"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think>\n<answer>b</answer>", 1.0),
        ("<think>a</think> so <answer>b</answer>\n", 1.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>b</answer><answer>b</answer>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think> </think><answer>b</answer>", 0.0),
        ("<think>a</think><answer></answer>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("x <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> and more", 0.0),
        ("<answer>b</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format_of_both_tags(text: str, expected: float) -> None:
    assert format_tags(text, finished=True, tags=["think", "answer"], opened_by_prompt=False) == expected
    assert format_tags(text, finished=False, tags=["think", "answer"], opened_by_prompt=False) == 0.0
    if text.startswith("<think>"):
        inside = text.removeprefix("<think>")
        assert format_tags(inside, finished=True, tags=["think", "answer"], opened_by_prompt=True) == expected


def test_format_of_one_tag() -> None:
    assert format_tags("1 + 1 = 2\n<answer>2</answer>", finished=True, tags=["answer"], opened_by_prompt=False) == 1.0
    two = "<think>a</think><answer>2</answer>"
    assert format_tags(two, finished=True, tags=["answer"], opened_by_prompt=False) == 0.0


def test_length_window() -> None:
    values = [length_window(n, shortest=4, longest=8, slope=3) for n in range(14)]
    assert values[4:9] == [1.0] * 5
    assert values[0] == values[12] == values[13] == 0.0
    assert values[9] == values[3] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert values[8:13] == sorted(values[8:13], reverse=True)
    assert length_window(9, shortest=4, longest=8, slope=0) == 0.0


def test_overlong_is_that_of_trl() -> None:
    from trl.rewards import get_soft_overlong_punishment

    lengths = list(range(0, 130))
    for limit, slope in ((100, 20), (64, 1), (50, 0)):
        theirs = get_soft_overlong_punishment(limit, slope)([[1] * n for n in lengths])
        assert [overlong(n, limit=limit, slope=slope) for n in lengths] == theirs
    assert overlong(90, limit=100, slope=20) == -0.5


def test_cosine_has_the_values_of_trl() -> None:
    # TRL's own needs math_verify for being right; its schedule is compared with that taken out.
    from trl.rewards import accuracy_rewards

    options = {"limit": 100, "right_short": 1.0, "right_long": 0.5, "wrong_short": -1.0, "wrong_long": -0.5}
    theirs = accuracy_rewards.get_cosine_scaled_reward(100)
    lengths = [0, 1, 33, 50, 99, 100, 250]
    scope = theirs.__call__.__func__.__globals__
    original = scope["accuracy_reward"]
    for text, right in (("<answer>19</answer>", 1.0), ("<answer>20</answer>", 0.0)):
        scope["accuracy_reward"] = lambda completions, solution, right=right: [right] * len(completions)
        try:
            expected = theirs([text] * len(lengths), ["19"] * len(lengths), [[1] * n for n in lengths])
        finally:
            scope["accuracy_reward"] = original
        ours = [
            cosine_length(text, {"answer": "19"}, n, finished=True, tolerance=0.0, marked=True, **options)
            for n in lengths
        ]
        assert ours == pytest.approx(expected)


def test_repetition_is_that_of_trl() -> None:
    from trl.rewards import get_repetition_penalty_reward

    rng = random.Random(0)
    texts = [[rng.choice("abcd") for _ in range(rng.randint(1, 30))] for _ in range(200)]
    for n in (1, 2, 4):
        theirs = get_repetition_penalty_reward(n)([[ord(word) for word in text] for text in texts])
        assert [repetition(" ".join(text), n=n, free_share=0.0) for text in texts] == pytest.approx(theirs)
        assert min(theirs) < -0.1


def test_repetition_forgives_a_share_and_punishes_silence() -> None:
    assert repetition("", n=3, free_share=0.5) == repetition(" \n", n=3, free_share=0.5) == -1.0
    assert repetition("a b c a b c", n=3, free_share=0.5) == 0.0
    assert repetition("a " * 1000, n=3, free_share=0.5) == pytest.approx(-1, abs=0.01)
    assert repetition("a b", n=3, free_share=0.5) == 0.0


STORY = [
    {"role": "system", "content": "Use 99."},
    {"role": "user", "content": "Ann has 12 apples and gets 7 more, then 1,000."},
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12 + 7 = 19\n<answer>19</answer>", 1.0),
        ("<think>12 + 7 = 19\n19 + 1000 = 1019</think><answer>1019</answer>", 1.0),
        ("12 + 7 = 19\n12 + 7 = 19\n<answer>19</answer>", 1.0),
        ("12 + 7 = 20\n<answer>20</answer>", 0.0),
        ("12 + 7 = 20\n20 + 1000 = 1020\n<answer>1020</answer>", 0.5),
        ("12 + 7 = 19\n19 + 5 = 24\n<answer>24</answer>", 0.5),
        ("12 + 7 = 19\n<answer>20</answer>", 0.0),
        ("1 + 1 = 2\n<answer>2</answer>", 0.0),
        ("99 - 12 = 87\n<answer>87</answer>", 0.0),  # the system's number is not given
        ("<answer>19</answer>", 0.0),
        ("12 + 7 = 19 because\n<answer>19</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_steps(text: str, expected: float) -> None:
    assert steps(text, STORY, finished=True, grounded=True, smallest=1) == expected
    assert steps(text, STORY, finished=False, grounded=True, smallest=1) == 0.0


def test_steps_without_ground_and_with_a_least_number() -> None:
    text = "1 + 1 = 2\n<answer>2</answer>"
    assert steps(text, STORY, finished=True, grounded=False, smallest=1) == 1.0
    assert steps(f"1 + 1 = 2\n{text}", STORY, finished=True, grounded=False, smallest=2) == 0.0
