"""Metrics: right answers score, and every cheap trick does not."""

from __future__ import annotations

import copy
import json

import pytest

from nexus.data.synthetic import GENERATORS
from nexus.evaluation.metrics import cot_metrics, tools_metrics
from nexus.evaluation.statistics import wilson_interval
from nexus.evaluation.suites import SUITES, aggregate
from nexus.types import Score


def tag(*calls: dict) -> str:
    return "\n".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)


def tool(name: str, properties: dict, required: list[str]) -> dict:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


HOTEL = tool(
    "book_hotel",
    {"city": {"type": "string"}, "nights": {"type": "integer"}, "budget": {"type": "number"},
     "class": {"type": "string", "enum": ["basic", "luxury"]}},
    ["city", "nights"],
)  # fmt: skip
FLIGHT = tool(
    "find_flight", {"origin": {"type": "string"}, "destination": {"type": "string"}}, ["origin", "destination"]
)
STAY = {"name": "book_hotel", "arguments": {"city": "Oslo", "nights": 3, "budget": 50}}
TRIP = {"name": "find_flight", "arguments": {"origin": "Oslo", "destination": "Rome"}}


def row(*calls: dict, request: str = "Book a hotel in Oslo for 3 nights with a budget of 50.") -> dict:
    prompt = [{"role": "user", "content": request}]
    return {"prompt": prompt, "tools": [HOTEL, FLIGHT], "gold": {"calls": copy.deepcopy(list(calls))}}


def changed(call: dict, **arguments: object) -> dict:
    return {"name": call["name"], "arguments": call["arguments"] | arguments}


ALL = {"exact_match": 1.0, "name": 1.0, "arguments": 1.0, "schema": 1.0}
NOTHING = dict.fromkeys(ALL, 0.0)


@pytest.mark.parametrize(
    "answer",
    [
        tag(STAY),
        f"<think>which one? {tag(TRIP)}</think>\n\n{tag(STAY)}",
        f"Sure.\n{tag(STAY)}",
        '{"name": "book_hotel", "parameters": {"nights": 3, "budget": 50.0, "city": "Oslo"}}',
        tag(changed(STAY, budget=50.0)),
    ],
)
def test_right_calls_score_in_every_known_form(answer: str):
    assert tools_metrics(row(STAY), answer, finished=True) == ALL


def test_parallel_calls_in_any_order():
    assert tools_metrics(row(STAY, TRIP), tag(TRIP, STAY), finished=True) == ALL
    twice = changed(STAY, city="Rome")
    assert tools_metrics(row(STAY, twice), tag(twice, STAY), finished=True) == ALL
    assert tools_metrics(row(STAY, STAY), tag(STAY), finished=True)["exact_match"] == 0.0


@pytest.mark.parametrize(
    ("answer", "name", "arguments", "schema"),
    [
        (tag(changed(STAY, city="Rome")), 1, 0, 1),
        (tag(changed(STAY, city="oslo")), 1, 0, 1),
        (tag(changed(STAY, nights=3.0)), 1, 0, 0),  # the schema says integer
        (tag(changed(STAY, nights="3")), 1, 0, 0),
        (tag(changed(STAY, nights=True)), 1, 0, 0),
        (tag(changed(STAY, budget="50")), 1, 0, 0),
        (tag(changed(STAY, nights=50, budget=3)), 1, 0, 1),  # swapped
        (
            tag({"name": "book_hotel", "arguments": {"city": "Oslo", "budget": 50}}),
            1,
            0,
            0,
        ),  # a required one is missing
        (
            tag({"name": "book_hotel", "arguments": {"city": "Oslo", "nights": 3}}),
            1,
            0,
            1,
        ),  # a mentioned one is missing
        (tag(changed(STAY, **{"class": "basic"})), 1, 0, 1),  # made up
        (tag(changed(STAY, **{"class": "royal"})), 1, 0, 0),  # not in the enum
        (tag(changed(STAY, pets=True)), 1, 0, 0),  # not in the schema
        (tag({"name": "find_flight", "arguments": STAY["arguments"]}), 0, 0, 0),
        (tag({"name": "book_hotels", "arguments": STAY["arguments"]}), 0, 0, 0),
        (tag(STAY, STAY), 0, 1, 1),  # one too many
        (tag(STAY, TRIP), 0, 1, 1),
    ],
)
def test_wrong_calls_are_told_apart(answer: str, name: int, arguments: int, schema: int):
    found = tools_metrics(row(STAY), answer, finished=True)
    assert found == {"exact_match": 0.0, "name": name, "arguments": arguments, "schema": schema}


