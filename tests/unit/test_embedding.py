"""The gradient of an embedding by index equals torch's own, to the bit, and needs no second table."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from nexus.models.embedding import IndexedEmbedding, add_rows, gradient_by_index

WIDTHS = {
    "vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip


def make_model(kind: str, **more: Any) -> Any:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **WIDTHS, **more))


def train_on(model: Any, seeds: list[int]) -> dict[str, torch.Tensor]:
    """Gradients after one backward pass for each seed."""
    for seed in seeds:
        ids = torch.randint(0, 40, (2, 30), generator=torch.Generator().manual_seed(seed))
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma3_text"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [None, 0, 7])
def test_gradients_are_torchs_own(kind: str, tied: bool, padding: int | None) -> None:
    """Of a tied and an untied table, of Gemma's scaled rows, with an id that learns nothing."""
    plain = make_model(kind, tie_word_embeddings=tied, pad_token_id=padding)
    indexed = deepcopy(plain)
    gradient_by_index(indexed, at_least=1)
    assert isinstance(indexed.get_input_embeddings(), IndexedEmbedding)
    wanted, made = train_on(plain, [0]), train_on(indexed, [0])
    assert wanted.keys() == made.keys()
    for name, value in wanted.items():
        assert torch.equal(value, made[name]), name


def test_micro_batches_add_up() -> None:
    """Sums over several backward passes are joined in another order, which is all that differs."""
    plain = make_model("qwen2", tie_word_embeddings=True)
    indexed = deepcopy(plain)
    gradient_by_index(indexed, at_least=1)
    wanted, made = train_on(plain, [0, 1, 2]), train_on(indexed, [0, 1, 2])
    for name, value in wanted.items():
        torch.testing.assert_close(made[name], value, rtol=1e-5, atol=1e-7)


def test_a_small_table_a_frozen_one_and_no_gradient_stay_as_they_are() -> None:
    model = make_model("qwen2", tie_word_embeddings=True)
    gradient_by_index(model)
    assert type(model.get_input_embeddings()) is nn.Embedding
    gradient_by_index(model, at_least=1)
    ids = torch.arange(5)
    with torch.no_grad():
        assert not model.get_input_embeddings()(ids).requires_grad
    model.requires_grad_(False)
    assert not model.get_input_embeddings()(ids).requires_grad


def test_an_embedding_with_rules_of_its_own_stays() -> None:
    """Torch's options that change the gradient are left to torch."""
    model = make_model("qwen2", tie_word_embeddings=False)
    model.set_input_embeddings(nn.Embedding(96, 16, scale_grad_by_freq=True))
    gradient_by_index(model, at_least=1)
    assert type(model.get_input_embeddings()) is nn.Embedding


def test_copies_and_names_survive() -> None:
    """The state dict is unchanged, and a copy computes for itself."""
    model = make_model("gemma3_text", tie_word_embeddings=True)
    names = list(model.state_dict())
    gradient_by_index(model, at_least=1)
    assert list(model.state_dict()) == names
    copy = deepcopy(model)
    train_on(copy, [0])
    assert copy.get_input_embeddings().weight.grad is not None
    assert model.get_input_embeddings().weight.grad is None


def test_rows_are_added_where_nothing_stood() -> None:
    table = nn.Parameter(torch.zeros(6, 2))
    add_rows(table, torch.tensor([4, 1, 4]), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), padding_idx=None)
    assert table.grad is not None
    assert table.grad.tolist() == [[0, 0], [3, 4], [0, 0], [0, 0], [6, 8], [0, 0]]
