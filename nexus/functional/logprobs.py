"""Log-probabilities from logits, in float32 whatever the model's dtype.

`linear_token_logprobs` starts from hidden states instead, so that the logits of a micro-batch never exist at one time.

Signatures:
    token_logprobs(*, logits, tokens) -> Tensor [N]
    linear_token_logprobs(*, hidden, weight, targets, bias, chunk_size, logit_scale=1.0, softcap=None, temperature=1.0,
                          with_entropies=False) -> TokenLogprobs(logprobs [N], entropies [N] or None)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


def token_logprobs(*, logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each given token.

    The caller aligns the two: `logits[i]` is what the model said before it saw `tokens[i]`.

    Args:
        logits: [N, V].
        tokens: [N] int64.

    Returns:
        [N] float32.

    Raises:
        ShapeError: if the shapes do not fit.
    """
    check_shapes("N V, N", logits=logits, tokens=tokens)
    return torch.log_softmax(logits.float(), -1).gather(-1, tokens[:, None])[:, 0]


@dataclass(frozen=True)
class TokenLogprobs:
    """What a model says about given tokens.

    Attributes:
        logprobs: [N] float32 log-probability of each token, in nats.
        entropies: [N] float32 entropy of the distribution that each token was drawn from, without gradient; None if
            they were not asked for.
    """

    logprobs: Tensor
    entropies: Tensor | None


