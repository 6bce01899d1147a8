"""The text capabilities through the doors: several at once, and the one that is measured only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from nexus.evaluation.streaming import STREAMING_METRICS
from tests.conftest import Finished

Door = Callable[..., Finished]


def test_streaming_is_measured(door: Door, tmp_path: Path) -> None:
    words = ("scale=quick", "capabilities.streaming.max_new_tokens=8", "output=scores.json")
    finished = door("evaluate", "+capability=streaming", *words)
    assert finished.status == 0, finished.errors
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]["streaming"]
    assert tuple(scores) == STREAMING_METRICS
    assert scores["inter_token_ms_p50"]["n"] == 16 * 7
    assert 0 < scores["inter_token_ms_p50"]["value"] <= scores["inter_token_ms_p95"]["value"]
    assert scores["cancel_in_one_token"]["value"] == 1.0


def test_all_text_trains_what_can_be_trained_and_says_what_not(door: Door, tmp_path: Path) -> None:
    samples = ("callbacks.samples.every_n_steps=2", "callbacks.samples.count=4")
    finished = door("train", "+capability=all_text", "scale=quick", "run_dir=run", "method.max_steps=2", *samples)
    assert finished.status == 0, finished.errors
    assert "W-CFG-06  capabilities.streaming" in finished.errors
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["scores"]["after"]) == {"cot", "reasoning", "thinking", "tools"}
    assert {"nexus_reasoning", "nexus_thinking"} < set(report["data"]["sources"])
    assert "level" in report["scores"]["after"]["reasoning"]
    shown = [json.loads(line)["id"] for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [name.split("-")[0] for name in shown] == ["cot", "reasoning", "thinking", "tools"]
