"""Bars that the benchmarks must clear, each well below what was measured, since machines differ."""

from __future__ import annotations

import statistics

import pytest

from tests.benchmarks.bench_sft import rounds


@pytest.mark.benchmark
def test_sft_is_faster_and_smaller_than_trl_padded() -> None:
    results = rounds(["nexus", "trl_padded"], seconds=300, most=2, steps=6)
    speed = {mode: statistics.median(r["work"] / r["seconds"] for r in runs) for mode, runs in results.items()}
    memory = {mode: statistics.median(r["peak_mib"] for r in runs) for mode, runs in results.items()}
    assert speed["nexus"] > 1.2 * speed["trl_padded"]
    assert memory["nexus"] < memory["trl_padded"]