@dataclass(frozen=True)
class _Shape:
    """How hidden states become the logits of a distribution; see `linear_token_logprobs`."""

    chunk_size: int
    scale: float
    softcap: float | None
    temperature: float
    dtype: torch.dtype

    def products(self, hidden: Tensor, head: Tensor) -> Tensor:
        """[C, V] products of a chunk, in the precision of the computation."""
        return logits_of(hidden.to(self.dtype), head)

    def logits(self, products: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[R, V] float32 final logits of some rows, and where they are capped the cap's [R, V] slope.

        Overwrites float32 products.
        """
        logits = products.float()
        if bias is not None:
            logits += bias
        if self.scale != 1.0:
            logits *= self.scale
        slope = None
        if self.softcap is not None:
            bounded = torch.tanh(logits.div_(self.softcap))
            slope = 1.0 - bounded.square()
            logits = bounded.mul_(self.softcap)
        if self.temperature != 1.0:
            logits /= self.temperature
        return logits, slope

    def gradient(self, probs: Tensor, targets: Tensor, upstream: Tensor | None, slope: Tensor | None) -> Tensor:
        """Gradient [R, V] of the target's log-probability with respect to the products; overwrites `probs`."""
        grad = probs.neg_()
        index = targets[:, None]
        grad.scatter_add_(1, index, torch.ones_like(index, dtype=grad.dtype))
        if upstream is not None:
            grad *= upstream[:, None]
        if slope is not None:
            grad *= slope
        factor = self.scale / self.temperature
        return grad if factor == 1.0 else grad.mul_(factor)

    def read(
        self, products: Tensor, targets: Tensor, bias: Tensor | None, *, with_entropies: bool, want_unit: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a chunk's products say, a few rows at a time; overwrites them, by the gradient if it is wanted.

        Args:
            products: [C, V].
            targets: [C] int64.
            bias: [V] or None.
            with_entropies: also compute entropies.
            want_unit: also make the gradient of the targets' log-probabilities.

        Returns:
            [C] log-probabilities of the targets, [C] logs of the sums of exponentials, [C] entropies (meaningless if
            they were not asked for).
        """
        logprobs = torch.empty_like(targets, dtype=torch.float32)
        normalizers, entropies = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for block in row_blocks(products):
            logits, slope = self.logits(products[block], bias)
            picked = logits.gather(1, targets[block, None])
            # torch.logsumexp would make a second tensor; one exponential in place serves the probabilities too
            peak = logits.amax(1, keepdim=True)
            exp = (logits - peak if with_entropies else logits.sub_(peak)).exp_()
            summed = exp.sum(1, keepdim=True)
            total = summed.log() + peak
            normalizers[block] = total[:, 0]
            logprobs[block] = (picked - total)[:, 0]
            if not with_entropies and not want_unit:
                continue
            probs = exp.div_(summed)
            if with_entropies:
                entropies[block] = total[:, 0] - logits.mul_(probs).sum(1)
            if want_unit:
                overwrite(products[block], self.gradient(probs, targets[block], None, slope))
        return logprobs, normalizers, entropies

    def overwrite_by_gradient(
        self, products: Tensor, targets: Tensor, bias: Tensor | None, normalizers: Tensor, upstream: Tensor
    ) -> None:
        """Put the gradient of a chunk in the place of its [C, V] products, a few rows at a time."""
        for block in row_blocks(products):
            logits, slope = self.logits(products[block], bias)
            probs = logits.sub_(normalizers[block, None]).exp_()
            overwrite(products[block], self.gradient(probs, targets[block], upstream[block], slope))


class _LinearTokenLogprobs(torch.autograd.Function):
    """Head and log-softmax in one node of the graph.

    The gradient of `hidden` is one row per token times the upstream value of that token, so with a frozen head it is
    made in the forward pass and no logits are computed twice. The gradient of the head mixes the tokens with upstream
    values that only backward knows: then each chunk's logits are computed again there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        shape: _Shape,
        with_entropies: bool,
    ) -> Any:
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        ctx.again = want_weight or want_bias
        rows = hidden.shape[0]
        logprobs = hidden.new_empty(rows, dtype=torch.float32)
        normalizers = torch.empty_like(logprobs)  # log of the sum of exponentials
        entropies = torch.empty_like(logprobs) if with_entropies else None
        unit = torch.empty_like(hidden) if want_hidden and not ctx.again else None
        head = head_for(shape.dtype, weight.detach())
        with plain_arithmetic(hidden):
            for part in chunks(hidden, weight, shape.chunk_size):
                products = shape.products(hidden[part], head)
                read = shape.read(
                    products, targets[part], bias, with_entropies=with_entropies, want_unit=unit is not None
                )
                logprobs[part], normalizers[part] = read[:2]
                if entropies is not None:
                    entropies[part] = read[2]
                if unit is not None:
                    unit[part] = hidden_of(products, head)
                del products  # or the next chunk's would be made beside them
        ctx.shape = shape
        if ctx.again:
            ctx.save_for_backward(hidden, weight, bias, targets, normalizers)
        else:
            ctx.save_for_backward(unit)
        if entropies is not None:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        upstream = grad_outputs[0]
        if not ctx.again:
            (unit,) = ctx.saved_tensors
            return None if unit is None else (unit * upstream[:, None]).to(unit.dtype), None, None, None, None, None
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        shape: _Shape = ctx.shape
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        # float32 sums: hundreds of chunks added up in bfloat16 would lose the small ones
        grad_weight = unsummed(weight, torch.float32, hidden.shape[0]) if want_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if want_bias else None
        head = head_for(shape.dtype, weight.detach())
        with plain_arithmetic(hidden):
            for part in chunks(hidden, weight, shape.chunk_size):
                products = shape.products(hidden[part], head)
                shape.overwrite_by_gradient(products, targets[part], bias, normalizers[part], upstream[part])
                grad = products  # their memory
                del products
                if grad_bias is not None:
                    grad_bias += grad.sum(0, dtype=torch.float32)
                if grad_hidden is not None:
                    grad_hidden[part] = hidden_of(grad, head)
                if grad_weight is not None:
                    add_product(grad_weight, grad, hidden[part].to(shape.dtype), first=part.start == 0)
                del grad
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def linear_token_logprobs(
    *,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    chunk_size: int,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    with_entropies: bool = False,
) -> TokenLogprobs:
    """`log softmax(softcap(logit_scale * (hidden @ weight.T + bias)) / temperature)[targets]`, one value a token.

    At most `chunk_size * V` logits exist at a time, forward and backward. Products run in the autocast dtype if
    autocast is on, else in the weight's dtype; softmax and sums run in float32. With a trained head, backward computes
    the logits again; with a frozen one it does not.

    Args:
        hidden: [N, D], only the positions that predict a target; N may be 0.
        weight: [V, D].
        targets: [N] int64 in 0..V-1.
        bias: [V] or None.
        chunk_size: rows at a time, at most; a processor takes fewer of a large vocabulary (`products.chunks`).
        logit_scale: factor on the logits; 1 is the identity.
        softcap: c of `c * tanh(z / c)`; None for no cap.
        temperature: of the distribution, above 0; 1 is the model's own.
        with_entropies: also compute entropies, of the same distribution.

    Returns:
        Log-probabilities with gradient, entropies without.

    Raises:
        ShapeError: if the shapes do not fit.
        ValueError: if `chunk_size` or `temperature` is not positive.
    """
    check_shapes("N D, V D, N, V", hidden=hidden, weight=weight, targets=targets, bias=bias)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if temperature <= 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    shape = _Shape(chunk_size, logit_scale, softcap, temperature, dtype)
    made = _LinearTokenLogprobs.apply(hidden, weight, bias, targets, shape, with_entropies)  # type: ignore[no-untyped-call]
    return TokenLogprobs(*made)
