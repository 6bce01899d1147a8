"""Kahneman-Tversky optimization: single completions, each labeled good or bad, against a baseline.

Signatures:
    kto_baseline(*, mismatched_logprobs, ref_mismatched_logprobs) -> Tensor
    kto_loss(*, logprobs, ref_logprobs, desirable_mask, baseline, beta, desirable_weight, undesirable_weight,
             desirable_share=None) -> LossOutput
"""

from __future__ import annotations

import torch
from torch import Tensor

from nexus.functional.masking import masked_sum
from nexus.functional.preference import check_pairs
from nexus.functional.shapes import ShapeError, check_shapes
from nexus.types import LossOutput


@torch.no_grad()
def kto_baseline(*, mismatched_logprobs: Tensor, ref_mismatched_logprobs: Tensor) -> Tensor:
    """The baseline z0: estimate of KL(policy || reference) from completions of other prompts.

    `max(0, mean(log pi(y' | x) - log ref(y' | x)))` where y' answers another prompt of the same step (arXiv
    2402.01306, section 4.1). It is a mean over the whole optimizer step: take it before the step is cut into
    micro-batches, or every cut will have another baseline. No gradient, as in the paper.

    Args:
        mismatched_logprobs: [M] summed log-probability of each mismatched completion under the policy.
        ref_mismatched_logprobs: [M] under the reference.

    Returns:
        Scalar float32, at least 0.

    Raises:
        ShapeError: if the shapes differ or there is no completion.
    """
    check_pairs(mismatched_logprobs=mismatched_logprobs, ref_mismatched_logprobs=ref_mismatched_logprobs)
    return (mismatched_logprobs.float() - ref_mismatched_logprobs.float()).mean().clamp(min=0.0)


def kto_loss(
    *,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    desirable_mask: Tensor,
    baseline: Tensor,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    desirable_share: float | None = None,
) -> LossOutput:
    """`w_D (1 - s(beta (r - z0)))` if desirable, else `w_U (1 - s(beta (z0 - r)))`: equation 7 of 2402.01306.

    r is the log-ratio of policy and reference. (The paper writes `lambda_y - v(x, y)`, which is this.)

    Example: r = 0 and z0 = 0 give half of either weight.

    The unit is the example: with `loss_scale` the share of the step's examples, any cut into micro-batches gives the
    same sum, if the baseline is that of the step.

    Args:
        logprobs: [B] summed log-probability of each completion under the policy.
        ref_logprobs: [B] under the reference; no gradient flows into it.
        desirable_mask: [B] bool, True where the completion is a good one.
        baseline: scalar z0 of `kto_baseline`; no gradient flows into it.
        beta: strength of the bond to the reference, above 0.
        desirable_weight: weight of the good completions (lambda_D), above 0.
        undesirable_weight: weight of the bad ones (lambda_U). The paper (equation 8) asks that the weighted numbers of
            good and bad completions stand between 1:1 and 4:3.
        desirable_share: share of good completions in the whole optimizer step, which makes the metrics exact for any
            cut into micro-batches; None if this is the whole step.

    Returns:
        Mean loss, and `kl` (z0), `rewards/accuracies` (share of the completions on their label's side of z0). Where
        the step has such completions also `rewards/chosen`, `logprobs/chosen` (means over the good ones),
        `rewards/rejected`, `logprobs/rejected` (over the bad ones) and `rewards/margins` (with both).

    Raises:
        ShapeError: if the shapes do not fit or there is no example.
        ValueError: if a number is out of its range.
    """
    check_pairs(logprobs=logprobs, ref_logprobs=ref_logprobs, desirable_mask=desirable_mask)
    check_shapes("", baseline=baseline)
    if desirable_mask.dtype != torch.bool:
        raise ShapeError(f"desirable_mask must be bool, got {desirable_mask.dtype}")
    if min(beta, desirable_weight, undesirable_weight) <= 0.0:
        raise ValueError(f"beta and weights must be above 0: {beta}, {desirable_weight}, {undesirable_weight}")
    if desirable_share is None:
        desirable_share = float(desirable_mask.float().mean())
    if not 0.0 <= desirable_share <= 1.0:
        raise ValueError(f"desirable_share must be in 0..1, got {desirable_share}")
    log_ratio = logprobs.float() - ref_logprobs.detach().float()
    side = torch.where(desirable_mask, 1.0, -1.0)
    ahead = side * (log_ratio - baseline.detach().float())
    weight = torch.where(desirable_mask, desirable_weight, undesirable_weight)
    # 1 - s(h) = s(-h), which does not round to 0 while s(h) still rounds to 1
    loss = (weight * torch.sigmoid(-beta * ahead)).mean()

    metrics = {"kl": baseline.detach().float(), "rewards/accuracies": (ahead.detach() > 0).float().mean()}
    for name, mask, share in (
        ("chosen", desirable_mask, desirable_share),
        ("rejected", ~desirable_mask, 1.0 - desirable_share),
    ):
        if share > 0.0:
            # the sum over this batch's part, scaled so that parts weighted by their share of examples add to the mean
            scale = 1.0 / (share * logprobs.shape[0])
            metrics[f"rewards/{name}"] = beta * masked_sum(values=log_ratio.detach(), mask=mask) * scale
            metrics[f"logprobs/{name}"] = masked_sum(values=logprobs.detach().float(), mask=mask) * scale
    if 0.0 < desirable_share < 1.0:
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    return LossOutput(loss=loss, metrics=metrics)
