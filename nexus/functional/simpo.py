"""Simple preference optimization: the mean log-probability is the reward, a margin is asked for, no reference.

Signatures:
    simpo_loss(*, chosen_logprobs, rejected_logprobs, chosen_lengths, rejected_lengths, beta, gamma) -> LossOutput
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from nexus.functional.preference import check_lengths, check_pairs, pair_metrics
from nexus.types import LossOutput


def simpo_loss(
    *,
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    gamma: float,
) -> LossOutput:
    """`-log s(beta * (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - gamma)`, equation 6 of arXiv 2405.14734.

    Example: mean log-probabilities -1 and -2 with beta 2 and gamma 0.5 give `-log s(1.5)` = 0.2014.

    The unit is the pair: with `loss_scale` the share of the step's pairs, any cut of a step gives the same sum.

    Args:
        chosen_logprobs: [B] summed log-probability of each chosen completion under the policy.
        rejected_logprobs: [B] of each rejected completion.
        chosen_lengths: [B] tokens of each chosen completion.
        rejected_lengths: [B] tokens of each rejected completion.
        beta: scale of the reward, above 0 (2 to 10 in the paper).
        gamma: margin between the rewards that is asked for, at least 0; a margin on `beta * ...`, not a share of beta.

    Returns:
        Mean loss and the metrics of `pair_metrics`; rewards are beta times the mean log-probabilities, and
        `rewards/accuracies` does not ask for the margin.

    Raises:
        ShapeError: if the shapes do not fit, there is no pair, or a completion has no token.
        ValueError: if a number is out of its range.
    """
    check_pairs(
        chosen_logprobs=chosen_logprobs,
        rejected_logprobs=rejected_logprobs,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    check_lengths(chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    if beta <= 0.0:
        raise ValueError(f"beta must be above 0, got {beta}")
    if gamma < 0.0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")
    chosen = beta * chosen_logprobs.float() / chosen_lengths
    rejected = beta * rejected_logprobs.float() / rejected_lengths
    return LossOutput(
        loss=-logsigmoid(chosen - rejected - gamma).mean(),
        metrics=pair_metrics(
            chosen_rewards=chosen,
            rejected_rewards=rejected,
            chosen_logprobs=chosen_logprobs,
            rejected_logprobs=rejected_logprobs,
        ),
    )
