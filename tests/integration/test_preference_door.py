"""`method=dpo|orpo|simpo|kto` as a user runs them: trained, measured by held-out pairs, packaged, resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nexus.callbacks.metrics_csv import read_metrics
from tests.conftest import Finished

QUICK = ("+capability=tools", "scale=quick", "run_dir=run", "capabilities.tools.max_new_tokens=4")


@pytest.mark.parametrize(
    ("method", "steps"),
    [("dpo", 8), ("orpo", 8), ("simpo", 8), ("kto", 10)],  # quick: 16 pairs, two rows a step; kto has 32 rows, 10 steps
)
def test_a_quick_run(door: Callable[..., Finished], tmp_path: Path, method: str, steps: int) -> None:
    done = door("train", *QUICK, f"method={method}")
    assert done.status == 0, done.errors
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["train"]["method"], report["train"]["global_step"]) == (method, steps)
    assert report["data"]["rows"] == (32 if method == "kto" else 16)
    for when in ("before", "after"):
        scores = report["scores"][when]
        assert scores["tools"]["exact_match"]["n"] == 16
        assert scores["preference"]["accuracy"]["n"] == 16
    assert report["scores"]["before"]["preference"] != report["scores"]["after"]["preference"]
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [1, 5, *([8] if steps == 8 else [10])]
    assert all("rewards/accuracies" in row for row in rows)
    assert (tmp_path / "run" / "package" / "model.safetensors").exists()
    assert (tmp_path / "run" / "reference.safetensors").exists() == (method in ("dpo", "kto"))
    if method == "dpo":
        assert rows[0]["train/loss"] == pytest.approx(0.693147, abs=1e-5)
        assert rows[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)


def test_the_package_is_measured_alike_by_evaluate(door: Callable[..., Finished], tmp_path: Path) -> None:
    assert door("train", *QUICK, "method=simpo", "method.max_steps=2", "evaluation.before=false").status == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    words = ("+capability=tools", "scale=quick", "method=simpo", "package=run/package", "output=scores.json")
    done = door("evaluate", *words, "capabilities.tools.max_new_tokens=4")
    assert done.status == 0, done.errors
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores["preference"]["accuracy"] == report["scores"]["after"]["preference"]["accuracy"]


def test_dry_run_shows_the_pair_and_the_reference(door: Callable[..., Finished]) -> None:
    done = door("train", "+capability=tools", "method=dpo", "dry_run=true")
    assert done.status == 0, done.errors
    assert "--- rejected" in done.output
    assert "for the reference" in done.output
    done = door("train", "+capability=tools", "method=orpo", "dry_run=true")
    assert "for the reference" not in done.output


def test_own_pairs_are_checked_and_counted(door: Callable[..., Finished], tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}.", "chosen": f"It is {i}", "rejected": f"It is {i + 1}"} for i in range(6)]
    rows += [{"prompt": "Say it.", "chosen": "Yes", "rejected": "Yes"}, {"prompt": "A", "chosen": "B", "rejected": ""}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("data.train=pairs.jsonl", "method=dpo", "scale=quick", "run_dir=run", "package.enabled=false")
    done = door("train", *words)
    assert done.status == 65
    assert "E-PREF-01" in done.errors
    assert "pairs.jsonl:7" in done.errors
    done = door("train", *words, "data.max_bad_rows=2")
    assert done.status == 0, done.errors
    data = json.loads((tmp_path / "run" / "report.json").read_text())["data"]
    assert (data["rows"], data["held_out_rows"], data["bad_rows"], data["dropped"]) == (5, 1, 2, {"empty_answer": 1})
