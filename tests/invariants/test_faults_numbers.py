"""Steps that are no numbers or explode never reach a saved weight; they are skipped, written down, and stay skipped."""

from __future__ import annotations

import functools
import math
import random
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from nexus.callbacks.checkpoint import StepCheckpoint, checkpoints
from nexus.callbacks.metrics_csv import MetricsCsv, read_metrics
from nexus.data.corpus import Corpus
from nexus.data.module import NexusDataModule
from nexus.errors import NexusError
from nexus.methods.sft import SFT
from nexus.models.saved_state import read_state
from nexus.types import LossOutput, MicroBatch
from tests import faults, runs, small

pytestmark = pytest.mark.faults

STEPS = 60
#: Each run meets every kind of bad number twice.
RUNS = faults.count(1, 6)
#: The guard's median over the norms of good steps has a window of three.
FIRST = 6

FACTORS = {"nan": math.nan, "inf": math.inf, "1e9": 1e9}
KINDS = [f"{number} {place}" for number in FACTORS for place in ("loss", "gradient", "input")]
#: Layers are normalized, so that a large input alone is no bad step.
HARMLESS = "1e9 input"


class Spoiled(SFT):
    """Spoils loss, gradient or input of chosen steps (from 1), as a broken kernel or a broken row would."""

    spoil: dict[int, str]

    def loss(self, batch: MicroBatch) -> LossOutput:
        number, _, place = self.spoil.get(self.trainer.global_step + 1, "").partition(" ")
        factor = FACTORS.get(number, 1.0)
        if place == "input":
            hook = self.policy.get_input_embeddings().register_forward_hook(
                lambda module, given, output: output * factor
            )
            try:
                return super().loss(batch)
            finally:
                hook.remove()
        output = super().loss(batch)
        if place == "loss":
            return LossOutput(output.loss * factor, output.metrics)
        if place == "gradient":  # the loss stays as it is
            output.loss.register_hook(lambda gradient: gradient * factor)
        return output


class SaveAt(Callback):
    """Saves just behind chosen steps."""

    def __init__(self, saver: StepCheckpoint, steps: Collection[int]) -> None:
        self.saver = saver
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step in self.steps:
            self.saver.save(trainer)


@functools.cache
def _rows() -> Corpus:
    return small.make_corpus(small.make_tokenizer(), epochs=None, max_steps=STEPS)


def train(
    folder: Path,
    spoil: dict[int, str],
    *,
    steps: int = STEPS,
    save_at: Collection[int] | None = None,
    resume: Path | None = None,
    **guard: Any,
) -> Any:
    """Train with bad numbers at some steps; saves behind every step unless some are named.

    Every checkpoint that is there in the end is read, and must be finite.
    """
    chosen = {"spike_window": 3, "spike_factor": 50.0} | guard
    base = small.settings() | {"architecture": runs.ONE_LAYER}
    method = small.make_method(
        Spoiled, guard=small.make_guard(**chosen), total_steps=STEPS, schedule="constant", base_model=base
    )
    method.spoil = spoil
    method.configure_model()
    method.train()
    seen: dict[int, dict[str, torch.Tensor]] = {}

    class Watch(MetricsCsv):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *args)
            seen[trainer.global_step] = small.weights(pl_module)

    folder.mkdir(exist_ok=True)
    every = {"every_n_steps": 1} if save_at is None else {"every_n_steps": 10 * STEPS, "keep": STEPS}
    saver = small.make_saver(folder, **every)
    callbacks = [Watch(every_n_steps=1000, path=str(folder / "metrics.csv")), saver, SaveAt(saver, save_at or ())]
    trainer = small.make_trainer(folder, max_steps=steps, callbacks=callbacks)
    data = NexusDataModule(_rows())
    try:
        trainer.fit(method, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True)
    finally:
        for _, path in checkpoints(folder / "checkpoints"):
            state = read_state(path)
            assert all(value.isfinite().all() for value in state["state_dict"].values())
            moments = [value for entry in state["optimizer_states"][0]["state"].values() for value in entry.values()]
            assert all(value.isfinite().all() for value in moments)
    return method, seen


@pytest.mark.parametrize("trial", range(RUNS))
def test_a_bad_step_changes_nothing_and_is_written_down(trial: int, tmp_path: Path) -> None:
    rng = random.Random(trial)
    chosen = sorted(rng.sample(range(FIRST, STEPS + 1), 2 * len(KINDS)))
    spoil = dict(zip(chosen, rng.sample(KINDS * 2, len(chosen)), strict=True))
    skipped = [step for step in chosen if spoil[step] != HARMLESS]
    method, seen = train(tmp_path / "whole", spoil, save_at=chosen)
    assert [step for step, _ in checkpoints(tmp_path / "whole" / "checkpoints")] == sorted({*chosen, STEPS})
    assert [entry["step"] for entry in method.guard.skipped] == skipped
    for step in range(2, STEPS + 1):
        same = all(torch.equal(seen[step - 1][name], seen[step][name]) for name in seen[step])
        assert same == (step in skipped), spoil.get(step)
        assert all(value.isfinite().all() for value in seen[step].values())
    rows = {int(row["step"]): row for row in read_metrics(tmp_path / "whole" / "metrics.csv")}
    assert [rows[step]["train/skipped_steps"] for step in skipped] == list(range(1, len(skipped) + 1))
    # resumed behind a bad step in the middle, the run skips the same ones and ends with the same weights
    shutil.copytree(tmp_path / "whole" / "checkpoints" / f"step={chosen[9]:08d}", tmp_path / f"step={chosen[9]:08d}")
    again, _ = train(tmp_path / "parts", spoil, save_at=(), resume=tmp_path / f"step={chosen[9]:08d}")
    assert again.guard.skipped == method.guard.skipped
    for ours, theirs in zip(again.parameters(), method.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    print(
        f"P22: {len(spoil)} bad steps (each twice: {', '.join(KINDS)}), {len(skipped)} of them skipped, noted, and "
        "skipped again after a resume; every saved weight is finite"
    )


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    spoil = dict.fromkeys(range(5, 12), "nan loss") | {6: ""}
    with pytest.raises(NexusError) as caught:
        train(tmp_path, spoil, max_skipped_in_a_row=3)
    assert (caught.value.code, caught.value.status) == ("E-NUM-01", 65)
    assert "steps 7 to 9" in caught.value.where
    assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [7, 8]


def test_steady_steps_all_pass(tmp_path: Path) -> None:
    method, _ = train(tmp_path, {})
    assert method.guard.skipped == []
    assert len(method.guard.norms) == 3


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    method = small.make_method(total_steps=2)
    method.configure_model()
    with torch.no_grad():
        next(method.parameters())[0, 0] = math.inf
    with pytest.raises(NexusError, match="not finite") as caught:
        method.on_save_checkpoint({"state_dict": method.state_dict()})
    assert caught.value.code == "E-NUM-04"


def test_norms_below_the_clip_are_no_explosion() -> None:
    guard = small.make_guard(spike_window=2)
    for step in (1, 2):
        assert guard.passes(step=step, loss=1.0, grad_norm=1e-6, clip=1.0, rows=["a"])
    assert guard.passes(step=3, loss=1.0, grad_norm=0.9, clip=1.0, rows=["a"])
    assert not guard.passes(step=4, loss=1.0, grad_norm=300.0, clip=1.0, rows=["a"])
    assert guard.skipped[0]["step"] == 4
