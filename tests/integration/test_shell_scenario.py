"""A night of training as a user drives it from a shell; its package equals that of a run left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import command, run_in, write_chats

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.faults]

WORDS = (
    "data.train=chats.jsonl", "data.global_batch_size=8", "method.epochs=null", "method.max_steps=60",
    "evaluation.before=false", "evaluation.after=false", "callbacks.samples=null",
)  # fmt: skip
#: PYTHON -m nexus... stands in the README; `field` reads one value of status.json as a script would.
SCRIPT = """
set -eu
nexus() { door=$1; shift; "$PYTHON" -m "nexus.$door" "$@"; }
field() { "$PYTHON" -c 'import json, sys; print(json.load(open("run/status.json"))[sys.argv[1]])' "$1"; }
until_is() { until [ "$(field "$1" 2>/dev/null)" = "$2" ]; do sleep 0.2; kill -0 $PID; done; }
past() { until [ "$(field step 2>/dev/null || echo)" -gt "$1" ] 2>/dev/null; do sleep 0.1; kill -0 $PID; done; }

"$PYTHON" -m nexus.train WORDS run_dir=run & PID=$!  # not the function, which would be a shell with the number
past 2
kill -USR1 $PID
until_is state paused
nexus control run status
STEP=$(field step)
kill -USR2 $PID
until [ -d "run/checkpoints/step=$(printf %08d "$STEP")" ]; do sleep 0.1; done
echo "saved while paused: step $STEP"
[ "$(field step)" = "$STEP" ]
nexus control run resume
past "$STEP"
kill -9 $PID
wait $PID || echo "killed: status $?"
nexus control run status
nexus train resume=run
"""


def test_paused_saved_resumed_killed_and_resumed_in_a_shell(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", rows=9)
    _, environment = command("train", cwd=tmp_path)
    script = SCRIPT.replace("WORDS", " ".join(WORDS))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment | {"PYTHON": sys.executable}, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "state            paused (SIGUSR1)" in done.stdout
    assert "saved while paused: step" in done.stdout
    assert "killed: status 137" in done.stdout
    assert "has ended without a word" in done.stdout
    assert "resuming from step" in done.stdout
    assert run_in(tmp_path, "train", *WORDS, "run_dir=alone").status == 0
    ours, theirs = (
        json.loads((tmp_path / name / "report.json").read_text())["package"]["sha256"] for name in ("run", "alone")
    )
    assert ours == theirs
    print(f"line 3: pause, status, checkpoint while paused, resume, kill -9, resume: package {ours[:16]} as left alone")
