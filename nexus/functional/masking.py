"""Sums and means over the positions that count, and the way between flat tokens and rows."""

from __future__ import annotations

import torch
from torch import Tensor

from nexus.functional.shapes import ShapeError, check_shapes


def check_mask(**masks: Tensor) -> None:
    """Check that every row of every mask has a position that counts.

    A mean over nothing has no value, and a row that counts nowhere would still weigh in the mean over rows: such rows
    are to be left out before. Reads one value from the device.

    Args:
        **masks: [B, T] bool by the name that an error message should use.

    Raises:
        ShapeError: if a mask is not bool (`~` would mean something else), has no row, or has an empty row.
    """
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise ShapeError(f"{name} must be bool, got {mask.dtype}")
        counted = mask.any(-1)
        if not counted.numel():
            raise ShapeError(f"{name} has no rows")
        if not counted.all():
            raise ShapeError(f"row {int(counted.int().argmin())} of {name} has no position that counts: leave it out")


def masked_sum(*, values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the values where the mask is True.

    What stands under a False is never read into the result, so NaN or infinity in padding does no harm.

    Args:
        values: [...] float.
        mask: [...] bool, True where a value counts; same shape.
        dim: dimension to sum over; None for all of them.

    Returns:
        Scalar, or `values` without `dim`.

    Raises:
        ShapeError: if the shapes differ.
    """
    if values.shape != mask.shape:
        raise ShapeError(f"values are {list(values.shape)}, but mask is {list(mask.shape)}")
    kept = values.masked_fill(~mask, 0.0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(*, values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the values where the mask is True; 0 (with a gradient path) where nothing counts.

    Args:
        values: [...] float.
        mask: [...] bool, True where a value counts; same shape.
        dim: dimension to average over; None for all of them.

    Returns:
        Scalar, or `values` without `dim`.

    Raises:
        ShapeError: if the shapes differ.
    """
    total = masked_sum(values=values, mask=mask, dim=dim)
    count = mask.sum() if dim is None else mask.sum(dim)
    return total / count.clamp(min=1).to(total.dtype)


def sum_by_row(*, values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Sum flat values by the row that each belongs to, for example token log-probabilities by completion.

    Args:
        values: [N].
        rows: [N] int64 in 0..B-1, in any order.
        num_rows: B.

    Returns:
        [B] float32; 0 for a row without values.

    Raises:
        ShapeError: if the two differ in length.
    """
    check_shapes("N", values=values, rows=rows)
    zeros = torch.zeros(num_rows, dtype=torch.float32, device=values.device)
    return zeros.index_add(0, rows, values.float())
