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

from nexus.functional.products import add_product
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

    def logits(self, hidden: Tensor, head: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[C, V] float32 final logits, and where they are capped the cap's [C, V] slope."""
        logits = (hidden.to(self.dtype) @ head.T).float()
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
        """Gradient [C, V] of the target's log-probability with respect to `hidden @ head.T`; overwrites `probs`."""
        grad = probs.neg_()
        index = targets[:, None]
        grad.scatter_add_(1, index, torch.ones_like(index, dtype=grad.dtype))
        if upstream is not None:
            grad *= upstream[:, None]
        if slope is not None:
            grad *= slope
        factor = self.scale / self.temperature
        return (grad if factor == 1.0 else grad.mul_(factor)).to(self.dtype)


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
        head = weight.to(shape.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, rows, shape.chunk_size):
                part = slice(start, start + shape.chunk_size)
                logits, slope = shape.logits(hidden[part], head, bias)
                index = targets[part, None]
                picked = logits.gather(1, index)
                # torch.logsumexp would make a second [C, V]; one exponential in place serves the probabilities too
                peak = logits.amax(1, keepdim=True)
                exp = (logits - peak if with_entropies else logits.sub_(peak)).exp_()
                summed = exp.sum(1, keepdim=True)
                total = summed.log() + peak
                normalizers[part] = total[:, 0]
                logprobs[part] = (picked - total)[:, 0]
                if entropies is None and unit is None:
                    del logits, slope, exp
                    continue
                probs = exp.div_(summed)
                if entropies is not None:
                    entropies[part] = total[:, 0] - logits.mul_(probs).sum(1)
                if unit is not None:
                    unit[part] = shape.gradient(probs, targets[part], None, slope) @ head
                del logits, exp, probs, slope  # or the next chunk's would be made beside them
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
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if want_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if want_bias else None
        head = weight.to(shape.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], shape.chunk_size):
                part = slice(start, start + shape.chunk_size)
                logits, slope = shape.logits(hidden[part], head, bias)
                probs = logits.sub_(normalizers[part, None]).exp_()
                grad = shape.gradient(probs, targets[part], upstream[part], slope)
                del logits, slope, probs  # in half precision the gradient is memory of its own
                if grad_bias is not None:
                    grad_bias += grad.sum(0, dtype=torch.float32)
                if grad_hidden is not None:
                    grad_hidden[part] = grad @ head
                if grad_weight is not None:
                    add_product(grad_weight, grad, hidden[part].to(shape.dtype))
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
        chunk_size: rows at a time; 256 is good in float32 on a CPU, 1,024 and more in bfloat16.
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
