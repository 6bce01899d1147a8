"""What every loss on preferences and rollouts keeps, whatever its formula.

A step may be cut into any micro-batches, padding may hold anything, rows may stand in any order, numbers may be
extreme, the model may compute in bfloat16, and only what the policy said is trained.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nexus.functional.dpo import DPOForm, dpo_loss
from nexus.functional.grpo import dapo_loss, dr_grpo_loss, grpo_loss, gspo_loss, rloo_loss
from nexus.functional.kto import kto_loss
from nexus.functional.orpo import orpo_loss
from nexus.functional.ppo import ppo_loss
from nexus.functional.shapes import ShapeError
from nexus.functional.simpo import simpo_loss
from nexus.types import LossOutput

ROWS, WIDTH = 6, 7
LENGTHS = torch.tensor([7, 1, 3, 5, 2, 4])


@dataclass(frozen=True)
class Case:
    """A loss with its settings bound, the tensors that it takes (rows first), and what it trains.

    Attributes:
        loss: takes the tensors by name.
        tensors: by name, [6] or [6, 7].
        trained: names of the tensors that get a gradient.
        by_token: the unit is the token, else the row.
    """

    loss: Callable[..., LossOutput]
    tensors: dict[str, Tensor]
    trained: tuple[str, ...]
    by_token: bool = False


def sums(seed: int) -> Tensor:
    return -torch.rand(ROWS, generator=torch.Generator().manual_seed(seed)) * 6 - 0.5


PAIRS = {"chosen_logprobs": sums(1), "rejected_logprobs": sums(2)}
REFERENCES = {"ref_chosen_logprobs": sums(3), "ref_rejected_logprobs": sums(4)}
PAIR_LENGTHS = {"chosen_lengths": LENGTHS, "rejected_lengths": LENGTHS.flip(0)}


def tokens(seed: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


LOGPROBS = tokens(5).abs().neg()
ROLLOUT = {
    "logprobs": LOGPROBS,
    "old_logprobs": LOGPROBS + tokens(6, 0.3),
    "entropies": tokens(7).abs(),
    "completion_mask": torch.arange(WIDTH) < LENGTHS[:, None],
}
ANSWERS = ROLLOUT | {"advantages": torch.tensor([1.0, -1.0, 0.6, 0.0, -0.4, 1.2])}
GRPO = ANSWERS | {"ref_logprobs": LOGPROBS + tokens(8, 0.5)}
PPO = ROLLOUT | {name: tokens(9 + i) for i, name in enumerate(("values", "old_values", "advantages", "returns"))}
CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.28}


def cases() -> dict[str, Case]:
    found = {}
    for form in DPOForm:
        smoothing = 0.1 if form in (DPOForm.CONSERVATIVE, DPOForm.ROBUST) else 0.0
        loss = functools.partial(dpo_loss, form=form, beta=0.3, label_smoothing=smoothing)
        found[f"dpo {form}"] = Case(loss, PAIRS | REFERENCES, tuple(PAIRS))
        found[f"dpo {form} by length"] = Case(loss, PAIRS | REFERENCES | PAIR_LENGTHS, tuple(PAIRS))
    found["orpo"] = Case(functools.partial(orpo_loss, beta=0.4), PAIRS | PAIR_LENGTHS, tuple(PAIRS))
    found["orpo by token"] = Case(
        functools.partial(orpo_loss, beta=0.4, mean_chosen_length=float(LENGTHS.sum()) / ROWS),
        PAIRS | PAIR_LENGTHS,
        tuple(PAIRS),
    )
    found["simpo"] = Case(functools.partial(simpo_loss, beta=2.0, gamma=0.5), PAIRS | PAIR_LENGTHS, tuple(PAIRS))
    labels = torch.tensor([True, False, False, True, False, False])
    found["kto"] = Case(
        functools.partial(
            kto_loss,
            baseline=torch.tensor(0.3),
            beta=0.2,
            desirable_weight=1.4,
            undesirable_weight=0.7,
            desirable_share=1 / 3,
        ),
        {"logprobs": sums(1), "ref_logprobs": sums(3), "desirable_mask": labels},
        ("logprobs",),
    )
    for name, family in {"grpo": grpo_loss, "dapo": dapo_loss, "gspo": gspo_loss}.items():
        loss = functools.partial(family, **CLIP, kl_coef=0.1)
        found[name] = Case(loss, GRPO, ("logprobs",), by_token=name == "dapo")
    found["dr_grpo"] = Case(functools.partial(dr_grpo_loss, **CLIP, kl_coef=0.1, max_new_tokens=9), GRPO, ("logprobs",))
    found["rloo"] = Case(functools.partial(rloo_loss, **CLIP), ANSWERS, ("logprobs",))
    found["ppo"] = Case(
        functools.partial(ppo_loss, **CLIP, value_clip=0.2, value_coef=0.5), PPO, ("logprobs", "values"), by_token=True
    )
    return found


CASES = cases()
ROLLOUTS = [name for name, case in CASES.items() if "completion_mask" in case.tensors]


def run(case: Case, tensors: dict[str, Tensor], upstream: float = 1.0) -> tuple[LossOutput, dict[str, Tensor]]:
    """The loss, and the gradient of `upstream * loss` for every floating tensor that got one."""
    leaves = {
        name: value.detach().clone().requires_grad_() if value.is_floating_point() else value
        for name, value in tensors.items()
    }
    output = case.loss(**leaves)
    (output.loss * upstream).backward()
    return output, {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def test_all_losses_are_here():
    assert len(CASES) == 20
    assert len(ROLLOUTS) == 6


@pytest.mark.parametrize("name", CASES)
def test_only_the_policy_is_trained_and_metrics_are_detached_scalars(name):
    output, grads = run(CASES[name], CASES[name].tensors)
    assert set(grads) == set(CASES[name].trained)
    for grad in grads.values():
        assert torch.isfinite(grad).all()
        assert grad.abs().max() > 1e-4
    assert output.loss.shape == ()
    for metric, value in output.metrics.items():
        assert value.shape == (), metric
        assert value.dtype == torch.float32, metric
        assert not value.requires_grad, metric


@pytest.mark.parametrize("cut", [(1, 1, 1, 1, 1, 1), (1, 3, 2), (4, 2)])
@pytest.mark.parametrize("name", CASES)
def test_any_cut_into_micro_batches_adds_up_to_the_whole_step(name, cut):
    """Loss, gradient and metrics, weighted with each part's share of the unit, as the base method does."""
    case = CASES[name]
    whole, whole_grads = run(case, case.tensors)
    units = case.tensors["completion_mask"].sum(1) if case.by_token else torch.ones(ROWS)
    loss, metrics, grads, start = 0.0, {}, {}, 0
    for size in cut:
        rows = slice(start, start + size)
        start += size
        loss_scale = float(units[rows].sum() / units.sum())
        part = {key: value[rows] for key, value in case.tensors.items()}
        output, part_grads = run(case, part, loss_scale)
        loss += output.loss.item() * loss_scale
        for metric, value in output.metrics.items():
            metrics[metric] = metrics.get(metric, 0.0) + value.item() * loss_scale
        for key, grad in part_grads.items():
            grads.setdefault(key, []).append(grad)
    assert start == ROWS
    assert loss == pytest.approx(whole.loss.item(), rel=1e-5, abs=1e-6)
    assert metrics == pytest.approx({key: value.item() for key, value in whole.metrics.items()}, rel=1e-4, abs=1e-5)
    for key, grad in whole_grads.items():
        assert torch.allclose(torch.cat(grads[key]), grad, rtol=1e-5, atol=1e-7), key


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_the_rows_changes_nothing(name):
    case = CASES[name]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    output, grads = run(case, case.tensors)
    shuffled, shuffled_grads = run(case, {key: value[order] for key, value in case.tensors.items()})
    assert torch.allclose(output.loss, shuffled.loss, rtol=1e-5)
    for key, grad in grads.items():
        assert torch.allclose(grad[order], shuffled_grads[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fill", [0.0, 1e4, math.nan])
@pytest.mark.parametrize("name", ROLLOUTS)
def test_padding_changes_nothing_and_gets_no_gradient(name, fill):
    """Three more positions on the left and two on the right, with anything in them, and in what was padding before."""
    case = CASES[name]
    mask = case.tensors["completion_mask"]
    wide = torch.nn.functional.pad(mask, (3, 2), value=False)
    padded = {
        key: torch.nn.functional.pad(value.masked_fill(~mask, fill), (3, 2), value=fill) if value.dim() == 2 else value
        for key, value in case.tensors.items()
        if key != "completion_mask"
    } | {"completion_mask": wide}
    output, grads = run(case, case.tensors)
    other, other_grads = run(case, padded)
    assert torch.allclose(output.loss, other.loss, rtol=1e-5)
    for metric, value in output.metrics.items():
        assert other.metrics[metric].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), metric
    for key, grad in grads.items():
        assert (grad[~mask] == 0).all()
        assert (other_grads[key][~wide] == 0).all()
        assert torch.allclose(other_grads[key][wide], grad[mask], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_is_float32_whatever_the_dtype(name, dtype):
    case = CASES[name]
    low = {key: value.to(dtype) if value.is_floating_point() else value for key, value in case.tensors.items()}
    back = {key: value.float() if value.is_floating_point() else value for key, value in low.items()}
    output, grads = run(case, low)
    exact, exact_grads = run(case, back)
    assert output.loss.dtype == torch.float32
    assert torch.equal(output.loss, exact.loss)
    for key, grad in grads.items():
        assert grad.dtype == dtype
        assert torch.allclose(grad.float(), exact_grads[key], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("extreme", [-1e4, 0.0])
@pytest.mark.parametrize("which", ["the policy", "what it is compared with", "everything", "one row"])
@pytest.mark.parametrize("name", CASES)
def test_extreme_log_probabilities_stay_finite(name, which, extreme):
    """A token that the policy holds for impossible, or a completion for certain, is a number and not a NaN."""
    case = CASES[name]
    tensors = dict(case.tensors)
    for key, value in case.tensors.items():
        if not key.endswith("logprobs"):
            continue
        if which == "one row" and key in case.trained:
            tensors[key] = value.clone()
            tensors[key][2] = extreme
        elif which == "everything" or (which == "the policy") == (key in case.trained):
            tensors[key] = torch.full_like(value, extreme)
    output, grads = run(case, tensors)
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(value) for value in output.metrics.values()), output.metrics
    for grad in grads.values():
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", ROLLOUTS)
def test_ratios_beyond_the_bound_are_counted(name):
    case = CASES[name]
    old = case.tensors["old_logprobs"].clone()
    old[1] = -50.0  # a row of one token: the ratio would be e^49
    output, _ = run(case, case.tensors | {"old_logprobs": old})
    share = 1 / 22 if case.by_token else 1 / 6
    assert output.metrics["ratio/limited"].item() == pytest.approx(share)
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize("name", ROLLOUTS)
def test_an_empty_mask_is_an_error(name):
    case = CASES[name]
    mask = case.tensors["completion_mask"].clone()
    mask[3] = False
    with pytest.raises(ShapeError, match="row 3 of completion_mask has no position that counts"):
        case.loss(**(case.tensors | {"completion_mask": mask}))
    with pytest.raises(ShapeError, match="must be bool"):
        case.loss(**(case.tensors | {"completion_mask": case.tensors["completion_mask"].long()}))


@pytest.mark.parametrize("name", CASES)
def test_no_rows_and_wrong_shapes_are_errors(name):
    case = CASES[name]
    with pytest.raises(ShapeError):
        case.loss(**{key: value[:0] for key, value in case.tensors.items()})
    for key, value in case.tensors.items():
        with pytest.raises(ShapeError):
            case.loss(**(case.tensors | {key: value[:-1]}))
        with pytest.raises(ShapeError):
            case.loss(**(case.tensors | {key: value[..., None]}))
