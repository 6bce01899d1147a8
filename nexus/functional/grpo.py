"""Group-relative policy optimization and its kin: one clipped surrogate, with other ratios and other means.

| loss | ratio of | mean | unit of `loss_scale` |
|---|---|---|---|
| `grpo_loss` | token | over completions of the mean over tokens | completions |
| `dr_grpo_loss` | token | sum over tokens / (completions * max_new_tokens) | completions |
| `dapo_loss` | token | over all tokens of the step | tokens |
| `gspo_loss` | completion, geometric mean of its tokens | over completions | completions |
| `rloo_loss` | completion | over completions | completions |

With `loss_scale` the share of the step's units, any cut of a step into micro-batches gives the same loss, gradient and
metrics. Advantages come from `functional.advantages`, which sees whole groups.

Signatures:
    grpo_loss, dapo_loss, gspo_loss(*, logprobs, old_logprobs, advantages, completion_mask, epsilon_low, epsilon_high,
                                    kl_coef, ref_logprobs, entropies=None) -> LossOutput
    dr_grpo_loss(*, max_new_tokens, and those) -> LossOutput
    rloo_loss(*, those without kl_coef and ref_logprobs) -> LossOutput
"""

from __future__ import annotations

from typing import NotRequired, TypedDict, Unpack

from torch import Tensor

from nexus.functional.kl import KLEstimator, sampled_kl
from nexus.functional.shapes import check_shapes
from nexus.functional.surrogate import (
    RatioLevel,
    Reduction,
    clipped_surrogate,
    log_ratios,
    policy_metrics,
    reduce_terms,
)
from nexus.types import LossOutput


