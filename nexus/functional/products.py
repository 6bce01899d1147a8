"""Sums of products in a higher precision than their factors'.

Signatures:
    add_product(total, rows, columns) -> None
"""

from __future__ import annotations

from torch import Tensor

#: Rows of the sum that are made at a time.
_PART = 8192


def add_product(total: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Add `rows.T @ columns` to `total`, in place.

    Args:
        total: [V, D], the head's gradient for example.
        rows: [C, V].
        columns: [C, D], of the same precision as `rows`, which may be lower than the sum's.
    """
    if total.dtype == rows.dtype:
        total.addmm_(rows.T, columns)
        return
    # in parts, or the product and torch's copy of it in the higher precision would each be as large as the sum
    for start in range(0, total.shape[0], _PART):
        part = slice(start, start + _PART)
        total[part] += rows[:, part].T @ columns
