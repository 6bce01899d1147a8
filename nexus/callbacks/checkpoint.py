"""Resumable checkpoints every so many optimizer steps, written beside their final name and renamed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from nexus.errors import NexusError

_NAME = re.compile(r"step=(\d+)\.ckpt$")
_PARTIAL = ".partial"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name in the same folder, syncs, then renames.

    Lightning itself stages in the system's temporary folder: on another device that becomes a copy over the live file,
    and a kill in the middle of it loses the only checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`, whole or not at all.

        Args:
            checkpoint: what Lightning and the method gathered.
            path: final name.
            storage_options: not supported, as in the parent class.

        Raises:
            NexusError: `E-OUT-04` if the folder cannot be written.
        """
        if storage_options is not None:
            raise TypeError("storage_options is not supported")
        final = Path(path)
        partial = final.with_name(f".{final.name}{_PARTIAL}")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            _write(checkpoint, partial)
            partial.replace(final)
        except OSError as error:
            raise NexusError(
                "E-OUT-04",
                f"the checkpoint could not be written: {error.strerror or error}",
                where=str(final),
                remedy="free some space or make the folder writable, then resume the run; older checkpoints are intact",
            ) from error


def _write(checkpoint: dict[str, Any], partial: Path) -> None:
    """Write and flush one file; whatever goes wrong, no half of it stays."""
    try:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)
        # torch's zip writer buries a full disk under a complaint about its own positions
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints of a run.

    Args:
        folder: the run's `checkpoints` folder; it need not exist.

    Returns:
        (step, path) in the order of steps; the name counts, not the file's time.
    """
    found = [(int(match[1]), path) for path in folder.glob("*.ckpt") if (match := _NAME.search(path.name))]
    return sorted(found)


class StepCheckpoint(Callback):
    """Saves every `every_n_steps` optimizer steps and at the end; keeps the newest `keep`.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
        keep: how many to keep.
        folder: where they go; given by the run.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, *, every_n_steps: int, keep: int, folder: str) -> None:
        if every_n_steps < 1 or keep < 1:
            raise ValueError("every_n_steps and keep must be at least 1")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.folder = Path(folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a killed run left half-written."""
        if trainer.is_global_zero:
            for leftover in self.folder.glob(f".*{_PARTIAL}"):
                leftover.unlink()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the step boundary."""
        if trainer.global_step % self.every_n_steps == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, unless it was saved already."""
        if checkpoints(self.folder)[-1:] != [(trainer.global_step, self.path(trainer.global_step))]:
            self.save(trainer)

    def path(self, step: int) -> Path:
        """Name of the checkpoint after `step` optimizer steps."""
        return self.folder / f"step={step:08d}.ckpt"

    def save(self, trainer: Trainer) -> None:
        """Write one checkpoint and remove what is too old."""
        trainer.save_checkpoint(self.path(trainer.global_step), weights_only=False)  # False: with the optimizer
        if trainer.is_global_zero:
            for _, old in checkpoints(self.folder)[: -self.keep]:
                old.unlink()