def test_half_of_parallel_calls():
    found = tools_metrics(row(STAY, TRIP), tag(STAY, changed(TRIP, origin="Bonn")), finished=True)
    assert found == {"exact_match": 0.0, "name": 1.0, "arguments": 0.5, "schema": 1.0}
    swapped = {"name": "find_flight", "arguments": {"origin": "Rome", "destination": "Oslo"}}
    assert tools_metrics(row(TRIP), tag(swapped), finished=True) == ALL | {"exact_match": 0.0, "arguments": 0.0}


CHEATS = [
    "",
    " ",
    "None of the tools can do that.",
    "book_hotel city Oslo nights 3 budget 50",
    'book_hotel(city="Oslo", nights=3, budget=50)',
    "book_hotel find_flight city nights budget class origin destination Oslo 3 50",
    "Book a hotel in Oslo for 3 nights with a budget of 50.",
    json.dumps(HOTEL["function"]),
    tag(STAY)[:-5],
    tag(STAY).removesuffix("</tool_call>"),
    tag(STAY) + "\n<tool_call>{",
    f"<think>{tag(STAY)}</think>",
    f"<think>{tag(STAY)}",
    tag(STAY).replace('"', "'"),
    json.dumps([STAY]),
    "<tool_call></tool_call>",
]


@pytest.mark.parametrize("answer", CHEATS)
def test_tricks_score_nothing_where_a_call_is_due(answer: str):
    assert tools_metrics(row(STAY), answer, finished=True) == NOTHING


def test_an_unfinished_answer_scores_nothing():
    assert tools_metrics(row(STAY), tag(STAY), finished=False) == NOTHING
    assert tools_metrics(row(), "None of the tools can do that.", finished=False)["irrelevance"] == 0.0


@pytest.mark.parametrize(
    "answer",
    ["None of the tools can do that.", "I cannot use book_hotel for this.", "<think>hm</think>Sorry, nothing fits."],
)
def test_a_sentence_is_right_where_no_tool_fits(answer: str):
    assert tools_metrics(row(), answer, finished=True) == {"exact_match": 1.0, "irrelevance": 1.0}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "...",
        "ok",
        "Book a hotel in Oslo for 3 nights with a budget of 50.",  # the request, copied
        "a hotel in Oslo",  # a part of it
        "You said: book a hotel in Oslo for 3 nights with a budget of 50",
        tag(STAY),
        "<tool_call>{</tool_call>",
        "I call book_hotel(city='Oslo')",
        '{"name": "book_hotel"',
        'I call {"name": "book_hotel", "parameters": {}}',
        "<think>None of the tools can do that.",
    ],
)
def test_no_tool_rows_need_a_sentence_of_their_own(answer: str):
    assert tools_metrics(row(), answer, finished=True) == {"exact_match": 0.0, "irrelevance": 0.0}


def prompts(name: str, count: int) -> list[dict]:
    return list(GENERATORS[name](view="prompts", split="eval", count=count, seed=0))


def messages(name: str, view: str, key: str, count: int) -> list[str]:
    found = []
    for example in GENERATORS[name](view=view, split="eval", count=count, seed=0):
        last = example[key][-1]
        found.append(last["content"] + tag(*(call["function"] for call in last.get("tool_calls", []))))
    return found


def scores(name: str, answers: list[str]) -> dict[str, Score]:
    suite = SUITES[name]
    asked = prompts(name, len(answers))
    return aggregate([suite.score(r, a, finished=True) for r, a in zip(asked, answers, strict=True)])


@pytest.mark.parametrize("name", ["tools", "cot"])
def test_the_generator_and_the_suite_agree(name: str):
    chosen = scores(name, messages(name, "preference", "chosen", 300))
    assert set(chosen) == set(SUITES[name].metrics)
    assert all(score.value == 1.0 for score in chosen.values()), chosen
    assert chosen == scores(name, messages(name, "sft", "messages", 300))
    assert scores(name, messages(name, "preference", "rejected", 300))["exact_match"].value == 0.0


