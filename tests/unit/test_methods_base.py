"""The schedule by hand values, what is trained by count, and what the base refuses."""

from __future__ import annotations

import functools
import hashlib
import math

import pytest
import torch

from nexus.methods.base import Method, schedule_factor, seed_micro_batch
from tests import small

WARM_UP = [1 / 4, 2 / 4, 3 / 4]  # three steps; the fourth has the whole rate
#: Ten steps, three of warm-up, a tenth left at the end; worked out by hand.
BY_HAND = {
    "constant": [*WARM_UP, *[1.0] * 7],
    "linear": [*WARM_UP, *[1.0 - 0.9 * k / 7 for k in range(7)]],
    # halfway between 1 and 0.1 lies 0.55
    "cosine": [*WARM_UP, *[0.55 + 0.45 * math.cos(math.pi * k / 7) for k in range(7)]],
    # the last fifth is two steps: the first of them still has the whole rate, the second half of the way down
    "wsd": [*WARM_UP, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.55],
}


def factors(schedule: str, *, warmup_steps: int = 3, total_steps: int = 10, min_ratio: float = 0.1) -> list[float]:
    return [
        schedule_factor(
            step, schedule=schedule, warmup_steps=warmup_steps, total_steps=total_steps, min_ratio=min_ratio
        )
        for step in range(total_steps)
    ]


@pytest.mark.parametrize("schedule", BY_HAND)
def test_by_hand_values(schedule: str) -> None:
    assert factors(schedule) == pytest.approx(BY_HAND[schedule], abs=1e-12)


@pytest.mark.parametrize("schedule", BY_HAND)
def test_every_step_learns_and_the_end_is_the_floor(schedule: str) -> None:
    for total in (1, 2, 7, 100):
        for warmup in (0, 1, total):
            assert all(0 < f <= 1 for f in factors(schedule, warmup_steps=warmup, total_steps=total, min_ratio=0.0))
    after = schedule_factor(10, schedule=schedule, warmup_steps=3, total_steps=10, min_ratio=0.1)
    assert after == pytest.approx(1.0 if schedule == "constant" else 0.1)


def test_the_stable_part_of_wsd_does_not_depend_on_the_length() -> None:
    short, long = factors("wsd", total_steps=50), factors("wsd", total_steps=500)
    assert short[:41] == long[:41]
    assert short[41] < 1.0 == long[41]


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="cosin"):
        schedule_factor(0, schedule="cosin", warmup_steps=0, total_steps=1, min_ratio=0.0)


def test_the_optimizer_follows_the_schedule(tmp_path) -> None:
    rates = []
    method = small.make_method(total_steps=10, warmup_ratio=0.3, min_lr_ratio=0.1)
    watch = Rates(rates)
    small.fit_steps(method, [small.make_step(small.make_rows(2, seed=s)) for s in range(10)], tmp_path, [watch])
    assert rates == pytest.approx([3e-3 * f for f in BY_HAND["cosine"]])


class Rates(small.Callback):
    """Keeps the rate that each step uses."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_counts_of_what_is_trained() -> None:
    full, lora = small.make_method(), small.make_method(adapter=small.LORA)
    for method in (full, lora):
        method.configure_model()
    # embedding, and per layer q, k, v, o, three of the feed-forward part, four norms; the last norm
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 8 + 2 * 32
    total = 4096 * 32 + 2 * layer + 32
    assert sum(p.numel() for p in full.parameters() if p.requires_grad) == total
    adapter = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert sum(p.numel() for p in lora.parameters() if p.requires_grad) == adapter
    assert lora.policy.get_nb_trainable_parameters() == (adapter, total + adapter)
    for method in (full, lora):
        trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
        assert method.state_dict().keys() == trained.keys()
        groups = method.configure_optimizers()["optimizer"].param_groups
        assert sum(p.numel() for group in groups for p in group["params"]) == sum(p.numel() for p in trained.values())


def test_the_model_is_built_once_and_from_the_seed() -> None:
    method, twin, other = small.make_method(), small.make_method(), small.make_method(seed=12)
    with pytest.raises(RuntimeError, match="configure_model"):
        _ = method.policy
    for made in (method, twin, other):
        made.configure_model()
    first = method.policy
    method.configure_model()
    assert method.policy is first
    table = [m.policy.get_input_embeddings().weight for m in (method, twin, other)]
    assert torch.equal(table[0], table[1])
    assert not torch.equal(table[0], table[2])


def test_a_method_without_a_loss_says_so() -> None:
    bare = Method(
        base_model=small.settings(),
        adapter=small.NO_ADAPTER,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        schedule="constant",
        warmup_ratio=0.0,
        min_lr_ratio=0.0,
        gradient_clip=None,
        neftune_alpha=None,
        gradient_checkpointing=False,
        compile_model=False,
        guard=small.make_guard(),
        total_steps=1,
        seed=0,
    )
    with pytest.raises(TypeError, match=r"Method must define loss"):
        bare.loss(small.make_step(small.make_rows(1))[0])


def test_a_micro_batch_is_seeded_as_torch_would_and_nothing_is_queued() -> None:
    """torch.manual_seed keeps each call and a stack trace until CUDA is first used: slow, and it grows."""
    queued = len(torch.cuda._queued_calls)
    seed_micro_batch(7, step=3, index=1)
    drawn = torch.rand(5)
    assert len(torch.cuda._queued_calls) == queued
    key = hashlib.blake2b(b"nexus/7/3/1", digest_size=8).digest()
    torch.manual_seed(int.from_bytes(key, "big") >> 1)
    assert torch.equal(torch.rand(5), drawn)
    seed_micro_batch(7, step=3, index=2)
    assert not torch.equal(torch.rand(5), drawn)
