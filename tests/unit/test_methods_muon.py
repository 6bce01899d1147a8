"""MuonAdamW against torch's own AdamW and against the singular value decomposition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nexus.functional.orthogonal import orthogonalize
from nexus.methods.muon import MuonAdamW


class Decoder(nn.Module):
    """Names like a decoder's: a table, a layer's matrix, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False)])
        self.norm = nn.LayerNorm(4, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.embed(ids) + self.layers[0](self.embed(ids))) @ self.embed.weight.T


def train(model: Decoder, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        ids = torch.arange(7).roll(step)
        loss = nn.functional.cross_entropy(model(ids), (ids * 3) % 7)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_singular_values_become_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalize(matrix, rounds=5)
    values = torch.linalg.svdvals(result)
    assert s.max() / s.min() > 2  # the input is far from orthogonal
    assert values.min() > 0.6
    assert values.max() < 1.3
    # the same directions: u.T @ result @ v is diagonal
    rotated = u.T @ result @ v.T
    assert (rotated - torch.diag(rotated.diagonal())).abs().max() < 1e-4


def test_everything_but_layer_matrices_equals_torch_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = Decoder(), Decoder()
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        model.layers[0].weight.requires_grad_(False)
    trained = [(name, p) for name, p in ours.named_parameters() if p.requires_grad]
    mine = MuonAdamW(trained, lr=0.05, muon_lr=1.0, momentum=0.95, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    groups = [
        {"params": [theirs.embed.weight], "weight_decay": 0.1},
        {"params": [theirs.norm.weight], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.95), eps=1e-8)
    a, b = train(ours, mine, 12), train(theirs, reference, 12)
    assert a == pytest.approx(b, rel=1e-5)
    assert torch.allclose(ours.embed.weight, theirs.embed.weight, atol=1e-6)


def test_layer_matrices_move_by_an_orthogonal_step() -> None:
    torch.manual_seed(0)
    model = Decoder()
    before = model.layers[0].weight.detach().clone()
    optimizer = MuonAdamW(
        model.named_parameters(), lr=0.0, muon_lr=0.1, momentum=0.95, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
    )
    train(model, optimizer, 1)
    values = torch.linalg.svdvals((model.layers[0].weight - before).detach() / 0.1)
    assert values.max() < 1.3
    assert values[0] > 0.6


def test_it_learns_and_survives_a_state_round_trip() -> None:
    torch.manual_seed(0)
    model = Decoder()
    settings = {"lr": 0.03, "muon_lr": 0.02, "momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
    optimizer = MuonAdamW(model.named_parameters(), **settings)
    losses = train(model, optimizer, 40)
    assert losses[-1] < 0.5 * losses[0]
    twin = Decoder()
    twin.load_state_dict(model.state_dict())
    other = MuonAdamW(twin.named_parameters(), **settings)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares the tensors otherwise
    assert train(model, optimizer, 5) == train(twin, other, 5)
