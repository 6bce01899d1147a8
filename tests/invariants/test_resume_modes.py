"""What `exact` refuses and lists, and what `fast` keeps: rows, order, seeds, rates and steps."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from nexus.callbacks.checkpoint import newest_whole
from nexus.config.check import resume_identity
from nexus.data.module import NexusDataModule
from nexus.errors import NexusError
from nexus.hardware.probe import Device
from nexus.models.saved_state import write_state
from nexus.stages.resume import ResumeMode, differences, find_checkpoint, machine_of
from tests import small

CONFIG = {
    "seed": 1, "method": {"lr": 1e-3, "betas": [0.9, 0.95]}, "paths": {"output_dir": "a"}, "resume_mode": "exact",
    "callbacks": {"checkpoint": {"keep": 2}}, "data": {"train": ["x"], "max_seq_len": 64, "num_proc": 1},
    "hardware": {"micro_batch_size": 16, "threads": None},
}  # fmt: skip
MACHINE = {"machine.device": "cpu A", "machine.precision": "fp32", "machine.threads": 2, "machine.torch": "2.13.0"}
IDENTITY: dict[str, Any] = resume_identity(CONFIG) | {"data_sha256": "11"} | MACHINE
STEPS = 6


def find(folder: Path, mode: ResumeMode, told: list[str], **changes: Any) -> Any:
    wanted = {**IDENTITY, **{key.replace("__", "."): value for key, value in changes.items()}}
    return find_checkpoint(folder, identity=wanted, mode=mode, run=folder, tell=told.append)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Checkpoints of a run that is at step 3."""
    state = {"global_step": 3, "identity": IDENTITY, "fast_resumes": []}
    write_state(state, tmp_path / "step=00000003")
    return tmp_path


def test_the_same_settings_rows_and_machine_go_on_in_either_mode(saved: Path) -> None:
    assert sorted(resume_identity(CONFIG)) == [
        "data.max_seq_len", "hardware.micro_batch_size", "hardware.threads", "method.betas", "method.lr", "seed",
    ]  # fmt: skip
    told: list[str] = []
    for mode in ("exact", "fast"):
        assert find(saved, mode, told) == (3, saved / "step=00000003", [])  # type: ignore[arg-type]
    assert told == []


@pytest.mark.parametrize(
    "changes",
    [{"hardware__micro_batch_size": 4}, {"machine__threads": 1}, {"machine__device": "cuda B"}],
    ids=lambda changes: next(iter(changes)),
)
def test_how_a_step_is_computed_may_differ_in_fast_mode_only(saved: Path, changes: dict[str, Any]) -> None:
    told: list[str] = []
    with pytest.raises(NexusError) as caught:
        find(saved, "exact", told, **changes)
    assert (caught.value.code, caught.value.status) == ("E-RES-01", 64)
    assert "resume_mode=fast" in caught.value.remedy
    [key] = [name.replace("__", ".") for name in changes]
    assert f"\n  {key}: the checkpoint has {IDENTITY[key]!r}, this run" in caught.value.message
    step, _, resumes = find(saved, "fast", told, **changes)
    assert [entry["step"] for entry in resumes] == [step] == [3]
    [line] = resumes[0]["changed"]
    assert line.startswith(f"{key}: the checkpoint has")
    assert told == [f"resume_mode=fast  {line}"]


@pytest.mark.parametrize(
    "changes",
    [
        {"data_sha256": "22"}, {"seed": 2}, {"method__lr": 2e-3, "method__new": None}, {"data__max_seq_len": 32},
        {"machine__precision": "bf16"}, {"seed": 2, "machine__threads": 1},
    ],
    ids=lambda changes: " ".join(changes),
)  # fmt: skip
def test_what_is_trained_may_differ_in_neither(saved: Path, changes: dict[str, Any]) -> None:
    for mode in ("exact", "fast"):
        with pytest.raises(NexusError) as caught:
            find(saved, mode, [], **changes)  # type: ignore[arg-type]
        assert caught.value.code == "E-RES-01"
        assert "start a new run" in caught.value.remedy, "the other mode would not help"
        listed = [line.split(":")[0].strip() for line in caught.value.message.splitlines()[1:]]
        keys = sorted(key.replace("__", ".") for key in changes)
        assert listed == (keys if mode == "exact" else [key for key in keys if key != "machine.threads"])


def test_a_checkpoint_that_names_no_machine_is_compared_by_its_settings() -> None:
    older = {key: value for key, value in IDENTITY.items() if key not in MACHINE}
    assert differences(older, IDENTITY) == {}
    assert list(differences(older, {**IDENTITY, "seed": 2})) == ["seed"]


def test_the_machine_is_what_bits_depend_on() -> None:
    processor = Device("cpu", 0, "A", 2**30, 2**30, ("fp32",))
    card = Device("cuda", 1, "B", 2**30, 2**30, ("bf16",))
    assert machine_of(processor, "fp32") == {
        "machine.device": "cpu A", "machine.precision": "fp32", "machine.threads": torch.get_num_threads(),
        "machine.torch": torch.__version__,
    }  # fmt: skip
    found = machine_of(card, "bf16")
    assert (found["machine.device"], found["machine.threads"]) == ("cuda B", None), "any card of the same kind"


class Consumed(Callback):
    """Notes the rows of every step and the rate that it used."""

    def __init__(self) -> None:
        self.steps: list[tuple[list[str], float]] = []
        self.micro_batches: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rows = sorted(name for micro_batch in batch for name in micro_batch.ids)
        self.steps.append((rows, pl_module.step_metrics["train/lr"]))
        self.micro_batches.append(len(batch))


@functools.cache
def tokenizer() -> Any:
    return small.make_tokenizer()


def train(folder: Path, *, until: int, micro_batch_size: int, resume: Path | None = None) -> tuple[Any, Consumed]:
    corpus = small.make_corpus(tokenizer(), micro_batch_size=micro_batch_size)
    method, consumed = small.make_method(adapter=small.LORA), Consumed()
    method.configure_model()
    method.train()
    trainer = small.make_trainer(folder, max_steps=until, callbacks=[consumed, small.make_saver(folder)])
    trainer.fit(
        method, datamodule=NexusDataModule(corpus), ckpt_path=str(resume) if resume else None, weights_only=True
    )
    return method, consumed


def test_other_micro_batches_go_on_with_the_same_rows_and_end_close_by(tmp_path: Path) -> None:
    """Twelve rows twice over in steps of four: 2 + 2, and after the resume 4 in one."""
    whole, steps = train(tmp_path / "whole", until=STEPS, micro_batch_size=2)
    _, first = train(tmp_path / "parts", until=3, micro_batch_size=2)
    found = newest_whole(tmp_path / "parts" / "checkpoints", tell=print)
    assert found is not None
    parts, second = train(tmp_path / "parts", until=STEPS, micro_batch_size=4, resume=found[1])
    assert first.micro_batches + second.micro_batches == [2] * 3 + [1] * 3
    assert first.steps + second.steps == steps.steps
    assert len({name for rows, _ in steps.steps for name in rows}) == 12
    assert parts.tokens_seen == whole.tokens_seen
    losses = [float(method.step_metrics["train/loss"]) for method in (parts, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    pairs = [(a.detach(), b.detach()) for a, b in zip(parts.parameters(), whole.parameters(), strict=True)]
    assert max(float((a - b).abs().max()) for a, b in pairs) < 1e-3
    assert any(not torch.equal(a, b) for a, b in pairs), "so exact must refuse it"
