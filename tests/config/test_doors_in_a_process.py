"""The same through the command line: from any folder, with timings printed and nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.readme_tree import REPOSITORY

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("module", "words", "status", "shown"),
    [
        ("train", ["--help"], 0, "choose every group"),
        ("train", ["--cfg", "job", "+capability=tools"], 0, "max_new_tokens"),
        ("train", ["capability=tools"], 64, "E-CFG-06"),
        ("train", ["+capability=tools", "method.lrr=3"], 64, "did you mean method.lr?"),
        ("train", ["+capability=tools", "method=lora", "adapter=none"], 64, "E-CFG-03"),
        ("capabilities", [], 0, "13 capabilities, 5 ready"),
        ("capabilities", ["--help"], 0, "nexus capabilities"),
    ],
)
def test_answers_quickly(
    run_door: Callable[..., Any], tmp_path: Path, module: str, words: list[str], status: int, shown: str
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    started = time.perf_counter()
    finished = run_door(module, *words, cwd=away)
    print(f"\n{module} {' '.join(words)}: {time.perf_counter() - started:.2f} s")
    assert finished.status == status, finished.errors
    assert shown in finished.output + finished.errors
    assert "Traceback" not in finished.errors
    assert list(away.iterdir()) == []
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("flags", ["--help", "--cfg job"])
def test_a_reader_that_stops_early_is_no_error(flags: str) -> None:
    command = f"{sys.executable} -m nexus.train {flags}"
    finished = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -1"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout


@pytest.mark.parametrize("door", ["capabilities", "capabilities datasets=true", "control --help"])
def test_a_reader_that_is_gone(door: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    finished = subprocess.run(
        [sys.executable, "-m", *f"nexus.{door}".split()],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (141, "")
