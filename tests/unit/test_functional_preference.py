"""Losses on preferences: values by hand, a slow second implementation with gradients, and the known limits."""

from __future__ import annotations

import math

import pytest
import torch

from nexus.functional.dpo import DPOForm, dpo_loss
from nexus.functional.kto import kto_baseline, kto_loss
from nexus.functional.orpo import log_odds, orpo_loss
from nexus.functional.shapes import ShapeError
from nexus.functional.simpo import simpo_loss


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values)


# one pair with log-ratios 0.2 and -0.3, that is a margin of 0.5
PAIR = {
    "chosen_logprobs": t(-1.0),
    "ref_chosen_logprobs": t(-1.2),
    "rejected_logprobs": t(-2.3),
    "ref_rejected_logprobs": t(-2.0),
}


@pytest.mark.parametrize(
    ("form", "beta", "label_smoothing", "expected"),
    [
        (DPOForm.SIGMOID, 2.0, 0.0, 0.3132617),  # log(1 + e^-1)
        (DPOForm.CONSERVATIVE, 2.0, 0.1, 0.4132617),  # 0.9 * 0.3132617 + 0.1 * 1.3132617
        (DPOForm.ROBUST, 2.0, 0.1, 0.1882617),  # (0.9 * 0.3132617 - 0.1 * 1.3132617) / 0.8
        (DPOForm.HINGE, 1.0, 0.0, 0.5),
        (DPOForm.HINGE, 3.0, 0.0, 0.0),
        (DPOForm.IPO, 2.0, 0.0, 0.0625),  # (0.5 - 1/4)^2
    ],
)
def test_dpo_by_hand(form, beta, label_smoothing, expected):
    output = dpo_loss(**PAIR, form=form, beta=beta, label_smoothing=label_smoothing)
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)
    assert output.metrics["rewards/chosen"].item() == pytest.approx(0.2 * beta, abs=1e-6)
    assert output.metrics["rewards/rejected"].item() == pytest.approx(-0.3 * beta, abs=1e-6)
    assert output.metrics["rewards/margins"].item() == pytest.approx(0.5 * beta, abs=1e-6)
    assert output.metrics["rewards/accuracies"].item() == 1.0
    assert output.metrics["logprobs/chosen"].item() == -1.0
    assert output.metrics["logprobs/rejected"].item() == pytest.approx(-2.3)


def test_dpo_by_length_by_hand():
    lengths = {"chosen_lengths": torch.tensor([2]), "rejected_lengths": torch.tensor([3])}
    # 0.2 / 2 - (-0.3 / 3) = 0.2, times beta 2
    output = dpo_loss(**PAIR, **lengths, form=DPOForm.SIGMOID, beta=2.0, label_smoothing=0.0)
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-0.4)), abs=1e-6)
    assert output.metrics["rewards/margins"].item() == pytest.approx(0.4, abs=1e-6)


