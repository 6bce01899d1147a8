"""Scores of thoughts: the level kept, the mistake corrected, and every cheap trick without reward."""

from __future__ import annotations

import pytest

from nexus.data.synthetic import GENERATORS
from nexus.evaluation.suites import SUITES, aggregate
from nexus.evaluation.thought_metrics import reasoning_metrics, thinking_metrics
from nexus.text.steps import LEVELS, read_review, read_step, read_work, shared_start
from nexus.types import Score

WAY = {"low": "owl, lamp, wolf", "medium": "owl -> lamp\nlamp = wolf"}
WAY["high"] = "1. owl -> lamp\n2. lamp = wolf\nCheck: owl, lamp, wolf"


def gold(level: str) -> dict:
    states, steps = ["owl", "lamp", "wolf"], ["owl -> lamp", "lamp = wolf"]
    return {"gold": {"answer": "wolf", "level": level, "states": states, "steps": steps}}


def said(thinking: str, answer: str = "wolf") -> str:
    return f"<think>{thinking}</think>\n<answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("line", "source", "target"),
    [
        ("owl -> lamp", "owl", "lamp"),
        (" lamp = wolf ", "lamp", "wolf"),
        ("3 + 2 = 5", "3", "5"),
        ("9 - 4 = 5", "9", "5"),
    ],
)
def test_steps_are_read(line: str, source: str, target: str):
    step = read_step(line)
    assert step is not None
    assert (step.source, step.target, step.text) == (source, target, line.strip())


@pytest.mark.parametrize("line", ["", "owl", "owl lamp", "owl ->", "-> lamp", "owl -> lamp -> wolf", "3 + = 5", "a, b"])
def test_other_lines_are_no_steps(line: str):
    assert read_step(line) is None


@pytest.mark.parametrize("level", LEVELS)
def test_levels_are_told_apart(level: str):
    work = read_work(WAY[level])
    assert work is not None
    assert work.level == level
    assert work.units == (("owl", "lamp", "wolf") if level == "low" else ("owl -> lamp", "lamp = wolf"))


@pytest.mark.parametrize(
    "thinking",
    [
        "", "owl", "owl -> lamp\nnonsense", "owl, lamp\nlamp, wolf", "Check: owl, lamp",
        "1. owl -> lamp\n2. lamp = wolf",
        "1. owl -> lamp\nCheck: owl, lamp, wolf", "1. owl -> lamp\n3. lamp = wolf\nCheck: owl, lamp, wolf",
        "owl -> lamp\nlamp = wolf\nCheck: owl, lamp, wolf", "1. owl -> lamp\nlamp = wolf\nCheck: owl, lamp, wolf",
    ],
)  # fmt: skip
def test_other_thoughts_have_no_level(thinking: str):
    assert read_work(thinking) is None


def test_shared_start():
    assert shared_start("abc", "abc") == 1.0
    assert shared_start("abx", "abc") == pytest.approx(2 / 3)
    assert shared_start("abcd", "abc") == pytest.approx(3 / 4)
    assert shared_start("xbc", "abc") == shared_start("", "abc") == 0.0


@pytest.mark.parametrize("asked", LEVELS)
@pytest.mark.parametrize("written", LEVELS)
def test_the_level_counts_whatever_the_answer(asked: str, written: str):
    kept = float(asked == written)
    right = {"exact_match": 1.0, "level": kept, "steps": 1.0, "format": 1.0, f"exact_{asked}": 1.0}
    assert reasoning_metrics(gold(asked), said(WAY[written]), finished=True) == right
    wrong = reasoning_metrics(gold(asked), said(WAY[written], "lamp"), finished=True)
    assert wrong == right | {"exact_match": 0.0, f"exact_{asked}": 0.0}


@pytest.mark.parametrize(
    ("answer", "exact", "level", "steps", "form"),
    [
        ("<answer>wolf</answer>", 1, 0, 0, 0),
        ("wolf.", 1, 0, 0, 0),
        ("<think></think><answer>wolf</answer>", 1, 0, 0, 0),
        ("<think>hm</think><answer>wolf</answer>", 1, 0, 0, 1),
        (said("owl -> lamp\nlamp = hen"), 1, 1, 0.5, 1),
        (said("owl -> lamp\nlamp = wolf\nwolf = hen"), 1, 1, 2 / 3, 1),
        (said(WAY["medium"]) + "<answer>wolf</answer>", 1, 1, 1, 0),
        (said(WAY["medium"]) + " I hope.", 1, 1, 1, 0),
        (said(WAY["medium"], "Wolf"), 0, 1, 1, 1),
        (said(WAY["medium"], "wolf lamp owl"), 0, 1, 1, 1),
        ("<think>owl -> lamp\nlamp = wolf", 0, 1, 1, 0),
        ("<think>wolf</think>", 0, 0, 0, 0),
        ("owl lamp wolf", 0, 0, 0, 0),
        ("", 0, 0, 0, 0),
    ],
)
def test_reasoning_metrics(answer: str, exact: float, level: float, steps: float, form: float):
    wanted = {"exact_match": exact, "level": level, "steps": steps, "format": form, "exact_medium": exact}
    assert reasoning_metrics(gold("medium"), answer, finished=True) == pytest.approx(wanted)


