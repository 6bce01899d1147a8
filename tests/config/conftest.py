"""A door without work behind it: composes and checks exactly as the real ones do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nexus.config.compose import Done, Job, run_hydra
from nexus.stages.preflight import train_problems


@dataclass
class Outcome:
    """What a command line led to.

    Attributes:
        status: exit status.
        jobs: jobs that were started.
        finished: jobs that the end of a sweep was told of.
        output: standard output.
        errors: standard error.
    """

    status: int
    jobs: list[Job]
    finished: list[Done]
    output: str
    errors: str


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`door("+capability=tools")` runs in an empty folder and fails the test if anything was written there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEXUS_OUTPUT_DIR", raising=False)

    def run(*words: str, root: str = "train", task: Callable[[Job], Any] | None = None, **options: Any) -> Outcome:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        jobs: list[Job] = []
        finished: list[Done] = []
        monkeypatch.setattr(sys, "argv", [root, *words])
        extra = train_problems if root == "train" else None
        work = task or jobs.append
        status = run_hydra(work, root, extra=extra, finish=finished.extend, **options)
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before, "composing wrote something"
        printed = capsys.readouterr()
        return Outcome(status, jobs, finished, printed.out, printed.err)

    return run
