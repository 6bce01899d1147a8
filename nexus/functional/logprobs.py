"""Log-probabilities and entropy from logits, in float32 whatever the model's dtype."""

from __future__ import annotations

import torch
from torch import Tensor

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


def entropy(*, logits: Tensor) -> Tensor:
    """Entropy of each row's distribution, in nats.

    Args:
        logits: [N, V]; minus infinity is allowed and contributes nothing.

    Returns:
        [N] float32.

    Raises:
        ShapeError: if the shape does not fit.
    """
    check_shapes("N V", logits=logits)
    logp = torch.log_softmax(logits.float(), -1)
    # 0 * -inf is NaN; the limit of p log p is 0
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)
