"""`metrics.csv`: one row per logging step, and the same numbers to every configured logger."""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nexus.callbacks.hold import Measured
from nexus.errors import NexusError
from nexus.hardware.usage import memory_in_use_bytes
from nexus.storage.atomic import is_disk_full, write_text

log = logging.getLogger(__name__)

#: Columns of every method; what a method measures besides follows them.
COLUMNS = (
    "step",
    "seconds",
    "train/loss",
    "train/lr",
    "train/grad_norm",
    "train/tokens",
    "perf/tokens_per_second",
    "perf/memory_gib",
)
#: Column of `callbacks.validation`; a step that has it has a row.
VALIDATION_LOSS = "val/loss"


class MetricsCsv(Callback):
    """Reads the step's metrics from the device once every `every_n_steps` and writes them.

    Args:
        every_n_steps: optimizer steps between two rows; the first and last step are always written.
        path: the file; given by the run. On a resume, rows past the resumed step are dropped.

    Raises:
        ValueError: if `every_n_steps` is not positive.
    """

    def __init__(self, *, every_n_steps: int, path: str) -> None:
        if every_n_steps < 1:
            raise ValueError("every_n_steps must be at least 1")
        self.every_n_steps = every_n_steps
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        self.columns = list(COLUMNS)
        self._started = 0.0
        self._mark = (0.0, 0)
        self._earlier_seconds = 0.0
        self._measured: list[Measured] = []
        self._behind = False
        self._file: io.FileIO | None = None  # open while rows come

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the rows of a resumed run and start the clock."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        self._measured = [callback for callback in callbacks if isinstance(callback, Measured)]  # slow for a protocol
        kept = [row for row in read_metrics(self.path) if row["step"] <= trainer.global_step]
        self.rows = kept
        self._earlier_seconds = kept[-1]["seconds"] if kept else 0.0
        self._extend(kept)
        if trainer.is_global_zero:
            self._rewrite()
        self._started = time.perf_counter()
        self._mark = (self._started, int(pl_module.tokens_seen))  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a row on logging steps; skipped and validated steps have one too, on all others nothing is read."""
        step = trainer.global_step
        skipped: list[dict[str, Any]] = pl_module.guard.skipped[-1:]  # type: ignore[union-attr,assignment,index]
        validated = VALIDATION_LOSS in pl_module.step_metrics  # type: ignore[operator]
        if step == 1 or step % self.every_n_steps == 0 or validated or (skipped and skipped[0]["step"] == step):
            self.write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last step."""
        if trainer.global_step and (not self.rows or self.rows[-1]["step"] != trainer.global_step):
            self.write(trainer, pl_module)
        if self._behind:
            self._rewrite()
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing, and a further row opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather one row and hand it to the file and the loggers."""
        now, tokens = time.perf_counter(), int(pl_module.tokens_seen)  # type: ignore[arg-type]
        last_time, last_tokens = self._mark
        self._mark = (now, tokens)
        metrics = {name: float(value) for name, value in pl_module.step_metrics.items()}  # type: ignore[union-attr,operator]
        row = {
            "step": trainer.global_step,
            "seconds": round(self._earlier_seconds + now - self._started, 3),
            **metrics,
            "train/tokens": tokens,
            "perf/tokens_per_second": round((tokens - last_tokens) / (now - last_time), 1),
            "perf/memory_gib": round(memory_in_use_bytes() / 2**30, 3),
        }
        for callback in self._measured:
            row |= callback.measured()
        self.rows.append(row)
        extended = self._extend([row])
        if trainer.is_global_zero:
            self._keep(row, whole=extended or self._behind)
            for logger in trainer.loggers:
                logger.log_metrics({k: v for k, v in row.items() if k != "step"}, step=trainer.global_step)

    def _keep(self, row: dict[str, Any], *, whole: bool) -> None:
        """Put the last row into the file; on a full disk it waits here, and the next row brings all of them along."""
        try:
            if whole:
                self._rewrite()
            else:
                self._append(row)
        except (OSError, NexusError) as error:
            if not is_disk_full(error):
                raise
            if not self._behind:
                log.warning("W-OUT-03  the disk is full: rows of %s wait in memory for room", self.path.name)
            self._behind = True
        else:
            self._behind = False

    def _append(self, row: dict[str, Any]) -> None:
        """Add a row, at once and without a buffer, in which a full disk would leave it for a later one to meet."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:  # somebody took it away
            self._rewrite()
            return
        if self._file is None or not os.path.samestat(os.fstat(self._file.fileno()), there):
            self.close()  # an editor may have put another in its place
            self._file = io.FileIO(self.path, "a")
        cells = ",".join([str(row.get(name, "")) for name in self.columns])  # numbers need no quotes
        left = f"{cells}\r\n".encode()
        while left:
            left = left[self._file.write(left) :]

    def skip_seconds(self, seconds: float) -> None:
        """Leave held time out of the speed and of the column `seconds`."""
        self._started += seconds
        self._mark = (self._mark[0] + seconds, self._mark[1])

    def _extend(self, rows: list[dict[str, float]]) -> bool:
        """Add the columns that rows have beyond the known ones; True if there were any."""
        known = self.columns
        new = list(dict.fromkeys([name for row in rows for name in row if name not in known]))
        known += new
        return bool(new)

    def _rewrite(self) -> None:
        """Replace the file by all rows."""
        self.close()
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, self.columns)
        writer.writeheader()
        writer.writerows(
            {**row, "step": int(row["step"]), "train/tokens": int(row["train/tokens"])} for row in self.rows
        )
        write_text(self.path, table.getvalue())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a `metrics.csv`.

    Args:
        path: the file; a missing one has no rows.

    Returns:
        One dictionary of numbers per row, empty cells left out. A last line without its end is what a killed run was
        writing; it is left out too.
    """
    if not path.exists():
        return []
    text = path.read_bytes().decode()
    lines = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    return [{name: float(cell) for name, cell in row.items() if cell} for row in lines]
