"""Several rewards at once, rewards of one's own, and every way in which they can be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nexus.config.folders import conf_dir
from nexus.errors import NexusError
from nexus.rewards.registry import (
    BUILT_IN,
    READABLE,
    RewardFunction,
    Sample,
    build_rewards,
    means,
    reward_problems,
    signature_problem,
)
from nexus.types import Example

SAMPLE = Sample(
    id="file.jsonl:7",
    completion="12 + 7 = 19\n<answer>19</answer>",
    gold={"answer": "19"},
    prompt=({"role": "user", "content": "Ann has 12 apples and gets 7 more."},),
    tools=(),
    finished=True,
    num_tokens=12,
)


def card(name: str) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.load(conf_dir() / "reward" / f"{name}.yaml"))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def config(rewards: dict[str, Any]) -> dict[str, Any]:
    return {"capabilities": {"cot": {"status": "ready", "rewards": rewards}, "podcast": {"status": "planned"}}}


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """A reward of one's own with this body."""

    def write(text: str, **options: Any) -> dict[str, Any]:
        path = tmp_path / f"mine{len(list(tmp_path.iterdir()))}.py"
        path.write_text(text)
        return {"function": f"{path}:reward", "weight": 1.0, "options": options}

    return write


def test_every_built_in_has_a_card_and_no_other() -> None:
    cards = {path.stem: card(path.stem) for path in sorted((conf_dir() / "reward").glob("*.yaml"))}
    assert set(cards) == set(BUILT_IN)
    assert all(entry["function"] == name for name, entry in cards.items())
    assert list(reward_problems(config(cards))) == []
    assert len(cards) == 9


def test_total_is_the_weighted_sum_of_all_components() -> None:
    names = ("answer", "steps", "format", "length", "overlong", "cosine", "repetition")
    cards = {name: card(name) for name in names}
    rewarded = build_rewards(cards).score([SAMPLE, replace(SAMPLE, completion="", num_tokens=1)])
    for one in rewarded:
        assert set(one.components) == set(names)
        assert one.total == pytest.approx(sum(cards[name]["weight"] * one.components[name] for name in names))
    assert (rewarded[0].components["answer"], rewarded[0].components["steps"]) == (1.0, 1.0)
    assert rewarded[1].total < rewarded[0].total
    logged = means(rewarded)
    assert logged["reward/mean"] == pytest.approx((rewarded[0].total + rewarded[1].total) / 2)
    assert logged["reward/answer"] == 0.5
    with pytest.raises(ValueError, match="no completion"):
        means([])


def test_gold_travels_with_the_row() -> None:
    example = Example("a:1", "a", ({"role": "user", "content": "?"},), gold={"answer": "4"})
    sample = Sample.of(example, completion="<answer>4</answer>", finished=True, num_tokens=3)
    assert build_rewards({"answer": card("answer")}).score([sample])[0].total == 1.0


@pytest.mark.parametrize("gold", [None, {}, {"calls": []}, {"answer": ""}])
def test_missing_gold_is_an_error_that_names_the_row(gold: Any) -> None:
    rewards = build_rewards({"right": card("answer"), "format": card("format")})
    with pytest.raises(NexusError, match="no gold") as caught:
        rewards.score([SAMPLE, replace(SAMPLE, gold=gold)])
    assert (caught.value.code, caught.value.status) == ("E-DAT-31", 65)
    assert "file.jsonl:7" in caught.value.where
    assert "right (answer)" in caught.value.where
    assert build_rewards({"format": card("format")}).score([replace(SAMPLE, gold=gold)])[0].total == 0.1


def test_no_reward_at_all_is_an_error() -> None:
    with pytest.raises(NexusError) as caught:
        build_rewards({})
    assert caught.value.code == "E-CFG-09"


def test_own_function_gets_what_it_names(own: Callable[..., dict[str, Any]]) -> None:
    body = (
        "def reward(completion, gold, prompt, *, finished, factor):\n    return factor * (gold['answer'] in completion)"
    )
    settings = own(body, factor=3) | {"weight": 0.5}
    rewarded = build_rewards({"mine": settings}).score([SAMPLE])[0]
    assert (rewarded.total, rewarded.components) == (1.5, {"mine": 3.0})
    everything = own("def reward(completion, **everything):\n    return len(everything)")
    assert build_rewards({"mine": everything}).score([SAMPLE])[0].total == 0.0
    by_name = own(f"def reward({', '.join(READABLE)}):\n    return num_tokens")
    assert build_rewards({"mine": by_name}).score([SAMPLE])[0].total == 12.0


