"""Next-token cross-entropy without ever holding all logits.

The gradient is made in the forward pass, chunk by chunk, as in Liger-Kernel (arXiv 2410.10989, section 3.2) and TRL's
chunked loss; here in plain torch, in float32 sums, and without a weight gradient when the head is frozen. Since the
loss is a scalar, backward only multiplies by the upstream gradient.

Signatures:
    linear_cross_entropy(*, hidden, weight, targets, bias, chunk_size, logit_scale=1.0, softcap=None) -> Tensor
    sft_loss(*, hidden, weight, bias, targets, form, chunk_size) -> LossOutput
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from nexus.functional.products import (
    add_product,
    chunks,
    head_for,
    hidden_of,
    logits_of,
    overwrite,
    plain_arithmetic,
    row_blocks,
    unsummed,
)
from nexus.functional.shapes import check_shapes
from nexus.types import LossOutput

#: Whether backward leaves its graph for another run; what torch's own compiler asks for the same reason.
_graph_is_kept: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph


class LogitFormLike(Protocol):
    """How a model turns `hidden @ weight.T + bias` into logits (`models.head.LogitForm`)."""

    @property
    def scale(self) -> float:
        """Factor on the logits."""

    @property
    def softcap(self) -> float | None:
        """Bound c of `c * tanh(z / c)`, after the factor."""

    @property
    def hidden_scale(self) -> float:
        """Factor on the hidden states."""


def _rows_loss(logits: Tensor, targets: Tensor, softcap: float | None, want_grad: bool) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each row, and its gradient with respect to the uncapped logits.

    Args:
        logits: [R, V] float32, scaled but not capped; overwritten.
        targets: [R] int64.
        softcap: bound of the logits.
        want_grad: False skips the gradient; the second result is then meaningless.

    Returns:
        [R] losses and [R, V] gradient (in the memory of `logits` where that is possible).
    """
    slope = None
    if softcap is not None:
        capped = torch.tanh(logits.div_(softcap))
        slope = 1.0 - capped.square() if want_grad else None  # d capped / d logits
        logits = capped.mul_(softcap)
    index = targets[:, None]
    picked = logits.gather(1, index)
    # one exponential serves both the loss and the softmax
    peak = logits.amax(1, keepdim=True)
    exp = logits.sub_(peak).exp_()
    total = exp.sum(1, keepdim=True)
    losses = (total.log() + peak - picked)[:, 0]
    if not want_grad:
        return losses, exp
    grad = exp.div_(total)
    grad.scatter_add_(1, index, torch.full_like(picked, -1.0))
    return losses, grad if slope is None else grad.mul_(slope)


