"""The lengths that a plan goes by are those of the tensors that a method computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from nexus.data.collate import collate_micro_batch
from nexus.data.pairs import judged_rows
from nexus.data.token_rows import AnyRow, TokenRows
from nexus.methods.kto import KTO
from nexus.stages.row_lengths import RowLengths, forward_tokens, lengths_of, longest_rows
from nexus.types import LossUnit, MicroBatch, TokenizedExample, TokenizedGroup
from tests import small


def config(name: str, view: str, *, packing: bool = True, max_seq_len: int = 1024) -> dict[str, Any]:
    return {"method": {"name": name, "view": view}, "data": {"packing": packing, "max_seq_len": max_seq_len}}


def one(row: AnyRow, *, packing: bool) -> MicroBatch:
    return collate_micro_batch([row], packing=packing, pad_token_id=0, loss_scale=1.0, loss_unit=LossUnit.GROUP)


@pytest.fixture(scope="module")
def kto() -> KTO:
    method: KTO = small.make_method(KTO, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)
    method.configure_model()
    return method


@pytest.mark.parametrize("packing", [True, False])
def test_a_judged_row_is_as_long_as_what_has_a_backward_pass(kto: KTO, packing: bool) -> None:
    rows = judged_rows(small.make_pairs(12))
    rows = [row_with_reference(row) for row in rows]
    trained = [kto.prepare_step([one(row, packing=packing)])[0] for row in rows]
    check(lengths_of(config("kto", "judged", packing=packing), rows), trained)
    if packing:
        assert sum(batch.num_tokens for batch in trained) < sum(len(row.input_ids) for row in rows)


def row_with_reference(row: TokenizedGroup) -> TokenizedGroup:
    return TokenizedGroup(
        row.id, row.source, row.prompt_ids, row.completions, row.loss_masks, row.values | {"ref_logprobs": (-1.0, -1.0)}
    )


@pytest.mark.parametrize("packing", [True, False])
def test_a_pair_is_as_long_as_both_answers_with_their_padding(packing: bool) -> None:
    pairs = small.make_pairs(12)
    check(
        lengths_of(config("dpo", "preference", packing=packing), pairs), [one(pair, packing=packing) for pair in pairs]
    )


def check(found: RowLengths, batches: Sequence[MicroBatch]) -> None:
    tokens = [batch.input_ids.numel() for batch in batches]
    assert found.longest == max(tokens)
    assert found.mean == pytest.approx(np.mean(tokens))
    assert found.spread == pytest.approx(np.std(tokens))
    assert found.learned == pytest.approx(sum(batch.num_target_tokens for batch in batches) / sum(tokens))


def test_rows_of_one_conversation() -> None:
    rows = [TokenizedExample("a", "s", [1] * 4, [True] * 4), TokenizedExample("b", "s", [1] * 8, [False] * 7 + [True])]
    expected = RowLengths(mean=6.0, spread=2.0, longest=8, learned=4 / 12)
    assert lengths_of(config("sft", "sft"), TokenRows.of(rows)) == expected


def longest_judged(limit: int) -> list[TokenizedGroup]:
    """Pairs at the limit: a long question with a short answer, and a short question with a long one."""
    return judged_rows([pair("a", limit - 2, 2), pair("b", 2, limit - 2)])


def pair(name: str, prompt: int, answer: int) -> TokenizedGroup:
    sides = ([5] * answer, [6] * answer)
    masks = ([True] * answer,) * 2
    return TokenizedGroup(name, "s", [ord(name)] * prompt, sides, masks, {"desirable": (1.0, 0.0)})


@pytest.mark.parametrize(
    ("name", "view", "packing", "times", "rows"),
    [
        ("sft", "sft", True, 1, lambda limit: TokenRows.of([TokenizedExample("a", "s", [1] * limit, [True] * limit)])),
        ("dpo", "preference", True, 2, lambda limit: [pair("a", 1, limit - 1)]),
        ("dpo", "preference", False, 2, lambda limit: [pair("a", 1, limit - 1)]),
        ("kto", "judged", True, 1, longest_judged),
        ("kto", "judged", False, 2, longest_judged),
    ],
)
def test_the_limit_holds_and_is_nearly_reached(
    name: str, view: str, packing: bool, times: int, rows: Callable[[int], Any]
) -> None:
    settings = config(name, view, packing=packing, max_seq_len=100)
    limit = longest_rows(settings).longest
    assert limit == times * 100
    assert limit - 4 <= lengths_of(settings, rows(100)).longest <= limit


def test_tokens_without_a_backward_pass() -> None:
    """Counted by hand: every judged row meets the reference with both answers, and its step with the other one."""
    rows = [pair("a", 10, 4), pair("b", 10, 4)]
    judged = config("kto", "judged")
    lengths = lengths_of(judged, judged_rows(rows))
    assert lengths.mean == 14.0
    assert forward_tokens(judged, lengths, rows=4, seen=8) == pytest.approx(4 * 18 + 8 * 14)
    pairs = config("dpo", "preference")
    assert forward_tokens(pairs, lengths_of(pairs, rows), rows=2, seen=8) == pytest.approx(2 * 18)
    assert forward_tokens(config("orpo", "preference"), lengths, rows=2, seen=8) == 0.0
