"""One suite over all callbacks, then what each writes."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import multiprocessing
import pkgutil
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

import nexus.callbacks
from nexus.callbacks.checkpoint import AtomicCheckpointIO, StepCheckpoint, checkpoints
from nexus.callbacks.cooldown import Cooldown
from nexus.callbacks.hang_watch import HangWatch
from nexus.callbacks.hold import Desk
from nexus.callbacks.memory_probe import MemoryProbe
from nexus.callbacks.metrics_csv import COLUMNS, MetricsCsv, read_metrics
from nexus.callbacks.polled import PolledCallback
from nexus.callbacks.power_budget import PowerBudget
from nexus.callbacks.progress import TrainingProgress
from nexus.callbacks.quiet_hours import QuietHours
from nexus.callbacks.run_control import RunControl
from nexus.callbacks.samples import SamplePrompt, Samples
from nexus.callbacks.thermal_pause import ThermalPause
from nexus.callbacks.validation import Validation
from nexus.data.module import NexusDataModule
from nexus.errors import NexusError
from nexus.flags import Flags
from nexus.hardware.memory_plan import MemoryPlan, MemorySettings, plan_memory
from nexus.hardware.usage import memory_in_use_bytes, peak_memory_bytes, reset_peak_memory
from nexus.methods.sft import SFT
from nexus.models.loader import model_facts
from nexus.models.saved_state import read_state
from nexus.storage.run_status import Board
from tests import small
from tests.conftest import REPOSITORY

PROMPTS = {"row:1": SamplePrompt([5, 6, 7], (), None, 3), "row:2": SamplePrompt([8, 9], (), None, 4)}
#: What Lightning calls at the border of optimizer steps, or when there is no step at all.
BOUNDARIES = {"on_train_start", "on_train_batch_end", "on_train_end", "on_exception", "on_save_checkpoint"}


def make_checkpoint(folder: Path, **changes: Any) -> StepCheckpoint:
    return small.make_saver(folder, **({"every_n_steps": 2} | changes))


def make_metrics(folder: Path, **changes: Any) -> MetricsCsv:
    return MetricsCsv(**({"every_n_steps": 2, "path": str(folder / "metrics.csv")} | changes))


def make_progress(folder: Path, **changes: Any) -> TrainingProgress:
    return TrainingProgress(**({"seconds_between_updates": 1e-6, "seconds_between_lines": 1e-6} | changes))


def make_samples(folder: Path, **changes: Any) -> Samples:
    given = {"path": str(folder / "samples.jsonl"), "prompts": PROMPTS, "tokenizer": small.make_tokenizer()}
    return Samples(**({"every_n_steps": 2, "count": 2} | given | changes))


def make_probe(folder: Path, **changes: Any) -> MemoryProbe:
    given: dict[str, Any] = {"count_steps": 2, "tolerance": 0.5, "plan": small_plan(), "limit_bytes": None}
    return MemoryProbe(**(given | changes))


def small_plan(tokens: int = 1_000) -> MemoryPlan:
    """The memory plan of the small model."""
    facts = model_facts(path=None, architecture=small.ARCHITECTURE, revision=None)
    settings = MemorySettings(
        precision="fp32", storage="fp32", trains_base=True, adapter_parameters=0, adapter_rank=0, dora=False,
        optimizer="adamw", checkpointing="off", micro_batch_tokens=tokens, longest_row=100, target_tokens=tokens // 2,
        several_micro_batches=True, chunk_tokens=16, score_rows=0, score_tokens=0, prompt_tokens=0, scores_after=False,
        packages=False, on_gpu=False, overhead_bytes=0, fragmentation=0.0,
    )  # fmt: skip
    return plan_memory(facts, settings)


def make_desk(folder: Path) -> Desk:
    return Desk(board=Board(folder), flags=Flags())


def make_control(folder: Path, **changes: Any) -> RunControl:
    return RunControl(**({"pause_offload": False, "desk": make_desk(folder)} | changes))


def make_cooldown(folder: Path, **changes: Any) -> Cooldown:
    given: dict[str, Any] = {"enabled": True, "every_n_steps": 4, "seconds": 0.01, "desk": make_desk(folder)}
    return Cooldown(**(given | changes))


class Steady:
    """A sensor that is never hot."""

    def read(self) -> float:
        return 50.0


def make_thermal(folder: Path, **changes: Any) -> ThermalPause:
    given: dict[str, Any] = {
        "enabled": True, "gpu_pause_at": 83.0, "gpu_resume_at": 75.0, "cpu_pause_at": 88.0, "cpu_resume_at": 78.0,
        "seconds_between_polls": 1.0, "min_pause_seconds": 0.0, "max_pause_seconds": 5.0, "unknown_after_seconds": 4.0,
        "stuck_after_seconds": 600.0, "on_unknown": "train", "find_sensors": lambda: {"cpu": Steady()},
        "desk": make_desk(folder),
    }  # fmt: skip
    return ThermalPause(**(given | changes))


def make_hang_watch(folder: Path, **changes: Any) -> HangWatch:
    return HangWatch(**({"enabled": True, "seconds": 600.0, "factor": 20.0, "desk": make_desk(folder)} | changes))


def make_quiet_hours(folder: Path, **changes: Any) -> QuietHours:
    given = {"enabled": True, "begins": "02:00", "ends": "02:30", "now": lambda: 12 * 60, "desk": make_desk(folder)}
    return QuietHours(**(given | changes))


def make_power_budget(folder: Path, **changes: Any) -> PowerBudget:
    given: dict[str, Any] = {
        "enabled": True, "watts": 100.0, "resume_watts": 90.0, "window_seconds": 20.0, "seconds_between_polls": 1.0,
        "max_pause_seconds": 5.0, "find_power": Steady, "desk": make_desk(folder),
    }  # fmt: skip
    return PowerBudget(**(given | changes))


def make_validation(folder: Path, **changes: Any) -> Validation:
    return small.make_validation(folder, **({"every_n_steps": 2} | changes))


MAKERS: dict[type[Callback], Callable[..., Callback]] = {
    StepCheckpoint: make_checkpoint,
    MetricsCsv: make_metrics,
    TrainingProgress: make_progress,
    Samples: make_samples,
    MemoryProbe: make_probe,
    RunControl: make_control,
    Cooldown: make_cooldown,
    ThermalPause: make_thermal,
    HangWatch: make_hang_watch,
    QuietHours: make_quiet_hours,
    Validation: make_validation,
    PowerBudget: make_power_budget,
}
every_callback = pytest.mark.parametrize("make", MAKERS.values(), ids=[kind.__name__ for kind in MAKERS])


@pytest.fixture(scope="module")
def corpus() -> Any:
    return small.make_corpus(small.make_tokenizer(), hold_out_capabilities=True)


def train(
    corpus: Any,
    folder: Path,
    callbacks: list[Callback],
    *,
    steps: int = 6,
    resume: Path | None = None,
    logger: Any = False,
) -> SFT:
    folder.mkdir(exist_ok=True)
    method = small.make_method()
    method.configure_model()
    method.train()
    trainer = small.make_trainer(folder, max_steps=steps, callbacks=callbacks, logger=logger)
    trainer.fit(
        method, datamodule=NexusDataModule(corpus), ckpt_path=str(resume) if resume else None, weights_only=True
    )
    return method


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# The shared suite.


def test_the_suite_covers_every_callback() -> None:
    found = set()
    for module in pkgutil.iter_modules(nexus.callbacks.__path__, "nexus.callbacks."):
        members = vars(importlib.import_module(module.name)).values()
        found |= {m for m in members if inspect.isclass(m) and issubclass(m, Callback) and m.__module__ == module.name}
    assert found - {PolledCallback} == set(MAKERS)  # the base makes none by itself


@every_callback
def test_the_constructor_refuses_what_cannot_be(make: Callable[..., Callback], tmp_path: Path) -> None:
    arguments = inspect.signature(type(make(tmp_path)).__init__).parameters
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for name, p in arguments.items() if name != "self")
    assert all(p.default is inspect.Parameter.empty for p in arguments.values())  # YAML owns the values
    numbers = [name for name in arguments if name.startswith(("every", "keep", "seconds", "count"))]
    assert numbers or type(make(tmp_path)) in (RunControl, QuietHours)  # which have none
    for name in numbers:
        for value in (0, -1):
            with pytest.raises(ValueError, match="must be"):
                make(tmp_path, **{name: value})


class Watched(SFT):
    """Looks at a folder before every micro-batch."""

    def __init__(self, *, folder: Path, **common: Any) -> None:
        super().__init__(**common)
        self.folder = folder
        self.seen: list[tuple[int, dict[str, bytes]]] = []

    def loss(self, batch: Any) -> Any:
        self.seen.append((self.trainer.global_step, contents(self.folder)))
        return super().loss(batch)


@every_callback
def test_it_acts_at_step_boundaries_only(make: Callable[..., Callback], corpus: Any, tmp_path: Path) -> None:
    callback = make(tmp_path)
    hooks = {name for name in vars(type(callback)) if name.startswith(("on_", "setup", "teardown"))}
    assert hooks <= BOUNDARIES
    assert "on_train_batch_end" in hooks
    common = small.make_method()
    kept = ("base_model", "adapter", "schedule", "min_lr_ratio", "gradient_clip", "total_steps", "seed", "chunk_size")
    kept += ("neftune_alpha", "gradient_checkpointing", "compile_model", "guard")
    method = Watched(
        folder=tmp_path,
        optimizer=common.make_optimizer,
        warmup_ratio=0.2,
        **{name: getattr(common, name) for name in kept},
    )
    method.configure_model()
    method.train()
    small.make_trainer(tmp_path, max_steps=4, callbacks=[callback]).fit(method, datamodule=NexusDataModule(corpus))
    assert len(method.seen) == 8  # two micro-batches a step
    by_step: dict[int, list[dict[str, bytes]]] = {}
    for step, files in method.seen:
        by_step.setdefault(step, []).append(files)
    assert [len(looks) for looks in by_step.values()] == [2] * 4
    assert all(first == second for first, second in by_step.values())


@every_callback
def test_training_does_not_notice_it(make: Callable[..., Callback], corpus: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = train(corpus, tmp_path / "plain", [])
    state = torch.get_rng_state()
    torch.manual_seed(3)
    watched = train(corpus, tmp_path / "watched", [make(tmp_path / "watched")])
    assert torch.equal(torch.get_rng_state(), state)
    for (name, ours), theirs in zip(watched.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(module.training for module in watched.modules())  # Lightning itself sees to the outermost one alone


@every_callback
def test_it_survives_a_kill_and_a_resume(make: Callable[..., Callback], corpus: Any, tmp_path: Path) -> None:
    """A run that had come to step 5 and goes on from its checkpoint of step 3 leaves what an unbroken run leaves."""
    train(corpus, tmp_path / "whole", [make(tmp_path / "whole")])
    folder = tmp_path / "broken"
    train(corpus, folder, [make(folder), make_checkpoint(tmp_path / "kept", every_n_steps=1, keep=9)], steps=5)
    [at_three] = [path for step, path in checkpoints(tmp_path / "kept" / "checkpoints") if step == 3]
    for step, path in checkpoints(folder / "checkpoints"):
        if step > 3:
            shutil.rmtree(path)
    train(corpus, folder, [make(folder)], resume=at_three)
    whole, broken = contents(tmp_path / "whole"), contents(folder)
    assert whole.keys() == broken.keys()
    if "samples.jsonl" in whole:
        assert broken["samples.jsonl"] == whole["samples.jsonl"]
    if "metrics.csv" in whole:
        kept = [name for name in COLUMNS if name not in ("seconds", "perf/tokens_per_second", "perf/memory_gib")]
        rows = [
            [[row[k] for k in kept] for row in read_metrics(tmp_path / run / "metrics.csv")]
            for run in ("whole", "broken")
        ]
        assert rows[0] == rows[1]
        seconds = [row["seconds"] for row in read_metrics(folder / "metrics.csv")]
        assert seconds == sorted(seconds)


@every_callback
def test_it_closes_twice(make: Callable[..., Callback], corpus: Any, tmp_path: Path) -> None:
    callback = make(tmp_path)
    method = train(corpus, tmp_path, [callback])
    before = contents(tmp_path)
    callback.on_train_end(method.trainer, method)
    for _ in range(2):
        callback.on_exception(method.trainer, method, RuntimeError("late"))
    assert contents(tmp_path) == before


# What each writes.


def test_metrics_rows(corpus: Any, tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path), name="log", version="0")
    method = train(corpus, tmp_path, [make_metrics(tmp_path)], steps=5, logger=logger)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert next(csv.reader(file)) == list(COLUMNS)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 4, 5]  # the first, every second, the last
    assert all(set(row) == set(COLUMNS) for row in rows)
    assert rows[-1]["train/loss"] == pytest.approx(float(method.step_metrics["train/loss"]))
    assert rows[-1]["train/tokens"] == method.tokens_seen > rows[0]["train/tokens"] > 0
    assert all(row["train/grad_norm"] > 0 and row["perf/tokens_per_second"] > 0 for row in rows)
    assert all(row["perf/memory_gib"] > 0.05 for row in rows)  # torch alone takes more
    # the rate that the step used; total_steps=6 with 1 step of warm-up, so the first one takes half of 3e-3
    assert rows[0]["train/lr"] == pytest.approx(1.5e-3)
    assert rows[1]["train/lr"] == pytest.approx(3e-3)
    logged = read_metrics(tmp_path / "log" / "0" / "metrics.csv")
    assert [row["step"] for row in logged] == [1, 2, 4, 5]
    assert [row["train/loss"] for row in logged] == [row["train/loss"] for row in rows]


def test_a_line_that_a_killed_run_did_not_finish_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert read_metrics(path) == []
    path.write_bytes(b"step,seconds,train/loss\r\n1,0.5,3.25\r\n2,0.9,\r\n3,1.4,2.5e")
    assert read_metrics(path) == [{"step": 1, "seconds": 0.5, "train/loss": 3.25}, {"step": 2, "seconds": 0.9}]


def test_samples_are_answers_of_the_model_as_it_is(corpus: Any, tmp_path: Path) -> None:
    train(corpus, tmp_path, [make_samples(tmp_path, count=1)])
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["id"]) for row in rows] == [(2, "row:1"), (4, "row:1"), (6, "row:1")]
    assert all(set(row) == {"step", "id", "answer", "finished"} for row in rows)
    train(corpus, tmp_path / "none", [make_samples(tmp_path / "none", prompts={})])
    assert not (tmp_path / "none" / "samples.jsonl").exists()


def test_progress_tells_step_and_loss(corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = train(corpus, tmp_path, [make_progress(tmp_path)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6", "6/6"]
    assert f"loss {float(method.step_metrics['train/loss']):.4f}" in lines[-1]
    train(corpus, tmp_path, [make_progress(tmp_path, seconds_between_lines=1000.0)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["6/6"]


def test_checkpoints_keep_the_newest(corpus: Any, tmp_path: Path) -> None:
    stale = tmp_path / "checkpoints" / ".tmp-step=00000002-17-18"
    stale.mkdir(parents=True)
    (stale / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoints" / "mine.ckpt").write_bytes(b"no step in the name")
    train(corpus, tmp_path, [make_checkpoint(tmp_path)], steps=5)
    assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [4, 5]
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step=00000004", "step=00000005", "mine.ckpt"}


#: Writes a second, larger checkpoint over the first one with a limit on the size of files: a full disk without a disk.
FULL_DISK = """
import resource, signal, sys, torch
from nexus.callbacks.checkpoint import AtomicCheckpointIO
from nexus.errors import NexusError
from nexus.flags import Flags
io, path = AtomicCheckpointIO(), sys.argv[1]
io.save_checkpoint({"global_step": 1}, path)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL if sys.argv[2] == "kill" else signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    io.save_checkpoint({"global_step": 1, "weights": torch.zeros(1_000_000)}, path)
except NexusError as error:
    print(error)
    raise SystemExit(error.status)
