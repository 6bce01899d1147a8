"""On lack of memory a step is halved and begun again; it stays the same step."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from nexus.errors import NexusError
from nexus.methods.sft import SFT
from nexus.models import embedding
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


class Kept(torch.optim.SGD):
    """Keeps the gradients of its step: weights before and after tell them only as far as a weight has digits."""

    def step(self, closure: Any = None) -> Any:
        self.gradients = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def train(
    folder: Path,
    room: int,
    *,
    packing: bool = True,
    micro_batch_size: int = 8,
    rows: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Narrow:
    common = small.make_method(
        optimizer=functools.partial(Kept, lr=0.5), total_steps=1, warmup_ratio=0.0, gradient_clip=None
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
    method.configure_model()
    method.policy.to(dtype)
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


def test_rows_that_a_large_embedding_added_before_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient goes past autograd into the weight, so a step that is begun again must find nothing there."""
    plain = train(tmp_path, 8)
    monkeypatch.setattr(embedding, "LARGE_TABLE", 1)
    whole, halved = train(tmp_path, 8), train(tmp_path, 2)
    assert type(plain.policy.get_input_embeddings()) is torch.nn.Embedding
    assert type(halved.policy.get_input_embeddings()) is embedding.IndexedEmbedding
    [wanted], [once], [again] = (method.trainer.optimizers for method in (plain, whole, halved))
    for one, other, third in zip(wanted.gradients, once.gradients, again.gradients, strict=True):
        assert torch.equal(one, other)
        assert float((third - one).norm()) <= 1e-5 * float(one.norm())


def difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Largest difference of a tensor's gradients, relative to their norm."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.faults
def test_gradients_of_random_lacks_of_memory(tmp_path: Path) -> None:
    """Rows, room and micro-batches at random: the summed gradient is that of the step that fits.

    In float64 to twelve digits and more, where a millionth is promised; in float32 either is about as far from the
    float64 gradient as the other, which is what their arithmetic rounds.
    """
    rng, trials = random.Random(20), faults.count(4, 50)
    exact, rounded_whole, rounded_halved = [], [], []
    for _ in range(trials):
        rows, packing = rng.randint(2, 8), rng.random() < 0.5
        size = rng.randint(2, rows)
        room = rng.randint(1, size - 1)
        found = {}
        for dtype in (torch.float64, torch.float32):
            whole = train(tmp_path, rows, packing=packing, micro_batch_size=rows, rows=rows, dtype=dtype)
            halved = train(tmp_path, room, packing=packing, micro_batch_size=size, rows=rows, dtype=dtype)
            assert max(halved.asked) > room >= halved.asked[-1]
            found[dtype] = [one.trainer.optimizers[0].gradients for one in (whole, halved)]
        truth, same = found[torch.float64]
        exact.append(difference(same, truth))
        rounded_whole.append(difference(found[torch.float32][0], truth))
        rounded_halved.append(difference(found[torch.float32][1], truth))
    assert 0 < max(exact) < 1e-12
    assert max(rounded_halved) < 2 * max(rounded_whole)
    print(
        f"P20: memory was short in {trials} random steps; gradients differ by {max(exact):.1e} at most in float64. In "
        f"float32 they differ from those by {max(rounded_halved):.1e}, and without a lack by {max(rounded_whole):.1e}"
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
