"""The project's own pytest flags, each tried on three small tests in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.readme_tree import REPOSITORY

TESTS = """
import pytest
def test_plain(): pass
@pytest.mark.slow
def test_slow_one(): pass
@pytest.mark.benchmark
def test_speed(): pass
@pytest.mark.omni
def test_omni_one(): pass
"""


def run(folder: Path, *flags: str) -> tuple[int, str]:
    (folder / "test_three.py").write_text(TESTS)
    (folder / "conftest.py").write_text((REPOSITORY / "tests" / "conftest.py").read_text())
    markers = re.search(r"markers = \[\n(.*?)\n\]", (REPOSITORY / "pyproject.toml").read_text(), re.DOTALL)
    assert markers
    names = "\n".join("    " + line.strip(' ",') for line in markers.group(1).splitlines())
    (folder / "pytest.ini").write_text(f"[pytest]\nmarkers =\n{names}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NEXUS"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-v", *flags]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return finished.returncode, finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("flags", "summary"),
    [
        ((), "1 passed, 3 skipped"),
        (("-F",), "2 passed, 2 skipped"),
        (("--full-benchmarks",), "2 passed, 2 skipped"),
        (("-FG",), "3 passed, 1 skipped"),
        (("-T", "plain,slow"), "1 passed, 1 skipped, 2 deselected"),
        (("-F", "--test", "plain,slow"), "2 passed, 2 deselected"),
        (("-B", "speed"), "1 passed, 3 deselected"),
    ],
)
def test_flags_choose(tmp_path: Path, flags: tuple[str, ...], summary: str) -> None:
    status, output = run(tmp_path, *flags)
    assert summary in output
    assert status == 0
    if not flags:
        for reason in ("slow: run with -F", "benchmark: run with -G or -B", "omni: set NEXUS_OMNI_MODEL"):
            assert reason in output


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("-T", "plain,nowhere"), "-T: no node id contains 'nowhere'"),
        (("-T", "plain,nowhere", "-n", "2"), "-T: no node id contains 'nowhere'"),
        (("-B", "plain"), "-B: no node id contains 'plain'"),
        (("-T", ","), "-T: no node id contains an empty word"),
    ],
)
def test_filter_that_matches_nothing_is_an_error(tmp_path: Path, flags: tuple[str, ...], complaint: str) -> None:
    status, output = run(tmp_path, *flags)
    assert f"ERROR: {complaint}" in output
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "passed" not in output
