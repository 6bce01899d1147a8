"""How doors end when the user or the reader goes away early, and that no message repeats a secret."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
SECRET = "-".join(["open", "sesame", "4711"])

#: Runs a door as `python -m` does, and presses Ctrl-C as it begins to import a module.
INTERRUPTED = """
import os, runpy, signal, sys
door, module, *words = sys.argv[1:]
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
sys.argv = [door, *words]
runpy.run_module(door, run_name="__main__", alter_sys=True)
"""


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=os.environ | ENVIRONMENT, capture_output=True, text=True,
        timeout=120, check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("door", "module"),
    [
        ("nexus.train", "nexus.config.compose"),
        ("nexus.train", "nexus.stages.preflight"),
        ("nexus.train", "hydra"),
        ("nexus.evaluate", "nexus.config.overrides"),
        ("nexus.generate", "nexus.errors"),
        ("nexus.capabilities", "nexus.config.capabilities"),
        ("nexus.__main__", "nexus.train"),
    ],
)
def test_ctrl_c_while_a_door_loads(tmp_path: Path, door: str, module: str) -> None:
    words = ["train"] if door == "nexus.__main__" else []
    done = run("-c", INTERRUPTED, door, module, *words, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted\n", "")


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    done = run("-c", "import nexus.signals; raise ValueError('a bug')", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "ValueError: a bug" in done.stderr


def test_a_reader_of_answers_that_stops_early_is_no_bug(tmp_path: Path) -> None:
    """Each answer is printed as it comes, so the second one meets a closed pipe."""
    command = f"{sys.executable} -m nexus.generate max_new_tokens=2"
    done = subprocess.run(
        ["bash", "-c", f"yes Hello | {command} | head -1; echo ${{PIPESTATUS[1]}}"],
        cwd=tmp_path, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.stdout.splitlines()[-1] == "141"  # as of a program that SIGPIPE ended


@pytest.mark.parametrize(
    "words",
    [
        [f"--token={SECRET}"],
        ["--token", SECRET],
        [f"hf_token={SECRET} and more]"],
        [f"+hf_token={SECRET},{SECRET}"],
        [f"api_key={SECRET}"],
        ["resume=nowhere", f"+wandb_api_key={SECRET}"],
    ],
)
def test_no_message_repeats_a_secret(tmp_path: Path, words: list[str]) -> None:
    done = run("-m", "nexus.train", *words, cwd=tmp_path)
    assert done.returncode in (64, 66)
    assert "E-" in done.stderr
    assert SECRET not in done.stderr + done.stdout


def test_every_hydra_door_redacts_and_comes_first() -> None:
    """`run_hydra` cannot import storage, its sibling, so each door hands it the function; Ctrl-C is handled before."""
    calls, first = 0, 0
    for path in sorted((REPOSITORY / "nexus").glob("*.py")):
        tree = ast.parse(path.read_text())
        if path.stem in ("__init__", "errors", "types", "signals", "flags"):
            continue
        loads = [
            n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom) and "__future__" not in ast.unparse(n)
        ]
        assert ast.unparse(loads[0]) == "import nexus.signals", path.name
        first += 1
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "run_hydra":
                assert "redact" in [keyword.arg for keyword in node.keywords], path.name
                calls += 1
    assert calls >= 3
    assert first >= 5
