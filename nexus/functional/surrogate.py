"""The clipped surrogate of policy gradients: ratios, clipping and the reductions that PPO and the GRPO family share."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from nexus.functional.kl import LOG_RATIO_BOUND, KLEstimator, sampled_kl
from nexus.functional.masking import check_mask, masked_mean, masked_sum
from nexus.functional.shapes import check_shapes


class RatioLevel(StrEnum):
    """What the importance ratio between the policy and the one that sampled is a ratio of.

    TOKEN: one ratio per token, PPO and GRPO.
    SEQUENCE_MEAN: `(pi(y) / old(y))^(1 / |y|)`, one per completion; GSPO, equation 7 of arXiv 2507.18071.
    SEQUENCE: `pi(y) / old(y)`, one per completion; RLOO.
    """

    TOKEN = "token"
    SEQUENCE_MEAN = "sequence_mean"
    SEQUENCE = "sequence"


class Reduction(StrEnum):
    """How token terms become one number; also the unit whose share of the step `loss_scale` must be.

    SEQUENCE_MEAN: mean over the completions of the mean over their tokens; unit: completions.
    TOKEN_MEAN: mean over all tokens; unit: tokens.
    BUDGET_MEAN: sum over all tokens, divided by completions times a constant; unit: completions.
    """

    SEQUENCE_MEAN = "sequence_mean"
    TOKEN_MEAN = "token_mean"
    BUDGET_MEAN = "budget_mean"


def log_ratios(*, logprobs: Tensor, old_logprobs: Tensor, completion_mask: Tensor, level: RatioLevel) -> Tensor:
    """Logarithm of the importance ratio at every token; for a sequence level, the completion's value at all its tokens.

    Held within `LOG_RATIO_BOUND`, beyond which it is constant.

    Args:
        logprobs: [B, T] of the sampled tokens under the policy.
        old_logprobs: [B, T] under the policy that sampled them; no gradient flows into it.
        completion_mask: [B, T] bool, True for sampled tokens; no row empty.
        level: token or sequence.

    Returns:
        [B, T] float32, 0 where nothing was sampled.

    Raises:
        ShapeError: if the shapes do not fit or a row of the mask is empty.
    """
    check_shapes("B T", logprobs=logprobs, old_logprobs=old_logprobs, completion_mask=completion_mask)
    check_mask(completion_mask=completion_mask)
    # fill first: NaN in padding would reach the gradient through the exponential, even where the result is masked
    log_ratio = (logprobs.float() - old_logprobs.detach().float()).masked_fill(~completion_mask, 0.0)
    if level is RatioLevel.SEQUENCE_MEAN:
        log_ratio = masked_mean(values=log_ratio, mask=completion_mask, dim=1)[:, None] * completion_mask
    elif level is RatioLevel.SEQUENCE:
        log_ratio = log_ratio.sum(1, keepdim=True) * completion_mask
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def clipped_surrogate(
    *, log_ratio: Tensor, advantages: Tensor, epsilon_low: float, epsilon_high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """`-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)`: equation 7 of arXiv 1707.06347, two bounds as in DAPO.

    Where the clip binds, the gradient is zero: above for A > 0, below for A < 0. A bad ratio in the other direction
    still is corrected.

    Args:
        log_ratio: [B, T], as `log_ratios` makes it.
        advantages: [B, T]; no gradient flows into it.
        epsilon_low: the ratio is clipped below `1 - epsilon_low`; 0 to 1.
        epsilon_high: the ratio is clipped above `1 + epsilon_high`; at least 0.

    Returns:
        [B, T] terms to minimize, and [B, T] detached values by log name: `ratio`, `clip_fraction/low` and
        `clip_fraction/high` (1 where the bound took the gradient), `ratio/limited` (1 where `LOG_RATIO_BOUND` did).

    Raises:
        ShapeError: if the shapes differ.
        ValueError: if a bound is out of its range.
    """
    check_shapes("B T", log_ratio=log_ratio, advantages=advantages)
    if not 0.0 <= epsilon_low <= 1.0 or epsilon_high < 0.0:
        raise ValueError(f"epsilon_low must be in 0..1 and epsilon_high at least 0, got {epsilon_low}, {epsilon_high}")
    advantages = advantages.detach().float()
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - epsilon_low, 1.0 + epsilon_high)
    terms = -torch.minimum(ratio * advantages, clipped * advantages)
    ratio = ratio.detach()
    return terms, {
        "ratio": ratio,
        "clip_fraction/low": ((ratio < 1.0 - epsilon_low) & (advantages < 0)).float(),
        "clip_fraction/high": ((ratio > 1.0 + epsilon_high) & (advantages > 0)).float(),
        "ratio/limited": (log_ratio.detach().abs() >= LOG_RATIO_BOUND).float(),
    }


def reduce_terms(
    *, terms: Tensor, completion_mask: Tensor, reduction: Reduction, max_new_tokens: int | None = None
) -> Tensor:
    """One number from terms per token.

    Args:
        terms: [B, T].
        completion_mask: [B, T] bool; no row empty.
        reduction: see `Reduction`.
        max_new_tokens: the constant of `Reduction.BUDGET_MEAN`, the limit of the generation; unused otherwise.

    Returns:
        Scalar float32.

    Raises:
        ShapeError: if the shapes differ.
        ValueError: if `Reduction.BUDGET_MEAN` comes without a positive `max_new_tokens`.
    """
    check_shapes("B T", terms=terms, completion_mask=completion_mask)
    if reduction is Reduction.TOKEN_MEAN:
        return masked_mean(values=terms, mask=completion_mask)
    if reduction is Reduction.SEQUENCE_MEAN:
        return masked_mean(values=terms, mask=completion_mask, dim=1).mean()
    if max_new_tokens is None or max_new_tokens < 1:
        raise ValueError(f"{reduction} needs max_new_tokens of at least 1, got {max_new_tokens}")
    return masked_sum(values=terms, mask=completion_mask) / (completion_mask.shape[0] * max_new_tokens)


def policy_metrics(
    *,
    values: dict[str, Tensor],
    logprobs: Tensor,
    old_logprobs: Tensor,
    entropies: Tensor | None,
    completion_mask: Tensor,
    reduction: Reduction,
) -> dict[str, Tensor]:
    """Metrics with the unit of the loss, so that sums weighted by `loss_scale` are those of the whole step.

    Args:
        values: [B, T] by log name, as `clipped_surrogate` returns them.
        logprobs: [B, T] under the policy.
        old_logprobs: [B, T] under the policy that sampled.
        entropies: [B, T] of the policy's distribution at each token, in nats; None if they were not computed.
        completion_mask: [B, T] bool.
        reduction: token means if the loss is one, else means over completions of token means.

    Returns:
        Detached scalars: the values, `kl/old` (k3 between the policy and the one that sampled), and `entropy` if given.

    Raises:
        ShapeError: if the shapes differ.
    """
    check_shapes("B T", completion_mask=completion_mask, entropies=entropies)
    with torch.no_grad():
        kl = sampled_kl(logprobs=old_logprobs, ref_logprobs=logprobs, estimator=KLEstimator.K3)
    values = values | {"kl/old": kl}
    if entropies is not None:
        values["entropy"] = entropies.float()
    mean = Reduction.TOKEN_MEAN if reduction is Reduction.TOKEN_MEAN else Reduction.SEQUENCE_MEAN
    return {
        name: reduce_terms(terms=value.detach(), completion_mask=completion_mask, reduction=mean)
        for name, value in values.items()
    }
