"""The word-arithmetic generator: right sums, wrong rejected answers, and nothing shared between the splits."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from nexus.data.synthetic import GENERATORS
from nexus.data.synthetic.cot import _CHANGES, _OPENINGS, _QUESTIONS, _THINGS, LARGEST, carries, rows, sample_problem
from nexus.data.synthetic.overlap import overlap_report
from nexus.data.synthetic.words import of_split
from nexus.evaluation.metrics import cot_metrics
from nexus.text.answers import equations, final_answer

SPLITS = ("train", "eval")


def take(view: str, split: str, count: int, seed: int = 3) -> list[dict]:
    return list(rows(view=view, split=split, count=count, seed=seed))


@pytest.mark.parametrize("split", SPLITS)
def test_the_views_agree_and_the_sums_are_right(split: str):
    lengths = Counter()
    for sft, pair, prompt in zip(*(take(v, split, 400) for v in ("sft", "preference", "prompts")), strict=True):
        assert sft["id"] == pair["id"] == prompt["id"]
        assert sft["messages"][:-1] == pair["prompt"] == prompt["prompt"]
        assert [sft["messages"][-1]] == pair["chosen"]
        text = sft["messages"][-1]["content"]
        assert text.splitlines()[:-1] == prompt["gold"]["steps"]
        assert text.splitlines()[-1] == f"<answer>{prompt['gold']['answer']}</answer>"
        steps = equations(text)
        assert len(steps) == len(prompt["gold"]["steps"])
        assert all(step.holds and 1 <= step.result <= LARGEST for step in steps)
        assert all(step.right < 10 or not carries(int(step.left), step.operator, int(step.right)) for step in steps)
        assert all(a.result == b.left for a, b in zip(steps, steps[1:], strict=False))
        assert final_answer(text) == prompt["gold"]["answer"] == str(steps[-1].result)
        numbers = [str(steps[0].left), *(str(step.right) for step in steps)]
        asked = prompt["prompt"][0]["content"].replace(".", " ").split()
        assert [word for word in asked if word.isdigit()] == numbers
        lengths[len(steps)] += 1
    assert set(lengths) == {2, 3}


@pytest.mark.parametrize("split", SPLITS)
def test_rejected_answers_are_wrong_and_chosen_ones_are_right(split: str):
    for pair, prompt in zip(take("preference", split, 400), take("prompts", split, 400), strict=True):
        right = cot_metrics(prompt, pair["chosen"][0]["content"], finished=True)
        wrong = cot_metrics(prompt, pair["rejected"][0]["content"], finished=True)
        assert right == {"exact_match": 1.0, "format": 1.0, "steps": 1.0}
        assert wrong["exact_match"] == 0.0


def test_evaluation_problems_share_nothing_with_training_problems():
    for spoken in (_OPENINGS, _QUESTIONS):
        assert not set(spoken["train"]) & set(spoken["eval"])
    for operator in "+-":
        assert not set(_CHANGES["train"][operator]) & set(_CHANGES["eval"][operator])
    assert len(of_split(_THINGS, "eval")) >= 5

    def steps(split: str) -> set[str]:
        return {str(step) for index in range(4000) for step in sample_problem(split, 0, index).steps}

    train, held = steps("train"), steps("eval")
    assert len(train) > 2000
    assert len(held) > 700
    assert not train & held
    report = overlap_report(take("sft", "train", 4000), take("prompts", "eval", 800))
    assert report.ngrams == frozenset()
    assert (report.train_rows, report.eval_rows) == (4000, 800)
    names = {split: {row["prompt"][0]["content"] for row in take("prompts", split, 800)} for split in SPLITS}
    spoken = {split: {w.strip(".?,") for text in names[split] for w in text.split()} for split in SPLITS}
    assert not {w for w in spoken["train"] & spoken["eval"] if w in of_split(_THINGS, "train")}


def test_rows_are_deterministic_and_do_not_depend_on_count():
    assert take("preference", "train", 20) == take("preference", "train", 40)[:20]
    assert take("sft", "train", 5, seed=1) != take("sft", "train", 5, seed=2)
    assert list(GENERATORS["cot"](view="sft", split="eval", count=5, seed=3)) == take("sft", "eval", 5)
    assert json.loads(json.dumps(take("prompts", "eval", 20))) == take("prompts", "eval", 20)


@pytest.mark.parametrize(("view", "split", "count"), [("dpo", "train", 1), ("sft", "test", 1), ("sft", "train", -1)])
def test_unknown_views_and_splits_are_refused(view: str, split: str, count: int):
    with pytest.raises(ValueError, match="no rows for"):
        list(rows(view=view, split=split, count=count, seed=0))
