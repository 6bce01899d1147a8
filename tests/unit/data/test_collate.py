"""Tensors of a step by hand, and what must not change with packing, splitting or the number of ranks."""

from itertools import product

import pytest
import torch

from nexus.data.collate import collate_micro_batch, collate_step
from nexus.types import IGNORE_INDEX, MicroBatch, TokenizedExample

ROWS = [
    TokenizedExample("a", "s", [10, 11, 12], [False, True, True]),
    TokenizedExample("b", "s", [20, 21], [True, True]),
    TokenizedExample("c", "s", [30, 31, 32, 33, 34], [False, False, False, True, True]),
    TokenizedExample("d", "s", [40, 41, 42], [False, False, True]),
    TokenizedExample("e", "s", [50, 51, 52, 53], [True, True, False, True]),
]
NONE = IGNORE_INDEX


def test_packed_by_hand() -> None:
    batch = collate_micro_batch(ROWS[:2], packing=True, pad_token_id=0, loss_scale=0.25)
    assert batch.input_ids.tolist() == [[10, 11, 12, 20, 21]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.segments == ((0, 3), (3, 5))
    assert batch.attention_mask is None
    # The first token of a row is no target, though row b counts it: packed, row a would predict it.
    assert batch.labels.tolist() == [[NONE, 11, 12, NONE, 21]]
    assert batch.target_positions.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [11, 12, 21]
    assert (batch.num_tokens, batch.num_target_tokens, batch.loss_scale, batch.ids) == (5, 3, 0.25, ("a", "b"))


def test_padded_by_hand() -> None:
    batch = collate_micro_batch(ROWS[:2], packing=False, pad_token_id=9, loss_scale=1.0)
    assert batch.input_ids.tolist() == [[10, 11, 12], [20, 21, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.labels.tolist() == [[NONE, 11, 12], [NONE, 21, NONE]]
    assert batch.target_positions.tolist() == [0, 1, 3]
    assert batch.targets.tolist() == [11, 12, 21]
    assert (batch.segments, batch.num_tokens, batch.num_target_tokens) == ((), 5, 3)
    assert batch.input_ids.dtype == batch.labels.dtype == batch.target_positions.dtype == torch.int64


def learned(batches: list[MicroBatch]) -> list[tuple[int, int, float]]:
    """(token before, target, weight in the step) of every target that has weight, sorted."""
    found = []
    for batch in batches:
        before = batch.input_ids.flatten()[batch.target_positions].tolist()
        weight = batch.loss_scale / batch.num_target_tokens
        found += [(b, t, round(weight, 9)) for b, t in zip(before, batch.targets.tolist(), strict=True) if weight]
        flat = batch.labels.flatten()
        assert flat[batch.target_positions + 1].tolist() == batch.targets.tolist()
        assert int((flat != NONE).sum()) == batch.num_target_tokens
    return sorted(found)


@pytest.mark.parametrize(("packing", "size", "tokens"), product([True, False], [1, 2, 5, None], [None, 7, 100]))
def test_a_step_is_the_token_mean_however_it_is_split(packing: bool, size: int | None, tokens: int | None) -> None:
    batches = collate_step(
        ROWS, packing=packing, micro_batch_size=size, micro_batch_tokens=tokens, pad_token_id=0, world_size=1
    )
    # 2 + 1 + 2 + 1 + 2 targets, each with the weight of one token in eight.
    wanted = [(10, 11), (11, 12), (20, 21), (32, 33), (33, 34), (41, 42), (50, 51), (52, 53)]
    assert learned(batches) == [(before, target, 0.125) for before, target in wanted]
    assert sum(batch.loss_scale for batch in batches) == pytest.approx(1.0)
    assert sum(batch.num_tokens for batch in batches) == 17
    if size == 1:
        assert len(batches) == 5


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_average_to_the_token_mean(world_size: int) -> None:
    ranks = [
        collate_step(
            ROWS,
            packing=True,
            micro_batch_size=1,
            micro_batch_tokens=None,
            pad_token_id=0,
            world_size=world_size,
            rank=rank,
        )
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1  # a backward pass may wait for all ranks
    everything = learned([batch for batches in ranks for batch in batches])
    assert len(everything) == 8
    assert {weight for _, _, weight in everything} == {round(world_size / 8, 9)}


def test_a_step_without_targets_is_refused() -> None:
    rows = [TokenizedExample("x", "s", [1, 2], [True, False])]
    with pytest.raises(ValueError, match="target token"):
        collate_step(rows, packing=True, micro_batch_size=1, micro_batch_tokens=None, pad_token_id=0, world_size=1)
