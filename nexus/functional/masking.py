"""Sums and means over the positions that count."""

from __future__ import annotations

from torch import Tensor

from nexus.functional.shapes import ShapeError


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
