"""Rules of `generate`: what its mode needs, and what it does not use; `config.rules` runs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nexus.config.capabilities import MEASURED_ONLY
from nexus.config.datasets import source_problems, training_problems
from nexus.errors import Problem


def mode_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Settings that do not fit the chosen mode.

    Args:
        config: resolved, plain containers.

    Yields:
        Problems.
    """
    if config["mode"]["name"] == "rejection_sampling":
        yield from _sampling_problems(config)
        return
    if config["max_new_tokens"] is None:
        yield Problem("E-CFG-03", "max_new_tokens", "a conversation has no capability that says how long answers are",
                      "for example max_new_tokens=256")  # fmt: skip
    if config["capabilities"]:
        names = ", ".join(config["capabilities"])
        yield Problem(
            "E-CFG-03",
            "capabilities",
            f"{names}: a conversation reads no prompts and measures nothing",
            "leave +capability out; tools=[..] offers tools, and mode=rejection_sampling answers prompts",
        )
    if config["output"] is not None:
        yield Problem("E-CFG-03", "output", "a conversation writes no file", "leave it out, or mode=rejection_sampling")


def _sampling_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    mode, capabilities = config["mode"], config["capabilities"]
    if not capabilities:
        yield Problem(
            "E-CFG-09",
            "capabilities",
            "there is nothing to sample: prompts and rewards come from a capability",
            "+capability=tools",
        )
    for name, entry in capabilities.items():
        if name in MEASURED_ONLY:
            yield Problem("E-CAP-02", f"capabilities.{name}", "it has no prompts of its own", "leave it out")
        elif entry["status"] == "ready" and not entry["rewards"]:
            yield Problem(
                "E-CFG-09",
                f"capabilities.{name}.rewards",
                "answers are kept by their rewards, and there are none",
                f"+reward@capabilities.{name}.rewards.answer=answer",
            )
        if entry["status"] == "ready" and entry["environment"]:
            yield Problem(
                "E-CFG-03",
                f"capabilities.{name}.environment",
                "the rows that are written hold one answer, and this makes conversations",
                f"capabilities.{name}.environment=null",
            )
    for key in ("prompt", "system", "tools"):
        if config[key]:
            yield Problem("E-CFG-03", key, "prompts come from the capability", f"leave {key} out, or mode=chat")
    if config["temperature"] == 0:
        yield Problem("E-CFG-03", "temperature", "= 0 gives the same answer every time", "for example temperature=1.0")
    if mode["keep"] > mode["num_generations"]:
        yield Problem(
            "E-CFG-03",
            "mode.keep",
            f"= {mode['keep']}, but there are only mode.num_generations={mode['num_generations']} answers",
            f"mode.num_generations={mode['keep']}",
        )
    no_rows_of_ones_own: dict[str, Any] = {"data": {"train": None, "sources": {}}}
    yield from source_problems({**config, **no_rows_of_ones_own})
    yield from training_problems({**config, **no_rows_of_ones_own})  # what is written is trained on
