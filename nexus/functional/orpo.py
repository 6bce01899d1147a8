"""Odds-ratio preference optimization: learn the chosen completion and push the odds apart, without a reference.

Signatures:
    orpo_loss(*, chosen_logprobs, rejected_logprobs, chosen_lengths, rejected_lengths, beta,
              mean_chosen_length=None) -> LossOutput
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nexus.functional.preference import check_lengths, check_pairs, pair_metrics
from nexus.types import LossOutput


def log_odds(*, mean_logprobs: Tensor) -> Tensor:
    """`log(p / (1 - p))` of a probability given by its logarithm; equation 4 of arXiv 2403.07691.

    A probability of 1 has infinite odds; it is taken for 1 - 2^-23, the largest that float32 tells from 1, where the
    log-odds are 15.9 and no longer have a gradient.

    Args:
        mean_logprobs: [B] logarithm of p, at most 0.

    Returns:
        [B] float32.
    """
    logprobs = mean_logprobs.float().clamp(max=-torch.finfo(torch.float32).eps)
    # log(1 - e^x) as log(-expm1(x)): exact near 0; far below it the absolute error is under 1e-7
    return logprobs - torch.log(-torch.expm1(logprobs))


def orpo_loss(
    *,
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    mean_chosen_length: float | None = None,
) -> LossOutput:
    """`NLL(y_w) - beta * log s(log odds(y_w) - log odds(y_l))`, equations 6 and 7 of arXiv 2403.07691.

    Probabilities are those of the mean token (equation 3). The likelihood counts completion tokens only; TRL and the
    authors' code also count the prompt's. The unit is the pair, also for the likelihood: see `mean_chosen_length`.

    Example: mean log-probabilities log(1/2) and log(1/4) have odds 1 and 1/3; with beta 1 the loss is
    `log 2 - log s(log 3)` = 0.6931 + 0.2877.

    Args:
        chosen_logprobs: [B] summed log-probability of each chosen completion under the policy.
        rejected_logprobs: [B] of each rejected completion.
        chosen_lengths: [B] tokens of each chosen completion.
        rejected_lengths: [B] tokens of each rejected completion.
        beta: weight of the odds-ratio term (lambda in the paper), at least 0.
        mean_chosen_length: None gives every pair the same weight in the likelihood (the mean over its own tokens).
            The chosen tokens of the whole step divided by its pairs make it the mean over the step's tokens, as in TRL,
            for any cut into micro-batches.

    Returns:
        Mean loss, the metrics of `pair_metrics` (rewards are beta times the mean log-probabilities), and `loss/nll`,
        `loss/odds_ratio`, `log_odds_ratio` (mean difference of the log-odds).

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
    if beta < 0.0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    if mean_chosen_length is not None and mean_chosen_length <= 0.0:
        raise ValueError(f"mean_chosen_length must be above 0, got {mean_chosen_length}")
    chosen = chosen_logprobs.float() / chosen_lengths
    rejected = rejected_logprobs.float() / rejected_lengths
    nll = -chosen if mean_chosen_length is None else -chosen_logprobs.float() / mean_chosen_length
    difference = log_odds(mean_logprobs=chosen) - log_odds(mean_logprobs=rejected)
    odds_ratio = -logsigmoid(difference)
    metrics = pair_metrics(
        chosen_rewards=beta * chosen,
        rejected_rewards=beta * rejected,
        chosen_logprobs=chosen_logprobs,
        rejected_logprobs=rejected_logprobs,
    )
    metrics |= {
        "loss/nll": nll.detach().mean(),
        "loss/odds_ratio": odds_ratio.detach().mean(),
        "log_odds_ratio": difference.detach().mean(),
    }
    return LossOutput(loss=(nll + beta * odds_ratio).mean(), metrics=metrics)
