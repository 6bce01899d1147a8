"""Power cuts, kills in the writer and a temporary folder on another device: what was saved can be read."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from nexus.callbacks.checkpoint import AtomicCheckpointIO, newest_whole
from nexus.models.saved_state import read_state
from nexus.storage.atomic import TEMPORARY_PREFIX, remove_leftovers
from nexus.storage.run_status import STATUS_NAME, Board, read_status
from tests import faults, power_cut, runs

pytestmark = pytest.mark.faults

CUT_STEPS = faults.count(3, 9)
TMPDIR_KILLS = faults.count(6, 60)
STATUS_KILLS = faults.count(15, 300)
MEMORY_DISK = Path("/dev/shm")


def test_the_power_goes_at_any_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training run saves after each step; whatever is left at any instant holds what it was told to be saved."""
    rng, images, found_steps = random.Random(3), 0, Counter[int]()
    acknowledged = 0
    run, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    real = AtomicCheckpointIO.save_checkpoint

    def save_checkpoint(self: Any, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        nonlocal acknowledged
        real(self, checkpoint, path, storage_options)
        acknowledged = checkpoint["global_step"]

    def cut() -> None:
        nonlocal images
        for loss in power_cut.LOSSES:
            image = tmp_path / "image"
            disk.image(image, loss, rng)
            found = newest_whole(image, tell=lambda line: None)
            assert (found[0] if found else 0) in (acknowledged, acknowledged + 1), loss
            if found:
                assert read_state(found[1])["global_step"] == found[0]
                found_steps[found[0]] += 1
            shutil.rmtree(image)
            images += 1

    disk = power_cut.Disk(checkpoints, cut)
    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save_checkpoint)
        disk.watch(patch)
        runs.train("lora", run, steps=CUT_STEPS, ambient=1, every_n_steps=1, layers=1)
    assert acknowledged == CUT_STEPS
    assert set(found_steps) == set(range(1, CUT_STEPS + 1))
    points = images // len(power_cut.LOSSES)
    assert points >= faults.count(60, 300)
    print(
        f"P7: the power cut at {points} points, {images} disks as it may leave them; each holds the newest checkpoint"
    )


def test_names_given_before_the_flush_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of the disk above can fail: without flushing, the renamed checkpoint is empty."""
    seen = []

    def cut() -> None:
        image = tmp_path / f"image{len(seen)}"
        disk.image(image, power_cut.LOSSES[0], random.Random(1))
        seen.append({path.name: path.stat().st_size for path in image.rglob("*") if path.is_file()})

    root = tmp_path / "root"
    root.mkdir()
    disk = power_cut.Disk(root, cut)
    with monkeypatch.context() as patch:
        disk.watch(patch)
        (root / "a").write_bytes(b"content")
        os.rename(root / "a", root / "b")
        descriptor = os.open(root / "b", os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    assert seen == [{"a": 0}, {"b": 0}, {"b": 0}, {"b": 7}]


def write_for_ever(folder: Path, temporary: Path) -> None:
    tempfile.tempdir = str(temporary)
    writer, step = AtomicCheckpointIO(), 0
    while True:
        step += 1
        tensors = {str(index): torch.full((250_000,), float(step)) for index in range(8)}
        writer.save_checkpoint({"state_dict": tensors, "global_step": step}, folder / f"step={step:08d}")
        (folder.parent / "acknowledged").write_text(str(step))
        if step > 1:
            writer.remove_checkpoint(folder / f"step={step - 1:08d}")


def test_a_temporary_folder_on_another_device_changes_nothing(tmp_path: Path) -> None:
    if not MEMORY_DISK.is_dir() or MEMORY_DISK.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second device")
    rng, interrupted = random.Random(8), 0
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK) as other:
        for trial in range(TMPDIR_KILLS):
            folder = tmp_path / str(trial) / "checkpoints"
            folder.mkdir(parents=True)
            child = faults.in_a_child(lambda folder=folder: write_for_ever(folder, Path(other)))
            with faults.never_outliving(child):
                while not any(folder.glob("step=*")):
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.15))
                os.kill(child, signal.SIGKILL)
                assert faults.end_of(child) == -signal.SIGKILL
            interrupted += any(path.name.startswith(TEMPORARY_PREFIX) for path in folder.iterdir())
            note = folder.parent / "acknowledged"
            saved = int(note.read_text() or 0) if note.exists() else 1
            told: list[str] = []
            found = newest_whole(folder, tell=told.append)
            assert found is not None, trial
            assert found[0] >= saved
            assert told == []
            values = set(torch.cat(list(read_state(found[1])["state_dict"].values())).unique().tolist())
            assert values == {float(found[0])}
            assert not [path.name for path in folder.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]
            assert os.listdir(other) == []
            shutil.rmtree(folder.parent)
    assert interrupted > 0
    print(
        f"P8: {TMPDIR_KILLS} kills with $TMPDIR on another device, {interrupted} inside a save; 0 damaged, 0 left over"
    )


def test_the_status_can_always_be_read(tmp_path: Path) -> None:
    rng, interrupted = random.Random(18), 0
    Board(tmp_path).set_state("training")

    def tell_for_ever() -> None:
        board, number = Board(tmp_path), 0
        while True:
            number += 1
            board.update(step=number, note=f"{number} " * 50_000)
            board.publish()

    for trial in range(STATUS_KILLS):
        before = (tmp_path / STATUS_NAME).stat().st_mtime_ns
        child = faults.in_a_child(tell_for_ever)
        while (tmp_path / STATUS_NAME).stat().st_mtime_ns == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert faults.end_of(child) == -signal.SIGKILL
        status = read_status(tmp_path)
        assert status["step"] is None or set(status["note"].split()) == {str(status["step"])}, trial
        interrupted += bool(remove_leftovers(tmp_path))
        assert os.listdir(tmp_path) == [STATUS_NAME]
    assert interrupted > 0
    print(f"P18: {STATUS_KILLS} kills of the writer of status.json, {interrupted} while it wrote; 0 unreadable")


def test_a_run_that_was_moved_goes_on(tmp_path: Path) -> None:
    runs.go_on("lora", tmp_path / "whole", steps=6, ambient=1, layers=1)
    runs.train("lora", tmp_path / "here", steps=6, until=3, ambient=2, layers=1)
    (tmp_path / "here").rename(tmp_path / "there")
    runs.go_on("lora", tmp_path / "there", steps=6, ambient=3, layers=1)
    assert runs.same_weights(tmp_path / "there", tmp_path / "whole")
