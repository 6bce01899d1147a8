"""Signals from a door's start to its end, to the process and to its group, kill nothing and change no exit status."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import faults
from tests.integration.conftest import command, write_chats

pytestmark = [pytest.mark.integration, pytest.mark.faults]

STARTS = faults.count(2, 25)  # of each of two kinds
BOTH = (signal.SIGUSR1, signal.SIGUSR2)


def has_handlers(pid: int) -> bool:
    """Whether the process catches both signals, as the kernel tells."""
    caught = int(Path(f"/proc/{pid}/status").read_text().split("SigCgt:")[1].split()[0], 16)
    return all(caught & 1 << number - 1 for number in BOTH)


def storm(
    words: list[str], home: Path, environment: dict[str, str], *, ignored: bool, rng: random.Random
) -> tuple[int, int]:
    """Start a process group and send signals until it ends.

    Args:
        words: command line.
        home: its folder.
        environment: its variables.
        ignored: it is started as `env --ignore-signal=USR1 --ignore-signal=USR2` would start it, and signals begin at
            once; otherwise they begin when it has handlers.
        rng: chooses signals, receivers and instants.

    Returns:
        Exit status and number of signals.
    """

    def prepare() -> None:
        os.setpgid(0, 0)
        for number in BOTH:
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)

    sent = 0
    with (home / "output").open("ab") as output:
        process = subprocess.Popen(words, cwd=home, env=environment, stdout=output, stderr=output, preexec_fn=prepare)
    while not ignored and process.poll() is None and not has_handlers(process.pid):
        time.sleep(0.0005)
    while process.poll() is None:
        rng.choice((os.kill, os.killpg))(process.pid, rng.choice(BOTH))
        sent += 1
        time.sleep(rng.uniform(0, 0.05))
    return process.returncode, sent


@pytest.mark.parametrize("ignored", [False, True], ids=["from the handlers on", "from exec on"])
def test_starts_and_refusals(tmp_path: Path, ignored: bool) -> None:
    rng, sent = random.Random(13), 0
    words, environment = command("train", "data.train=nowhere.jsonl", cwd=tmp_path)
    for trial in range(STARTS):
        status, number = storm(words, tmp_path, environment, ignored=ignored, rng=rng)
        assert status == 66, f"start {trial}: {status}"
        sent += number
    when = "from exec on" if ignored else "from the first handler on"
    print(f"P13: {STARTS} starts of a door, {sent} signals {when} to the end, to it and its group: 0 deaths")


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(faults.count(1, 3)))
def test_a_whole_run(tmp_path: Path, trial: int) -> None:
    """Loading, tokenizing in worker processes, training, packaging: a pause by every other signal, and on again."""
    write_chats(tmp_path / "chats.jsonl", rows=9)
    words, environment = command(
        "train", "data.train=chats.jsonl", "data.num_proc=2", "method.epochs=null", "method.max_steps=6", "run_dir=run",
        "data.global_batch_size=8", "evaluation.before=false", "callbacks.samples=null", cwd=tmp_path,
    )  # fmt: skip
    status, sent = storm(words, tmp_path, environment, ignored=False, rng=random.Random(trial))
    assert status == 0, (tmp_path / "output").read_text()[-3000:]
    assert (tmp_path / "run" / "package" / "manifest.json").is_file()
    print(f"P13: a run from start to package under {sent} signals: status 0")
