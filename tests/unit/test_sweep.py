"""What a multirun ends with: table, CSV and plot over run folders."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nexus.stages.sweep import compare


def make_run(folder: Path, *, after: dict[str, Any], before: dict[str, Any], method: str) -> Path:
    """A finished run's report and metrics."""
    folder.mkdir(parents=True)
    train = {"method": method, "adapter": "none", "global_step": 10, "tokens_per_second": 5321.4}
    report = {"status": "finished", "scores": {"before": before, "after": after}, "train": train, "seconds": 61.5}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "metrics.csv").write_text("step,train/loss\r\n1,3.5\r\n10,1.5\r\n")
    return folder


def score(value: float) -> dict[str, Any]:
    return {"value": value, "n": 200, "ci95": [value - 0.05, value + 0.05]}


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    tools = {"tools": {"exact_match": score(0.5), "name": score(0.75)}}
    return [
        make_run(tmp_path / "0_method=sft", before={"tools": {"exact_match": score(0.1)}}, after=tools, method="sft"),
        make_run(tmp_path / "1_method=lora", before={}, after={"tools": {"exact_match": score(0.4)}}, method="lora"),
    ]


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_per_run_and_metric(runs: list[Path], tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    compare(tmp_path, runs, console)
    rows = read(tmp_path)
    assert [(row["run"], row["method"], row["metric"], row["before"], row["after"]) for row in rows] == [
        ("0_method=sft", "sft", "exact_match", "0.1", "0.5"),
        ("0_method=sft", "sft", "name", "", "0.75"),
        ("1_method=lora", "lora", "exact_match", "", "0.4"),
    ]
    assert [float(rows[0][name]) for name in ("after_low", "after_high", "n", "steps", "tokens_per_second")] == [
        pytest.approx(value) for value in (0.45, 0.55, 200, 10, 5321.4)
    ]
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    text = console.export_text()
    for part in (
        "0_method=sft",
        "1_method=lora",
        "0.500 [0.450, 0.550]",
        "0.100 [0.050, 0.150]",
        "5,321",
        "comparison.csv",
    ):
        assert part in text
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"comparison.csv", "comparison.png"}


def test_runs_without_scores_still_compare(tmp_path: Path) -> None:
    """With `evaluation.after=false` there is a loss and nothing else."""
    run = make_run(tmp_path / "0_seed=1", before={}, after={}, method="sft")
    compare(tmp_path, [run], Console(quiet=True))
    assert read(tmp_path) == []
    assert (tmp_path / "comparison.csv").read_text().startswith("run,method,adapter,group,metric,")
    assert (tmp_path / "comparison.png").is_file()


def test_a_run_without_a_report_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "0_seed=1").mkdir()
    with pytest.raises(FileNotFoundError, match=r"report\.json"):
        compare(tmp_path, [tmp_path / "0_seed=1"], Console(quiet=True))
    assert not (tmp_path / "comparison.csv").exists()
