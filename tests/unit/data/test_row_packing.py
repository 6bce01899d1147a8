"""Which rows share a micro-batch, and halves that weigh as much as the whole."""

import random
from itertools import product

import pytest
import torch

from nexus.data.collate import collate_micro_batch
from nexus.functional.packing import first_fit_decreasing, group_by_length, plan_micro_batches, split_micro_batch
from nexus.types import TokenizedExample


def row(name: str, mask: str) -> TokenizedExample:
    start = 10 * int(name)
    return TokenizedExample(name, "s", list(range(start, start + len(mask))), [c == "1" for c in mask])


def test_first_fit_decreasing_by_hand() -> None:
    # 7 first; 5 does not fit beside it, 3 does; 4 joins 5; 2 finds both full up to 10 and 9, opens a third.
    assert first_fit_decreasing([5, 7, 2, 3, 4], max_rows=None, max_tokens=10) == [[1, 3], [0, 4], [2]]
    assert first_fit_decreasing([5, 7, 2, 3, 4], max_rows=None, max_tokens=None) == [[0, 1, 2, 3, 4]]
    assert first_fit_decreasing([5, 7, 2, 3, 4], max_rows=2, max_tokens=None) == [[0, 1], [3, 4], [2]]
    assert first_fit_decreasing([99, 1], max_rows=None, max_tokens=10) == [[0], [1]]


def test_groups_count_padding() -> None:
    # Two rows beside the 7 cost 14 tokens; three of at most 5 cost 15.
    assert group_by_length([5, 7, 2, 3, 4], max_rows=None, max_tokens=15) == [[0, 1], [2, 3, 4]]
    assert group_by_length([5, 7, 2, 3, 4], max_rows=None, max_tokens=9) == [[1], [0], [3, 4], [2]]
    assert group_by_length([5, 7, 2, 3, 4], max_rows=3, max_tokens=None) == [[0, 1, 4], [2, 3]]


@pytest.mark.parametrize(("packing", "seed"), product([True, False], range(20)))
def test_every_row_once_and_within_the_limits(packing: bool, seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 60) for _ in range(draw.randint(1, 40))]
    plan = plan_micro_batches(lengths, packing=packing, max_rows=8, max_tokens=100)
    assert sorted(index for rows in plan for index in rows) == list(range(len(lengths)))
    for rows in plan:
        widths = [lengths[i] for i in rows]
        assert len(rows) <= 8
        assert (sum(widths) if packing else len(rows) * max(widths)) <= 100


@pytest.mark.parametrize("packing", [True, False])
def test_halves_equal_their_rows_alone(packing: bool) -> None:
    rows = [row("1", "0011"), row("2", "01"), row("3", "000111")]
    whole = collate_micro_batch(rows, packing=packing, pad_token_id=0, loss_scale=0.5)
    halves = split_micro_batch(whole)
    alone = [
        collate_micro_batch(rows[:1], packing=packing, pad_token_id=0, loss_scale=0.5 * 2 / 6),
        collate_micro_batch(rows[1:], packing=packing, pad_token_id=0, loss_scale=0.5 * 4 / 6),
    ]
    for half, wanted in zip(halves, alone, strict=True):
        for name in ("input_ids", "position_ids", "attention_mask", "labels", "target_positions", "targets"):
            have, want = getattr(half, name), getattr(wanted, name)
            assert (have is None and want is None) or torch.equal(have, want), name
        assert half.loss_scale == pytest.approx(wanted.loss_scale)
        assert (half.segments, half.ids) == (wanted.segments, wanted.ids)
        assert (half.num_tokens, half.num_target_tokens) == (wanted.num_tokens, wanted.num_target_tokens)
    single = halves[0]
    assert split_micro_batch(single) == [single]
