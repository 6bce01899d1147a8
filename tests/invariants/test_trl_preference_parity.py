"""Losses and gradients on preferences equal TRL's own on the same tensors.

TRL keeps its formulas inside the trainers, so their methods are called with a namespace in the place of the trainer,
that has the settings which the formula reads, and a function in the place of the model that hands back our tensors.
"""

from __future__ import annotations

from collections import defaultdict
from types import MethodType, SimpleNamespace

import pytest
import torch

from nexus.functional.dpo import DPOForm, dpo_loss, with_imitation
from nexus.functional.kto import kto_baseline, kto_loss
from nexus.functional.logprobs import token_logprobs
from nexus.functional.masking import masked_sum
from nexus.functional.orpo import orpo_loss
from nexus.functional.simpo import simpo_loss

trl = pytest.importorskip("trl", reason="a test peer; installed by requirements-test.lock")

PAIRS, WIDTH = 5, 9
CHOSEN_LENGTHS, REJECTED_LENGTHS = torch.tensor([8, 1, 3, 6, 2]), torch.tensor([2, 7, 3, 1, 5])
METRICS = {
    "rewards/chosen": "rewards/chosen",
    "rewards/rejected": "rewards/rejected",
    "rewards/margins": "rewards/margins",
    "rewards/accuracies": "rewards/accuracies",
    "logprobs/chosen": "logps/chosen",
    "logprobs/rejected": "logps/rejected",
}


def one_process() -> SimpleNamespace:
    """What is gathered is what was there."""
    return SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)


def trainer_self(**settings: object) -> SimpleNamespace:
    """What the `_compute_loss` methods read of their trainer, whatever the formula."""
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=one_process(),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def forward(logprobs: torch.Tensor):
    """A model whose fused head says these log-probabilities, [2B, T - 1]."""

    def model(**_: object) -> SimpleNamespace:
        return SimpleNamespace(
            log_probs=logprobs,
            entropy=torch.zeros_like(logprobs),
            mean_logits=torch.zeros_like(logprobs),
            is_top1=torch.zeros_like(logprobs, dtype=torch.bool),
        )

    return model


def pair_tensors():
    """Token log-probabilities of 5 pairs behind one prompt token, 0 where nothing counts, and reference sums."""
    generator = torch.Generator().manual_seed(9)
    lengths = torch.cat([CHOSEN_LENGTHS, REJECTED_LENGTHS])
    mask = torch.arange(WIDTH) < lengths[:, None]  # [2B, T - 1], of the targets
    logprobs = (-torch.rand(2 * PAIRS, WIDTH, generator=generator) * 2).masked_fill(~mask, 0.0)
    # close enough that the hinge and the two smoothed forms see both sides of their bends
    reference = logprobs.sum(1) + 6 * torch.randn(2 * PAIRS, generator=generator)
    return logprobs, mask, reference


def dpo_inputs(mask: torch.Tensor, reference: torch.Tensor) -> dict[str, torch.Tensor]:
    with_prompt = torch.cat([torch.zeros(2 * PAIRS, 1, dtype=torch.bool), mask], 1)
    return {
        "input_ids": torch.zeros(2 * PAIRS, WIDTH + 1, dtype=torch.long),
        "attention_mask": torch.ones(2 * PAIRS, WIDTH + 1, dtype=torch.long),
        "completion_mask": with_prompt.long(),
        "ref_chosen_logps": reference[:PAIRS],
        "ref_rejected_logps": reference[PAIRS:],
    }


