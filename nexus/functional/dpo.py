"""Direct preference optimization and the losses of its kind: a function of one number per pair.

That number is the margin by which the policy, more than its reference, prefers the chosen completion:
`(log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l))`.

Signatures:
    dpo_loss(*, chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, form, beta,
             label_smoothing, chosen_lengths=None, rejected_lengths=None) -> LossOutput
    with_imitation(*, output, chosen_logprobs, chosen_lengths, weight) -> LossOutput
"""

from __future__ import annotations

from enum import StrEnum

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from nexus.functional.preference import check_lengths, check_pairs, pair_metrics
from nexus.functional.shapes import check_shapes
from nexus.types import LossOutput


class DPOForm(StrEnum):
    """What is done with the margin h (beta * margin, but for IPO).

    SIGMOID: `-log s(h)`, equation 7 of arXiv 2305.18290.
    CONSERVATIVE: `-(1 - e) log s(h) - e log s(-h)`, cDPO: equation 3 of Mitchell, "A note on DPO with noisy
        preferences" (2023). The label is believed with probability 1 - e, so the margin is driven to a finite
        `log((1 - e) / e)`.
    ROBUST: `(-(1 - e) log s(h) + e log s(-h)) / (1 - 2 e)`, rDPO of arXiv 2403.00409. Its mean over labels flipped
        with probability e is the sigmoid loss on the true labels; it may be negative.
    HINGE: `max(0, 1 - h)`, SLiC's calibration loss (arXiv 2305.10425) on DPO's margin; flat beyond 1.
    IPO: `(margin - 1 / (2 beta))^2`, equation 17 of arXiv 2310.12036 (their tau is beta); the margin has a target.
    """

    SIGMOID = "sigmoid"
    CONSERVATIVE = "conservative"
    ROBUST = "robust"
    HINGE = "hinge"
    IPO = "ipo"


def dpo_loss(
    *,
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    form: DPOForm,
    beta: float,
    label_smoothing: float,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> LossOutput:
    """Mean over the pairs of one of the forms of `DPOForm`.

    With lengths, each log-ratio is divided by the tokens of its completion before the two are compared. TRL calls that
    `sigmoid_norm` with the sigmoid form and always does it for IPO (its authors normalize, though the paper's formula
    does not); here it is the caller's choice for every form.

    Example: log-ratios 0.2 and -0.3 with beta 2 give h = 1 and a sigmoid loss of `log(1 + e^-1)` = 0.3133.

    The unit is the pair: with `loss_scale` the share of the step's pairs, any cut of a step gives the same sum.

    Args:
        chosen_logprobs: [B] summed log-probability of each chosen completion under the policy.
        rejected_logprobs: [B] of each rejected completion.
        ref_chosen_logprobs: [B] of each chosen completion under the reference; no gradient flows into it.
        ref_rejected_logprobs: [B] of each rejected completion under the reference.
        form: the function of the margin.
        beta: strength of the bond to the reference, above 0; for IPO the margin's target is `1 / (2 beta)`.
        label_smoothing: e, the believed share of flipped labels: 0 to below 0.5; 0 unless conservative or robust.
        chosen_lengths: [B] tokens of each chosen completion; None compares sums.
        rejected_lengths: [B]; given if and only if `chosen_lengths` is.

    Returns:
        Mean loss, and the metrics of `pair_metrics`: rewards are beta times the log-ratios as the loss compares them.

    Raises:
        ShapeError: if the shapes do not fit, there is no pair, or a completion has no token.
        ValueError: if a number is out of its range or one of the lengths is missing.
    """
    check_pairs(
        chosen_logprobs=chosen_logprobs,
        rejected_logprobs=rejected_logprobs,
        ref_chosen_logprobs=ref_chosen_logprobs,
        ref_rejected_logprobs=ref_rejected_logprobs,
    )
    _check_numbers(form, beta, label_smoothing)
    chosen = chosen_logprobs.float() - ref_chosen_logprobs.detach().float()
    rejected = rejected_logprobs.float() - ref_rejected_logprobs.detach().float()
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError("give the lengths of both completions or of none")
    if chosen_lengths is not None and rejected_lengths is not None:
        check_shapes("B", chosen_logprobs=chosen, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
        check_lengths(chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
        chosen, rejected = chosen / chosen_lengths, rejected / rejected_lengths
    losses = _of_margin(chosen - rejected, form, beta, label_smoothing)
    return LossOutput(
        loss=losses.mean(),
        metrics=pair_metrics(
            chosen_rewards=beta * chosen,
            rejected_rewards=beta * rejected,
            chosen_logprobs=chosen_logprobs,
            rejected_logprobs=rejected_logprobs,
        ),
    )


def with_imitation(*, output: LossOutput, chosen_logprobs: Tensor, chosen_lengths: Tensor, weight: float) -> LossOutput:
    """Add `weight * -log pi(y_w) / |y_w|`, mean over the pairs: the term of arXiv 2404.19733, section 2.

    A margin can grow while both completions become less likely; this term holds the chosen one up. Every pair has the
    same weight, as in the paper. TRL (`loss_type=[sigmoid, sft]`) takes the mean over the chosen tokens of a
    micro-batch, which is the same for one pair or equal lengths, and depends on the cut otherwise.

    Example: a chosen completion of 2 tokens and log-probability -3 adds 1.5 with weight 1.

    Args:
        output: of `dpo_loss` on the same pairs.
        chosen_logprobs: [B] summed log-probability of each chosen completion under the policy.
        chosen_lengths: [B] tokens of each chosen completion.
        weight: of the term, above 0.

    Returns:
        The loss with the term, and beside the metrics `loss/nll`, the term before it is weighted.

    Raises:
        ShapeError: if the shapes differ, there is no pair, or a completion has no token.
        ValueError: if the weight is not above 0.
    """
    check_pairs(chosen_logprobs=chosen_logprobs, chosen_lengths=chosen_lengths)
    check_lengths(chosen_lengths=chosen_lengths)
    if weight <= 0.0:
        raise ValueError(f"weight must be above 0, got {weight}")
    nll = -(chosen_logprobs.float() / chosen_lengths).mean()
    return LossOutput(loss=output.loss + weight * nll, metrics=output.metrics | {"loss/nll": nll.detach()})


def _of_margin(margin: Tensor, form: DPOForm, beta: float, e: float) -> Tensor:
    """[B] losses of [B] margins; the formulas stand at `DPOForm`."""
    h = beta * margin
    match form:
        case DPOForm.SIGMOID:
            return -logsigmoid(h)
        case DPOForm.CONSERVATIVE:
            return -(1.0 - e) * logsigmoid(h) - e * logsigmoid(-h)
        case DPOForm.ROBUST:
            return (-(1.0 - e) * logsigmoid(h) + e * logsigmoid(-h)) / (1.0 - 2.0 * e)
        case DPOForm.HINGE:
            return relu(1.0 - h)
        case DPOForm.IPO:
            return (margin - 1.0 / (2.0 * beta)).square()


def _check_numbers(form: DPOForm, beta: float, label_smoothing: float) -> None:
    if beta <= 0.0:
        raise ValueError(f"beta must be above 0, got {beta}")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")
    if label_smoothing and form not in (DPOForm.CONSERVATIVE, DPOForm.ROBUST):
        raise ValueError(f"label_smoothing={label_smoothing} has no meaning for {form}: use conservative or robust")
