"""Large products and logits, in parts where a whole one would cost memory or time.

Signatures:
    chunks(hidden, weight, chunk_size) -> iterator of slices
    head_for(dtype, weight) -> Tensor [V, D]
    logits_of(rows, head) -> Tensor [C, V]
    hidden_of(rows, head) -> Tensor [C, D]
    unsummed(weight, dtype, positions) -> Tensor [V, D]
    add_product(total, rows, columns, first) -> None
    plain_arithmetic(tensor) -> context manager
    row_blocks(logits) -> iterator of slices
    overwrite(place, values) -> None
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from nexus.types import BLOCK_LOGITS, CHUNK_LOGITS

#: Rows of a head or its gradient that are converted at a time.
_PART = 8192


def chunks(hidden: Tensor, weight: Tensor, chunk_size: int) -> Iterator[slice]:
    """Positions whose logits exist at one time.

    Args:
        hidden: [N, D].
        weight: [V, D] of the head.
        chunk_size: at most so many; on a processor also at most `CHUNK_LOGITS / V`, and then evenly.

    Yields:
        Slices of the positions, in order.
    """
    positions, most = hidden.shape[0], max(1, CHUNK_LOGITS // weight.shape[0])
    if hidden.device.type == "cpu" and most < chunk_size:
        chunk_size = max(1, math.ceil(positions / max(1, math.ceil(positions / most))))
    for start in range(0, positions, chunk_size):
        yield slice(start, start + chunk_size)


def row_blocks(logits: Tensor) -> Iterator[slice]:
    """Rows to take at a time where several passes over them follow, each in float32.

    Args:
        logits: [C, V].

    Yields:
        Slices of the rows, in order; of two rows and more where there are so many, since torch shares the sum of a
        single one among its threads, which rounds by their number.
    """
    rows, start = max(2, BLOCK_LOGITS.get(logits.device.type, BLOCK_LOGITS["cuda"]) // logits.shape[1]), 0
    while start < len(logits):
        stop = start + rows
        stop += len(logits) - stop == 1
        yield slice(start, stop)
        start = stop


def head_for(dtype: torch.dtype, weight: Tensor) -> Tensor:
    """The head as `logits_of` and `hidden_of` take it: a GPU gets a copy in the precision of the computation.

    A processor converts part after part in its cache, which costs no time and saves the copy.

    Args:
        dtype: of the computation.
        weight: [V, D].

    Returns:
        [V, D].
    """
    return weight if weight.device.type == "cpu" else weight.to(dtype)


def logits_of(rows: Tensor, head: Tensor) -> Tensor:
    """`rows @ head.T` in the precision of `rows`.

    Args:
        rows: [C, D].
        head: [V, D], of any precision.

    Returns:
        [C, V].
    """
    if head.dtype == rows.dtype:
        return rows @ head.T
    made = rows.new_empty(len(rows), len(head))
    for part in _parts(head):
        torch.mm(rows, head[part].to(rows.dtype).T, out=made[:, part])
    return made


def hidden_of(rows: Tensor, head: Tensor) -> Tensor:
    """`rows @ head`, of gradients of logits for example; the parts' products are added in 32 bits.

    Args:
        rows: [C, V].
        head: [V, D], of any precision.

    Returns:
        [C, D], in the precision of `rows` or in 32 bits.
    """
    if head.dtype == rows.dtype:
        return rows @ head
    made = rows.new_zeros(len(rows), head.shape[1], dtype=torch.float32)
    for part in _parts(head):
        made += rows[:, part] @ head[part].to(rows.dtype)
    return made


def _parts(table: Tensor) -> Iterator[slice]:
    for start in range(0, len(table), _PART):
        yield slice(start, start + _PART)


def unsummed(weight: Tensor, dtype: torch.dtype, positions: int) -> Tensor:
    """Where `add_product` will sum the gradient of a weight: no zeros first, unless there is nothing to add.

    Args:
        weight: [V, D].
        dtype: of the sum.
        positions: over which it goes.

    Returns:
        [V, D].
    """
    return (torch.empty_like if positions else torch.zeros_like)(weight, dtype=dtype)


def plain_arithmetic(tensor: Tensor) -> AbstractContextManager[Any]:
    """Within it no autocast changes a precision that was chosen; nothing is entered where none is on.

    Args:
        tensor: on the device that computes.

    Returns:
        A context manager.
    """
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def add_product(total: Tensor, rows: Tensor, columns: Tensor, *, first: bool) -> None:
    """Add `rows.T @ columns` to `total`, in place.

    Args:
        total: [V, D], the head's gradient for example.
        rows: [C, V].
        columns: [C, D], of the same precision as `rows`, which may be lower than the sum's.
        first: whether nothing stands in `total` yet; then it is not read.
    """
    if total.dtype == rows.dtype:
        total.addmm_(rows.T, columns, beta=0 if first else 1)
        return
    # in parts, or the product and torch's copy of it in the higher precision would each be as large as the sum
    for part in _parts(total):
        product = rows[:, part].T @ columns
        if first:
            total[part] = product
        else:
            total[part] += product


def overwrite(place: Tensor, values: Tensor) -> None:
    """Put values into a part of a tensor, unless they were made there.

    Args:
        place: a view.
        values: of the same shape; of any precision.
    """
    if not values.is_set_to(place):
        place.copy_(values)
