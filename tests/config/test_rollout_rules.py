"""Settings of methods that learn from rewards: what they share, and what cannot work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexus.config.check import check, to_plain
from nexus.stages.cold_start import cold_start_config, is_possible, is_wanted

TOOLS = "+capability=tools"
METHODS = ("grpo", "dr_grpo", "dapo", "gspo", "rloo", "ppo")


@pytest.mark.parametrize("name", METHODS)
def test_the_module_gets_what_the_method_says(cfg: Callable[..., Any], name: str) -> None:
    words = ("method.epsilon_low=0.11", "method.epsilon_high=0.22", "method.kl_coef=0.33")
    config = cfg(TOOLS, f"method={name}", "method.rollout.temperature=0.7", *words)
    assert check(config, root="train") == []
    module = to_plain(config)["method"]["module"]
    assert (module["epsilon_low"], module["epsilon_high"], module["kl_coef"]) == (0.11, 0.22, 0.33)
    assert module["temperature"] == 0.7
    assert module["_target_"].startswith(f"nexus.methods.{name}.")


def test_bounds_and_divergence_are_those_of_the_papers(cfg: Callable[..., Any]) -> None:
    found = {name: cfg(TOOLS, f"method={name}").method for name in METHODS}
    bounds = {name: (method.epsilon_low, method.epsilon_high) for name, method in found.items()}
    assert bounds["dapo"] == (0.2, 0.28)
    assert bounds["gspo"] == (3e-4, 4e-4)
    assert {bounds[name] for name in ("grpo", "dr_grpo", "rloo", "ppo")} == {(0.2, 0.2)}
    assert {name for name, method in found.items() if method.kl_coef > 0} == {"grpo", "rloo", "ppo"}
    assert len({method.lr for method in found.values()}) == 1


def test_learning_rate_is_a_share_of_imitation(cfg: Callable[..., Any]) -> None:
    config = cfg(TOOLS, "method=grpo")
    assert config.method.lr < config.base_model.lr.full
    assert config.method.cold_start.lr == config.base_model.lr.full
    assert cfg(TOOLS, "method=grpo", "adapter=lora").method.cold_start.lr == config.base_model.lr.adapter
    half = cfg(TOOLS, "method=grpo", "base_model=qwen2_5_0_5b")
    assert half.method.lr == pytest.approx(1e-6), "as in the papers"


def test_cold_start_is_the_run_with_another_method(cfg: Callable[..., Any]) -> None:
    config = to_plain(cfg(TOOLS, "method=grpo", "optimizer=muon", "method.cold_start.rows=70"))
    phase = cold_start_config(config)
    assert phase["method"]["view"] == "sft"
    assert phase["method"]["optimizer"]["_target_"] == config["method"]["optimizer"]["_target_"]
    assert phase["method"]["optimizer"]["lr"] == config["method"]["cold_start"]["lr"] != config["method"]["lr"]
    assert phase["scale"]["rows_per_source"] == 70
    assert cold_start_config(to_plain(cfg(TOOLS, "method=grpo", "scale=quick")))["scale"]["rows_per_source"] == 16
    assert {key for key in config if config[key] != phase[key]} == {"method", "scale", "data"}
    assert (config["data"]["global_batch_size"], phase["data"]["global_batch_size"]) == (16, 8)
    quick = cold_start_config(to_plain(cfg(TOOLS, "method=grpo", "scale=quick")))
    assert quick["data"]["global_batch_size"] == 2
    elsewhere = config | {"paths": config["paths"] | {"checkpoint_dir": "/c"}}
    assert cold_start_config(elsewhere, Path("/runs/mine"))["paths"]["checkpoint_dir"] == "/c/mine"


def test_when_there_is_a_cold_start(cfg: Callable[..., Any]) -> None:
    def wanted(score: float, *words: str) -> bool:
        scores = {"tools": {"exact_match": {"value": score}}}
        return is_wanted(to_plain(cfg(TOOLS, "method=grpo", *words)), scores)

    assert wanted(0.0)
    assert not wanted(0.5)
    assert wanted(0.5, "method.cold_start.below=0.6")
    assert wanted(0.5, "method.cold_start.when=always")
    assert not wanted(0.0, "method.cold_start.when=never")
    assert not is_possible(to_plain(cfg(TOOLS)))


@pytest.mark.parametrize(
    ("words", "code", "key"),
    [
        ((TOOLS, "method.rollout.num_generations=1"), "E-CFG-02", "method.rollout.num_generations"),
        ((TOOLS, "method.rollout.temperature=0"), "E-CFG-02", "method.rollout.temperature"),
        ((TOOLS, "method.rollout.engine=vlm"), "E-CFG-02", "method.rollout.engine"),
        ((TOOLS, "method.cold_start.when=maybe"), "E-CFG-02", "method.cold_start.when"),
        ((TOOLS, "method.scale=std"), "E-CFG-02", "method.scale"),
        ((TOOLS, "evaluation.before=false"), "E-CFG-03", "method.cold_start.when"),
        (("data.train=README.md",), "E-CFG-09", "data.train"),
        ((TOOLS, "~capabilities.tools.rewards.tool_call"), "E-CFG-09", "capabilities.tools.rewards"),
        (("+capability=cot", "capabilities.cot.environment={name:tools,max_turns:3}"), "E-CFG-03",
         "capabilities.cot.environment"),
        ((TOOLS, "capabilities.tools.environment={name:tools,max_turns:1}"), "E-CFG-02",
         "capabilities.tools.environment.max_turns"),
        ((TOOLS, "capabilities.tools.environment={name:shell,max_turns:3}"), "E-CFG-02",
         "capabilities.tools.environment.name"),
        (
            ("+capability=[cot,tools]", "+dataset@capabilities.cot.sources.more=nexus_tools"),
            "E-CFG-03",
            "capabilities.tools.sources.embedded.name",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work(cfg: Callable[..., Any], words: tuple[str, ...], code: str, key: str) -> None:
    problems = check(cfg("method=grpo", *words), root="train")
    assert (code, key) in [(problem.code, problem.key) for problem in problems], problems


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_rollouts_takes_an_environment(cfg: Callable[..., Any], name: str) -> None:
    config = cfg("experiment=tool_results", f"method={name}", "capabilities.tools.environment.max_turns=2")
    assert check(config, root="train") == []
    assert to_plain(config)["capabilities"]["tools"]["environment"] == {"name": "tools", "max_turns": 2}
    assert list(config.capabilities.tools.rewards) == ["tool_call", "answer"]
    assert cfg(TOOLS).capabilities.tools.environment is None, "off unless asked for"