def our_dpo(logprobs, mask, reference, **settings):
    """The loss from token log-probabilities, so that gradients can be compared token by token."""
    sums = masked_sum(values=logprobs, mask=mask, dim=1)
    return dpo_loss(
        chosen_logprobs=sums[:PAIRS],
        rejected_logprobs=sums[PAIRS:],
        ref_chosen_logprobs=reference[:PAIRS],
        ref_rejected_logprobs=reference[PAIRS:],
        **settings,
    )


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize(
    ("name", "form", "label_smoothing", "by_length"),
    [
        ("sigmoid", DPOForm.SIGMOID, 0.0, False),
        ("hinge", DPOForm.HINGE, 0.0, False),
        ("ipo", DPOForm.IPO, 0.0, True),
        ("robust", DPOForm.ROBUST, 0.2, False),
        ("sigmoid_norm", DPOForm.SIGMOID, 0.0, True),
    ],
)
def test_dpo_equals_trl(name, form, label_smoothing, by_length, beta):
    logprobs, mask, reference = pair_tensors()
    theirs = logprobs.clone().requires_grad_()
    trainer = trainer_self(
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        beta=beta,
        loss_types=[name],
        loss_weights=[1.0],
        label_smoothing=label_smoothing,
        use_weighting=False,
    )
    expected = trl.DPOTrainer._compute_loss(trainer, forward(theirs), dpo_inputs(mask, reference), False)
    expected.backward()

    ours = logprobs.clone().requires_grad_()
    lengths = {"chosen_lengths": CHOSEN_LENGTHS, "rejected_lengths": REJECTED_LENGTHS} if by_length else {}
    output = our_dpo(ours, mask, reference, form=form, beta=beta, label_smoothing=label_smoothing, **lengths)
    output.loss.backward()
    assert torch.allclose(output.loss, expected, rtol=1e-5, atol=1e-6)
    wanted = theirs.grad.masked_fill(~mask, 0.0)  # TRL sums padding too, where the fused head says 0
    assert torch.allclose(ours.grad, wanted, rtol=1e-5, atol=1e-6)
    assert wanted.abs().max() > 1e-3
    if not by_length:  # with lengths, TRL's rewards are not what its loss compares
        for mine, other in METRICS.items():
            logged = trainer._metrics["train"][other][-1]
            assert output.metrics[mine].item() == pytest.approx(logged, rel=1e-5, abs=1e-6), mine


