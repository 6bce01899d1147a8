"""Norm and clipping of gradients: torch's own to the bit, without what it sorts anew in each step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

#: Clipping adds it to the norm that it divides by.
_EPSILON = 1e-6
#: Norms below this share of the limit are within it in float32 too: clipping would read and write every gradient for a
#: product with 1.
_SURELY_WITHIN = 0.999


class Gradients:
    """The gradients of one optimizer step.

    Args:
        weights: what is trained; those without a gradient take no part.

    Attributes:
        norm: [] 2-norm of all gradients together, before any clipping.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.weights = [weight for weight in weights if weight.grad is not None]
        self._grads = [weight.grad for weight in self.weights if weight.grad is not None]
        # one device and number format, as almost always: nothing to sort
        self._alike = len({(grad.device, grad.dtype) for grad in self._grads}) == 1
        self.norm = (
            torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self._grads)))
            if self._alike
            else nn.utils.get_total_norm(self._grads)
        )

    def clip(self, limit: float, *, norm: float) -> None:
        """Scale all gradients so that their common norm does not exceed a limit.

        Args:
            limit: the largest norm.
            norm: that of the gradients, as a number, since the caller has read it anyway.
        """
        if norm <= _SURELY_WITHIN * limit - _EPSILON:
            return
        if self._alike:
            torch._foreach_mul_(self._grads, torch.clamp(limit / (self.norm + _EPSILON), max=1.0))
        else:
            nn.utils.clip_grads_with_norm_(self.weights, limit, self.norm)

    def drop(self) -> None:
        """Leave every weight without a gradient; optimizers pass over it."""
        for weight in self.weights:
            weight.grad = None
        self._grads = []
