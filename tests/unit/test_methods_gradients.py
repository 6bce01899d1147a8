"""Norm and clipping equal torch's own, bit for bit, on gradients of one kind and of several."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nexus.methods.gradients import Gradients

KINDS = {
    "float32": [torch.float32],
    "bfloat16": [torch.bfloat16],
    "float64": [torch.float64],
    "mixed": [torch.float32, torch.bfloat16],
}


def make_weights(kinds: list[torch.dtype], *, scale: float = 1.0, count: int = 9) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(count)
    weights = []
    for index in range(count):
        weight = nn.Parameter(torch.zeros(3 + index, 5, dtype=kinds[index % len(kinds)]))
        weight.grad = (torch.randn(weight.shape, generator=draw) * scale).to(weight.dtype)
        weights.append(weight)
    weights.append(nn.Parameter(torch.zeros(2)))  # without a gradient
    return weights


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9985, 0.999, 0.9995, 1.0, 1.001, 3.0, float("inf"), float("nan")])
def test_as_torch_does_it(kinds: list[torch.dtype], share: float) -> None:
    """`share` is the norm by the limit."""
    factor = share if share in (0.0, float("inf")) or share != share else 1.0
    ours, theirs = (make_weights(kinds, scale=factor) for _ in range(2))
    limit = 1.0 if factor != 1.0 else float(Gradients(ours).norm) / share
    norm = nn.utils.clip_grad_norm_(theirs, limit)
    gradients = Gradients(ours)
    assert torch.equal(gradients.norm, norm) or (norm.isnan() and gradients.norm.isnan())
    gradients.clip(limit, norm=float(norm))
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad.nan_to_num(7.0), b.grad.nan_to_num(7.0))
    assert ours[-1].grad is None


@pytest.mark.parametrize("limit", [1e-9, 1e-7, 1e-6, 1e-5, 1e-3, 0.3, 7.7, 1e6])
def test_what_is_left_alone_would_be_multiplied_by_one(limit: float) -> None:
    """Norms on both sides of the border below which nothing is clipped."""
    for share in (0.5, 0.99, 0.998, 0.99899, 0.99901, 0.9999):
        weight = nn.Parameter(torch.zeros(1))
        weight.grad = torch.full((1,), share * limit)
        twin = nn.Parameter(torch.zeros(1))
        twin.grad = weight.grad.clone()
        gradients = Gradients([weight])
        gradients.clip(limit, norm=float(gradients.norm))
        nn.utils.clip_grad_norm_([twin], limit)
        assert torch.equal(weight.grad, twin.grad)


def test_nothing_to_learn_from() -> None:
    gradients = Gradients([nn.Parameter(torch.zeros(2))])
    assert float(gradients.norm) == 0.0
    gradients.clip(1.0, norm=0.0)


def test_dropped_gradients_are_gone() -> None:
    weights = make_weights([torch.float32])
    Gradients(weights).drop()
    assert all(weight.grad is None for weight in weights)
