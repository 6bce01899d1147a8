"""Loss and perplexity on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from nexus.errors import NexusError
from nexus.evaluation.statistics import student_quantile
from nexus.models.head import target_logprobs
from nexus.types import MicroBatch, Score

_CHUNK = 1024  # target positions whose logits exist at one time; bounds memory


@torch.inference_mode()
def held_out_loss(model: Any, batches: Sequence[MicroBatch]) -> dict[str, Score]:
    """Mean negative log-likelihood per target token, and its exponential.

    The interval is that of a ratio estimate over micro-batches (delta method, Cochran 1977, eq. 6.13) with Student's
    quantile: rows, not tokens, are independent, and there may be few.

    Args:
        model: in evaluation mode.
        batches: held-out rows, one a micro-batch.

    Returns:
        `loss` (nats per token) and `perplexity`; `n` counts rows. One row has no interval.

    Raises:
        NexusError: `E-NUM-02` if the loss is not finite.
    """
    device = next(model.parameters()).device
    sums, counts = [], []
    for batch in batches:
        logprobs = target_logprobs(model, batch.to(device), chunk_size=_CHUNK).logprobs
        sums.append(-float(logprobs.double().sum()))
        counts.append(batch.num_target_tokens)
    total = sum(counts)
    mean = sum(sums) / total
    if not math.isfinite(mean):
        raise NexusError("E-NUM-02", "the held-out loss is not a number", remedy="lower method.lr")
    n = len(sums)
    if n == 1:
        return {"loss": Score(mean, n, None), "perplexity": Score(_exp(mean), n, None)}
    residual = sum((s - mean * c) ** 2 for s, c in zip(sums, counts, strict=True))
    error = student_quantile(n - 1) * math.sqrt(residual * n / (n - 1)) / total
    low, high = max(0.0, mean - error), mean + error  # no loss lies below 0
    return {
        "loss": Score(mean, n, (low, high)),
        "perplexity": Score(_exp(mean), n, (_exp(low), _exp(high))),
    }


def _exp(value: float) -> float:
    """`math.exp`; beyond a double's range (two very different rows, a ruined model), the largest double."""
    return math.exp(min(value, 709.0))
