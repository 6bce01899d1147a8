"""Resumable checkpoints every so many optimizer steps: folders with a manifest, and the newest that is whole."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO

from nexus.errors import NexusError
from nexus.models.saved_state import folder_name, read_state, verify_state, write_state
from nexus.storage.atomic import TEMPORARY_PREFIX, is_disk_full, remove_leftovers

if TYPE_CHECKING:
    from nexus.callbacks.hold import Desk

log = logging.getLogger(__name__)

_NAME = re.compile(r"step=(\d+)$")
_DAMAGED = ".bad"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoints as folders of safetensors and JSON, written beside their final name and renamed.

    Lightning itself stages a pickle in the system's temporary folder: on another device that becomes a copy over the
    live file, and a kill in the middle of it loses the only checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to the folder `path`, whole or not at all.

        Args:
            checkpoint: what Lightning and the method gathered.
            path: final name.
            storage_options: not supported.

        Raises:
            NexusError: `E-OUT-02` if the disk is full, `E-OUT-04` if the folder cannot be written.
        """
        if storage_options is not None:
            raise TypeError("storage_options is not supported")
        final = Path(path)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            write_state(checkpoint, final)
        except OSError as error:
            raise NexusError(
                "E-OUT-04",
                f"the checkpoint could not be written: {error.strerror or error}",
                where=str(final),
                remedy="make the folder writable, then resume the run; older checkpoints are intact",
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Verify and read the folder `path`.

        Args:
            path: a checkpoint.
            map_location: not used; tensors are read into host memory, from where Lightning and torch place them.
            weights_only: not used; a checkpoint holds nothing that could run.

        Returns:
            What `save_checkpoint` was given.

        Raises:
            NexusError: `E-RES-04` if it is damaged.
        """
        return read_state(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint; it loses its name first, so that no half of it is ever taken for one.

        Args:
            path: a checkpoint.
        """
        doomed = Path(path)
        aside = doomed.with_name(f"{TEMPORARY_PREFIX}removed-{doomed.name}")
        doomed.rename(aside)
        shutil.rmtree(aside)


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints of a run, not verified.

    Args:
        folder: the run's `checkpoints` folder; it need not exist.

    Returns:
        (step, path) in the order of steps; the name counts, not the time.
    """
    found = [(int(match[1]), path) for path in folder.glob("step=*") if (match := _NAME.fullmatch(path.name))]
    return sorted(found)


def newest_whole(folder: Path, *, tell: Callable[[str], None]) -> tuple[int, Path] | None:
    """The newest checkpoint whose every byte is as it was written; damaged ones get the ending `.bad`.

    Args:
        folder: the run's `checkpoints` folder; it need not exist. The caller holds the lock of the run.
        tell: takes one line for each damaged checkpoint.

    Returns:
        (step, path), or None if the run has not reached its first checkpoint.

    Raises:
        NexusError: `E-RES-05` if there are checkpoints and all of them are damaged, `E-RES-06` if a newer Nexus wrote
            the newest one.
    """
    if not folder.is_dir():
        return None
    remove_leftovers(folder)
    for step, path in reversed(checkpoints(folder)):
        try:
            verify_state(path)
        except NexusError as error:
            if error.code != "E-RES-04":
                raise
            bad = _free_name(path)
            path.rename(bad)
            tell(f"W-RES-04  {error.message}; it is now {bad.name}, an older one is tried")
        else:
            return step, path
    damaged = sorted(path.name for path in folder.glob(f"step=*{_DAMAGED}*"))
    if damaged:
        raise NexusError(
            "E-RES-05",
            f"every checkpoint of this run is damaged: {', '.join(damaged)}",
            where=str(folder),
            remedy="restore one of them from a copy, or remove them to begin at step 0",
            status=65,
        )
    return None


def _free_name(path: Path) -> Path:
    bad = path.with_name(path.name + _DAMAGED)
    number = 1
    while bad.exists():
        number += 1
        bad = path.with_name(f"{path.name}{_DAMAGED}{number}")
    return bad


class StepCheckpoint(Callback):
    """Saves every `every_n_steps` optimizer steps, at the best one so far and at the end; keeps the newest `keep` and
    the best.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
        keep: how many to keep.
        wait_for_space_minutes: how long training waits for room when the disk is full.
        seconds_between_tries: between two looks for room.
        folder: where they go; given by the run.
        identity: settings, machine and hash of the rows that a resumed run must share; given by the run.
        fast_resumes: where the run went on although they differed; given by the run.
        desk: of the training; given by the run.

    Attributes:
        best_step: the step with the least held-out loss, as `callbacks.validation` says; None without one.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        *,
        every_n_steps: int,
        keep: int,
        wait_for_space_minutes: float,
        seconds_between_tries: float,
        folder: str,
        identity: dict[str, Any],
        fast_resumes: list[dict[str, Any]],
        desk: Desk,
    ) -> None:
        if every_n_steps < 1 or keep < 1:
            raise ValueError("every_n_steps and keep must be at least 1")
        if wait_for_space_minutes <= 0 or seconds_between_tries <= 0:
            raise ValueError("wait_for_space_minutes and seconds_between_tries must be above 0")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.wait_for_space_minutes = wait_for_space_minutes
        self.seconds_between_tries = seconds_between_tries
        self.folder = Path(folder)
        self.identity = identity
        self.fast_resumes = fast_resumes
        self.desk = desk
        self.best_step: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a killed run left half-written."""
        if trainer.is_global_zero and self.folder.is_dir():
            remove_leftovers(self.folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the step boundary."""
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step == self.best_step:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, unless it was saved already."""
        if checkpoints(self.folder)[-1:] != [(trainer.global_step, self.path(trainer.global_step))]:
            self.save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note which run this is."""
        checkpoint["identity"] = self.identity
        checkpoint["fast_resumes"] = self.fast_resumes

    def path(self, step: int) -> Path:
        """Name of the checkpoint after `step` optimizer steps."""
        return self.folder / folder_name(step)

    def save(self, trainer: Trainer) -> None:
        """Write one checkpoint and remove what is too old; with a full disk, wait for room first.

        Args:
            trainer: at a step boundary.

        Raises:
            NexusError: `E-OUT-02` if there was no room in `wait_for_space_minutes`.
            RunStopped: if the run is to stop meanwhile; this step is then not saved.
        """
        path = self.path(trainer.global_step)
        full = self._try_to_save(trainer, path)
        if full is not None:
            log.warning(
                "W-OUT-02  the disk is full: training waits up to %g minutes for room for %s; older checkpoints "
                "are intact", self.wait_for_space_minutes, path,
            )  # fmt: skip
            self.desk.wait_for(
                trainer,
                lambda: self._try_to_save(trainer, path),
                reason=f"the disk is full: no room for {path.name}",
                seconds=60 * self.wait_for_space_minutes,
                seconds_between_tries=self.seconds_between_tries,
            )
            log.warning("I-OUT-02  there was room again: %s is saved", path.name)
        if trainer.is_global_zero:
            for step, old in checkpoints(self.folder)[: -self.keep]:
                if step != self.best_step:
                    trainer.strategy.remove_checkpoint(old)

    def _try_to_save(self, trainer: Trainer, path: Path) -> NexusError | None:
        """Save; what was wrong if the disk is full."""
        try:
            trainer.save_checkpoint(path, weights_only=False)  # False: with the optimizer
        except NexusError as error:
            if not is_disk_full(error):
                raise
            return error
        return None
