"""What a mode of `generate` needs, and what it does not use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nexus.config.check import check, to_plain

MODE, TOOLS = "mode=rejection_sampling", "+capability=tools"


def test_modes_own_temperature_and_length(cfg: Callable[..., Any]) -> None:
    chat, sampling = (to_plain(cfg(*words, root="generate")) for words in ((), (MODE, TOOLS)))
    assert (chat["mode"], chat["temperature"], chat["max_new_tokens"]) == ({"name": "chat"}, 0.0, 256)
    assert (sampling["mode"]["name"], sampling["temperature"]) == ("rejection_sampling", 1.0)
    assert sampling["max_new_tokens"] is None
    assert cfg(MODE, TOOLS, "temperature=0.7", root="generate").temperature == 0.7
    assert check(cfg(MODE, TOOLS, root="generate"), root="generate") == []


@pytest.mark.parametrize(
    ("words", "code", "key"),
    [
        ((MODE,), "E-CFG-09", "capabilities"),
        ((MODE, TOOLS, "~capabilities.tools.rewards.tool_call"), "E-CFG-09", "capabilities.tools.rewards"),
        ((MODE, "+capability=[tools,streaming]"), "E-CAP-02", "capabilities.streaming"),
        ((MODE, "+capability=omni"), "E-CAP-01", "capabilities.omni"),
        ((MODE, TOOLS, "prompt=Hello"), "E-CFG-03", "prompt"),
        ((MODE, TOOLS, "system=Hello"), "E-CFG-03", "system"),
        ((MODE, TOOLS, "tools=[{name: f}]"), "E-CFG-03", "tools"),
        ((MODE, TOOLS, "temperature=0"), "E-CFG-03", "temperature"),
        ((MODE, TOOLS, "mode.keep=9"), "E-CFG-03", "mode.keep"),
        ((MODE, TOOLS, "mode.margin=0"), "E-CFG-02", "mode.margin"),
        ((MODE, TOOLS, "mode.num_generations=1"), "E-CFG-02", "mode.num_generations"),
        ((MODE, TOOLS, "+mode.trheshold=1"), "E-CFG-01", "mode.trheshold"),
        ((MODE, TOOLS, "capabilities.tools.sources.embedded.roles=[eval]"), "E-DAT-18", "capabilities.tools.sources"),
        ((MODE, TOOLS, "capabilities.tools.sources.embedded.generator=null"), "E-CFG-07",
         "capabilities.tools.sources.embedded.generator"),
        ((MODE, TOOLS, "capabilities.tools.environment={name:tools,max_turns:3}"), "E-CFG-03",
         "capabilities.tools.environment"),
        ((TOOLS,), "E-CFG-03", "capabilities"),
        (("output=there",), "E-CFG-03", "output"),
        (("max_new_tokens=null",), "E-CFG-03", "max_new_tokens"),
        (("+mode.keep=2",), "E-CFG-01", "mode.keep"),
    ],
)  # fmt: skip
def test_mistakes(cfg: Callable[..., Any], words: tuple[str, ...], code: str, key: str) -> None:
    [problem] = check(cfg(*words, root="generate"), root="generate")
    assert (problem.code, problem.key) == (code, key)
    assert problem.remedy


def test_a_benchmark_is_not_turned_into_training_rows(cfg: Callable[..., Any]) -> None:
    words = ("+dataset@capabilities.cot.sources.gsm8k=gsm8k_test", "capabilities.cot.sources.gsm8k.roles=[train]")
    problems = check(cfg(MODE, "+capability=cot", *words, root="generate"), root="generate")
    assert {problem.code for problem in problems} == {"E-DAT-18"}