@pytest.mark.parametrize("weight", [0.2, 1.0])
def test_dpo_with_imitation_equals_trl(weight):
    """TRL takes the mean over the tokens of a batch, so it gets one pair at a time, as it would accumulate them."""
    logprobs, mask, reference = pair_tensors()
    theirs = logprobs.clone().requires_grad_()
    trainer = trainer_self(
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        beta=0.3,
        loss_types=["sigmoid", "sft"],
        loss_weights=[1.0, weight],
        label_smoothing=0.0,
        use_weighting=False,
    )
    losses = []
    for row in range(PAIRS):
        own = [row, PAIRS + row]
        inputs = {name: tensor[own] for name, tensor in dpo_inputs(mask, reference).items() if len(tensor) == 2 * PAIRS}
        inputs |= {"ref_chosen_logps": reference[[row]], "ref_rejected_logps": reference[[PAIRS + row]]}
        losses.append(trl.DPOTrainer._compute_loss(trainer, forward(theirs[own]), inputs, False))
    expected = torch.stack(losses).mean()
    expected.backward()

    ours = logprobs.clone().requires_grad_()
    plain = our_dpo(ours, mask, reference, form=DPOForm.SIGMOID, beta=0.3, label_smoothing=0.0)
    chosen = masked_sum(values=ours, mask=mask, dim=1)[:PAIRS]
    output = with_imitation(output=plain, chosen_logprobs=chosen, chosen_lengths=CHOSEN_LENGTHS, weight=weight)
    output.loss.backward()
    assert torch.allclose(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(ours.grad, theirs.grad.masked_fill(~mask, 0.0), rtol=1e-5, atol=1e-6)
    added = float((output.loss - plain.loss).detach())
    assert added == pytest.approx(weight * float(output.metrics["loss/nll"]), rel=1e-4)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_conservative_dpo_equals_trl(label_smoothing):
    """TRL 1.16 has cDPO's formula in its CPO trainer only, without reference: log-ratios go in as log-probabilities."""
    from trl.experimental.cpo import CPOTrainer

    logprobs, mask, reference = pair_tensors()
    theirs = logprobs.clone().requires_grad_()
    trainer = SimpleNamespace(
        accelerator=one_process(), alpha=0.0, beta=0.2, label_smoothing=label_smoothing, loss_type="sigmoid"
    )
    ratios = (theirs * mask).sum(1) - reference
    losses, chosen, rejected = CPOTrainer.cpo_loss(trainer, ratios[:PAIRS], ratios[PAIRS:])
    losses.mean().backward()

    ours = logprobs.clone().requires_grad_()
    output = our_dpo(ours, mask, reference, form=DPOForm.CONSERVATIVE, beta=0.2, label_smoothing=label_smoothing)
    output.loss.backward()
    assert torch.allclose(output.loss, losses.mean(), rtol=1e-5, atol=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert output.metrics["rewards/margins"].item() == pytest.approx((chosen - rejected).mean().item(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.4])
def test_simpo_equals_trl(gamma):
    from trl.experimental.cpo import CPOTrainer

    logprobs, mask, _ = pair_tensors()
    theirs = logprobs.clone().requires_grad_()
    trainer = SimpleNamespace(
        accelerator=one_process(), alpha=0.0, beta=2.5, label_smoothing=0.0, loss_type="simpo", simpo_gamma=gamma
    )
    means = (theirs * mask).sum(1) / mask.sum(1)
    losses, chosen, rejected = CPOTrainer.cpo_loss(trainer, means[:PAIRS], means[PAIRS:])
    losses.mean().backward()

    ours = logprobs.clone().requires_grad_()
    sums = masked_sum(values=ours, mask=mask, dim=1)
    output = simpo_loss(
        chosen_logprobs=sums[:PAIRS],
        rejected_logprobs=sums[PAIRS:],
        chosen_lengths=CHOSEN_LENGTHS,
        rejected_lengths=REJECTED_LENGTHS,
        beta=2.5,
        gamma=gamma,
    )
    output.loss.backward()
    assert torch.allclose(output.loss, losses.mean(), rtol=1e-5, atol=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert theirs.grad.abs().max() > 1e-2
    assert output.metrics["rewards/chosen"].item() == pytest.approx(chosen.mean().item(), rel=1e-5)
    assert output.metrics["rewards/rejected"].item() == pytest.approx(rejected.mean().item(), rel=1e-5)


def orpo_side(ids: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
    real = torch.arange(WIDTH + 1) <= lengths[:, None]  # one prompt token, then the completion
    labels = ids.masked_fill(~real, -100)
    labels[:, 0] = -100
    return {"input_ids": ids, "attention_mask": real.long(), "labels": labels}


def test_orpo_equals_trl_from_the_logits():
    """Loss, gradient of all logits and metrics; with one prompt token, TRL's likelihood of the whole row is ours."""
    from trl.experimental.orpo import ORPOTrainer

    vocabulary = 7
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(vocabulary, (2 * PAIRS, WIDTH + 1), generator=generator)
    logits = torch.randn(2 * PAIRS, WIDTH + 1, vocabulary, generator=generator)
    theirs = logits.clone().requires_grad_()
    trainer = SimpleNamespace(
        accelerator=one_process(), beta=0.3, is_encoder_decoder=False, aux_loss_enabled=False, padding_value=0
    )
    trainer.concatenated_inputs = ORPOTrainer.concatenated_inputs
    trainer.get_batch_logps = ORPOTrainer.get_batch_logps
    trainer.concatenated_forward = MethodType(ORPOTrainer.concatenated_forward, trainer)
    trainer.odds_ratio_loss = MethodType(ORPOTrainer.odds_ratio_loss, trainer)
    batch = {}
    for name, rows, lengths in (
        ("chosen", slice(0, PAIRS), CHOSEN_LENGTHS),
        ("rejected", slice(PAIRS, 2 * PAIRS), REJECTED_LENGTHS),
    ):
        batch |= {f"{name}_{key}": value for key, value in orpo_side(ids[rows], lengths).items()}

    def model(input_ids, **_):
        assert torch.equal(input_ids, ids)
        return SimpleNamespace(logits=theirs)

    expected, logged = ORPOTrainer.get_batch_loss_metrics(trainer, model, batch)
    expected.backward()

    ours = logits.clone().requires_grad_()
    mask = torch.arange(WIDTH) < torch.cat([CHOSEN_LENGTHS, REJECTED_LENGTHS])[:, None]
    tokens = token_logprobs(logits=ours[:, :-1][mask], tokens=ids[:, 1:][mask])
    sums = torch.zeros(mask.shape).masked_scatter(mask, tokens).sum(1)
    output = orpo_loss(
        chosen_logprobs=sums[:PAIRS],
        rejected_logprobs=sums[PAIRS:],
        chosen_lengths=CHOSEN_LENGTHS,
        rejected_lengths=REJECTED_LENGTHS,
        beta=0.3,
        mean_chosen_length=float(CHOSEN_LENGTHS.sum()) / PAIRS,
    )
    output.loss.backward()
    assert torch.allclose(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert output.metrics[name].item() == pytest.approx(logged[name], rel=1e-5), name
    assert output.metrics["loss/nll"].item() == pytest.approx(logged["nll_loss"], rel=1e-5)
    assert output.metrics["loss/odds_ratio"].item() == pytest.approx(-logged["log_odds_ratio"], rel=1e-5)
    assert output.metrics["log_odds_ratio"].item() == pytest.approx(logged["log_odds_chosen"], rel=1e-5)


@pytest.mark.parametrize("labels", ["mixed", "all good", "all bad"])
@pytest.mark.parametrize("shift", [1.5, -1.5])
def test_kto_equals_trl(labels, shift):
    """With the baseline above 0, and held at 0."""
    logprobs, mask, reference = pair_tensors()
    rows = 2 * PAIRS
    generator = torch.Generator().manual_seed(1)
    mismatched = -5 * torch.rand(rows, generator=generator)
    ref_mismatched = mismatched - shift + torch.randn(rows, generator=generator)
    desirable = {
        "mixed": torch.arange(rows) % 3 == 0,
        "all good": torch.ones(rows, dtype=torch.bool),
        "all bad": torch.zeros(rows, dtype=torch.bool),
    }[labels]
    theirs = logprobs.clone().requires_grad_()
    trainer = trainer_self(
        beta=0.2,
        desirable_weight=1.3,
        undesirable_weight=0.8,
        calculate_KL=True,
        loss_type="kto",
        _compute_kl_logps=lambda model, batch: mismatched,
    )
    inputs = dpo_inputs(mask, reference) | {"label": desirable, "ref_logps": reference, "ref_KL_logps": ref_mismatched}
    del inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
    expected = trl.KTOTrainer._compute_loss(trainer, forward(theirs), inputs, False)
    expected.backward()

    ours = logprobs.clone().requires_grad_()
    baseline = kto_baseline(mismatched_logprobs=mismatched, ref_mismatched_logprobs=ref_mismatched)
    assert (baseline.item() == 0.0) == (shift < 0)
    output = kto_loss(
        logprobs=masked_sum(values=ours, mask=mask, dim=1),
        ref_logprobs=reference,
        desirable_mask=desirable,
        baseline=baseline,
        beta=0.2,
        desirable_weight=1.3,
        undesirable_weight=0.8,
    )
    output.loss.backward()
    assert torch.allclose(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(ours.grad, theirs.grad.masked_fill(~mask, 0.0), rtol=1e-5, atol=1e-6)
    logged = trainer._metrics["train"]
    assert output.metrics["kl"].item() == pytest.approx(logged["kl"][-1], abs=1e-6)
    for mine, other in METRICS.items():
        if mine != "rewards/accuracies":  # TRL has none here
            assert (mine in output.metrics) == (other in logged), mine
            if other in logged:
                assert output.metrics[mine].item() == pytest.approx(logged[other][-1], rel=1e-5, abs=1e-6), mine
