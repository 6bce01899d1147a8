"""Shape checks that name the tensor and the dimension that is wrong."""

from __future__ import annotations

from torch import Tensor

from nexus.errors import NexusError


class ShapeError(NexusError, ValueError):
    """A function received tensors that do not fit together; a bug of the caller.

    Args:
        message: which tensor, which dimension, both sizes.
    """

    def __init__(self, message: str) -> None:
        NexusError.__init__(self, "E-INT-02", message, remedy="this is a bug in the calling code, please report it")


def check_shapes(spec: str, **tensors: Tensor | None) -> dict[str, int]:
    """Check that tensors have the stated shapes and agree on every named size.

    Args:
        spec: dimensions by name, separated by blanks (`"B T"`), for every tensor; or one such list for each tensor in
            order, separated by commas (`"N D, V D, N"`). A dimension may be a number; an empty list is a scalar.
        **tensors: tensors by the name that an error message should use; None is skipped (an optional argument).

    Returns:
        The sizes by name, for example `{"B": 2, "T": 5}`.

    Raises:
        ShapeError: if a rank or a size differs.
        ValueError: if the number of lists is neither one nor that of the tensors.
    """
    lists = [part.split() for part in spec.split(",")]
    if len(lists) == 1:
        lists = lists * len(tensors)
    if len(lists) != len(tensors):
        raise ValueError(f"{len(lists)} shapes given for {len(tensors)} tensors")
    sizes: dict[str, int] = {}
    for (name, tensor), dims in zip(tensors.items(), lists, strict=True):
        if tensor is None:
            continue
        shape = tuple(tensor.shape)
        if len(shape) != len(dims):
            raise ShapeError(f"{name} must be [{', '.join(dims)}], got {list(shape)}")
        for dim, size in zip(dims, shape, strict=True):
            expected = int(dim) if dim.isdigit() else sizes.setdefault(dim, size)
            if size != expected:
                raise ShapeError(f"{name} must be [{', '.join(dims)}] with {dim} = {expected}, got {list(shape)}")
    return sizes
