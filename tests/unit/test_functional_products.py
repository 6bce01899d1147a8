"""Logits by chunk and by block: which positions come together, and that it changes no result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nexus.functional import products
from nexus.functional.logprobs import linear_token_logprobs
from nexus.functional.products import (
    add_product,
    chunks,
    head_for,
    hidden_of,
    logits_of,
    overwrite,
    row_blocks,
    unsummed,
)
from nexus.functional.sft import linear_cross_entropy


def sizes(slices: Any, count: int) -> list[int]:
    """Lengths of slices, which must follow each other without a gap."""
    made = list(slices)
    assert [index for part in made for index in range(*part.indices(count))] == list(range(count))
    return [len(range(*part.indices(count))) for part in made]


@pytest.mark.parametrize(
    ("positions", "vocab", "chunk_size", "wanted"),
    [
        (1301, 4096, 512, [512, 512, 277]),
        (720, 151936, 512, [360, 360]),
        (442, 151936, 512, [221, 221]),
        (720, 151936, 200, [200, 200, 200, 120]),
        (3, 2**27, 512, [1, 1, 1]),
        (0, 151936, 512, []),
    ],
)
def test_chunks_are_even_where_the_vocabulary_is_large(
    positions: int, vocab: int, chunk_size: int, wanted: list[int]
) -> None:
    hidden, head = torch.empty(positions, 1), torch.empty(1, 1).expand(vocab, 1)
    assert sizes(chunks(hidden, head, chunk_size), positions) == wanted


@pytest.mark.parametrize(
    ("rows", "vocab", "wanted"), [(13, 2**18, [4, 4, 5]), (5, 2**20, [2, 3]), (1, 9, [1]), (0, 9, [])]
)
def test_no_block_has_a_single_row_unless_there_is_only_one(rows: int, vocab: int, wanted: list[int]) -> None:
    assert sizes(row_blocks(torch.empty(1, 1).expand(rows, vocab)), rows) == wanted


def test_what_was_made_in_its_place_is_not_copied() -> None:
    whole = torch.zeros(4, 3)
    overwrite(whole[1:3], torch.ones(2, 3, dtype=torch.bfloat16))
    version = whole._version
    overwrite(whole[1:3], whole[1:3].mul_(2.0))
    assert whole._version == version + 1  # by the product alone
    assert whole.sum() == 12.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_product_does_not_read_what_stood_there(dtype: torch.dtype) -> None:
    rows, columns = torch.ones(5, 9000, dtype=dtype), torch.ones(5, 4, dtype=dtype)
    total = torch.full((9000, 4), torch.nan)
    add_product(total, rows, columns, first=True)
    assert (total == 5.0).all()
    add_product(total, rows, columns, first=False)
    assert (total == 10.0).all()
    assert not unsummed(total, torch.float32, 0).any()


def test_a_head_in_parts_is_the_whole_head() -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(6, 4, generator=generator).bfloat16()
    head = torch.randn(9000, 4, generator=generator)
    assert head_for(torch.bfloat16, head) is head
    made = logits_of(rows, head)
    assert torch.equal(made, rows @ head.bfloat16().T)
    back, exact = hidden_of(made, head), made.double() @ head.bfloat16().double()
    assert back.dtype == torch.float32
    assert (back - exact).norm() <= 2**-8 * exact.norm()
    whole = logits_of(rows.float(), head)
    assert torch.equal(whole, rows.float() @ head.T)
    assert torch.equal(hidden_of(whole, head), whole @ head)


def gradients(function: Any, half: bool) -> list[Tensor]:
    """Result and gradients of a loss of 37 positions over 50 tokens, capped, scaled and with a bias."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator).requires_grad_() for shape in ((37, 8), (50, 8), (50,))
    )
    targets = torch.randint(0, 50, (37,), generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        value = function(hidden=hidden, weight=weight, targets=targets, bias=bias)
    value.sum().backward()
    return [value.detach(), *(tensor.grad for tensor in (hidden, weight, bias) if tensor.grad is not None)]


def sft(**tensors: Tensor) -> Tensor:
    return linear_cross_entropy(**tensors, chunk_size=10, logit_scale=0.7, softcap=3.0)


def logprobs(**tensors: Tensor) -> Tensor:
    made = linear_token_logprobs(
        **tensors, chunk_size=10, logit_scale=0.7, softcap=3.0, temperature=0.8, with_entropies=True
    )
    assert made.entropies is not None
    return torch.cat([made.logprobs, made.entropies])


@pytest.mark.parametrize("function", [sft, logprobs])
@pytest.mark.parametrize("half", [False, True])
def test_blocks_of_three_rows_give_what_one_block_gives(
    function: Any, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = gradients(function, half)
    monkeypatch.setattr(products, "BLOCK_LOGITS", {"cpu": 150, "cuda": 150})
    for one, other in zip(wanted, gradients(function, half), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", [sft, logprobs])
def test_smaller_chunks_give_the_same(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = gradients(function, False)
    monkeypatch.setattr(products, "CHUNK_LOGITS", 200)
    for one, other in zip(wanted, gradients(function, False), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