"""


@pytest.mark.parametrize("how", ["full", "kill"])
def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path: Path, how: str) -> None:
    path = tmp_path / "step=00000001"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), how],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert read_state(path) == {"global_step": 1}
    assert checkpoints(tmp_path) == [(1, path)]
    if how == "kill":
        assert done.returncode == -signal.SIGXFSZ
        assert len(list(tmp_path.iterdir())) == 2  # the half file, under a name that no reader takes up
    else:
        assert done.returncode == 73, done.stderr
        assert "E-OUT-04" in done.stdout
        assert "resume" in done.stdout
        assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NexusError) as caught:
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "file" / "step=00000001")
    assert (caught.value.code, caught.value.status) == ("E-OUT-04", 73)
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={})


def test_an_object_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="generator"):
        AtomicCheckpointIO().save_checkpoint({"generator": (i for i in ())}, tmp_path / "step=00000001")
    assert list(tmp_path.iterdir()) == []


def test_the_probe_measures_what_training_adds(corpus: Any, tmp_path: Path) -> None:
    probe = make_probe(tmp_path)
    train(corpus, tmp_path, [probe], steps=3)
    assert probe.result is not None
    found = probe.result
    assert found["measured_since"] == "the first step"
    assert found["steps"] == 2
    assert 0 < found["micro_batch_tokens"] <= 2 * max(len(row.input_ids) for row in corpus.rows)
    assert found["before_bytes"] < found["planned_bytes"]
    assert found["before_bytes"] <= found["measured_bytes"] < found["before_bytes"] + 2**28
    assert found["ratio"] == pytest.approx(found["measured_bytes"] / found["planned_bytes"], abs=1e-3)
    assert found["expected_bytes"] >= found["measured_bytes"]


def run_that_will_not_fit(folder: Path) -> tuple[list[int], str, int, str, str]:
    """The first micro-batches are small, the plan knows of much larger ones, and the limit is the present size."""
    corpus = small.make_corpus(small.make_tokenizer())
    probe = make_probe(folder, plan=small_plan(tokens=2_000_000), limit_bytes=memory_in_use_bytes() + 2**26)
    seen: list[int] = []

    class Count(Callback):
        def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
            seen.append(trainer.global_step)

    with pytest.raises(NexusError) as caught:
        train(corpus, folder, [probe, Count()], steps=6)
    error = caught.value
    return seen, error.code, error.status, error.where, error.remedy


def test_a_run_that_will_not_fit_ends_after_two_steps(tmp_path: Path) -> None:
    """In a process of its own: one that has trained before reuses memory, and this training would seem to add none."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        seen, code, status, where, remedy = process.submit(run_that_will_not_fit, tmp_path).result()
    assert seen == [0, 1]
    assert (code, status, where) == ("E-MEM-03", 75, "hardware.memory_gib")
    for knob in ("hardware.micro_batch_tokens", "gradient_checkpointing", "adapter=qlora", "data.max_seq_len"):
        assert knob in remedy


def test_the_probe_warns_of_a_wrong_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    probe = make_probe(tmp_path, tolerance=0.1)
    probe._from_here = True
    common = {"expected_bytes": 0, "ratio": 1.5, "micro_batch_tokens": 1, "largest_micro_batch_tokens": 1}
    probe.judge(common | {"measured_bytes": 2**30, "planned_bytes": 2**30 + 2**26})
    assert not caplog.records
    probe.judge(common | {"measured_bytes": 3 * 2**30, "planned_bytes": 2 * 2**30})
    assert "W-MEM-03" in caplog.text


def test_the_peak_begins_again() -> None:
    held = torch.ones(2**27 // 4)  # 128 MiB, every page written
    before = peak_memory_bytes()
    del held
    assert reset_peak_memory()
    assert peak_memory_bytes() < before - 2**26
    held = torch.ones(2**27 // 4)
    assert peak_memory_bytes() > memory_in_use_bytes() - 2**20
    assert held.sum() == 2**25