class RolloutInputs(TypedDict):
    """Keyword arguments of every loss of the family.

    Attributes:
        logprobs: [B, T] of the sampled tokens under the policy.
        old_logprobs: [B, T] under the policy that sampled them (`logprobs.detach()` while that is still the same).
        advantages: [B]; no gradient flows into it.
        completion_mask: [B, T] bool, True for sampled tokens; a completion that shall not count is left out.
        epsilon_low: the ratio is clipped below `1 - epsilon_low`; 0 to 1.
        epsilon_high: the ratio is clipped above `1 + epsilon_high`; at least 0.
        entropies: [B, T] of the policy's distribution at each token, in nats; only for the metric.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    completion_mask: Tensor
    epsilon_low: float
    epsilon_high: float
    entropies: NotRequired[Tensor | None]


class PolicyInputs(RolloutInputs):
    """Keyword arguments of the losses that have a divergence term, k3 against the reference, reduced as the surrogate.

    Attributes:
        kl_coef: weight of the divergence, at least 0.
        ref_logprobs: [B, T] under the reference; may be None if `kl_coef` is 0. Given, it makes the metric `kl`.
    """

    kl_coef: float
    ref_logprobs: Tensor | None


def grpo_loss(**inputs: Unpack[PolicyInputs]) -> LossOutput:
    """Token ratios; every completion counts the same, whatever its length. Equation 3 of arXiv 2402.03300.

    Advantages: `group_advantages` scaled by the group's standard deviation.

    Example: one completion of two tokens with ratios 1 and 1.5, advantage 2 and an upper bound of 0.2 gives
    `-(2 * 1 + 2 * 1.2) / 2` = -2.2, and no gradient to the second token.

    Args:
        **inputs: see `PolicyInputs`.

    Returns:
        Loss, and the metrics of `surrogate.policy_metrics`, with `kl` if there is a reference.

    Raises:
        ShapeError: if the shapes do not fit or a row of the mask is empty.
        ValueError: if a number is out of its range or the reference is missing.
    """
    return _loss(level=RatioLevel.TOKEN, reduction=Reduction.SEQUENCE_MEAN, **inputs)


def dr_grpo_loss(*, max_new_tokens: int, **inputs: Unpack[PolicyInputs]) -> LossOutput:
    """Token ratios; every token counts the same, divided by a constant. Section 3.2 of arXiv 2503.20783.

    Dividing by a completion's own length favors short right and long wrong answers; here it is the limit of the
    generation, so that the loss is smaller than GRPO's. Advantages: `group_advantages` without scale; the paper has no
    divergence term.

    Args:
        max_new_tokens: tokens that an answer may have at most, at least 1.
        **inputs: see `PolicyInputs`.

    Returns:
        Loss and metrics, as in `grpo_loss`.

    Raises:
        ShapeError: if the shapes do not fit or a row of the mask is empty.
        ValueError: if a number is out of its range or the reference is missing.
    """
    return _loss(level=RatioLevel.TOKEN, reduction=Reduction.BUDGET_MEAN, max_new_tokens=max_new_tokens, **inputs)


def dapo_loss(**inputs: Unpack[PolicyInputs]) -> LossOutput:
    """Token ratios; every token counts the same, with a wider upper bound. Equation 8 of arXiv 2503.14476.

    The paper's mean is over the tokens of a group, ours (as TRL's) over those of the step. The paper has bounds of 0.2
    and 0.28 and no divergence term, and drops groups of equal rewards, which is a matter of who fills the batch.
    Advantages: `group_advantages` scaled by the group's standard deviation.

    Args:
        **inputs: see `PolicyInputs`.

    Returns:
        Loss and metrics, as in `grpo_loss`; here the metrics are means over tokens.

    Raises:
        ShapeError: if the shapes do not fit or a row of the mask is empty.
        ValueError: if a number is out of its range or the reference is missing.
    """
    return _loss(level=RatioLevel.TOKEN, reduction=Reduction.TOKEN_MEAN, **inputs)


def gspo_loss(**inputs: Unpack[PolicyInputs]) -> LossOutput:
    """One ratio per completion, the geometric mean of its tokens'. Equations 5 and 7 of arXiv 2507.18071.

    Clipping takes whole completions out. Such ratios stay close to 1 and need bounds far below GRPO's (3e-4 and 4e-4 in
    the paper, which has no divergence term). Advantages: `group_advantages` scaled by the group's standard deviation.

    Args:
        **inputs: see `PolicyInputs`.

    Returns:
        Loss and metrics, as in `grpo_loss`.

    Raises:
        ShapeError: if the shapes do not fit or a row of the mask is empty.
        ValueError: if a number is out of its range or the reference is missing.
    """
    return _loss(level=RatioLevel.SEQUENCE_MEAN, reduction=Reduction.SEQUENCE_MEAN, **inputs)


def rloo_loss(**inputs: Unpack[RolloutInputs]) -> LossOutput:
    """A completion is one action, and so is its ratio. REINFORCE with leave-one-out, arXiv 2402.14740, section 3.

    While the policy is the one that sampled, the ratio is 1 and the gradient is REINFORCE's, `-A * grad log pi(y)`; in
    further passes over a rollout the ratio is clipped, as in TRL. The penalty stands in the reward
    (`kl.penalized_scores`); advantages are `leave_one_out_advantages`.

    Args:
        **inputs: see `RolloutInputs`.

    Returns:
        Loss and metrics, as in `grpo_loss`.

    Raises:
        ShapeError: if the shapes do not fit or a row of the mask is empty.
        ValueError: if a number is out of its range.
    """
    return _loss(level=RatioLevel.SEQUENCE, reduction=Reduction.SEQUENCE_MEAN, kl_coef=0.0, ref_logprobs=None, **inputs)


def _loss(
    *,
    level: RatioLevel,
    reduction: Reduction,
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    completion_mask: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    kl_coef: float,
    entropies: Tensor | None = None,
    max_new_tokens: int | None = None,
) -> LossOutput:
    """Surrogate, divergence and metrics of one member of the family."""
    check_shapes(
        "B T, B T, B T, B, B T, B T",
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        advantages=advantages,
        completion_mask=completion_mask,
        entropies=entropies,
    )
    if kl_coef < 0.0:
        raise ValueError(f"kl_coef must be at least 0, got {kl_coef}")
    if kl_coef > 0.0 and ref_logprobs is None:
        raise ValueError(f"kl_coef={kl_coef} needs ref_logprobs")
    log_ratio = log_ratios(logprobs=logprobs, old_logprobs=old_logprobs, completion_mask=completion_mask, level=level)
    terms, values = clipped_surrogate(
        log_ratio=log_ratio,
        advantages=advantages[:, None].expand_as(log_ratio),
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
    )
    if ref_logprobs is not None:
        padding = ~completion_mask  # filled first, so that NaN in padding does not reach the gradient
        values["kl"] = sampled_kl(
            logprobs=logprobs.masked_fill(padding, 0.0),
            ref_logprobs=ref_logprobs.masked_fill(padding, 0.0),
            estimator=KLEstimator.K3,
        )
        if kl_coef > 0.0:
            terms = terms + kl_coef * values["kl"]
    return LossOutput(
        loss=reduce_terms(
            terms=terms, completion_mask=completion_mask, reduction=reduction, max_new_tokens=max_new_tokens
        ),
        metrics=policy_metrics(
            values=values,
            logprobs=logprobs,
            old_logprobs=old_logprobs,
            entropies=entropies,
            completion_mask=completion_mask,
            reduction=reduction,
        ),
    )
