"""The generators of `reasoning` and `thinking`: right ways, wrong rejected answers, splits apart."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from types import ModuleType

import pytest

from nexus.data.synthetic import GENERATORS, reasoning, thinking, words
from nexus.data.synthetic.multistep import LENGTHS, Problem, astray, sample_problem
from nexus.data.synthetic.overlap import overlap_report
from nexus.evaluation.suites import SUITES
from nexus.text.answers import marked_answer
from nexus.text.think import split_think

SPLITS = ("train", "eval")
MODULES = {"reasoning": reasoning, "thinking": thinking}
by_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)

#: How the facts of a chain are told: a link, and what holds the answer.
_LINK = re.compile(r"(?:The )?(\w+) (?:->|leads to the|points to|is a door to the|sends us to|calls) (\w+)")
_END = re.compile(r"(?:The )?(\w+) (?:=|hides the|holds|has the|finds the) ([a-z]+)")


def take(module: ModuleType, view: str, split: str, count: int, seed: int = 3) -> list[dict]:
    return list(module.rows(view=view, split=split, count=count, seed=seed))


def problems(split: str, count: int) -> list[Problem]:
    rng = random.Random(7)
    return [sample_problem(rng, split) for _ in range(count)]


def solve(asked: str) -> list[str]:
    """The states from start to answer, read from the sentences alone: a second implementation of the problems."""
    facts, question = asked.split("\n")[:-1], asked.split("\n")[-1]
    told = "\n".join(facts)
    links, ends = dict(_LINK.findall(told)), dict(_END.findall(told))
    places = {*links, *ends} or {line.split()[0] for line in re.split(r"[.;] ?", told) if line}
    start = next(word for word in re.findall(r"\w+", question) if word in places)
    if not ends:
        number, states = 0, []
        for name, said in re.findall(r"(\w+) ([^.;\n]+)", told):
            if name == start:
                amount = int(re.search(r"\d", said)[0])
                less = said.startswith(("-", "loses", "gives away", "removes", "sells"))
                first = said.startswith(("=", "has", "starts"))
                number = amount if first else number - amount if less else number + amount
                states.append(str(number))
        return states
    states = [start]
    while states[-1] in links:
        states.append(links[states[-1]])
    return [*states, ends[states[-1]]]


@pytest.mark.parametrize("split", SPLITS)
def test_the_way_follows_from_the_facts(split: str):
    lengths: Counter[int] = Counter()
    kinds: Counter[bool] = Counter()
    for problem in problems(split, 600):
        assert solve(f"{problem.facts}\n{problem.question}") == list(problem.states)
        assert problem.answer == problem.states[-1]
        for step in problem.steps:
            if step.source.isdigit():
                sign, amount, _ = step.sign.split()
                assert int(step.source) + int(amount) * (1 if sign == "+" else -1) == int(step.target)
                assert 0 <= int(step.target) <= 9
        lengths[len(problem.steps)] += 1
        kinds[problem.answer.isdigit()] += 1
    assert set(lengths) == set(LENGTHS)
    assert min(lengths.values()) > 40
    assert min(kinds.values()) > 150


@by_module
@pytest.mark.parametrize("split", SPLITS)
def test_the_views_agree(module: ModuleType, split: str):
    for sft, pair, prompt in zip(*(take(module, v, split, 300) for v in module.VIEWS), strict=True):
        assert sft["id"] == pair["id"] == prompt["id"]
        assert sft["messages"][:-1] == pair["prompt"] == prompt["prompt"]
        assert [sft["messages"][-1]] == pair["chosen"]
        text = sft["messages"][-1]["content"]
        assert marked_answer(text) == prompt["gold"]["answer"]
        assert split_think(text).closed


@by_module
@pytest.mark.parametrize("split", SPLITS)
def test_chosen_answers_score_everywhere_and_rejected_ones_somewhere_not(module: ModuleType, split: str):
    score = SUITES[module.__name__.rsplit(".", 1)[-1]].score
    seen: Counter[str] = Counter()
    for pair, prompt in zip(take(module, "preference", split, 400), take(module, "prompts", split, 400), strict=True):
        right = score(prompt, pair["chosen"][0]["content"], finished=True)
        wrong = score(prompt, pair["rejected"][0]["content"], finished=True)
        assert set(right.values()) == {1.0}
        seen.update(name for name, value in wrong.items() if value < 1.0)
        if module is thinking:
            assert wrong["exact_match"] == 0.0
        else:
            assert wrong["exact_match"] == 0.0 or wrong["level"] == 0.0
    assert min(seen.values()) > 15


def test_every_level_writes_the_same_way_deeper():
    steps = next(problem.steps for problem in problems("train", 50) if len(problem.steps) == 3)
    low, medium, high = (reasoning.thought(level, steps) for level in ("low", "medium", "high"))
    assert low == ", ".join([steps[0].source, *(step.target for step in steps)])
    assert medium.splitlines() == [str(step) for step in steps]
    assert [line[3:] for line in high.splitlines()[:-1]] == medium.splitlines()
    assert high.splitlines()[-1] == f"Check: {low}"
    levels = Counter(row["gold"]["level"] for row in take(reasoning, "prompts", "eval", 300))
    assert set(levels) == {"low", "medium", "high"}
    assert min(levels.values()) > 75


def test_a_mistake_is_a_mistake():
    rng = random.Random(1)
    for problem in problems("train", 500):
        at, steps = astray(rng, problem)
        assert steps[:at] == problem.steps[:at]
        assert steps[at].source == problem.steps[at].source
        assert steps[at].target != problem.steps[at].target
        assert steps[-1].target != problem.answer
        assert all(one.target == other.source for one, other in zip(steps, steps[1:], strict=False))


def test_most_drafts_hold_one_mistake():
    rows = take(thinking, "prompts", "eval", 400)
    planted = [row for row in rows if row["gold"]["mistake"] is not None]
    assert 0.7 < len(planted) / len(rows) < 0.8
    assert all((row["gold"]["draft_answer"] == row["gold"]["answer"]) == (row not in planted) for row in rows)
    assert all(row["prompt"][0]["content"].endswith(row["gold"]["draft_answer"]) for row in rows)
    assert len({row["gold"]["mistake"] for row in planted}) == 4


@by_module
def test_evaluation_problems_share_nothing_with_training_problems(module: ModuleType):
    report = overlap_report(take(module, "sft", "train", 3000), take(module, "prompts", "eval", 400))
    assert report.ngrams == frozenset()
    assert (report.train_rows, report.eval_rows) == (3000, 400)
    ways = {split: {problem.states for problem in problems(split, 3000)} for split in SPLITS}
    shared = ways["train"] & ways["eval"]
    assert all(len(states) == 2 and states[0].isdigit() for states in shared), "single equations only"
    nodes = {split: {state for way in ways[split] for state in way if not state.isdigit()} for split in SPLITS}
    assert len(nodes["eval"]) > 80
    for split in SPLITS:
        assert all(words.in_split(node, split) for node in nodes[split])


@by_module
def test_rows_are_deterministic_and_short(module: ModuleType):
    assert take(module, "preference", "train", 20) == take(module, "preference", "train", 40)[:20]
    assert take(module, "sft", "train", 5, seed=1) != take(module, "sft", "train", 5, seed=2)
    name = module.__name__.rsplit(".", 1)[-1]
    assert list(GENERATORS[name](view="sft", split="eval", count=5, seed=3)) == take(module, "sft", "eval", 5)
    assert json.loads(json.dumps(take(module, "prompts", "eval", 20))) == take(module, "prompts", "eval", 20)
    assert max(len(row["messages"][-1]["content"]) for row in take(module, "sft", "train", 500)) < 300


@by_module
@pytest.mark.parametrize(("view", "split", "count"), [("dpo", "train", 1), ("sft", "test", 1), ("sft", "train", -1)])
def test_unknown_views_and_splits_are_refused(module: ModuleType, view: str, split: str, count: int):
    with pytest.raises(ValueError, match="no rows for"):
        list(module.rows(view=view, split=split, count=count, seed=0))
