"""`method=reward_model` and the runs that it judges, as a user does them: pairs, package, rewards, mistakes, resume."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Finished

Door = Callable[..., Finished]

QUICK = ("+capability=tools", "scale=quick", "capabilities.tools.max_new_tokens=24", "scale.eval_prompts=4")
PPO = (*QUICK, "method=ppo", "run_dir=run", "method.max_steps=4", "package.enabled=false",
       "callbacks.metrics_csv.every_n_steps=1", "method.cold_start.when=never")  # fmt: skip


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judge") / "rm"


@pytest.fixture(autouse=True)
def _trained(door: Door, judge: Path) -> None:
    """The reward model that the tests of this file use, made by the first of them."""
    if not judge.exists():
        done = door("train", "+capability=tools", "scale=quick", "method=reward_model", f"run_dir={judge}")
        assert done.status == 0, done.errors
        assert "its rewards are within" in done.output


def test_its_run_measures_held_out_pairs_and_nothing_else(door: Door, tmp_path: Path, judge: Path) -> None:
    report = json.loads((judge / "report.json").read_text())
    assert report["train"]["method"] == "reward_model"
    assert report["train"]["global_step"] == 8
    for when in ("before", "after"):
        assert list(report["scores"][when]) == ["preference"], "a reward model answers nothing"
        assert report["scores"][when]["preference"]["accuracy"]["n"] == 16
        assert set(report["scores"][when]["preference"]) == {"accuracy", "margin", "reward"}
    assert report["scores"]["before"] != report["scores"]["after"]
    assert report["package"]["max_logit_difference"] < 1e-3
    config = json.loads((judge / "package" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    words = (f"package={judge / 'package'}", "output=scores.json")
    done = door("evaluate", "+capability=tools", "scale=quick", "method=reward_model", *words)
    assert done.status == 0, done.errors
    measured = json.loads((tmp_path / "scores.json").read_text())["scores"]["preference"]
    assert measured["accuracy"] == report["scores"]["after"]["preference"]["accuracy"]
    assert measured["margin"]["value"] == pytest.approx(
        report["scores"]["after"]["preference"]["margin"]["value"], abs=1e-4
    )
    with (judge / "metrics.csv").open() as file:
        assert {"rewards/accuracies", "rewards/margins", "rewards/chosen"} <= set(next(csv.DictReader(file)))


def test_ppo_beside_and_in_place_of_functions(door: Door, tmp_path: Path, judge: Path) -> None:
    words = (f"method.reward_model={judge / 'package'}", "method.reward_model_weight=0.5")
    done = door("train", *PPO, *words)
    assert done.status == 0, done.errors
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = {"reward/tool_call", "reward/reward_model", "reward/mean", "kl", "kl/sequence", "loss/value", "entropy",
              "clip_fraction/high", "clip_fraction/low", "clip_fraction/value", "explained_variance"}  # fmt: skip
    assert wanted <= set(rows[0])
    for row in rows:
        total = float(row["reward/tool_call"]) + 0.5 * float(row["reward/reward_model"])
        assert float(row["reward/mean"]) == pytest.approx(total, abs=1e-4)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["rollouts"]["rollouts"] == 1, "two steps of a rollout, twice"
    alone = (*PPO, *words, "run_dir=alone", "~capabilities.tools.rewards.tool_call", "method.max_steps=1")
    done = door("train", *alone)
    assert done.status == 0, done.errors
    with (tmp_path / "alone" / "metrics.csv").open() as file:
        [row] = csv.DictReader(file)
    assert float(row["reward/mean"]) == pytest.approx(0.5 * float(row["reward/reward_model"]), abs=1e-4)
    assert "reward/tool_call" not in row


def test_it_starts_from_the_same_cold_start_and_packages_the_policy_alone(door: Door, tmp_path: Path) -> None:
    words = ("method.cold_start.when=always", "method.cold_start.max_steps=1", "package.enabled=true", "adapter=lora")
    done = door("train", *PPO, *words)
    assert done.status == 0, done.errors
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(report["scores"]) == ["before", "cold_start", "after"]
    assert report["gain"]["tools"]["since"] == "cold_start"
    config = json.loads((tmp_path / "run" / "package" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    from safetensors import safe_open

    with safe_open(tmp_path / "run" / "package" / "model.safetensors", framework="pt") as stored:
        assert not any("value_head" in name or "score" in name for name in stored.keys())  # noqa: SIM118


def test_mistakes(door: Door, tmp_path: Path, judge: Path) -> None:
    done = door("train", *PPO, "method.reward_model=nowhere")
    assert done.status == 66
    assert "E-MIS-01  method.reward_model" in done.errors
    done = door("train", *PPO, f"method.reward_model={judge}")
    assert done.status == 66
    assert str(judge / "package") in done.errors
    other = tmp_path / "other"
    shutil.copytree(judge / "package", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"][-1]["content"] = "<|another|>"
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = door("train", *PPO, f"method.reward_model={other}")
    assert "E-TOK-11" in done.errors, done.errors
    assert not (tmp_path / "run").exists(), "known before the run has a folder"
    done = door("generate", f"package={judge / 'package'}", "prompt=Hello")
    assert "E-MOD-21" in done.errors, done.errors
    done = door("train", "method=reward_model", "data.train=rows.jsonl", "run_dir=run")
    assert done.status == 66
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Say it.", "completion": "Yes"}) + "\n")
    done = door("train", "method=reward_model", "data.train=rows.jsonl", "run_dir=run")
    assert done.status == 65, done.errors


def test_dry_run_counts_head_and_judge(door: Door, judge: Path) -> None:
    done = door("train", *QUICK, "method=ppo", "dry_run=true", f"method.reward_model={judge / 'package'}")
    assert done.status == 0, done.errors
    assert "192 of a head with one output" in done.output
    assert "reward model" in done.output
    assert "with 1 answer" in done.output
