"""Steps that are no numbers or explode never reach a saved weight; they are skipped, written down, and stay skipped."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from nexus.callbacks.checkpoint import checkpoints
from nexus.callbacks.metrics_csv import MetricsCsv, read_metrics
from nexus.data.module import NexusDataModule
from nexus.errors import NexusError
from nexus.methods.sft import SFT
from nexus.models.saved_state import read_state
from nexus.types import LossOutput, MicroBatch
from tests import faults, small

pytestmark = pytest.mark.faults

STEPS = 30
BAD = faults.count(12, 100)


class Spoiled(SFT):
    """Spoils the loss or the gradient of chosen steps (from 1), as a broken kernel or a broken row would."""

    spoil: dict[int, str]

    def loss(self, batch: MicroBatch) -> LossOutput:
        output = super().loss(batch)
        kind = self.spoil.get(self.trainer.global_step + 1, "")
        if kind == "nan loss":
            return LossOutput(output.loss * math.nan, output.metrics)
        if kind == "inf loss":
            return LossOutput(output.loss + math.inf, output.metrics)
        if kind:  # the loss stays as it is, its gradient does not
            factor = {"nan gradient": math.nan, "inf gradient": math.inf, "exploding gradient": 1e9}[kind]
            output.loss.register_hook(lambda gradient: gradient * factor)
        return output


KINDS = ("nan loss", "inf loss", "nan gradient", "inf gradient", "exploding gradient")


def train(folder: Path, spoil: dict[int, str], *, steps: int = STEPS, resume: Path | None = None, **guard: Any) -> Any:
    chosen = {"spike_window": 3, "spike_factor": 50.0} | guard
    method = small.make_method(Spoiled, guard=small.make_guard(**chosen), total_steps=STEPS, schedule="constant")
    method.spoil = spoil
    method.configure_model()
    method.train()
    seen: dict[int, dict[str, torch.Tensor]] = {}

    class Watch(MetricsCsv):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *args)
            seen[trainer.global_step] = small.weights(pl_module)

    folder.mkdir(exist_ok=True)
    callbacks = [Watch(every_n_steps=1000, path=str(folder / "metrics.csv")), small.make_saver(folder, every_n_steps=1)]
    trainer = small.make_trainer(folder, max_steps=steps, callbacks=callbacks)
    data = NexusDataModule(small.make_corpus(small.make_tokenizer(), epochs=10))
    try:
        trainer.fit(method, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True)
    finally:
        for _, path in checkpoints(folder / "checkpoints"):
            state = read_state(path)
            assert all(value.isfinite().all() for value in state["state_dict"].values())
            moments = [value for entry in state["optimizer_states"][0]["state"].values() for value in entry.values()]
            assert all(value.isfinite().all() for value in moments)
    return method, seen


@pytest.mark.parametrize("trial", range(BAD // 4))
def test_a_bad_step_changes_nothing_and_is_written_down(trial: int, tmp_path: Path) -> None:
    rng = random.Random(trial)
    chosen = sorted(rng.sample(range(6, STEPS + 1), 4))  # after the window of the median has filled
    spoil = {step: KINDS[(trial * 4 + index) % len(KINDS)] for index, step in enumerate(chosen)}
    method, seen = train(tmp_path / "whole", spoil)
    assert [entry["step"] for entry in method.guard.skipped] == chosen
    for step, kind in spoil.items():
        before, after = seen[step - 1], seen[step]
        assert all(torch.equal(before[name], after[name]) for name in before), kind
        assert any(not torch.equal(seen[step - 2][name], before[name]) for name in before) or step - 1 in spoil
    rows = {int(row["step"]): row for row in read_metrics(tmp_path / "whole" / "metrics.csv")}
    assert [rows[step]["train/skipped_steps"] for step in chosen] == [1, 2, 3, 4]
    assert all(p.isfinite().all() for p in method.parameters())
    # resumed between the bad steps, the run skips the same ones and ends with the same weights
    stop = chosen[1]
    train(tmp_path / "parts", spoil, steps=stop)
    again, _ = train(tmp_path / "parts", spoil, resume=checkpoints(tmp_path / "parts" / "checkpoints")[-1][1])
    assert again.guard.skipped == method.guard.skipped
    for ours, theirs in zip(again.parameters(), method.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    print(f"P22: {len(spoil)} bad steps ({', '.join(spoil.values())}) skipped, noted, and skipped again after a resume")


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    spoil = dict.fromkeys(range(5, STEPS + 1), "nan loss") | {6: ""}
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