def planted(mistake: int | None) -> dict:
    return {"gold": {"answer": "wolf", "steps": ["owl -> lamp", "lamp = wolf"], "mistake": mistake}}


AGREES = "owl, lamp? owl -> lamp: yes\nlamp, wolf? lamp = wolf: yes"
SECOND = "owl, lamp? owl -> lamp: yes\nlamp, hen? lamp = wolf: no"
FIRST = "owl, hen? owl -> lamp: no\nlamp = wolf"


@pytest.mark.parametrize(
    ("mistake", "thinking", "good", "steps"),
    [
        (None, AGREES, 1, 1), (1, SECOND, 1, 1), (0, FIRST, 1, 1),
        (1, AGREES, 0, 1), (0, AGREES, 0, 1),  # overlooked
        (None, SECOND, 0, 1), (None, FIRST, 0, 1), (1, FIRST, 0, 1), (0, SECOND, 0, 1),  # said no at the wrong place
        (0, "owl, hen? owl -> lamp: no", 1, 0.5), (0, "owl -> lamp\nlamp = wolf", 0, 0), (None, "", 0, 0),
        (1, f"{SECOND}\n{SECOND}", 0, 0), (0, f"{FIRST}\nlamp, hen? lamp = wolf: no", 0, 0),
        (1, "owl, lamp? hen -> lamp: yes\nlamp, hen? lamp = wolf: no", 0, 0),
    ],
)  # fmt: skip
def test_thinking_metrics(mistake: int | None, thinking: str, good: float, steps: float):
    name = "kept" if mistake is None else "corrected"
    wanted = {"exact_match": 1.0, name: good, "steps": steps, "format": float(bool(thinking))}
    assert thinking_metrics(planted(mistake), said(thinking), finished=True) == pytest.approx(wanted)
    wrong = thinking_metrics(planted(mistake), said(thinking, "hen"), finished=True)
    assert (wrong["exact_match"], wrong[name]) == (0.0, 0.0)


def test_a_review_ends_its_claims_at_the_first_no():
    review = read_review(FIRST)
    assert review is not None
    assert [(line.step.text, line.claim, line.verdict) for line in review] == [
        ("owl -> lamp", "hen", "no"), ("lamp = wolf", None, None),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["reasoning", "thinking"])
def test_an_unfinished_answer_scores_nothing(name: str):
    row = {"reasoning": gold("low"), "thinking": planted(0)}[name]
    text = said({"reasoning": WAY["low"], "thinking": FIRST}[name])
    assert set(SUITES[name].score(row, text, finished=False).values()) == {0.0}


def asked(name: str) -> list[dict]:
    return list(GENERATORS[name](view="prompts", split="eval", count=300, seed=0))


def scores(name: str, answers: list[str]) -> dict[str, Score]:
    return aggregate([SUITES[name].score(r, a, finished=True) for r, a in zip(asked(name), answers, strict=True)])


@pytest.mark.parametrize("name", ["reasoning", "thinking"])
def test_constant_and_copied_answers_do_not_score(name: str):
    rows = asked(name)
    assert scores(name, [""] * 300)["exact_match"].value == 0.0
    assert scores(name, [row["prompt"][-1]["content"] for row in rows])["exact_match"].value == 0.0
    assert scores(name, ["<answer>4</answer>"] * 300)["exact_match"].value < 0.1
    right = [r["messages"][-1]["content"] for r in GENERATORS[name](view="sft", split="eval", count=300, seed=0)]
    assert set(scores(name, right)) == set(SUITES[name].metrics)
    assert all(score.value == 1.0 for score in scores(name, right).values())
    assert scores(name, right[1:] + right[:1])["exact_match"].value < 0.1


def test_a_copied_draft_is_right_only_where_drafts_are():
    rows = asked("thinking")
    copied = scores("thinking", [f"<answer>{row['gold']['draft_answer']}</answer>" for row in rows])
    assert copied["exact_match"].value == pytest.approx(sum(r["gold"]["mistake"] is None for r in rows) / 300)
    assert copied["exact_match"].value < 0.3
    assert copied["corrected"].value == copied["kept"].value == 0.0


def test_the_facts_are_needed():
    """The last thing that is named, and the last number, are seldom the answer."""
    last = [f"<answer>{row['prompt'][-1]['content'].split()[-1].strip('.?')}</answer>" for row in asked("reasoning")]
    assert scores("reasoning", last)["exact_match"].value < 0.1
