"""dpo, orpo, simpo, kto: a step equals a slow second implementation, whatever its cut; DPO starts at log 2."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from nexus.callbacks.checkpoint import checkpoints
from nexus.data.module import NexusDataModule
from nexus.errors import NexusError
from nexus.evaluation.preference import preference_accuracy
from nexus.methods.base import Method
from nexus.methods.dpo import DPO
from nexus.methods.kto import KTO
from nexus.methods.orpo import ORPO
from nexus.methods.simpo import SimPO
from nexus.stages.reference import attach_reference
from nexus.stages.row_lengths import REFERENCE_METHODS
from nexus.types import LossOutput, LossUnit, MicroBatch
from tests import small

SETTINGS: dict[type[Method], dict[str, Any]] = {
    DPO: {"form": "sigmoid", "beta": 0.3, "label_smoothing": 0.0, "length_normalized": False, "sft_weight": 0.4},
    ORPO: {"beta": 0.2},
    SimPO: {"beta": 2.0, "gamma": 0.5},
    KTO: {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.3},
}
KINDS = pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
LAYOUTS = [
    {"packing": True, "micro_batch_size": 5},
    {"packing": True, "micro_batch_size": 1},
    {"packing": True, "micro_batch_size": 2},
    {"packing": False, "micro_batch_size": 5},
    {"packing": False, "micro_batch_size": 2},
]


def make(kind: type[Method], **changes: Any) -> Any:
    sgd = functools.partial(torch.optim.SGD, lr=0.05)  # unlike AdamW's, its step is proportional to the gradient
    common = {"optimizer": sgd, "warmup_ratio": 0.0, "gradient_clip": None, "total_steps": 1}
    return small.make_method(kind, **(SETTINGS[kind] | common | changes))


def make_step(**layout: Any) -> list[MicroBatch]:
    return small.make_step(small.make_pairs(5), loss_unit=LossUnit.GROUP, **layout)


def slow_loss(kind: type[Method], model: Any) -> torch.Tensor:
    """The formulas with Python loops over pairs, from transformers' own logits of one row at a time."""
    s = SETTINGS[kind]
    rows = []
    for pair in small.make_pairs(5):
        found = []
        for ids in pair.completions:
            whole = torch.tensor([pair.prompt_ids + ids])
            logp = torch.log_softmax(model(input_ids=whole, use_cache=False).logits[0].float(), -1)
            first = len(pair.prompt_ids)
            found.append(torch.stack([logp[first + t - 1, token] for t, token in enumerate(ids)]))
        rows.append((found, pair.values["ref_logprobs"], pair.values["desirable"][0]))
    losses = []
    # of KTO's rows the second completion is the mismatched one
    baseline = torch.stack([found[1].sum() - ref[1] for found, ref, _ in rows]).mean().clamp(min=0).detach()
    for (chosen, other), ref, good in rows:
        if kind is DPO:
            margin = (chosen.sum() - ref[0]) - (other.sum() - ref[1])
            losses.append(-logsigmoid(s["beta"] * margin) - s["sft_weight"] * chosen.mean())
        if kind is SimPO:
            losses.append(-logsigmoid(s["beta"] * (chosen.mean() - other.mean()) - s["gamma"]))
        if kind is ORPO:
            odds = [m - torch.log(1 - torch.exp(m)) for m in (chosen.mean(), other.mean())]
            losses.append(-chosen.mean() - s["beta"] * logsigmoid(odds[0] - odds[1]))
        if kind is KTO:
            ahead = s["beta"] * (chosen.sum() - ref[0] - baseline)
            losses.append(
                s["desirable_weight"] * (1 - torch.sigmoid(ahead))
                if good
                else s["undesirable_weight"] * (1 - torch.sigmoid(-ahead))
            )
    return torch.stack(losses).mean()


@KINDS
def test_a_step_equals_the_slow_formula_whatever_its_cut(kind: type[Method]) -> None:
    method = make(kind)
    method.configure_model()
    method.manual_backward = lambda loss: loss.backward()  # as Lightning's, without a trainer
    loss = slow_loss(kind, method.policy)
    loss.backward()
    wanted = {name: p.grad.clone() for name, p in method.named_parameters()}
    assert max(float(grad.norm()) for grad in wanted.values()) > 1e-4
    metrics: list[dict[str, float]] = []
    for layout in LAYOUTS:
        method.zero_grad()
        batch = make_step(**layout)
        assert len(batch) == math.ceil(5 / layout["micro_batch_size"])
        metrics.append({name: float(value) for name, value in method.accumulate(batch).items()})
        assert metrics[-1]["train/loss"] == pytest.approx(float(loss), rel=1e-5)
        for name, p in method.named_parameters():
            assert float((p.grad - wanted[name]).norm()) < 1e-4 * float(wanted[name].norm()) + 1e-6, (layout, name)
        assert metrics[-1] == pytest.approx(metrics[0], rel=1e-4, abs=1e-5)
    assert {"rewards/margins", "rewards/accuracies"} <= set(metrics[0])


@KINDS
def test_the_halved_step_equals_the_whole_one_and_parts_no_pair(tmp_path: Path, kind: type[Method]) -> None:
    class Narrow(kind):  # type: ignore[valid-type,misc]
        """Has room for two pairs."""

        room = 2

        def loss(self, batch: MicroBatch) -> LossOutput:
            output: LossOutput = super().loss(batch)
            if batch.num_groups > self.room:
                output.loss.backward()  # half-made gradients must not count
                raise torch.OutOfMemoryError("out of memory")
            return output

    SETTINGS[Narrow] = SETTINGS[kind]
    try:
        whole = small.fit_steps(make(kind), [make_step(micro_batch_size=5)], tmp_path)
        halved = small.fit_steps(make(Narrow), [make_step(micro_batch_size=5)], tmp_path)
        assert float(halved.step_metrics["train/loss"]) == pytest.approx(
            float(whole.step_metrics["train/loss"]), rel=1e-5
        )
        for (name, ours), theirs in zip(halved.named_parameters(), whole.parameters(), strict=True):
            assert float((ours - theirs).detach().abs().max()) < 1e-5, name
        Narrow.room = 0
        with pytest.raises(NexusError, match="a single .* does not fit") as caught:
            small.fit_steps(make(Narrow), [make_step(micro_batch_size=5)], tmp_path)
        assert caught.value.code == "E-MEM-02"
    finally:
        del SETTINGS[Narrow]


