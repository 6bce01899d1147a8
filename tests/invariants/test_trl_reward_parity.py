"""Our reward model on packed pairs with shared prompts equals TRL's RewardTrainer on padded rows: loss and gradients.

`RewardTrainer.compute_loss` is called with a namespace in the place of the trainer; the model that it gets is
transformers' own class around the very weights that ours computes with.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nexus.methods.reward_model import RewardModel
from nexus.models.reward_model import as_classifier
from nexus.types import LossUnit, TokenizedGroup
from tests import small

trl = pytest.importorskip("trl", reason="a test peer; installed by requirements-test.lock")


def trainer_self(center: float | None) -> SimpleNamespace:
    """What `compute_loss` reads of its trainer, on one process."""
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=center),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _total_train_tokens=0,
        _tp_size=1,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )


def padded(pairs: list[TokenizedGroup], margins: Tensor | None) -> dict[str, Any]:
    """Chosen rows, then rejected rows, padded on the right as TRL's collator does."""
    rows = [torch.tensor(pair.prompt_ids + pair.completions[side]) for side in (0, 1) for pair in pairs]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    return inputs if margins is None else inputs | {"margin": margins}


@pytest.mark.parametrize(("center", "with_margins"), [(None, False), (0.05, False), (0.05, True)])
def test_loss_gradients_and_metrics(center: float | None, with_margins: bool) -> None:
    pairs = [replace(pair, values={}) for pair in small.make_pairs(5, seed=4)]
    method = small.make_method(RewardModel, center_coef=center or 0.0)
    method.configure_model()
    generator = torch.Generator().manual_seed(1)
    margins = torch.rand(5, generator=generator) if with_margins else None
    if margins is not None:  # as a data set brings them, row by row
        rows = zip(pairs, margins.tolist(), strict=True)
        pairs = [replace(pair, values={"margin": (margin, margin)}) for pair, margin in rows]
    trainer = trainer_self(center)
    classifier = as_classifier(method.policy, method.reward_head, pad_token_id=0)
    expected = trl.RewardTrainer.compute_loss(trainer, classifier, padded(pairs, margins))
    expected.backward()
    theirs = {name: p.grad.clone() for name, p in method.policy.named_parameters() if p.grad is not None}
    their_head = classifier.score.weight.grad
    method.zero_grad()

    [batch] = small.make_step(pairs, loss_unit=LossUnit.GROUP)
    assert batch.shares_prompt
    output = method.loss(batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    ours = {name: p.grad for name, p in method.policy.named_parameters() if p.grad is not None}
    assert set(ours) == set(theirs)
    assert len(ours) > 20
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: name + text)
    torch.testing.assert_close(method.reward_head.weight.grad, their_head, rtol=1e-4, atol=1e-6)
    logged = trainer._metrics["train"]
    assert output.metrics["rewards/accuracies"].item() == pytest.approx(logged["accuracy"][-1])
    assert output.metrics["rewards/margins"].item() == pytest.approx(logged["margin"][-1], rel=1e-4)
