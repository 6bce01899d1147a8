"""Divergence between policy and reference, estimated from the sampled tokens alone, and penalties made of it."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from nexus.functional.masking import check_mask, masked_sum
from nexus.functional.shapes import check_shapes

#: Log-ratios are held within this bound before they are exponentiated: e^20 is 4.9e8, float32 ends at e^88. Beyond it a
#: ratio has no gradient, where it would otherwise be infinite.
LOG_RATIO_BOUND = 20.0


class KLEstimator(StrEnum):
    """Estimators of KL(policy || reference) for samples of the policy; Schulman, "Approximating KL divergence" (2020).

    K1: `log pi - log ref`; unbiased, may be negative. As a term of a loss its expected gradient is zero, so that it
        holds nothing back: it belongs into rewards.
    K3: `ref / pi - log(ref / pi) - 1`, equation 4 of arXiv 2402.03300; unbiased, never negative, of lower variance. As
        a term of a loss its expected gradient is that of KL(reference || policy), which pulls to the reference too.
    """

    K1 = "k1"
    K3 = "k3"


def sampled_kl(*, logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Divergence per token, estimated from the token that was sampled.

    Example: log-probabilities log(1/2) and log(1/4) give k1 = log 2 = 0.693 and k3 = 1/2 + log 2 - 1 = 0.193.

    Args:
        logprobs: [B, T] of the sampled tokens under the policy.
        ref_logprobs: [B, T] under the reference; no gradient flows into it.
        estimator: which estimate; k3 is constant beyond a log-ratio of `LOG_RATIO_BOUND`.

    Returns:
        [B, T] float32, in nats.

    Raises:
        ShapeError: if the shapes differ.
    """
    check_shapes("B T", logprobs=logprobs, ref_logprobs=ref_logprobs)
    difference = ref_logprobs.detach().float() - logprobs.float()
    if estimator is KLEstimator.K1:
        return -difference
    difference = difference.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return torch.expm1(difference) - difference


@torch.no_grad()
def penalized_token_rewards(
    *,
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    completion_mask: Tensor,
    kl_coef: float,
    estimator: KLEstimator,
) -> Tensor:
    """Rewards per token: the penalty at every token, the score at the last one; section 2.1 of arXiv 1909.08593.

    (TRL's former PPO put the score one position behind the last token.)

    Args:
        scores: [B] of whole completions.
        logprobs: [B, T] of the sampled tokens under the policy that sampled them.
        ref_logprobs: [B, T] under the reference.
        completion_mask: [B, T] bool, True for sampled tokens.
        kl_coef: weight of the penalty, at least 0.
        estimator: k1 makes the sum over a completion an unbiased estimate of its divergence.

    Returns:
        [B, T] float32, 0 where nothing was sampled; no gradient.

    Raises:
        ShapeError: if the shapes do not fit or a row of the mask is empty.
        ValueError: if `kl_coef` is negative.
    """
    check_shapes(
        "B, B T, B T, B T",
        scores=scores,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        completion_mask=completion_mask,
    )
    check_mask(completion_mask=completion_mask)
    if kl_coef < 0.0:
        raise ValueError(f"kl_coef must be at least 0, got {kl_coef}")
    kl = sampled_kl(logprobs=logprobs, ref_logprobs=ref_logprobs, estimator=estimator)
    rewards = (-kl_coef * kl).masked_fill(~completion_mask, 0.0)
    positions = torch.arange(completion_mask.shape[1], device=completion_mask.device)
    last = torch.where(completion_mask, positions, -1).amax(1)
    return rewards.scatter_add(1, last[:, None], scores.float()[:, None])


@torch.no_grad()
def penalized_scores(
    *, scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, completion_mask: Tensor, kl_coef: float
) -> Tensor:
    """`score - kl_coef * sum over tokens of (log pi - log ref)`, the reward of RLOO (arXiv 2402.14740, section 3).

    Args:
        scores: [B] of whole completions.
        logprobs: [B, T] of the sampled tokens under the policy that sampled them.
        ref_logprobs: [B, T] under the reference.
        completion_mask: [B, T] bool, True for sampled tokens.
        kl_coef: weight of the penalty, at least 0.

    Returns:
        [B] float32; no gradient.

    Raises:
        ShapeError: if the shapes do not fit or a row of the mask is empty.
        ValueError: if `kl_coef` is negative.
    """
    check_shapes(
        "B, B T, B T, B T",
        scores=scores,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        completion_mask=completion_mask,
    )
    check_mask(completion_mask=completion_mask)
    if kl_coef < 0.0:
        raise ValueError(f"kl_coef must be at least 0, got {kl_coef}")
    kl = sampled_kl(logprobs=logprobs, ref_logprobs=ref_logprobs, estimator=KLEstimator.K1)
    return scores.float() - kl_coef * masked_sum(values=kl, mask=completion_mask, dim=1)