def test_constant_copied_and_shuffled_answers_do_not_score():
    asked = prompts("tools", 300)
    share = sum(not r["gold"]["calls"] for r in asked) / 300
    assert 0.03 < share < 0.12
    assert scores("tools", [""] * 300)["exact_match"].value == 0.0
    assert scores("tools", [r["prompt"][0]["content"] for r in asked])["exact_match"].value == 0.0
    assert scores("tools", [json.dumps(r["tools"]) for r in asked])["exact_match"].value == 0.0
    right = messages("tools", "preference", "chosen", 300)
    assert scores("tools", [right[0]] * 300)["exact_match"].value <= 1 / 300
    assert scores("tools", right[1:] + right[:1])["arguments"].value == 0.0
    refusal = scores("tools", ["None of the tools can do that."] * 300)
    assert refusal["exact_match"].value == pytest.approx(share), "only the rows that no tool fits"
    assert refusal["irrelevance"] == Score(
        1.0, round(300 * share), wilson_interval(round(300 * share), round(300 * share))
    )
    assert refusal["name"].value == refusal["arguments"].value == refusal["schema"].value == 0.0


SUM = {"prompt": [], "gold": {"answer": "15", "steps": ["12 + 7 = 19", "19 - 4 = 15"]}}


@pytest.mark.parametrize(
    ("answer", "exact", "form", "steps"),
    [
        ("12 + 7 = 19\n19 - 4 = 15\n<answer>15</answer>", 1, 1, 1),
        ("7 + 12 = 19\n19 - 4 = 15\n<answer>15.0</answer>", 1, 1, 1),
        ("<think>12 + 7 = 19\n19 - 4 = 15</think><answer>15</answer>", 1, 1, 1),
        ("12 + 7 = 19\n19 - 4 = 15\nThe answer is 15.", 1, 0, 1),
        ("12 + 7 = 19\n19 - 4 = 15\n#### 15", 1, 1, 1),
        ("<answer>15</answer>", 1, 1, 0),
        ("19 - 4 = 15\n12 + 7 = 19\n<answer>15</answer>", 1, 1, 0.5),  # the wrong way round
        ("12 + 7 = 19\n<answer>19</answer>", 0, 1, 0.5),
        ("12 + 7 = 18\n18 - 4 = 14\n<answer>14</answer>", 0, 1, 0),
        ("12 + 7 = 19\n4 - 19 = 15\n<answer>15</answer>", 1, 1, 0.5),
        ("12 + 7 = 19\n19 - 4 = 15\n15 + 1 = 16\n1 + 1 = 2\n<answer>15</answer>", 1, 1, 0.5),  # padding
        ("<answer>fifteen</answer>", 0, 0, 0),
        ("<answer>15 or 16</answer>", 0, 0, 0),
        ("12 7 19 4 15 16", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_cot_metrics(answer: str, exact: float, form: float, steps: float):
    assert cot_metrics(SUM, answer, finished=True) == {"exact_match": exact, "format": form, "steps": steps}


def test_an_unfinished_calculation_has_no_answer():
    found = cot_metrics(SUM, "12 + 7 = 19\n19 - 4 = 15", finished=False)
    assert found == {"exact_match": 0.0, "format": 0.0, "steps": 1.0}
    assert "steps" not in cot_metrics({"gold": {"answer": "15"}}, "15", finished=True)


def test_copied_and_constant_sums_do_not_score():
    asked = prompts("cot", 300)
    copied = scores("cot", [r["prompt"][0]["content"] for r in asked])
    assert copied["format"].value == copied["steps"].value == 0.0
    assert copied["exact_match"].value < 0.05, "the last number of the story is hardly ever the answer"
    assert scores("cot", [""] * 300)["exact_match"].value == 0.0
    assert scores("cot", ["<answer>50</answer>"] * 300)["exact_match"].value < 0.05


def test_aggregate_means_over_the_rows_that_have_a_metric():
    found = aggregate([{"a": 1.0}, {"a": 0.0, "b": 0.5}, {"a": 1.0, "b": 1.0}])
    assert found["a"] == Score(2 / 3, 3, wilson_interval(2, 3))
    assert (found["b"].value, found["b"].n) == (0.75, 2)
    assert found["b"].ci95 == (0.5, 1.0), "a bootstrap interval, as the values are not all 0 or 1"
    with pytest.raises(ValueError, match="no answers"):
        aggregate([])


def test_suites_name_their_metrics():
    first = {name: suite.metrics[0] for name, suite in SUITES.items()}
    exact = dict.fromkeys(("tools", "tool_results", "cot", "reasoning"), "exact_match")
    assert first == exact | {"thinking": "corrected", "refusal": "harmful_compliance"}
    assert all(suite.name == name for name, suite in SUITES.items())
