"""How a step is cut changes nothing: 1x8 equals 8x1, packed equals padded, whatever the rows' shares of targets."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from nexus.methods.sft import SFT
from tests import small

LAYOUTS = {
    "one micro-batch of eight": {"packing": True, "micro_batch_size": 8},
    "eight of one": {"packing": True, "micro_batch_size": 1},
    "three of up to three": {"packing": True, "micro_batch_size": 3},
    "padded, one of eight": {"packing": False, "micro_batch_size": 8},
    "padded, eight of one": {"packing": False, "micro_batch_size": 1},
    "padded, three of up to three": {"packing": False, "micro_batch_size": 3},
}
STEPS = 2


class Record(Callback):
    """Keeps loss and gradient norm of every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        metrics = pl_module.step_metrics
        self.seen.append((float(metrics["train/loss"]), float(metrics["train/grad_norm"])))


@functools.cache
def rows():
    """Eight rows a step; one has a single target token, one has nothing but targets."""
    steps = [small.make_rows(8, seed=seed) for seed in range(STEPS)]
    counts = [row.num_target_tokens for step in steps for row in step]
    assert max(counts) > 8 * min(counts)  # uneven enough that a mean of means would be far off
    return steps


def assert_equal(method: SFT, reference: SFT) -> None:
    """All weights agree to 1e-5."""
    ours, theirs = small.weights(method), small.weights(reference)
    assert ours.keys() == theirs.keys()
    assert {name: float((ours[name] - theirs[name]).abs().max()) for name in ours} == pytest.approx(
        dict.fromkeys(ours, 0.0), abs=1e-5
    )


def train(folder: Path, layout: dict, adapter: dict, clip: float | None) -> tuple[SFT, Record]:
    record = Record()
    sgd = functools.partial(torch.optim.SGD, lr=0.5)  # unlike AdamW's, its step is proportional to the gradient
    method = small.make_method(optimizer=sgd, adapter=adapter, gradient_clip=clip, total_steps=STEPS, warmup_ratio=0.0)
    small.fit_steps(method, [small.make_step(step, **layout) for step in rows()], folder, [record])
    return method, record


@pytest.mark.parametrize("adapter", [small.NO_ADAPTER, small.LORA], ids=lambda adapter: adapter["name"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_the_cut_of_a_step_changes_nothing(tmp_path: Path, adapter: dict, clip: float | None) -> None:
    start = small.make_method(adapter=adapter)
    start.configure_model()
    reference, expected = train(tmp_path, LAYOUTS["one micro-batch of eight"], adapter, clip)
    before = small.weights(start)
    moved = max(float((p - before[name]).abs().max()) for name, p in small.weights(reference).items())
    assert moved > 1e-3  # the step is much larger than the tolerance
    assert len(expected.seen) == STEPS
    assert expected.seen[0][1] > 0.05  # the clip bites
    for name, layout in list(LAYOUTS.items())[1:]:
        method, record = train(tmp_path, layout, adapter, clip)
        for seen, wanted in zip(record.seen, expected.seen, strict=True):
            assert seen == pytest.approx(wanted, rel=1e-5), name
        assert_equal(method, reference)
        assert method.tokens_seen == reference.tokens_seen == sum(len(row.input_ids) for step in rows() for row in step)


def test_the_step_equals_the_mean_over_its_tokens(tmp_path: Path) -> None:
    """Against transformers' own forward pass, row by row, and one cross-entropy over all target tokens."""
    method = small.make_method()
    method.configure_model()
    logits, targets = [], []
    for row in rows()[0]:
        ids = torch.tensor([row.input_ids])
        full = method.policy(input_ids=ids, use_cache=False).logits[0, :-1]
        counted = torch.tensor(row.loss_mask[1:])
        logits.append(full[counted])
        targets.append(ids[0, 1:][counted])
    loss = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets))
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in method.parameters() if p.grad is not None]).norm()
    for layout in LAYOUTS.values():
        record = Record()
        steps = [small.make_step(rows()[0], **layout)]
        small.fit_steps(small.make_method(total_steps=1), steps, tmp_path, [record])
        assert record.seen == [pytest.approx((float(loss), float(norm)), rel=1e-5)]
