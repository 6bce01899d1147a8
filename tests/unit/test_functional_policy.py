"""Advantages, divergence estimates and the GRPO family: values by hand, slow loops with gradients, known limits."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from nexus.functional.advantages import (
    AdvantageScale,
    equal_groups,
    generalized_advantages,
    group_advantages,
    leave_one_out_advantages,
    reward_metrics,
    whiten,
)
from nexus.functional.grpo import dapo_loss, dr_grpo_loss, grpo_loss, gspo_loss, rloo_loss
from nexus.functional.kl import KLEstimator, penalized_scores, penalized_token_rewards, sampled_kl
from nexus.functional.masking import check_mask, sum_by_row
from nexus.functional.shapes import ShapeError


def t(*values) -> torch.Tensor:
    return torch.tensor(values)


def b(*rows: str) -> torch.Tensor:
    """A mask from rows such as "110"."""
    return torch.tensor([[c == "1" for c in row] for row in rows])


# --- masks and flat tokens


def test_flat_values_are_summed_by_row():
    values = t(1.0, 2.0, 4.0).requires_grad_()
    sums = sum_by_row(values=values, rows=torch.tensor([0, 0, 2]), num_rows=3)
    assert sums.tolist() == [3.0, 0.0, 4.0]
    (sums * t(1.0, 5.0, 7.0)).sum().backward()
    assert values.grad.tolist() == [1.0, 1.0, 7.0]


def test_masks_without_a_meaning_are_refused():
    check_mask(completion_mask=b("01", "10"))
    with pytest.raises(ShapeError, match="row 1 of completion_mask has no position"):
        check_mask(completion_mask=b("01", "00", "11"))
    with pytest.raises(ShapeError, match="must be bool"):
        check_mask(completion_mask=t([1, 0]))
    with pytest.raises(ShapeError, match="no rows"):
        check_mask(completion_mask=b("01")[:0])


# --- advantages


def test_group_advantages_by_hand():
    rewards = t(0.0, 1.0, 5.0, 5.0)
    assert group_advantages(rewards=rewards, num_generations=2, scale=AdvantageScale.NONE).tolist() == [-0.5, 0.5, 0, 0]
    scaled = group_advantages(rewards=rewards, num_generations=2, scale=AdvantageScale.GROUP)
    assert scaled.tolist() == pytest.approx([-0.70701, 0.70701, 0.0, 0.0], abs=1e-5)  # 0.5 / (0.70711 + 1e-4)
    assert leave_one_out_advantages(rewards=t(0.0, 0.0, 3.0), num_generations=3).tolist() == [-1.5, -1.5, 3.0]


def test_group_advantages_equal_pandas():
    rewards = torch.rand(24, generator=torch.Generator().manual_seed(3))
    frame = pd.DataFrame({"reward": rewards.double().numpy(), "prompt": [i // 6 for i in range(24)]})
    groups = frame.groupby("prompt").reward
    centered = frame.reward - groups.transform("mean")
    for scale, expected in {
        AdvantageScale.NONE: centered,
        AdvantageScale.GROUP: centered / (groups.transform("std") + 1e-4),
        AdvantageScale.BATCH: centered / (frame.reward.std() + 1e-4),
    }.items():
        ours = group_advantages(rewards=rewards, num_generations=6, scale=scale)
        assert ours.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    others = (groups.transform("sum") - frame.reward) / 5
    ours = leave_one_out_advantages(rewards=rewards, num_generations=6)
    assert ours.tolist() == pytest.approx((frame.reward - others).tolist(), abs=1e-5)
    metrics = reward_metrics(rewards=rewards, num_generations=6)
    assert metrics["reward/mean"].item() == pytest.approx(frame.reward.mean(), abs=1e-6)
    assert metrics["reward/std"].item() == pytest.approx(frame.reward.std(), abs=1e-6)
    assert metrics["reward/group_std"].item() == pytest.approx(groups.std().mean(), abs=1e-6)
    assert metrics["reward/frac_zero_std"].item() == 0.0


def test_equal_rewards_have_exactly_no_advantage_and_are_counted():
    rewards = t([0.1] * 8, [0.1] * 7 + [0.7], [0.3] * 8)
    rounded = rewards.mean(1) - rewards[:, 0]
    assert (rounded[[0, 2]] != 0).all()  # in float32, the mean of eight times 0.1 is not 0.1
    rewards = rewards.flatten()
    assert equal_groups(rewards=rewards, num_generations=8).tolist() == [True, False, True]
    assert reward_metrics(rewards=rewards, num_generations=8)["reward/frac_zero_std"].item() == pytest.approx(2 / 3)
    for advantages in (
        *(group_advantages(rewards=rewards, num_generations=8, scale=scale) for scale in AdvantageScale),
        leave_one_out_advantages(rewards=rewards, num_generations=8),
    ):
        first, unequal, last = advantages.view(3, 8)
        assert first.tolist() == last.tolist() == [0.0] * 8
        assert (unequal != 0).all()


def test_wrong_rewards_are_refused():
    with pytest.raises(ShapeError, match="whole groups of 3"):
        equal_groups(rewards=t(1.0, 2.0), num_generations=3)
    with pytest.raises(ValueError, match="at least 2 answers"):
        leave_one_out_advantages(rewards=t(1.0, 2.0), num_generations=1)
    with pytest.raises(ValueError, match=r"1 are not, first rewards\[1\] = nan"):
        equal_groups(rewards=t(1.0, math.nan), num_generations=2)


def test_generalized_advantages_by_hand():
    result = generalized_advantages(
        rewards=t([0.0, 1.0]), values=t([0.5, 0.25]), completion_mask=b("11"), gamma=1.0, gae_lambda=0.5
    )
    assert result.advantages.tolist() == [[0.125, 0.75]]
    assert result.returns.tolist() == [[0.625, 1.0]]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 1.0), (0.9, 0.7), (1.0, 0.0), (0.0, 1.0)])
def test_generalized_advantages_equal_the_sum_over_the_future(gamma, gae_lambda):
    """The definition, `A_t = sum over l of (gamma lambda)^l delta_(t+l)`, over the sampled tokens alone."""
    generator = torch.Generator().manual_seed(8)
    mask = b("1111111", "1000000", "0110011", "0000001")  # right-padded, one token, with a tool's answer, left-padded
    rewards, values = torch.randn(2, 4, 7, generator=generator)
    result = generalized_advantages(
        rewards=rewards.masked_fill(~mask, math.nan),
        values=values.masked_fill(~mask, math.nan),
        completion_mask=mask,
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    for row in range(4):
        where = [i for i in range(7) if mask[row, i]]
        r, v = ([float(x[row, i]) for i in where] for x in (rewards, values))
        deltas = [r[i] + gamma * (v[i + 1] if i + 1 < len(v) else 0.0) - v[i] for i in range(len(v))]
        for i, position in enumerate(where):
            expected = sum((gamma * gae_lambda) ** k * delta for k, delta in enumerate(deltas[i:]))
            assert result.advantages[row, position].item() == pytest.approx(expected, abs=1e-5)
            assert result.returns[row, position].item() == pytest.approx(expected + v[i], abs=1e-5)
        outside = [i for i in range(7) if not mask[row, i]]
        assert result.advantages[row, outside].tolist() == [0.0] * len(outside)
        assert result.returns[row, outside].tolist() == [0.0] * len(outside)


def test_whiten_equals_torch_on_what_counts():
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) * 4 + 2
    mask = b("11100", "10000", "11111")
    values = values.masked_fill(~mask, math.nan)
    white = whiten(values=values, mask=mask, shift_mean=True)
    kept = values[mask]
    assert torch.allclose(white[mask], (kept - kept.mean()) / kept.std(), atol=1e-5)
    assert (white[~mask] == 0).all()
    assert torch.allclose(
        whiten(values=values, mask=mask, shift_mean=False)[mask], white[mask] + kept.mean(), atol=1e-5
    )
    with pytest.raises(ShapeError, match="at least 2 values"):
        whiten(values=values, mask=b("00000", "10000", "00000"), shift_mean=True)


# --- divergence


def test_kl_by_hand_and_on_average():
    policy, reference = t([0.5]).log(), t([0.25]).log()  # [1, 1]
    k1 = sampled_kl(logprobs=policy, ref_logprobs=reference, estimator=KLEstimator.K1)
    k3 = sampled_kl(logprobs=policy, ref_logprobs=reference, estimator=KLEstimator.K3)
    assert k1.item() == pytest.approx(math.log(2), abs=1e-6)
    assert k3.item() == pytest.approx(0.5 + math.log(2) - 1, abs=1e-6)
    # weighted by the policy, both are torch's divergence
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = torch.nn.functional.kl_div(q.log(), p, reduction="sum").item()
    for estimator in KLEstimator:
        kl = sampled_kl(logprobs=p.log()[None], ref_logprobs=q.log()[None], estimator=estimator)
        assert (p * kl).sum().item() == pytest.approx(exact, abs=1e-6)


def test_only_k3_pulls_towards_the_reference():
    """On average over samples of the policy, k1 in a loss has no gradient, and k3 that of KL(reference || policy)."""
    logits = t(0.4, -0.3, 1.1).requires_grad_()
    q = torch.tensor([0.3, 0.3, 0.4])
    p = logits.softmax(-1)
    exact = torch.autograd.grad((p * (p / q).log()).sum(), logits, retain_graph=True)[0]
    means = {}
    for estimator in KLEstimator:
        kl = sampled_kl(logprobs=p.log()[None], ref_logprobs=q.log()[None], estimator=estimator)[0]
        means[estimator] = torch.autograd.grad((p.detach() * kl).sum(), logits, retain_graph=True)[0]
    assert torch.allclose(means[KLEstimator.K1], torch.zeros(3), atol=1e-6)
    assert exact.abs().max() > 0.05
    # at fixed samples: E_p[(1 - q / p) grad log p] = -E_q[grad log p]
    reverse = torch.autograd.grad((q * (q / p).log()).sum(), logits)[0]
    assert torch.allclose(means[KLEstimator.K3], reverse, atol=1e-6)
    assert (means[KLEstimator.K3] * exact).sum() > 0


def test_penalties_by_hand():
    logprobs = t([-1.0, -2.0, -3.0], [-1.0, math.nan, math.nan])
    reference = t([-2.0, -2.5, -2.0], [-3.0, math.nan, math.nan])
    mask = b("111", "100")
    inputs = {"logprobs": logprobs, "ref_logprobs": reference, "completion_mask": mask, "scores": t(5.0, 7.0)}
    rewards = penalized_token_rewards(**inputs, kl_coef=0.1, estimator=KLEstimator.K1)
    assert torch.allclose(rewards, t([-0.1, -0.05, 5.1], [6.8, 0.0, 0.0]))
    assert torch.allclose(penalized_scores(**inputs, kl_coef=0.1), t(4.95, 6.8))  # the sums of the rows
    k3 = penalized_token_rewards(**inputs, kl_coef=1.0, estimator=KLEstimator.K3)
    assert k3[1, 0].item() == pytest.approx(7 - (math.exp(-2) + 2 - 1), abs=1e-6)
    with_tool = inputs | {"completion_mask": b("101", "100")}  # the middle token was not sampled
    rewards = penalized_token_rewards(**with_tool, kl_coef=0.1, estimator=KLEstimator.K1)
    assert torch.allclose(rewards[0], t(-0.1, 0.0, 5.1))
    with pytest.raises(ValueError, match="kl_coef must be at least 0"):
        penalized_scores(**inputs, kl_coef=-1.0)


# --- the GRPO family

LOSSES = {"grpo": grpo_loss, "dr_grpo": dr_grpo_loss, "dapo": dapo_loss, "gspo": gspo_loss, "rloo": rloo_loss}


def call(name, inputs, *, kl_coef=0.0, ref_logprobs=None, **bounds):
    bounds = {"epsilon_low": 0.2, "epsilon_high": 0.3} | bounds
    extra = {} if name == "rloo" else {"kl_coef": kl_coef, "ref_logprobs": ref_logprobs}
    if name == "dr_grpo":
        extra["max_new_tokens"] = 10
    return LOSSES[name](**inputs, **bounds, **extra)


def by_hand():
    """Two answers, of two tokens and of one: ratios 1 and 1.5 (A = 2), and 0.5 (A = -1)."""
    old = t([-1.0, -1.0], [-1.0, 0.0])
    return {
        "logprobs": (old + t([1.0, 1.5], [0.5, 1.0]).log()).requires_grad_(),
        "old_logprobs": old,
        "advantages": t(2.0, -1.0),
        "completion_mask": b("11", "10"),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # terms: -2 * 1, -2 * 1.3 (clipped above), and +0.8 (clipped below)
        ("grpo", (-2.3 + 0.8) / 2),
        ("dr_grpo", (-4.6 + 0.8) / 20),
        ("dapo", (-4.6 + 0.8) / 3),
        # ratios sqrt(1.5) = 1.2247 and 0.5
        ("gspo", (-2 * math.sqrt(1.5) + 0.8) / 2),
        # ratios 1.5 and 0.5, both clipped
        ("rloo", (-2.6 + 0.8) / 2),
    ],
)
def test_family_by_hand(name, expected):
    output = call(name, by_hand())
    assert output.loss.item() == pytest.approx(expected, abs=1e-6)


def test_metrics_have_the_unit_of_the_loss():
    inputs = by_hand() | {"entropies": t([1.0, 2.0], [4.0, 99.0])}
    for name, low, high, ratio, entropy in (
        ("grpo", 0.5, 0.25, (1.25 + 0.5) / 2, 2.75),
        ("dapo", 1 / 3, 1 / 3, 1.0, 7 / 3),
        ("rloo", 0.5, 0.5, 1.0, 2.75),
    ):
        metrics = call(name, inputs).metrics
        assert metrics["clip_fraction/low"].item() == pytest.approx(low)
        assert metrics["clip_fraction/high"].item() == pytest.approx(high)
        assert metrics["ratio"].item() == pytest.approx(ratio)
        assert metrics["entropy"].item() == pytest.approx(entropy)
        assert metrics["ratio/limited"].item() == 0.0
        assert "kl" not in metrics
    # k3 of the old policy against the new one: r - log r - 1 at each token
    k3 = [0.0, 0.5 - math.log(1.5), -0.5 - math.log(0.5)]
    assert call("dapo", inputs).metrics["kl/old"].item() == pytest.approx(sum(k3) / 3, abs=1e-6)


def test_no_gradient_where_the_clip_binds():
    """Above for good answers, below for bad ones; the other two corners are corrected."""
    for ratio, advantage, flows in ((1.5, 1.0, False), (0.5, -1.0, False), (0.5, 1.0, True), (1.5, -1.0, True)):
        for name in LOSSES:
            logprobs = t([math.log(ratio)]).requires_grad_()
            inputs = {
                "logprobs": logprobs,
                "old_logprobs": torch.zeros(1, 1),
                "advantages": t(advantage),
                "completion_mask": b("1"),
            }
            output = call(name, inputs)
            output.loss.backward()
            expected = -advantage * ratio / (10 if name == "dr_grpo" else 1) if flows else 0.0
            assert logprobs.grad.item() == pytest.approx(expected), (name, ratio, advantage)
            clipped = output.metrics["clip_fraction/low"] + output.metrics["clip_fraction/high"]
            assert clipped.item() == (0.0 if flows else 1.0)


def test_ratio_one_gives_reinforce_and_equal_rewards_nothing():
    generator = torch.Generator().manual_seed(0)
    mask = b("1110", "1000", "1111", "1100")
    lengths = mask.sum(1)
    advantages = t(1.0, -2.0, 0.5, 0.0)
    per_token = {
        "grpo": 1 / (4 * lengths),
        "dr_grpo": torch.full((4,), 1 / 40),
        "dapo": torch.full((4,), 1 / 10),
        "gspo": 1 / (4 * lengths),
        "rloo": torch.full((4,), 1 / 4),
    }
    for name in LOSSES:
        logprobs = torch.randn(4, 4, generator=generator).requires_grad_()
        inputs = {"logprobs": logprobs, "old_logprobs": logprobs.detach(), "completion_mask": mask}
        call(name, inputs | {"advantages": advantages}).loss.backward()
        expected = (-advantages * per_token[name])[:, None] * mask
        assert torch.allclose(logprobs.grad, expected, atol=1e-6), name
        logprobs.grad = None
        output = call(name, inputs | {"advantages": torch.zeros(4)})
        output.loss.backward()
        assert output.loss.item() == 0.0
        assert (logprobs.grad == 0).all()


def slow_family(name, data, ref, kl_coef, low, high):
    """Answer by answer, token by token, in double precision."""
    total, tokens, answers = torch.zeros((), dtype=torch.float64), 0, 0
    for i, advantage in enumerate(data["advantages"].tolist()):
        where = [j for j in range(data["completion_mask"].shape[1]) if data["completion_mask"][i, j]]
        log_ratio = [data["logprobs"][i, j] - data["old_logprobs"][i, j] for j in where]
        terms = []
        for k, j in enumerate(where):
            if name == "gspo":
                ratio = torch.exp(sum(log_ratio) / len(where))
            elif name == "rloo":
                ratio = torch.exp(sum(log_ratio))
            else:
                ratio = torch.exp(log_ratio[k])
            held = min(max(ratio, torch.tensor(1 - low).double()), torch.tensor(1 + high).double())
            term = -min(ratio * advantage, held * advantage)
            if kl_coef:
                gap = ref[i, j] - data["logprobs"][i, j]
                term = term + kl_coef * (torch.exp(gap) - gap - 1)
            terms.append(term)
        total = total + sum(terms) / (1 if name in ("dapo", "dr_grpo") else len(terms))
        tokens, answers = tokens + len(terms), answers + 1
    return total / {"dapo": tokens, "dr_grpo": answers * 10}.get(name, answers)


@pytest.mark.parametrize(
    ("name", "kl_coef"), [*((name, 0.0) for name in LOSSES), *((name, 0.3) for name in LOSSES if name != "rloo")]
)
def test_family_equals_a_loop_with_gradients(name, kl_coef):
    generator = torch.Generator().manual_seed(12)
    mask = b("11111", "10000", "01101", "11100")
    logprobs = -torch.rand(4, 5, generator=generator) * 2
    old = logprobs + 0.3 * torch.randn(4, 5, generator=generator)
    ref = logprobs + 0.5 * torch.randn(4, 5, generator=generator)
    data = {"old_logprobs": old, "advantages": t(1.5, -0.5, -1.0, 0.7), "completion_mask": mask}
    slow_leaf = logprobs.double().requires_grad_()
    slow_data = data | {"logprobs": slow_leaf, "old_logprobs": old.double()}
    expected = slow_family(name, slow_data, ref.double(), kl_coef, 0.2, 0.3)
    expected.backward()
    leaf = logprobs.clone().requires_grad_()
    output = call(name, data | {"logprobs": leaf}, kl_coef=kl_coef, ref_logprobs=ref if kl_coef else None)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert torch.allclose(leaf.grad.double(), slow_leaf.grad, rtol=1e-4, atol=1e-6)


def test_wrong_settings_are_refused():
    inputs = by_hand()
    with pytest.raises(ValueError, match="needs ref_logprobs"):
        call("grpo", inputs, kl_coef=0.1)
    with pytest.raises(ValueError, match="kl_coef must be at least 0"):
        call("dapo", inputs, kl_coef=-0.1)
    with pytest.raises(ValueError, match="epsilon_low must be in 0..1"):
        call("gspo", inputs, epsilon_low=1.5)
    with pytest.raises(ValueError, match="max_new_tokens of at least 1"):
        dr_grpo_loss(**inputs, epsilon_low=0.2, epsilon_high=0.2, kl_coef=0.0, ref_logprobs=None, max_new_tokens=0)
    with pytest.raises(ShapeError, match="advantages must be"):
        call("rloo", inputs | {"advantages": torch.zeros(2, 2)})
