"""The main job as a user runs it: from below 10 % to at least 85 %, the same from the package in a new process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_tools_from_below_ten_to_above_eighty_five_percent(tmp_path: Path, run_door: Callable[..., Any]) -> None:
    done = run_door("train", "+capability=tools", f"run_dir={tmp_path / 'run'}", cwd=tmp_path, timeout=1200)
    assert done.status == 0, done.errors
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    before, after = (report["scores"][when]["tools"]["exact_match"] for when in ("before", "after"))
    assert before["n"] == after["n"] >= 200
    assert before["value"] < 0.10
    assert after["value"] >= 0.85
    assert after["ci95"][0] < after["value"] < after["ci95"][1]

    package, output = tmp_path / "run" / "package", tmp_path / "scores.json"
    again = run_door(
        "evaluate", f"package={package}", "+capability=tools", f"output={output}", cwd=tmp_path, timeout=600
    )
    assert again.status == 0, again.errors
    assert json.loads(output.read_text())["scores"]["tools"]["exact_match"] == after