@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        ("def reward(text):\n    return 1", {}, "needs 'text'"),
        ("def reward(completion, strength):\n    return 1", {}, "needs 'strength'"),
        ("def reward(completion):\n    return 1", {"strength": 2}, "has no option 'strength'"),
        ("def reward(gold):\n    return 1", {}, "reads neither"),
        ("def reward(*args):\n    return 1", {}, "by position only"),
        ("def reward(completion, /):\n    return 1", {}, "by position only"),
        ("def reward(completion, gold):\n    return 1", {"gold": 2}, "no option"),
        ("def other(completion):\n    return 1", {}, "there is no function 'reward'"),
        ("reward = 3", {}, "there is no function 'reward'"),
        ("import nothing_of_that_name", {}, "cannot be run: ModuleNotFoundError"),
        ("x = 1\ndef reward(completion:\n", {}, "cannot be run: SyntaxError"),
        ("\n\n1 / 0", {}, "cannot be run: ZeroDivisionError"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_before_the_run(
    own: Callable[..., dict[str, Any]], body: str, options: dict[str, Any], message: str
) -> None:
    settings = own(body, **options)
    with pytest.raises(NexusError, match=message) as caught:
        build_rewards({"mine": settings})
    assert caught.value.code == "E-RL-05"
    assert caught.value.remedy
    if "ZeroDivision" in message:
        assert caught.value.where.endswith(".py:3")


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("    return float('nan')", "E-RL-02", "nan"),
        ("    return float('inf')", "E-RL-02", "inf"),
        ("    return '1'", "E-RL-02", "'1'"),
        ("    return None", "E-RL-02", "None"),
        ("    return [1.0]", "E-RL-02", r"\[1.0\]"),
        ("    return 1 / 0", "E-RL-04", "ZeroDivisionError: division by zero"),
        ("    return gold['nothing']", "E-RL-04", "KeyError"),
    ],
)
def test_a_function_that_fails_names_file_and_row(
    own: Callable[..., dict[str, Any]], body: str, code: str, message: str
) -> None:
    settings = own(f"def reward(completion, gold):\n{body}")
    with pytest.raises(NexusError, match=message) as caught:
        build_rewards({"mine": settings}).score([SAMPLE])
    assert (caught.value.code, caught.value.status) == (code, 64)
    file = settings["function"].rpartition(":")[0]
    assert "row file.jsonl:7" in caught.value.where
    assert file in caught.value.where
    if code == "E-RL-04":
        assert f"{file}:2" in caught.value.where
        assert isinstance(caught.value.__cause__, ZeroDivisionError | KeyError)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(NexusError) as caught:
        build_rewards({"mine": {"function": "no/such.py:reward", "weight": 1.0, "options": {}}})
    assert (caught.value.code, caught.value.status) == ("E-MIS-05", 66)


@pytest.mark.parametrize(
    ("change", "code", "key", "hint"),
    [
        ({"function": "anser"}, "E-CFG-01", "function", "did you mean answer?"),
        ({"function": "mine.py"}, "E-CFG-01", "function", "path/to/file.py:function"),
        ({"function": "no/such.py:f"}, "E-MIS-05", "function", "relative"),
        ({"options": {"tolerance": 2.0, "marked": True}}, "E-CFG-02", "options.tolerance", "at most 1"),
        ({"options": {"tolerance": 0.0, "marked": "yes"}}, "E-CFG-02", "options.marked", "true or false"),
        ({"options": {"tolerance": 0.0}}, "E-CFG-07", "options.marked", "conf/reward/answer.yaml"),
        ({"options": {"tolerance": 0, "marked": True, "tolerence": 1}}, "E-CFG-01", "options.tolerence", "tolerance"),
    ],
)
def test_settings_are_checked_without_running_anything(change: dict[str, Any], code: str, key: str, hint: str) -> None:
    problems = list(reward_problems(config({"right": card("answer") | change})))
    assert [(problem.code, problem.key) for problem in problems] == [(code, f"capabilities.cot.rewards.right.{key}")]
    assert hint in problems[0].remedy


def test_a_file_of_ones_own_is_not_run_by_the_check(own: Callable[..., dict[str, Any]]) -> None:
    assert list(reward_problems(config({"mine": own("1 / 0")}))) == []


def test_signatures_of_callables() -> None:
    assert signature_problem(lambda completion: 1.0, {}) is None
    assert signature_problem(math.isclose, {}) is not None
    with pytest.raises(NexusError, match="reads neither"):
        RewardFunction("x", lambda gold: 1.0, 1.0, {}, "x")
