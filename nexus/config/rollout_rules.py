"""Rules of methods that sample answers and learn from rewards; `config.rules` runs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nexus.config.capabilities import MEASURED_ONLY
from nexus.errors import Problem

#: Metrics of capabilities whose answers call functions.
_CALLING = ("tools", "tool_results")


def rollout_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """What keeps answers from being rewarded.

    Args:
        config: resolved, plain containers.

    Yields:
        `E-CFG-09` without prompts or rewards, `E-CFG-03` for a source with two kinds of rewards and for a cold start
        that depends on a score which is not measured.
    """
    method = config["method"]
    if "rollout" not in method:
        return
    trained = {
        name: entry
        for name, entry in config["capabilities"].items()
        if entry["status"] == "ready" and name not in MEASURED_ONLY
    }
    if config["data"]["train"] or config["data"]["sources"]:
        key = "data.train" if config["data"]["train"] else "data.sources"
        yield Problem(
            "E-CFG-09",
            key,
            f"method={method['name']} learns from rewards, and rows of your own have none",
            "put their card under a capability, whose rewards then judge the answers (rows have prompt and gold): "
            "+dataset@capabilities.NAME.sources.mine=files capabilities.NAME.sources.mine.path=FILE",
        )
    owners: dict[str, str] = {}
    for name, entry in trained.items():
        if not entry["rewards"] and method["reward_model"] is None:
            yield Problem(
                "E-CFG-09",
                f"capabilities.{name}.rewards",
                f"method={method['name']} learns from rewards, and there are none",
                f"+reward@capabilities.{name}.rewards.answer=answer, or method.reward_model=PACKAGE",
            )
        for source, card in entry["sources"].items():
            if "train" in card["roles"] and owners.setdefault(card["name"], name) != name:
                yield Problem(
                    "E-CFG-03",
                    f"capabilities.{name}.sources.{source}.name",
                    f"= {card['name']!r} is also a source of {owners[card['name']]}, so its prompts have two kinds of "
                    "rewards",
                    "train on one of the capabilities, or give the card another name",
                )
    if method["name"] == "ppo":
        yield from _value_problems(config)
    if method["cold_start"]["when"] == "auto" and not config["evaluation"]["before"]:
        yield Problem(
            "E-CFG-03",
            "method.cold_start.when",
            "= 'auto' asks how well the base does, and evaluation.before=false does not measure it",
            "method.cold_start.when=always or =never",
        )


def environment_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """An environment where no answer could call anything.

    Args:
        config: resolved, plain containers.

    Yields:
        `E-CFG-03`.
    """
    for name, entry in config["capabilities"].items():
        if entry["status"] == "ready" and entry["environment"] and entry["metrics"] not in _CALLING:
            yield Problem(
                "E-CFG-03",
                f"capabilities.{name}.environment",
                "it executes calls, and the answers of this capability hold none",
                f"capabilities.{name}.environment=null",
            )


def _value_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """A rollout of one answer has nothing that its advantages could be compared with."""
    rollout, rows = config["method"]["rollout"], config["data"]["global_batch_size"]
    if rows * rollout["steps_per_rollout"] * rollout["num_generations"] < 2:
        yield Problem(
            "E-CFG-03",
            "method.rollout.num_generations",
            f"= {rollout['num_generations']}: advantages are whitened over a rollout, and this one has a single answer",
            "data.global_batch_size=8 or method.rollout.num_generations=4",
        )
