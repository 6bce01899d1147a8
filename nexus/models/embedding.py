"""The gradient of a large embedding by index: the rows that were looked up, never a second table.

Torch makes the gradient of a lookup as a whole table of zeros with a few rows filled, and where the head is tied to it
the sum of both is a third table. With 151,936 tokens of 896 numbers each of them is half a gibibyte, read and written
in every backward pass. Here the rows are added to the gradient that the head has left, which is there first, since
backward goes from the head to the embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from nexus.hardware.memory_parts import LARGE_TABLE


class _Lookup(torch.autograd.Function):
    """Rows of a table, whose backward adds to the table's `grad` itself and hands no gradient on.

    The table comes inside its module: as an input of the graph it would get its gradients summed, each a whole table.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, ids: Tensor, module: nn.Embedding) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.module = module
        return embedding(ids, module.weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (ids,) = ctx.saved_tensors
        rows = grad_outputs[0].flatten(0, -2)
        add_rows(ctx.module.weight, ids.flatten(), rows, padding_idx=ctx.module.padding_idx)
        return None, None, None


@torch.no_grad()
def add_rows(table: nn.Parameter, ids: Tensor, rows: Tensor, *, padding_idx: int | None) -> None:
    """Add the gradients of looked-up rows to `table.grad`, equal ids first to each other, as torch does.

    No shape depends on the ids, so a GPU need not be waited for; only zeros meet in a row, so every run adds alike.

    Args:
        table: [V, D].
        ids: [T] int64.
        rows: [T, D] gradients.
        padding_idx: an id that learns nothing; None for none.
    """
    if table.grad is None:
        table.grad = torch.zeros_like(table)
    sorted_ids, order = ids.sort(stable=True)
    is_new = torch.ones_like(ids)
    is_new[1:] = sorted_ids[1:] != sorted_ids[:-1]
    ranks = torch.empty_like(ids).index_copy_(0, order, is_new.cumsum(0) - 1)  # of each id among the distinct ones
    sums = torch.ops.aten.embedding_dense_backward(rows, ranks, len(ids), -1, False)
    owners = torch.zeros_like(ids).index_copy_(0, ranks, ids)  # behind the last rank: zeros, for row 0
    if padding_idx is not None:
        sums.masked_fill_((owners == padding_idx)[:, None], 0.0)
    table.grad.index_add_(0, owners, sums)


class IndexedEmbedding(nn.Embedding):
    """An embedding of which `gradient_by_index` has changed the class; parameters and names stay."""

    def forward(self, input: Tensor) -> Tensor:
        """Look up [...] int64 ids: [..., D]."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(input)
        anchor = torch.empty(0, requires_grad=True)  # what makes autograd call backward
        looked_up: Tensor = _Lookup.apply(anchor, input, self)  # type: ignore[no-untyped-call]
        return looked_up


def gradient_by_index(model: Any, *, at_least: int | None = None) -> None:
    """Let a model's input embedding add its gradient by index, if it is trained and large.

    The numbers are torch's; those of several backward passes are added up in another order.

    Embeddings of a class of their own (Gemma's scales its rows) keep it, as far as it builds on torch's lookup.

    Args:
        model: a `PreTrainedModel` or a `PeftModel`.
        at_least: numbers V * D from which on a table is large; None for `LARGE_TABLE`. A small one's gradient costs
            nothing worth mentioning.
    """
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding) or not table.weight.requires_grad:
        return
    if table.weight.numel() < (LARGE_TABLE if at_least is None else at_least):
        return
    if table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
        return
    kind = type(table)
    table.__class__ = IndexedEmbedding if kind is nn.Embedding else type(kind.__name__, (kind, IndexedEmbedding), {})
