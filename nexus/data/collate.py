"""Tokenized rows to the micro-batches of one optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nexus.functional.packing import plan_micro_batches
from nexus.types import IGNORE_INDEX, LossUnit, MicroBatch, TokenizedExample, TokenizedGroup

Rows = Sequence[TokenizedExample | TokenizedGroup]
"""Rows of one kind."""


@dataclass(frozen=True)
class _Segment:
    """One stretch of tokens that attends to itself, and to the prompt before it if it `continues` one."""

    ids: list[int]
    counts: list[bool]
    continues: int = 0  # tokens of the prompt that it continues; 0 for none


def _segments(row: TokenizedExample | TokenizedGroup, *, shares_prompt: bool) -> Iterator[_Segment]:
    if isinstance(row, TokenizedExample):
        yield _Segment(row.input_ids, row.loss_mask)
        return
    prompt, nothing = row.prompt_ids, [False] * len(row.prompt_ids)
    if shares_prompt:
        yield _Segment(prompt, nothing)
    for ids, counts in zip(row.completions, row.loss_masks, strict=True):
        yield _Segment(ids, counts, len(prompt)) if shares_prompt else _Segment(prompt + ids, nothing + counts)


def collate_micro_batch(
    rows: Rows, *, packing: bool, pad_token_id: int, loss_scale: float, loss_unit: LossUnit = LossUnit.TOKEN
) -> MicroBatch:
    """Tensors of one micro-batch.

    Args:
        rows: at least one row, or one group with as many completions as each of the others.
        packing: lay the rows one after the other ([1, T]) instead of padding them on the right ([B, T]). Packed groups
            of several completions hold their prompt once; padded ones repeat it.
        pad_token_id: fills the right of short rows; masked everywhere.
        loss_scale: the micro-batch's share of its optimizer step.
        loss_unit: what `loss_scale` counts.

    Returns:
        The micro-batch; the first token of a row is never a target.
    """
    each = len(rows[0].completions) if isinstance(rows[0], TokenizedGroup) else 1
    shares_prompt = packing and each > 1
    segments = [segment for row in rows for segment in _segments(row, shares_prompt=shares_prompt)]
    lengths = [len(segment.ids) for segment in segments]
    width = sum(lengths) if packing else max(lengths)
    input_ids: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    targets: list[int] = []
    target_positions: list[int] = []
    spans: list[tuple[int, int]] = []
    completion_lengths: list[int] = []
    prompt_end = 0
    for segment, length in zip(segments, lengths, strict=True):
        start, padding = len(input_ids), 0 if packing else width - length
        # without a prompt before it, nothing predicts the first token; packed, the row before would
        counts = segment.counts if segment.continues else [False, *segment.counts[1:]]
        counted = [t for t, counted in enumerate(counts) if counted]
        target_positions += [start + t - 1 if t else prompt_end - 1 for t in counted]
        targets += [segment.ids[t] for t in counted]
        if not shares_prompt or segment.continues:
            completion_lengths.append(len(counted))
        else:
            prompt_end = start + length
        spans.append((start, start + length))
        input_ids += segment.ids + [pad_token_id] * padding
        positions += [*range(segment.continues, segment.continues + length), *([0] * padding)]
        labels += [i if c else IGNORE_INDEX for i, c in zip(segment.ids, counts, strict=True)]
        labels += [IGNORE_INDEX] * padding
    shape = (1 if packing else len(segments), width)
    mask = None if packing else torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    return MicroBatch(
        input_ids=_integers(input_ids).view(shape),
        position_ids=_integers(positions).view(shape),
        attention_mask=mask,
        segments=tuple(spans) if packing else (),
        labels=_integers(labels).view(shape),
        target_positions=_integers(target_positions),
        targets=_integers(targets),
        loss_scale=loss_scale,
        num_tokens=sum(lengths),
        num_target_tokens=len(targets),
        ids=tuple(row.id for row in rows),
        loss_unit=loss_unit,
        completion_lengths=tuple(completion_lengths),
        completions_per_group=each,
        shares_prompt=shares_prompt,
        **_values(rows),
    )


def _integers(values: list[int]) -> torch.Tensor:
    """[n] int64; numpy reads a list several times faster than torch."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _values(rows: Rows) -> dict[str, dict[str, torch.Tensor]]:
    """What groups carry besides tokens, as tensors."""
    groups = [row for row in rows if isinstance(row, TokenizedGroup)]
    if not groups:
        return {}
    return {
        "completion_values": {
            name: torch.tensor([value for group in groups for value in group.values[name]]) for name in groups[0].values
        },
        "target_values": {
            name: torch.tensor([v for group in groups for values in group.token_values[name] for v in values])
            for name in groups[0].token_values
        },
    }


def row_tokens(row: TokenizedExample | TokenizedGroup, *, packing: bool) -> int:
    """Tokens that a row takes of a micro-batch's memory.

    Args:
        row: a row or a group.
        packing: as in `collate_micro_batch`.

    Returns:
        Packed, all tokens with a shared prompt counted once; padded, as many times the longest completion with its
        prompt as there are completions.
    """
    if packing or isinstance(row, TokenizedExample):
        return len(row.input_ids)
    return len(row.completions) * (len(row.prompt_ids) + max(map(len, row.completions)))


def _units(rows: Rows, loss_unit: LossUnit) -> int:
    return len(rows) if loss_unit is LossUnit.GROUP else sum(row.num_target_tokens for row in rows)


def collate_step(
    rows: Rows,
    *,
    packing: bool,
    micro_batch_size: int | None,
    micro_batch_tokens: int | None,
    pad_token_id: int,
    world_size: int,
    rank: int = 0,
    loss_unit: LossUnit = LossUnit.TOKEN,
) -> list[MicroBatch]:
    """The micro-batches that one rank computes for one optimizer step.

    Ranks average their gradients, so each share is counted over the units of all ranks and multiplied by the
    number of ranks: the result is the mean over the step's units whatever the split. All ranks get the same number
    of micro-batches (a rank that runs out repeats its last one with no weight), since each backward pass may wait
    for all.

    Args:
        rows: all rows (or groups) of the step, those of the other ranks included.
        packing: as in `collate_micro_batch`.
        micro_batch_size: rows (or groups) of a micro-batch; None is no limit.
        micro_batch_tokens: tokens of a micro-batch, padding included; None is no limit.
        pad_token_id: as in `collate_micro_batch`.
        world_size: number of ranks.
        rank: index of this rank.
        loss_unit: what the method's loss is a mean over.

    Returns:
        At least one micro-batch.

    Raises:
        ValueError: without rows or without target tokens.
    """
    total = _units(rows, loss_unit)
    if not any(row.num_target_tokens for row in rows):
        raise ValueError("a step needs at least one target token")
    shares = [rows[other::world_size] or rows[:1] for other in range(world_size)]
    plans = [
        plan_micro_batches(
            [row_tokens(row, packing=packing) for row in share],
            packing=packing,
            max_rows=micro_batch_size,
            max_tokens=micro_batch_tokens,
        )
        for share in shares
    ]
    idle = rank >= len(rows)
    batches = []
    for index in range(max(len(plan) for plan in plans)):
        plan = plans[rank]
        members = [shares[rank][i] for i in plan[min(index, len(plan) - 1)]]
        scale = 0.0 if idle or index >= len(plan) else _units(members, loss_unit) * world_size / total
        batches.append(
            collate_micro_batch(
                members, packing=packing, pad_token_id=pad_token_id, loss_scale=scale, loss_unit=loss_unit
            )
        )
    return batches