@pytest.fixture(scope="module")
def corpora() -> dict[str, Any]:
    tokenizer = small.make_tokenizer()
    return {view: small.make_corpus(tokenizer, view=view, epochs=1) for view in ("preference", "judged")}


def with_reference(corpus: Any, method: Any, file: Path, *, packing: bool = True) -> tuple[NexusDataModule, list[str]]:
    told: list[str] = []
    data = NexusDataModule(corpus, loss_unit=method.loss_unit)
    data.packing = packing
    attach_reference(method.policy, data, file=file, device="cpu", precision="fp32", tell=told.append)
    return data, told


@pytest.mark.parametrize("adapter", [small.NO_ADAPTER, small.LORA], ids=lambda adapter: adapter["name"])
def test_dpo_starts_at_log_two(corpora: dict[str, Any], tmp_path: Path, adapter: dict[str, Any]) -> None:
    method = make(DPO, adapter=adapter, sft_weight=0.0)
    method.configure_model()
    for packing in (True, False):
        data, _ = with_reference(corpora["preference"], method, tmp_path / f"{packing}", packing=packing)
        [batch] = data.group_batches(data.corpus.rows[:2])
        output = method.loss(batch)
        assert float(output.loss) == pytest.approx(math.log(2), abs=1e-5)
        assert float(output.metrics["rewards/margins"]) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("kind", [DPO, KTO], ids=lambda kind: kind.__name__)
def test_the_reference_is_computed_once_and_kept(corpora: dict[str, Any], tmp_path: Path, kind: type[Method]) -> None:
    corpus = corpora["preference" if kind is DPO else "judged"]
    method = make(kind)
    method.configure_model()
    data, told = with_reference(corpus, method, tmp_path / "ref")
    assert len(told) == 1
    first = [row.values["ref_logprobs"] for row in data.corpus.rows]
    row = data.corpus.rows[3]
    for ids, kept in zip(row.completions, row.values["ref_logprobs"], strict=True):  # transformers' own loss, one row
        whole = torch.tensor([row.prompt_ids + ids])
        labels = torch.cat([torch.full((1, len(row.prompt_ids)), -100), torch.tensor([ids])], 1)
        loss = method.policy(input_ids=whole, labels=labels, use_cache=False).loss
        assert -float(loss) * len(ids) == pytest.approx(kept, rel=1e-4)
    with torch.no_grad():
        next(method.policy.parameters()).add_(1.0)  # the policy moves, its reference does not
    data, told = with_reference(corpus, method, tmp_path / "ref")
    assert told == []
    assert [row.values["ref_logprobs"] for row in data.corpus.rows] == first
    data, told = with_reference(corpus, method, tmp_path / "other")
    assert len(told) == 1
    assert [row.values["ref_logprobs"] for row in data.corpus.rows] != first


@pytest.mark.parametrize("kind", [DPO, KTO], ids=lambda kind: kind.__name__)
def test_resumed_equals_uninterrupted(corpora: dict[str, Any], tmp_path: Path, kind: type[Method]) -> None:
    corpus = corpora["preference" if kind is DPO else "judged"]

    def run(folder: Path, steps: int, resume: Path | None = None) -> Any:
        method = make(kind, total_steps=4, optimizer=functools.partial(torch.optim.AdamW, lr=3e-3, fused=True))
        method.configure_model()
        method.train()
        data, _ = with_reference(corpus, method, folder / "reference.safetensors")
        saver = small.make_saver(folder)
        trainer = small.make_trainer(folder, max_steps=steps, callbacks=[saver])
        trainer.fit(method, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True)
        return method

    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 1)
    [(_, path)] = checkpoints(tmp_path / "parts" / "checkpoints")
    parts = run(tmp_path / "parts", 3, path)
    for (name, ours), theirs in zip(parts.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_preference_accuracy_by_hand(corpora: dict[str, Any]) -> None:
    method = make(SimPO)
    method.configure_model()
    batches = NexusDataModule(corpora["preference"]).held_out_batches()
    scores = preference_accuracy(method.policy, batches)
    hits, margins = [], []
    for pair in corpora["preference"].held_out_rows:
        found = []
        for ids in pair.completions:
            whole = torch.tensor([pair.prompt_ids + ids])
            logp = torch.log_softmax(method.policy(input_ids=whole, use_cache=False).logits[0], -1)
            found.append([float(logp[len(pair.prompt_ids) + t - 1, token]) for t, token in enumerate(ids)])
        hits.append(sum(found[0]) > sum(found[1]))
        margins.append(sum(found[0]) / len(found[0]) - sum(found[1]) / len(found[1]))
    assert scores["accuracy"].value == sum(hits) / len(hits)
    assert scores["accuracy_per_token"].value == sum(m > 0 for m in margins) / len(margins)
    assert scores["margin_per_token"].value == pytest.approx(sum(margins) / len(margins), rel=1e-3)
    assert {score.n for score in scores.values()} == {2}


def test_the_plan_knows_which_methods_have_a_reference() -> None:
    assert {kind.__name__.lower() for kind in SETTINGS if kind.needs_reference} == REFERENCE_METHODS
