"""A run that is paused, saved, resumed and stopped from outside, by real signals and by the control door."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from nexus.callbacks.checkpoint import checkpoints
from nexus.storage.run_status import Board, lay_request, process_start, take_requests
from tests.integration.conftest import run_in, write_chats
from tests.integration.test_resume_door import start, wait_for

pytestmark = pytest.mark.integration

WORDS = (
    "data.train=chats.jsonl", "data.global_batch_size=8", "method.epochs=null", "evaluation.before=false",
    "evaluation.after=false", "callbacks.samples=null",
)  # fmt: skip


def status(run: Path) -> dict[str, Any]:
    path = run / "status.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def package(run: Path) -> str:
    return str(json.loads((run / "report.json").read_text())["package"]["sha256"])


def test_paused_saved_resumed_and_left_alone_end_alike(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", rows=9)
    words = (*WORDS, "method.max_steps=12")
    alone, run = tmp_path / "alone", tmp_path / "run"
    assert run_in(tmp_path, "train", *words, "run_dir=alone").status == 0
    process = start(tmp_path, *words, "run_dir=run")
    wait_for(process, lambda: status(run).get("state") == "training")
    process.send_signal(signal.SIGUSR1)
    wait_for(process, lambda: status(run)["state"] == "paused")
    told = run_in(tmp_path, "control", "run", "status")
    assert told.status == 0
    assert "paused (SIGUSR1)" in told.output
    assert f"{process.pid} is running" in told.output
    step = status(run)["step"]
    process.send_signal(signal.SIGUSR2)
    if step:
        wait_for(process, lambda: status(run)["last_checkpoint"] is not None)
        assert [found for found, _ in checkpoints(run / "checkpoints")] == [step]
    time.sleep(0.5)
    assert status(run)["step"] == step
    for _ in range(2):
        assert run_in(tmp_path, "control", "run", "resume").status == 0
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert package(run) == package(alone)
    assert status(run)["state"] == "finished"
    refused = run_in(tmp_path, "control", "run", "pause")
    assert refused.status == 66
    assert "E-RUN-02" in refused.errors


@pytest.mark.parametrize("how", ["SIGTERM", "stop"])
def test_a_stop_while_paused_saves_and_leaves_with_143(tmp_path: Path, how: str) -> None:
    write_chats(tmp_path / "chats.jsonl", rows=9)
    run = tmp_path / "run"
    process = start(tmp_path, *WORDS, "method.max_steps=500", "run_dir=run")
    wait_for(process, lambda: (status(run).get("step") or 0) > 0)
    lay_request(run, "pause")
    wait_for(process, lambda: status(run)["state"] == "paused")
    step = status(run)["step"]
    if how == "stop":
        lay_request(run, "stop")
    else:
        process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 143, printed
    assert "Traceback" not in printed
    assert checkpoints(run / "checkpoints")[-1][0] == step
    assert (status(run)["state"], status(run)["reason"]) == (
        "interrupted",
        "SIGTERM" if how != "stop" else "control/stop",
    )


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", rows=9)
    process = start(tmp_path, *WORDS, "method.max_steps=500", "run_dir=run")
    wait_for(process, lambda: (status(tmp_path / "run").get("step") or 0) > 0)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


# Without a run.


def test_control_tells_mistakes(tmp_path: Path, door: Any) -> None:
    for words, code, exit_status in (
        (("nowhere", "pause"), "E-MIS-06", 66),
        ((str(tmp_path), "status"), "E-MIS-06", 66),
        ((str(tmp_path), "stopp"), "did you mean 'stop'?", 64),
        ((str(tmp_path),), "E-CFG-05", 64),
    ):
        finished = door("control", *words)
        assert finished.status == exit_status
        assert code in finished.errors
    (tmp_path / "status.json").write_text("{")
    edited = door("control", str(tmp_path), "status")
    assert edited.status == 65
    assert "E-RUN-03" in edited.errors


def test_a_dead_process_is_told_from_a_living_one_of_the_same_number(tmp_path: Path, door: Any) -> None:
    board = Board(tmp_path)
    board.set_state("training")
    assert "is running" in door("control", str(tmp_path), "status").output
    assert door("control", str(tmp_path), "pause").status == 0
    assert take_requests(tmp_path, ("pause", "resume")) == ["pause"]
    board.update(started=str(process_start(board.fields["pid"])) + "1")  # this number, but another process
    board.publish()
    told = door("control", str(tmp_path), "status").output
    assert "has ended without a word" in told
    assert door("control", str(tmp_path), "pause").status == 66


def test_the_last_of_pause_and_resume_counts(tmp_path: Path) -> None:
    for words, left in ((("pause", "pause"), ["pause"]), (("pause", "resume"), ["resume"]), (("stop",), ["stop"])):
        for word in words:
            lay_request(tmp_path, word)
        assert take_requests(tmp_path, ("pause", "resume", "checkpoint", "stop")) == left
