"""`metrics.csv` while it is written: every row can be read at once, and a full disk keeps rows back but loses none."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nexus.callbacks.metrics_csv import COLUMNS, MetricsCsv, read_metrics
from nexus.hardware.usage import memory_in_use_bytes


class Training:
    """A trainer and a method that only count."""

    def __init__(self, metrics: MetricsCsv) -> None:
        self.metrics = metrics
        self.trainer: Any = SimpleNamespace(callbacks=[], global_step=0, is_global_zero=True, loggers=[])
        self.method: Any = SimpleNamespace(tokens_seen=0, step_metrics={}, guard=SimpleNamespace(skipped=[]))
        metrics.on_train_start(self.trainer, self.method)

    def step(self, **measured: float) -> None:
        """One optimizer step."""
        self.trainer.global_step += 1
        self.method.tokens_seen += 7
        self.method.step_metrics = {"train/loss": 0.1 + 0.2, "train/lr": 1e-05, "train/grad_norm": 2.5e20, **measured}
        self.metrics.on_train_batch_end(self.trainer, self.method, None, None, 0)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(MetricsCsv(every_n_steps=1, path=str(tmp_path / "metrics.csv")))


def test_every_row_can_be_read_at_once(training: Training) -> None:
    path = training.metrics.path
    for step in range(1, 4):
        training.step()
        assert [row["step"] for row in read_metrics(path)] == [*range(1, step + 1)]
    training.step(**{"val/loss": 0.5})  # a new column: the file is replaced, and goes on as the new one
    training.step()
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row.get("val/loss") for row in rows] == [None, None, None, 0.5, None]
    assert {row["train/loss"] for row in rows} == {0.1 + 0.2}
    assert {row["train/grad_norm"] for row in rows} == {2.5e20}


def test_rows_are_those_of_a_csv_writer(training: Training) -> None:
    for _ in range(2):
        training.step()
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows(training.metrics.rows)
    assert training.metrics.path.read_bytes() == table.getvalue().encode()


def test_a_file_that_was_taken_away_or_replaced_gets_its_rows(training: Training) -> None:
    path = training.metrics.path
    training.step()
    path.unlink()
    training.step()
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    training.step()
    (path.parent / "other").write_bytes(path.read_bytes())  # as editors save
    (path.parent / "other").rename(path)
    training.step()
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("end", ["on_train_end", "on_exception"])
def test_the_file_is_closed_at_the_end(training: Training, end: str) -> None:
    memory_in_use_bytes()  # keeps a file of its own
    before = len(os.listdir("/proc/self/fd"))
    training.step()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    more = (RuntimeError("ended"),) if end == "on_exception" else ()
    for _ in range(2):
        getattr(training.metrics, end)(training.trainer, training.method, *more)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_keeps_rows_back(
    training: Training, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.step()
    full = os.open("/dev/full", os.O_WRONLY)
    assert training.metrics._file is not None
    os.dup2(full, training.metrics._file.fileno())
    os.close(full)
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "samestat", lambda *_: True)  # it is another file only for this test
        training.step()
    assert [row["step"] for row in read_metrics(training.metrics.path)] == [1]
    assert "W-OUT-03" in caplog.text
    training.step()
    assert [row["step"] for row in read_metrics(training.metrics.path)] == [1, 2, 3]
    training.step()
    assert [row["step"] for row in read_metrics(training.metrics.path)] == [1, 2, 3, 4]


def test_a_fork_reads_its_own_memory() -> None:
    assert memory_in_use_bytes() > 2**20
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        before = memory_in_use_bytes()
        ballast = bytearray(os.urandom(1)) * 2**26
        os.write(writing, str(memory_in_use_bytes() - before + 0 * len(ballast)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 99)) > 2**25
    os.close(reading)
    os.close(writing)
