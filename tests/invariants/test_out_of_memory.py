"""On lack of memory a step is halved and begun again; it stays the same step."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest
import torch

from nexus.errors import NexusError
from nexus.methods.sft import SFT
from nexus.types import LossOutput, MicroBatch
from tests import faults, small


class Narrow(SFT):
    """A device that holds `room` rows; beyond that it fails after the graph was built, as a real one does."""

    def __init__(self, *, room: int, **common) -> None:
        super().__init__(**common)
        self.room = room
        self.asked: list[int] = []

    def loss(self, batch: MicroBatch) -> LossOutput:
        self.asked.append(len(batch.ids))
        output = super().loss(batch)
        if len(batch.ids) > self.room:
            output.loss.backward()  # half-made gradients must not count
            raise torch.OutOfMemoryError("out of memory")
        return output


def train(folder: Path, room: int, *, packing: bool = True, micro_batch_size: int = 8, rows: int = 8) -> Narrow:
    common = small.make_method(
        optimizer=functools.partial(torch.optim.SGD, lr=0.5), total_steps=1, warmup_ratio=0.0, gradient_clip=None
    )
    kept = ("base_model", "adapter", "schedule", "min_lr_ratio", "gradient_clip", "total_steps", "seed")
    kept += ("neftune_alpha", "gradient_checkpointing", "compile_model", "guard")
    method = Narrow(
        room=room,
        chunk_size=16,
        **{name: getattr(common, name) for name in kept},
        optimizer=common.make_optimizer,
        warmup_ratio=0.0,
    )
    step = small.make_step(small.make_rows(rows, seed=3), packing=packing, micro_batch_size=micro_batch_size)
    small.fit_steps(method, [step], folder)
    return method


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("room", [1, 2, 3, 7])
def test_the_halved_step_equals_the_whole_one(tmp_path: Path, packing: bool, room: int) -> None:
    whole = train(tmp_path, 8, packing=packing)
    halved = train(tmp_path, room, packing=packing)
    assert whole.asked == [8]
    assert halved.asked[0] == 8
    largest = {1: 1, 2: 2, 3: 2, 7: 4}[room]
    assert halved.asked[-8 // largest :] == [largest] * (8 // largest)
    assert halved.tokens_seen == whole.tokens_seen
    for name in ("train/loss", "train/grad_norm"):
        assert float(halved.step_metrics[name]) == pytest.approx(float(whole.step_metrics[name]), rel=1e-5)
    for (name, ours), theirs in zip(halved.named_parameters(), whole.parameters(), strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5, name


@pytest.mark.faults
def test_gradients_of_random_lacks_of_memory(tmp_path: Path) -> None:
    """Rows, room and micro-batches at random: the summed gradient is that of the step that fits."""
    rng, worst, trials = random.Random(20), 0.0, faults.count(4, 50)
    start = small.make_method()
    start.configure_model()
    for _ in range(trials):
        rows, packing = rng.randint(2, 8), rng.random() < 0.5
        size = rng.randint(2, rows)
        room = rng.randint(1, size - 1)
        whole = train(tmp_path, rows, packing=packing, micro_batch_size=rows, rows=rows)
        halved = train(tmp_path, room, packing=packing, micro_batch_size=size, rows=rows)
        assert max(halved.asked) > room >= halved.asked[-1]
        for before, ours, theirs in zip(start.parameters(), halved.parameters(), whole.parameters(), strict=True):
            step = (theirs - before).abs().max()
            worst = max(worst, float((ours - theirs).abs().max() / step)) if step > 0 else worst
    assert 0 < worst < 1e-4
    print(
        f"P20: memory was short in {trials} random steps; gradients differ by {worst:.1e} of the largest entry at most"
    )


def test_uneven_micro_batches_are_all_begun_again(tmp_path: Path) -> None:
    """The first micro-batch fits and the second does not: its gradients must not count twice."""
    whole = train(tmp_path, 8, micro_batch_size=4, rows=5)
    halved = train(tmp_path, 2, micro_batch_size=4, rows=5)
    assert sorted(whole.asked) == [1, 4]
    for (name, ours), theirs in zip(halved.named_parameters(), whole.parameters(), strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5, name


def test_a_single_row_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NexusError) as caught:
        train(tmp_path, 0)
    error = caught.value
    assert (error.code, error.status) == ("E-MEM-02", 75)
    longest = max(small.make_rows(8, seed=3), key=lambda row: len(row.input_ids))
    assert f"{len(longest.input_ids)} tokens" in error.message
    assert error.where == longest.id
    assert "max_seq_len" in error.remedy