def slow_dpo(chosen, rejected, form, beta, e, lengths=None):
    """One pair at a time in double precision, with probabilities instead of their logarithms."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(chosen)):
        a, b = chosen[i], rejected[i]
        if lengths is not None:
            a, b = a / lengths[0][i], b / lengths[1][i]
        right = torch.exp(beta * a) / (torch.exp(beta * a) + torch.exp(beta * b))
        if form is DPOForm.SIGMOID:
            total = total - torch.log(right)
        elif form is DPOForm.CONSERVATIVE:
            total = total - (1 - e) * torch.log(right) - e * torch.log(1 - right)
        elif form is DPOForm.ROBUST:
            total = total - (1 - e) / (1 - 2 * e) * torch.log(right) + e / (1 - 2 * e) * torch.log(1 - right)
        elif form is DPOForm.HINGE:
            total = total + max(1 - beta * (a - b), torch.zeros_like(total))
        else:
            total = total + (a - b - 1 / (2 * beta)) ** 2
    return total / len(chosen)


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("form", list(DPOForm))
def test_dpo_equals_a_loop_with_gradients(form, by_length):
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(4, 8, generator=generator) * 2 - 5
    lengths = torch.randint(1, 5, (2, 8), generator=generator)
    smoothing = 0.15 if form in (DPOForm.CONSERVATIVE, DPOForm.ROBUST) else 0.0
    slow_inputs = [row.double().requires_grad_() for row in values]
    expected = slow_dpo(
        slow_inputs[0] - slow_inputs[1],
        slow_inputs[2] - slow_inputs[3],
        form,
        0.7,
        smoothing,
        lengths if by_length else None,
    )
    expected.backward()
    inputs = [row.clone().requires_grad_() for row in values]
    names = ["chosen_logprobs", "ref_chosen_logprobs", "rejected_logprobs", "ref_rejected_logprobs"]
    extra = {"chosen_lengths": lengths[0], "rejected_lengths": lengths[1]} if by_length else {}
    output = dpo_loss(**dict(zip(names, inputs, strict=True)), **extra, form=form, beta=0.7, label_smoothing=smoothing)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for index in (0, 2):
        assert torch.allclose(inputs[index].grad.double(), slow_inputs[index].grad, rtol=1e-4, atol=1e-6)
    assert inputs[1].grad is None  # the reference is not trained
    assert inputs[3].grad is None


def test_policy_equal_to_reference_gives_log_2_and_half_of_beta():
    chosen = t(-3.0, -7.0).requires_grad_()
    rejected = t(-4.0, -1.0).requires_grad_()
    output = dpo_loss(
        chosen_logprobs=chosen,
        rejected_logprobs=rejected,
        ref_chosen_logprobs=chosen.detach(),
        ref_rejected_logprobs=rejected.detach(),
        form=DPOForm.SIGMOID,
        beta=0.3,
        label_smoothing=0.0,
    )
    output.loss.backward()
    assert output.loss.item() == pytest.approx(math.log(2.0))
    assert torch.allclose(chosen.grad, t(-0.075, -0.075))  # -beta * s(0) / B
    assert torch.allclose(rejected.grad, t(0.075, 0.075))
    assert output.metrics["rewards/accuracies"].item() == 0.0  # a tie is not accurate


def test_beta_to_zero_gives_log_2():
    output = dpo_loss(**PAIR, form=DPOForm.SIGMOID, beta=1e-7, label_smoothing=0.0)
    assert output.loss.item() == pytest.approx(math.log(2.0), abs=1e-6)


def test_robust_is_unbiased_and_conservative_has_a_target():
    """What tells the smoothed forms apart: rDPO corrects flipped labels on average, cDPO asks for a finite margin."""
    flipped = {
        "chosen_logprobs": PAIR["rejected_logprobs"],
        "ref_chosen_logprobs": PAIR["ref_rejected_logprobs"],
        "rejected_logprobs": PAIR["chosen_logprobs"],
        "ref_rejected_logprobs": PAIR["ref_chosen_logprobs"],
    }

    def value(pair, form, e):
        return dpo_loss(**pair, form=form, beta=2.0, label_smoothing=e).loss.item()

    for e in (0.05, 0.3):
        mean = (1 - e) * value(PAIR, DPOForm.ROBUST, e) + e * value(flipped, DPOForm.ROBUST, e)
        assert mean == pytest.approx(value(PAIR, DPOForm.SIGMOID, 0.0), abs=1e-5)
        assert value(PAIR, DPOForm.ROBUST, e) < value(PAIR, DPOForm.SIGMOID, 0.0) < value(PAIR, DPOForm.CONSERVATIVE, e)
        margin = t(math.log((1 - e) / e) / 2.0).requires_grad_()
        zero = torch.zeros(1)
        dpo_loss(
            chosen_logprobs=margin,
            rejected_logprobs=zero,
            ref_chosen_logprobs=zero,
            ref_rejected_logprobs=zero,
            form=DPOForm.CONSERVATIVE,
            beta=2.0,
            label_smoothing=e,
        ).loss.backward()
        assert margin.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_hinge_beyond_its_margin_and_ipo_at_its_target_have_no_gradient():
    for form, chosen in ((DPOForm.HINGE, 3.1), (DPOForm.IPO, 1.5)):
        leaf = t(chosen).requires_grad_()
        zero = torch.zeros(1)
        pair = {"rejected_logprobs": zero, "ref_chosen_logprobs": zero, "ref_rejected_logprobs": zero}
        dpo_loss(chosen_logprobs=leaf, **pair, form=form, beta=1 / 3, label_smoothing=0.0).loss.backward()
        assert leaf.grad.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"label_smoothing": 0.5}, "below 0.5"),
        ({"label_smoothing": 0.1}, "no meaning for sigmoid"),
        ({"chosen_lengths": torch.tensor([2])}, "both completions or of none"),
    ],
)
def test_dpo_refuses_wrong_numbers(changes, message):
    settings = {"form": DPOForm.SIGMOID, "beta": 0.1, "label_smoothing": 0.0} | changes
    with pytest.raises(ValueError, match=message):
        dpo_loss(**PAIR, **settings)


def test_completions_without_tokens_and_no_pairs_are_refused():
    settings = {"form": DPOForm.SIGMOID, "beta": 0.1, "label_smoothing": 0.0}
    with pytest.raises(ShapeError, match="rejected_lengths must be at least 1"):
        dpo_loss(**PAIR, chosen_lengths=torch.tensor([1]), rejected_lengths=torch.tensor([0]), **settings)
    with pytest.raises(ShapeError, match="there is no pair"):
        dpo_loss(**{name: value[:0] for name, value in PAIR.items()}, **settings)
    with pytest.raises(ShapeError, match="rejected_logprobs must be"):
        dpo_loss(**(PAIR | {"rejected_logprobs": t(-1.0, -2.0)}), **settings)


def test_log_odds_by_hand_and_at_the_ends():
    values = log_odds(mean_logprobs=torch.tensor([0.5, 0.25, 0.9]).log())
    assert torch.allclose(values, t(0.0, math.log(1 / 3), math.log(9.0)), atol=1e-6)
    ends = t(0.0, -1e-9, -1e4).requires_grad_()
    result = log_odds(mean_logprobs=ends)
    assert result.tolist() == pytest.approx([15.9424, 15.9424, -1e4], rel=1e-4)
    result.sum().backward()
    assert torch.isfinite(ends.grad).all()


def orpo_inputs():
    return {
        "chosen_logprobs": t(2 * math.log(0.5), 3 * math.log(0.5)),
        "rejected_logprobs": t(math.log(0.25), 4 * math.log(0.25)),
        "chosen_lengths": torch.tensor([2, 3]),
        "rejected_lengths": torch.tensor([1, 4]),
    }


def test_orpo_by_hand():
    # odds 1 and 1/3 in both pairs: log 2 + beta * -log s(log 3), and s(log 3) = 3/4
    output = orpo_loss(**orpo_inputs(), beta=0.5)
    assert output.loss.item() == pytest.approx(math.log(2) + 0.5 * math.log(4 / 3), abs=1e-6)
    assert output.metrics["loss/nll"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert output.metrics["loss/odds_ratio"].item() == pytest.approx(math.log(4 / 3), abs=1e-6)
    assert output.metrics["log_odds_ratio"].item() == pytest.approx(math.log(3), abs=1e-6)
    assert output.metrics["rewards/margins"].item() == pytest.approx(0.5 * math.log(2), abs=1e-6)
    assert output.metrics["rewards/accuracies"].item() == 1.0
    # beta 0 is supervised learning of the chosen; with 5 tokens in 2 pairs, the mean over tokens
    inputs = orpo_inputs() | {"chosen_logprobs": t(-4.0, -3.0)}
    assert orpo_loss(**inputs, beta=0.0).loss.item() == pytest.approx((2.0 + 1.0) / 2)
    assert orpo_loss(**inputs, beta=0.0, mean_chosen_length=2.5).loss.item() == pytest.approx(7.0 / 5)


def test_simpo_by_hand():
    inputs = {
        "chosen_logprobs": t(-3.0),
        "rejected_logprobs": t(-8.0),
        "chosen_lengths": torch.tensor([3]),
        "rejected_lengths": torch.tensor([4]),
    }
    # 2 * (-1 - -2) - 0.5 = 1.5
    output = simpo_loss(**inputs, beta=2.0, gamma=0.5)
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-1.5)), abs=1e-6)
    assert output.metrics["rewards/margins"].item() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        simpo_loss(**inputs, beta=2.0, gamma=-0.1)
    with pytest.raises(ShapeError, match="chosen_lengths must be at least 1"):
        simpo_loss(**(inputs | {"chosen_lengths": torch.tensor([0])}), beta=2.0, gamma=0.5)


@pytest.mark.parametrize("name", ["orpo", "simpo"])
def test_reference_free_losses_equal_a_loop_with_gradients(name):
    generator = torch.Generator().manual_seed(6)
    chosen, rejected = -torch.rand(2, 7, generator=generator) * 9 - 0.5
    lengths = torch.randint(1, 6, (2, 7), generator=generator)
    slow = [chosen.double().requires_grad_(), rejected.double().requires_grad_()]
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(7):
        means = [slow[side][i] / lengths[side][i] for side in (0, 1)]
        if name == "orpo":
            p, q = (torch.exp(mean) for mean in means)
            odds_ratio = (p / (1 - p)) / (q / (1 - q))
            expected = expected - means[0] - 0.4 * torch.log(odds_ratio / (1 + odds_ratio))
        else:
            expected = expected + torch.log(1 + torch.exp(-(3.0 * (means[0] - means[1]) - 0.8)))
    (expected / 7).backward()
    fast = [chosen.clone().requires_grad_(), rejected.clone().requires_grad_()]
    inputs = {
        "chosen_logprobs": fast[0],
        "rejected_logprobs": fast[1],
        "chosen_lengths": lengths[0],
        "rejected_lengths": lengths[1],
    }
    output = orpo_loss(**inputs, beta=0.4) if name == "orpo" else simpo_loss(**inputs, beta=3.0, gamma=0.8)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected.item() / 7, rel=1e-5)
    for mine, other in zip(fast, slow, strict=True):
        assert torch.allclose(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-6)


def test_kto_by_hand_and_as_a_loop():
    assert kto_baseline(mismatched_logprobs=t(-1.0, -4.0), ref_mismatched_logprobs=t(-2.0, -4.0)).item() == 0.5
    assert kto_baseline(mismatched_logprobs=t(-3.0, -4.0), ref_mismatched_logprobs=t(-2.0, -4.0)).item() == 0.0
    logprobs = t(-1.0, -2.0, -3.0).requires_grad_()
    output = kto_loss(
        logprobs=logprobs,
        ref_logprobs=t(-2.0, -2.0, -5.0),
        desirable_mask=torch.tensor([True, True, False]),
        baseline=torch.tensor(0.5),
        beta=2.0,
        desirable_weight=1.0,
        undesirable_weight=3.0,
    )

    def s(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    # r = 1, 0 (good) and 2 (bad): beta (r - z0) = 1, -1, and beta (z0 - r) = -3
    values = [1 - s(1.0), 1 - s(-1.0), 3 * (1 - s(-3.0))]
    assert output.loss.item() == pytest.approx(sum(values) / 3, abs=1e-6)
    assert {name: round(value.item(), 5) for name, value in output.metrics.items()} == {
        "kl": 0.5,
        "rewards/accuracies": round(1 / 3, 5),
        "rewards/chosen": 1.0,  # 2 * (1 + 0) / 2
        "logprobs/chosen": -1.5,
        "rewards/rejected": 4.0,
        "logprobs/rejected": -3.0,
        "rewards/margins": -3.0,
    }
    output.loss.backward()
    slopes = [-s(1.0) * s(-1.0), -s(1.0) * s(-1.0), 3 * s(3.0) * s(-3.0)]
    assert torch.allclose(logprobs.grad, 2.0 / 3 * torch.tensor(slopes), atol=1e-6)


def test_kto_refuses_wrong_inputs():
    inputs = {
        "logprobs": t(-1.0),
        "ref_logprobs": t(-1.0),
        "desirable_mask": torch.tensor([True]),
        "baseline": torch.tensor(0.0),
        "beta": 0.1,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
    }
    assert kto_loss(**inputs).loss.item() == pytest.approx(0.5)
    assert "rewards/rejected" not in kto_loss(**inputs).metrics  # nothing to take a mean of
    for changes, error in (
        ({"desirable_mask": torch.tensor([1])}, ShapeError),
        ({"baseline": torch.zeros(1)}, ShapeError),
        ({"undesirable_weight": 0.0}, ValueError),
        ({"desirable_share": 1.2}, ValueError),
    ):
        with pytest.raises(error):
            kto_loss(**(inputs | changes))
    with pytest.raises(ShapeError):
        kto_baseline(mismatched_logprobs=t(), ref_mismatched_logprobs=t())
