"""No cheap answer beats a right one, right answers in other forms lose nothing, and bad rewards are found out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nexus.data.synthetic import cot, tool_results, tools
from nexus.rewards.probe import Row, cheap_answers, cot_row, probe, tools_row
from nexus.rewards.registry import RewardFunction, Rewards, Sample, build_rewards
from tests.unit.test_rewards_registry import card

ROWS = 200
TOOLS = [tools_row(row) for row in tools.rows(view="prompts", split="eval", count=ROWS, seed=20261)]
COT = [cot_row(row) for row in cot.rows(view="prompts", split="train", count=ROWS, seed=20262)]


def count_tokens(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def findings(rows: list[Row], *names: str) -> dict[str, Any]:
    return probe(build_rewards({name: card(name) for name in names}), rows, count_tokens=count_tokens)


def test_rewards_of_tools_cannot_be_had_cheaply() -> None:
    found = findings(TOOLS, "tool_call", "length", "overlong", "repetition")
    for name, one in found.items():
        assert one.tried > 35 * ROWS, name
        assert one.beaten == [], name
        assert one.forms > 5 * ROWS - 5 * 40, name
    assert found["tool_call"].short == []
    # Any two words of one's own decline; so ties occur where declining is right, and only there.
    declining = sum(not row.gold["calls"] for row in TOOLS)
    assert 0 < declining < ROWS / 8
    assert sum(found["tool_call"].tied.values()) <= 6 * declining
    calling = findings([row for row in TOOLS if row.gold["calls"]][:50], "tool_call")["tool_call"]
    assert calling.good
    assert calling.tied == {}


def test_rewards_of_cot_cannot_be_had_cheaply() -> None:
    found = findings(COT, "answer", "steps", "format", "length", "overlong", "cosine", "repetition")
    for name, one in found.items():
        assert one.tried > 35 * ROWS, name
        assert one.beaten == [], name
        assert one.forms == 5 * ROWS, name
    for name in ("answer", "cosine", "total"):  # a true step of small numbers may stand in a prompt by chance
        assert found[name].tied == {}, name
    for name in ("answer", "steps", "format", "overlong"):  # length and repetition depend on the wording by design
        assert found[name].short == [], name


def test_settings_of_the_capabilities_are_good() -> None:
    for rows, names in ((COT, ("answer", "steps", "format")), ([r for r in TOOLS if r.gold["calls"]], ("tool_call",))):
        total = findings(rows[:60], *names)["total"]
        assert total.good
        assert total.tied == {}


def test_rewards_of_a_conversation_cannot_be_had_cheaply() -> None:
    """With an environment: the right text calls and then states; to do either alone, or to guess, earns less."""
    rows = []
    for given in tool_results.rows(view="prompts", split="train", count=60, seed=20264):
        call = tools_row(given).right
        said = f"the result is <answer>{given['gold']['answer']}</answer>"
        forms = (f"I call it.\n{call}\nSo:\n{said}.", f"{call}\n\\boxed{{{given['gold']['answer']}}}")
        rows.append(Row(given["id"], tuple(given["prompt"]), given["gold"], tuple(given["tools"]), f"{call}\n{said}",
                        forms))  # fmt: skip
    total = findings(rows, "tool_call", "answer")["total"]
    assert total.tried > 35 * len(rows)
    assert total.good
    assert total.tied == {}
    rewards = build_rewards({name: card(name) for name in ("tool_call", "answer")})
    for row in rows[:10]:
        texts = (row.right, *row.right.split("\n"), row.right.replace("</answer>", "9</answer>"))
        samples = [Sample(row.id, text, row.gold, row.prompt, row.tools, True, 9) for text in texts]
        right, *worse = [one.total for one in rewards.score(samples)]
        assert right == 2.0
        assert all(value <= 1.0 for value in worse)


def _naive(function: Any) -> Rewards:
    return Rewards((RewardFunction("naive", function, 1.0, {}, "naive"),))


def _right_but_for_empty_gold(completion: str, gold: Any) -> float:
    return float(str(gold["answer"]) in completion)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda completion: float(completion.count("therefore")), "keywords"),
        (lambda num_tokens: num_tokens / 100, "copied"),
        (lambda num_tokens: -num_tokens / 100, "empty"),
        (lambda completion: float(completion.count("<")), "format"),
        (lambda completion: float("1 + 1" in completion), "constant"),
    ],
)
def test_bad_rewards_are_found_out(function: Any, kind: str) -> None:
    found = probe(_naive(function), COT[:20], count_tokens=count_tokens)["naive"]
    assert kind in {beaten[1] for beaten in found.beaten}
    assert not found.good


def test_a_substring_for_an_answer_ties() -> None:
    # the earlier system's flaw: the answer anywhere in the text counts
    found = probe(_naive(_right_but_for_empty_gold), COT[:60], count_tokens=count_tokens)["naive"]
    assert found.beaten == []
    assert found.tied["copied"] + found.tied["keywords"] > 10


def test_cheap_answers_are_of_every_kind() -> None:
    kinds = [kind for kind, _ in cheap_answers(TOOLS[0])]
    assert set(kinds) == {"empty", "constant", "format", "keywords", "copied"}
    assert len(kinds) >= 35
    assert any(TOOLS[0].prompt[0]["content"] == text for _, text in cheap_answers(TOOLS[0]))
