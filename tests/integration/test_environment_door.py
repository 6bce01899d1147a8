"""Conversations with an environment through the door: all three scores of a run use it, and so does `evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Finished

Door = Callable[..., Finished]


def test_quick_run(door: Door, tmp_path: Path) -> None:
    words = ("scale=quick", "run_dir=run", "method.max_steps=1", "method.cold_start.max_steps=1",
             "method.rollout.num_generations=2", "scale.eval_prompts=2", "capabilities.tools.max_new_tokens=24",
             "package.enabled=false", "method.cold_start.when=always")  # fmt: skip
    finished = door("train", "experiment=tool_results", "method=grpo", *words)
    assert finished.status == 0, finished.errors
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(report["scores"]) == ["before", "cold_start", "after"]
    for scores in report["scores"].values():
        assert set(scores["tools"]) == {"exact_match", "calls", "answer"}
        assert scores["tools"]["exact_match"]["n"] == 2
    assert {"tools", "tools/calls", "tools/answer"} <= set(report["gain"])
    assert report["rollouts"]["tokens"] > 0
    kept = (tmp_path / "run" / "config.yaml").read_text()
    assert "nexus_tool_results" in kept
    assert "max_turns: 4" in kept