def _chunk_loss(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    *,
    scale: float,
    softcap: float | None,
    want_grad: bool,
    grad_bias: Tensor | None,
) -> Tensor:
    """Summed loss of a chunk, whose logits become their gradient, a few rows at a time.

    So in half precision no float32 copy of the whole chunk is made, and the passes over a row find it in the cache.

    Args:
        logits: [C, V] products of hidden states and head; overwritten.
        targets: [C] int64.
        bias: [V] or None.
        scale: factor on the logits.
        softcap: bound of the logits.
        want_grad: False skips the gradient.
        grad_bias: [V] float32 that the gradient of the bias is added to, or None.

    Returns:
        Scalar, float32 (float64 for float64).
    """
    made = []
    for block in row_blocks(logits):
        rows = logits[block]
        values = rows.to(torch.promote_types(rows.dtype, torch.float32))  # at least, as the sums over chunks
        if bias is not None:
            values += bias
        if scale != 1.0:
            values *= scale
        losses, grad = _rows_loss(values, targets[block], softcap, want_grad)
        made.append(losses)
        if not want_grad:
            continue
        if scale != 1.0:
            grad *= scale
        if grad_bias is not None:
            grad_bias += grad.sum(0)
        overwrite(rows, grad)
    return torch.cat(made).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    """Head and cross-entropy in one node of the graph; see `linear_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk_size: int,
        logit_scale: float,
        softcap: float | None,
        compute_dtype: torch.dtype,
    ) -> Tensor:
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        want_grad = want_hidden or want_weight or want_bias
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        # at least float32: hundreds of chunks added up in bfloat16 would lose the small ones
        sums = torch.promote_types(compute_dtype, torch.float32)
        grad_weight = unsummed(weight, sums, hidden.shape[0]) if want_weight else None
        grad_bias = torch.zeros_like(bias, dtype=sums) if want_bias and bias is not None else None
        loss = torch.zeros((), dtype=sums, device=hidden.device)
        head = head_for(compute_dtype, weight.detach())
        with plain_arithmetic(hidden):
            for rows in chunks(hidden, weight, chunk_size):
                chunk = hidden[rows].to(compute_dtype)
                logits = logits_of(chunk, head)
                loss += _chunk_loss(
                    logits, targets[rows], bias,
                    scale=logit_scale, softcap=softcap, want_grad=want_grad, grad_bias=grad_bias,
                )  # fmt: skip
                grad = logits  # their memory
                del logits
                if grad_hidden is not None:
                    grad_hidden[rows] = hidden_of(grad, head)
                if grad_weight is not None:
                    add_product(grad_weight, grad, chunk, first=rows.start == 0)
                del grad  # or the next chunk's would be made beside it
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        upstream = grad_outputs[0]
        # in place, since the head's gradient is as large as the head; a copy if backward may run again (retain_graph)
        scale = Tensor.mul if _graph_is_kept() else Tensor.mul_
        grads = (
            None if grad is None else scale(grad, upstream).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*grads, None, None, None, None, None)


def linear_cross_entropy(
    *,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    chunk_size: int,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Summed `-log softmax(softcap(logit_scale * (hidden @ weight.T + bias)))[targets]`.

    At most `chunk_size * V` logits exist at a time. Products run in the autocast dtype if autocast is on, else in the
    weight's dtype; softmax, loss and sums run in float32 (float64 for float64). No gradient is made for an input that
    does not ask for one.

    Args:
        hidden: [N, D], only the positions that predict a target; N may be 0 (loss 0, gradients 0).
        weight: [V, D].
        targets: [N] int64 in 0..V-1.
        bias: [V] or None.
        chunk_size: rows at a time, at most; a processor takes fewer of a large vocabulary (`products.chunks`).
        logit_scale: factor on the logits; 1 is the identity.
        softcap: c of `c * tanh(z / c)`; None for no cap.

    Returns:
        Scalar float32 (float64 for float64), in nats.

    Raises:
        ShapeError: if the shapes do not fit.
        ValueError: if `chunk_size` is not positive.
    """
    check_shapes("N D, V D, N, V", hidden=hidden, weight=weight, targets=targets, bias=bias)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    args = (hidden, weight, bias, targets, chunk_size, logit_scale, softcap, dtype)
    return _LinearCrossEntropy.apply(*args)  # type: ignore[no-any-return,no-untyped-call]


def sft_loss(
    *, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, form: LogitFormLike, chunk_size: int
) -> LossOutput:
    """Mean cross-entropy over the target tokens.

    Args:
        hidden: [N, D] states that predict a target.
        weight: [V, D] of the output head.
        bias: [V] or None.
        targets: [N] int64.
        form: what the model does to its logits.
        chunk_size: as in `linear_cross_entropy`.

    Returns:
        Mean loss in nats (0 with a graph if N is 0); no metrics, since the loss says all.

    Raises:
        ShapeError: if the shapes do not fit.
    """
    total = linear_cross_entropy(
        hidden=hidden if form.hidden_scale == 1.0 else hidden * form.hidden_scale,
        weight=weight,
        targets=targets,
        bias=bias,
        chunk_size=chunk_size,
        logit_scale=form.scale,
        softcap=form.softcap,
    )
    return LossOutput(loss=total / max(1, targets.shape[0]))
