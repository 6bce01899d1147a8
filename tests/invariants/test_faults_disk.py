"""A full disk stops training for a while, not for good.

ENOSPC is raised at the call that writes and, where a small disk can be mounted (Linux, as root), by a real one.
"""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nexus.callbacks.checkpoint import checkpoints
from nexus.callbacks.hold import Desk, RunStopped
from nexus.callbacks.metrics_csv import MetricsCsv, read_metrics
from nexus.callbacks.run_control import RunControl
from nexus.data.module import NexusDataModule
from nexus.errors import NexusError
from nexus.flags import TERMINATED, Flags
from nexus.models import saved_state
from nexus.models.saved_state import verify_state
from nexus.storage.run_status import STATUS_NAME, Board
from tests import faults, runs, small

pytestmark = pytest.mark.faults

FILLINGS = faults.count(6, 50)


class FullDisk:
    """Stands before the writer of tensors: from the `first` save on it fails `times` times, having written a part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, first: int, times: float) -> None:
        self.first, self.times, self.saves, self.failures = first, times, 0, 0
        self.real = saved_state.save_file
        monkeypatch.setattr(saved_state, "save_file", self)

    def __call__(self, tensors: Any, path: Path) -> None:
        self.saves += 1
        if self.saves >= self.first and self.failures < self.times:
            self.failures += 1
            path.write_bytes(b"as far as it went")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        self.real(tensors, path)


def train(folder: Path, **saver: Any) -> Any:
    method = small.make_method(neftune_alpha=5.0)
    method.configure_model()
    method.train()
    callbacks = [small.make_saver(folder, every_n_steps=1, **saver)]
    trainer = small.make_trainer(folder, max_steps=6, callbacks=callbacks)
    trainer.fit(method, datamodule=NexusDataModule(small.make_corpus(small.make_tokenizer())))
    return method


def test_waits_for_room_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train(tmp_path / "whole")
    rng = random.Random(4)
    for trial in range(FILLINGS):
        folder = tmp_path / str(trial)
        with monkeypatch.context() as patch:
            disk = FullDisk(patch, first=rng.randint(1, 6), times=rng.randint(1, 5))
            caplog.clear()
            ours = train(folder, wait_for_space_minutes=1.0, seconds_between_tries=0.001)
        assert disk.failures == disk.times
        assert sum("W-OUT-02" in record.getMessage() for record in caplog.records) == 1
        assert [step for step, _ in checkpoints(folder / "checkpoints")] == [5, 6]
        for ours_, theirs in zip(ours.parameters(), whole.parameters(), strict=True):
            assert torch.equal(ours_, theirs)
    print(f"P9: {FILLINGS} runs met ENOSPC in a save, waited and ended with the weights of the run left alone")


@pytest.mark.parametrize("first", range(2, 2 + faults.count(2, 5)))
def test_ends_when_nobody_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    disk = FullDisk(monkeypatch, first=first, times=float("inf"))
    with pytest.raises(NexusError) as caught:
        train(tmp_path, wait_for_space_minutes=0.002, seconds_between_tries=0.01)
    assert (caught.value.code, caught.value.status) == ("E-OUT-02", 73)
    assert disk.failures > 1
    kept = checkpoints(tmp_path / "checkpoints")
    assert kept[-1][0] == first - 1
    verify_state(kept[-1][1])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [path.name for _, path in kept]


def test_a_stop_is_obeyed_while_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, first=2, times=float("inf"))
    tmp_path.joinpath("run").mkdir()
    desk = Desk(board=Board(tmp_path / "run"), flags=Flags())
    threading.Timer(1.0, lambda: desk.flags.request_stop(TERMINATED, "SIGTERM")).start()
    with pytest.raises(RunStopped):
        train(tmp_path / "run", wait_for_space_minutes=5.0, seconds_between_tries=0.05, desk=desk)
    told = json.loads((tmp_path / "run" / STATUS_NAME).read_text())
    assert (told["state"], told["reason"]) == ("paused", "the disk is full: no room for step=00000002")
    assert [step for step, _ in checkpoints(tmp_path / "run" / "checkpoints")] == [1]


# A disk that is really full.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def is_whole(path: Path) -> bool:
    """Whether every byte of a checkpoint is as it was written."""
    try:
        verify_state(path)
    except NexusError:
        return False
    return True


class Filler(runs.Callback):
    """Fills the disk after a step but for so many bytes, and frees it half a second after training noticed, or at once.

    Attributes:
        paused: whether training noticed.
        said: whether `status.json` itself told of the pause.
        whole: whether every checkpoint was whole during the pause.
    """

    def __init__(self, disk: Path, *, step: int, left: int, board: Board) -> None:
        self.ballast, self.step, self.left, self.board = disk / "ballast", step, left, board
        self.said, self.paused, self.whole = False, False, True
        self.waiter: threading.Thread | None = None

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Before the other callbacks write."""
        if trainer.global_step == self.step:
            free = os.statvfs(self.ballast.parent)
            self.ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - self.left)))
            self.waiter = threading.Thread(target=self._free)
            self.waiter.start()

    def on_train_end(self, *_: Any) -> None:
        """Every thread ends with its run."""
        assert self.waiter is not None
        self.waiter.join()

    def _free(self) -> None:
        deadline = time.monotonic() + 20
        while self.board.fields["state"] != "paused" and self.board.fields["step"] != self.step + 1:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        self.paused = self.board.fields["state"] == "paused"
        time.sleep(0.1)
        if self.paused:
            kept = checkpoints(self.ballast.parent / "run" / "checkpoints")
            self.whole = all(is_whole(path) for _, path in kept) and bool(kept or self.step == 1)
            self.said = json.loads((self.ballast.parent / "run" / STATUS_NAME).read_text())["state"] == "paused"
        self.ballast.unlink()


def test_a_disk_that_is_really_full(disk: Path, tmp_path: Path) -> None:
    runs.go_on("lora", tmp_path / "whole", steps=6, ambient=1, every_n_steps=1, layers=1)
    rng, paused, said = random.Random(9), 0, 0
    for trial in range(FILLINGS):
        run = disk / "run"
        run.mkdir()
        desk = Desk(board=Board(run), flags=Flags())
        # between nothing at all and a little more than a checkpoint takes
        filler = Filler(disk, step=rng.randint(1, 5), left=rng.randrange(0, 160_000), board=desk.board)
        metrics = MetricsCsv(every_n_steps=1, path=str(run / "metrics.csv"))
        method, data = runs.build("lora", steps=6, layers=1)
        saver = small.make_saver(
            run, every_n_steps=1, wait_for_space_minutes=1.0, seconds_between_tries=0.05, desk=desk
        )
        trainer = small.make_trainer(
            run, max_steps=6, callbacks=[filler, metrics, saver, RunControl(pause_offload=False, desk=desk)]
        )
        desk.board.set_state("training")
        trainer.fit(method, datamodule=data)
        paused, said = paused + filler.paused, said + filler.said
        assert filler.whole, trial
        theirs = runs.load_file(tmp_path / "whole" / "weights.safetensors")
        ours = {name: p for name, p in method.named_parameters() if p.requires_grad}
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), trial
        assert [step for step, _ in checkpoints(run / "checkpoints")] == [5, 6]
        assert [row["step"] for row in read_metrics(run / "metrics.csv")] == [1, 2, 3, 4, 5, 6]
        subprocess.run(["rm", "-r", str(run)], check=True)
    assert 0 < said <= paused
    print(
        f"P9: a disk filled {FILLINGS} times: {paused} runs paused, {said} could still write that to status.json; "
        "no checkpoint or row lost, equal weights"
    )
