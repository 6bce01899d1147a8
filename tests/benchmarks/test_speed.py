"""Bars that the benchmarks must clear, each well below what was measured, since machines differ."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from nexus.callbacks.hold import Desk
from nexus.flags import Flags
from nexus.storage.run_status import Board
from tests.benchmarks import bench_callbacks, bench_gpu, bench_pref, bench_rl
from tests.benchmarks.bench_sft import rounds
from tests.benchmarks.common import REPOSITORY, Bench


@pytest.mark.benchmark
def test_sft_is_faster_and_smaller_than_trl_padded() -> None:
    results = rounds("tiny", ["nexus", "trl_padded"], seconds=300, most=2, steps=6)
    speed = {mode: statistics.median(r["work"] / r["seconds"] for r in runs) for mode, runs in results.items()}
    memory = {mode: statistics.median(r["peak_mib"] for r in runs) for mode, runs in results.items()}
    assert speed["nexus"] > 1.2 * speed["trl_padded"]
    assert memory["nexus"] < memory["trl_padded"]


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("bench", "name", "theirs", "least"),
    [
        (bench_pref.BENCH, "dpo", "trl_each", 1.8),
        (bench_pref.BENCH, "orpo", "trl", 1.6),
        (bench_rl.BENCH, "grpo", "trl", 1.1),
        (bench_rl.BENCH, "rollout_unequal", "generate", 1.1),
    ],
)
def test_one_step_is_faster_than_the_peers(
    bench: Bench, name: str, theirs: str, least: float, capsys: pytest.CaptureFixture[str]
) -> None:
    case = bench.cases[name]
    results = bench.measure_case(name, 2)
    bench.report(name, case, results, 2, "one thread")
    printed = capsys.readouterr().out
    assert all(title in printed for title in case.modes.values())
    assert printed.count("goal ") == len(case.comparisons)
    assert results[theirs]["seconds"] > least * results["nexus"]["seconds"]


def test_the_cost_of_callbacks_is_that_of_all_of_them(tmp_path: Path) -> None:
    made = bench_callbacks.all_callbacks(tmp_path, Desk(board=Board(tmp_path), flags=Flags()))
    assert len(made) == len({type(callback) for callback in made}) == 8


@pytest.mark.parametrize("module", [bench_pref.MODULE, bench_rl.MODULE])
def test_without_a_gpu_its_option_ends_with_one_message(module: str) -> None:
    _insist_on_one_message(module)


def test_the_gpu_benchmark_without_a_gpu_and_on_the_processor() -> None:
    _insist_on_one_message(bench_gpu.MODULE)
    command = [
        sys.executable,
        "-m",
        bench_gpu.MODULE,
        "--device",
        "cpu",
        "--cases",
        "0.5b_full,7b_lora",
        "--steps",
        "2",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    title, _, full, lora = done.stdout.splitlines()
    assert "small shapes" in title
    assert full.startswith("0.5b_full")
    assert lora.startswith("7b_lora")
    speeds = [float(line.split()[-5].replace(",", "")) for line in (full, lora)]
    assert min(speeds) > 0


def _insist_on_one_message(module: str) -> None:
    command = [sys.executable, "-m", module, "--device", "cuda"]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "--device cuda: torch finds no CUDA device on this machine; --device cpu measures without one"
    ]
