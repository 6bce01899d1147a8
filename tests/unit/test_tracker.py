"""The tables over all runs: whole rows, whatever is killed and however many write at once."""

from __future__ import annotations

import csv
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nexus.config.check import to_plain
from nexus.data.stream import StepLoader
from nexus.errors import NexusError
from nexus.stages.scoring import Speed
from nexus.stages.tracker import TABLES, Tracker, samples_seen, tracker_problems
from nexus.storage.tables import append_rows
from tests import small
from tests.conftest import REPOSITORY

COLUMNS = ("run", "value", "text")
#: The columns that the mission's own tracker had, in its order.
MISSION = {
    "training_metrics.csv": "timestamp, capability, dataset, base_model, samples, steps, epochs, batch_size, "
    "duration_seconds, samples_per_second, initial_loss, final_loss, avg_loss, gpu_memory_peak_gb, gpu_memory_used_gb, "
    "checkpoint_path, output_format, success, error",
    "validation_metrics.csv": "timestamp, test_type, total_tests, passed, failed, skipped, duration_seconds, details, "
    "errors",
    "benchmark_metrics.csv": "timestamp, name, category, model_name, total_time_s, tokens_per_second, latency_ms, "
    "first_token_time_s, input_tokens, output_tokens, total_tokens, token_accuracy, perplexity, loss, gpu_peak_mb, "
    "gpu_reserved_mb, ram_mb, success, error",
    "test_details.csv": "timestamp, test_id, name, outcome, duration_s, duration_ms, gpu_memory_mb, ram_mb, error, "
    "file",
}
WRITER = """
import sys
from pathlib import Path
from nexus.storage.tables import append_rows
for number in range(int(sys.argv[3])):
    rows = [{"run": sys.argv[2], "value": number, "text": "x" * 3000} for _ in range(3)]
    append_rows(Path(sys.argv[1]), ("run", "value", "text"), rows, key="paths.metrics_dir")
"""
PROVENANCE = {
    "git_commit": "abc", "config_sha256": "c" * 64, "data_sha256": "d" * 64, "versions": {"torch": "2", "python": "3"},
    "device": "cpu",
}  # fmt: skip


def writer(path: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count)], cwd=REPOSITORY)


def append(path: Path, *rows: dict[str, Any], columns: tuple[str, ...] = COLUMNS) -> None:
    append_rows(path, columns, rows, key="paths.metrics_dir")


def test_two_processes_write_whole_groups_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "outputs" / "table.csv"
    writers = [writer(path, name, 60) for name in ("a", "b")]
    assert [process.wait(timeout=120) for process in writers] == [0, 0]
    table = pd.read_csv(path)
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 360
    assert set(table["text"].str.len()) == {3000}
    for start in range(0, 360, 3):  # the rows of one call stand together
        assert len(table[["run", "value"]][start : start + 3].drop_duplicates()) == 1
    assert list(table[table["run"] == "a"]["value"][::3]) == list(range(60))


def test_a_kill_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    for trial in range(4):
        process = writer(path, f"k{trial}", 10_000)
        before = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size < before + 40_000:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    append(path, {"run": "last", "value": 1})
    table = pd.read_csv(path)
    assert list(table["run"])[-1] == "last"
    assert set(table["text"].dropna().str.len()) == {3000}
    assert len(set(table["run"])) == 5


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    append(path, {"run": "a", "value": 1, "text": 'one,two "three"\nfour'})
    whole = path.read_bytes()
    path.write_bytes(whole + b"b,2," + b"y" * 10_000)
    append(path, {"run": "c", "value": 3})
    assert path.read_bytes() == whole + b"c,3,\n"
    with path.open(newline="") as file:
        assert next(csv.DictReader(file))["text"] == 'one,two "three" four'
    path.write_bytes(b"run,va")  # killed in the header
    append(path, {"run": "d", "value": 4})
    assert path.read_bytes() == b"run,value,text\nd,4,\n"


def test_a_full_disk_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    append(path, {"run": "a", "value": 1})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises((NexusError, OSError)):
            append(path, {"run": "b", "value": 2, "text": "z" * 10_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before


def test_another_header_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    append(path, {"run": "a"}, columns=("run", "old"))
    before = path.read_bytes()
    with pytest.raises(NexusError, match="old, text, value") as caught:
        append(path, {"run": "b"})
    assert (caught.value.code, caught.value.status) == ("E-OUT-05", 73)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="other"):
        append(path, {"run": "b", "other": 1}, columns=("run", "old"))


def test_columns_are_the_missions_with_provenance_behind() -> None:
    assert set(TABLES) == set(MISSION)
    for name, text in MISSION.items():
        expected = text.split(", ")
        assert list(TABLES[name][: len(expected)]) == expected
        assert {"run_id", "git_commit", "config_sha256", "versions", "device"} <= set(TABLES[name][len(expected) :])


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 9])
def test_samples_seen_equals_what_the_loader_hands_out(steps: int) -> None:
    rows = small.make_rows(10)
    loader = StepLoader(
        rows, num_steps=steps, epochs=None, global_batch_size=4, micro_batch_size=None, micro_batch_tokens=None,
        packing=True, pad_token_id=0, seed=0, shuffle=True,
    )  # fmt: skip
    handed = sum(len(batch.ids) for step in loader for batch in step)
    assert samples_seen(steps, num_rows=10, batch=4) == handed


