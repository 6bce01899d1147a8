"""Tokenized rows to the micro-batches of one optimizer step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nexus.functional.packing import plan_micro_batches
from nexus.types import IGNORE_INDEX, MicroBatch, TokenizedExample


def collate_micro_batch(
    rows: Sequence[TokenizedExample], *, packing: bool, pad_token_id: int, loss_scale: float
) -> MicroBatch:
    """Tensors of one micro-batch.

    Args:
        rows: at least one row.
        packing: lay the rows one after the other ([1, T]) instead of padding them on the right ([B, T]).
        pad_token_id: fills the right of short rows; masked everywhere.
        loss_scale: the micro-batch's share of its optimizer step.

    Returns:
        The micro-batch; the first token of a row is never a target.
    """
    lengths = [len(row.input_ids) for row in rows]
    width = sum(lengths) if packing else max(lengths)
    input_ids: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    target_positions: list[int] = []
    segments: list[tuple[int, int]] = []
    for row, length in zip(rows, lengths, strict=True):
        start, padding = len(input_ids), 0 if packing else width - length
        row_labels = [t if m else IGNORE_INDEX for t, m in zip(row.input_ids, row.loss_mask, strict=True)]
        row_labels[0] = IGNORE_INDEX  # nothing predicts it; packed, it would be predicted from the row before
        target_positions += [start + t for t in range(length - 1) if row.loss_mask[t + 1]]
        segments.append((start, start + length))
        input_ids += row.input_ids + [pad_token_id] * padding
        positions += [*range(length), *([0] * padding)]
        labels += row_labels + [IGNORE_INDEX] * padding
    shape = (1 if packing else len(rows), width)
    flat_ids = torch.tensor(input_ids)
    where = torch.tensor(target_positions, dtype=torch.long)
    mask = None if packing else torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    return MicroBatch(
        input_ids=flat_ids.view(shape),
        position_ids=torch.tensor(positions).view(shape),
        attention_mask=mask,
        segments=tuple(segments) if packing else (),
        labels=torch.tensor(labels).view(shape),
        target_positions=where,
        targets=flat_ids[where + 1],
        loss_scale=loss_scale,
        num_tokens=sum(lengths),
        num_target_tokens=len(target_positions),
        ids=tuple(row.id for row in rows),
    )


def collate_step(
    rows: Sequence[TokenizedExample],
    *,
    packing: bool,
    micro_batch_size: int | None,
    micro_batch_tokens: int | None,
    pad_token_id: int,
    world_size: int,
    rank: int = 0,
) -> list[MicroBatch]:
    """The micro-batches that one rank computes for one optimizer step.

    Ranks average their gradients, so each share is counted over the target tokens of all ranks and multiplied by the
    number of ranks: the result is the mean over the step's tokens whatever the split. All ranks get the same number
    of micro-batches (a rank that runs out repeats its last one with no weight), since each backward pass may wait
    for all.

    Args:
        rows: all rows of the step, those of the other ranks included.
        packing: as in `collate_micro_batch`.
        micro_batch_size: rows of a micro-batch; None is no limit.
        micro_batch_tokens: tokens of a micro-batch, padding included; None is no limit.
        pad_token_id: as in `collate_micro_batch`.
        world_size: number of ranks.
        rank: index of this rank.

    Returns:
        At least one micro-batch.

    Raises:
        ValueError: without rows or without target tokens.
    """
    total = sum(row.num_target_tokens for row in rows)
    if total == 0:
        raise ValueError("a step needs at least one target token")
    shares = [rows[other::world_size] or rows[:1] for other in range(world_size)]
    plans = [
        plan_micro_batches(
            [len(row.input_ids) for row in share],
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
        scale = 0.0 if idle or index >= len(plan) else sum(r.num_target_tokens for r in members) * world_size / total
        batches.append(collate_micro_batch(members, packing=packing, pad_token_id=pad_token_id, loss_scale=scale))
    return batches