@pytest.fixture
def config(cfg: Callable[..., Any], tmp_path: Path) -> dict[str, Any]:
    return to_plain(cfg("+capability=tools", "scale=quick", f"paths.metrics_dir={tmp_path / 'tables'}"))


def test_rows_of_a_run_that_ended_and_of_one_that_failed(config: dict[str, Any], tmp_path: Path) -> None:
    rows = [
        {"step": 1, "seconds": 2.0, "train/loss": 4.0, "train/tokens": 10.0},
        {"step": 8, "seconds": 8.0, "train/loss": 2.0, "train/tokens": 80.0},
    ]
    report = {"data": {"rows": 16, "sources": {"nexus_tools": 16}}, "package": {"path": "package"}}
    tracker = Tracker(config, tmp_path / "tables" / "20261121_tools", PROVENANCE)
    tracker.training(rows, report, error="")
    tracker.training([], None, error="E-NUM-03  the loss is not a number\nsecond line password=abcdefghijklm")
    table = pd.read_csv(tmp_path / "tables" / "training_metrics.csv", dtype={"success": bool})
    first, second = table.to_dict("records")
    assert (first["samples"], first["steps"], first["epochs"], first["batch_size"]) == (16, 8, 1.0, 2)
    assert (first["duration_seconds"], first["samples_per_second"]) == (8.0, 2.0)
    assert (first["initial_loss"], first["final_loss"], first["avg_loss"]) == (4.0, 2.0, 3.0)
    assert (first["run_id"], first["checkpoint_path"]) == ("20261121_tools", "20261121_tools/package")
    assert first["versions"] == "torch=2 python=3"
    assert [first["success"], second["success"]] == [True, False]
    assert second["error"] == "E-NUM-03 the loss is not a number second line password=<redacted>"
    assert second["steps"] == 0
    assert pd.isna(second["final_loss"])
    assert table["gpu_memory_peak_gb"].isna().all()  # no GPU was used, so none was measured


def test_rows_of_a_scoring(config: dict[str, Any], tmp_path: Path) -> None:
    tracker = Tracker(config, tmp_path / "tables" / "run", PROVENANCE)
    speeds = {"tools": Speed(2.0, 4, 400, 100, 0.5), "held_out": Speed(1.0, 5, 50, 0, None)}
    scores = {
        "tools": {"exact_match": {"value": 0.5}},
        "held_out": {"loss": {"value": 1.5}, "perplexity": {"value": 4.48}},
    }
    tracker.scoring("after", scores, speeds)
    answers = [{"capability": "tools", "id": f"t-{i}", "exact_match": float(i % 2)} for i in range(4)]
    tracker.answers(answers, speeds, "answers.jsonl")
    folder = tmp_path / "tables"
    tools, held_out = pd.read_csv(folder / "benchmark_metrics.csv").to_dict("records")
    assert (tools["tokens_per_second"], tools["latency_ms"], tools["first_token_time_s"]) == (50.0, 500.0, 0.5)
    assert (tools["total_tokens"], held_out["loss"], held_out["perplexity"]) == (500, 1.5, 4.48)
    assert pd.isna(tools["loss"])
    assert pd.isna(held_out["tokens_per_second"])
    [validation] = pd.read_csv(folder / "validation_metrics.csv").to_dict("records")
    assert [validation[c] for c in ("test_type", "total_tests", "passed", "failed")] == ["tools", 4, 2, 2]
    details = pd.read_csv(folder / "test_details.csv")
    assert list(details["outcome"]) == ["failed", "passed", "failed", "passed"]
    assert set(details["file"]) == {"run/answers.jsonl"}


def test_problems_are_seen_before_the_work(config: dict[str, Any], tmp_path: Path) -> None:
    assert tracker_problems(config) == []
    assert not (tmp_path / "tables").exists()
    append(tmp_path / "tables" / "benchmark_metrics.csv", {"run": "a"})
    assert [problem.code for problem in tracker_problems(config)] == ["E-OUT-05"]
    none = config | {"paths": config["paths"] | {"metrics_dir": None}}
    assert tracker_problems(none) == []
    Tracker(none, tmp_path / "run", PROVENANCE).training([], None, error="x")
    assert os.listdir(tmp_path) == ["tables"]
