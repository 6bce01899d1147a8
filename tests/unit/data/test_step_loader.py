"""The loader's order is a formula of the seed, and a resumed run sees what the uninterrupted one would have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nexus.data.mixture import count_steps
from nexus.data.stream import StepLoader, epoch_order
from nexus.types import MicroBatch, TokenizedExample

ROWS = [TokenizedExample(str(i), "s", [i, i + 1], [False, True]) for i in range(10)]


def loader(rows: list[TokenizedExample] = ROWS, **changes: Any) -> StepLoader:
    settings: dict[str, Any] = {
        "num_steps": None,
        "epochs": 2,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "micro_batch_tokens": None,
        "packing": True,
        "pad_token_id": 0,
        "seed": 1,
        "shuffle": True,
    }
    return StepLoader(rows, **(settings | changes))


def ids(step: list[MicroBatch]) -> list[str]:
    return sorted(name for batch in step for name in batch.ids)


def test_every_epoch_shows_every_row_once() -> None:
    steps = [ids(step) for step in loader()]
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(name for step in epoch for name in step) == sorted(row.id for row in ROWS)
    assert steps[:3] != steps[3:]
    assert [ids(step) for step in loader()] == steps
    assert [ids(step) for step in loader(seed=2)] != steps


def test_order_without_shuffling_and_as_written() -> None:
    assert [ids(step) for step in loader(shuffle=False, epochs=1)] == [list("0123"), list("4567"), list("89")]
    # Pinned: a release that changes this order breaks the resuming of older runs.
    assert epoch_order(6, seed=1, epoch=0, shuffle=True) == [4, 5, 2, 3, 1, 0]


def test_number_of_steps() -> None:
    assert count_steps(10, global_batch_size=4, epochs=2, max_steps=None) == 6
    assert count_steps(10, global_batch_size=4, epochs=2, max_steps=5) == 5
    assert count_steps(10, global_batch_size=4, epochs=2, max_steps=50) == 6
    assert count_steps(10, global_batch_size=4, epochs=None, max_steps=50) == 50
    assert count_steps(10, global_batch_size=4, epochs=0.5, max_steps=None) == 2
    assert count_steps(1, global_batch_size=4, epochs=1, max_steps=None) == 1
    with pytest.raises(ValueError, match="epochs, max_steps or both"):
        count_steps(1, global_batch_size=4, epochs=None, max_steps=None)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        loader([])


def test_state_is_the_number_of_steps_handed_out() -> None:
    straight = [ids(step) for step in loader()]
    first = loader()
    steps = iter(first)
    seen = [ids(next(steps)) for _ in range(4)]
    state = first.state_dict()
    assert state == {"consumed": 4}
    second = loader()
    second.load_state_dict(state)
    assert len(second) == 6
    assert seen + [ids(step) for step in second] == straight
    assert len(list(second)) == 6  # used up, it starts over


def test_ranks_share_a_step() -> None:
    whole = [ids(step) for step in loader(shuffle=False)]
    shares = [[ids(step) for step in loader(shuffle=False, world_size=2, rank=rank)] for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == whole


class Recorder(LightningModule):
    """One weight, manual optimization, and the row names of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[str]] = []

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def training_step(self, batch: list[MicroBatch], batch_idx: int) -> None:
        optimizer = self.optimizers()
        for micro_batch in batch:
            loss = (self.weight - micro_batch.targets.float().mean()) ** 2
            self.manual_backward(loss * micro_batch.loss_scale)
        optimizer.step()
        optimizer.zero_grad()
        self.seen.append(ids(batch))

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches == self.trainer.max_steps  # reading it early lost the state once
        return torch.optim.Adam(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves after a step, at the step boundary."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(folder: Path, *, save_at: int = 0, stop_at: int = 6, resume: Path | None = None) -> Recorder:
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=stop_at,
        max_epochs=-1,
        logger=False,
        callbacks=[SaveAt(save_at, folder / f"{save_at}.ckpt")],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, train_dataloaders=loader(), ckpt_path=resume, weights_only=True)
    assert trainer.global_step == stop_at
    return module


@pytest.mark.parametrize("cut", [1, 3, 5])  # 3 is the end of an epoch, where Lightning's own bookkeeping slips
def test_lightning_resumes_in_the_middle(tmp_path: Path, cut: int) -> None:
    straight = fit(tmp_path)
    assert len(straight.seen) == 6
    first = fit(tmp_path, save_at=cut, stop_at=cut)
    second = fit(tmp_path, resume=tmp_path / f"{cut}.ckpt")
    assert first.seen + second.seen == straight.seen
    assert torch.equal(second.weight, straight.weight)


def test_lightning_resumes_a_run_that_died_later(tmp_path: Path) -> None:
    straight = fit(tmp_path, save_at=2)
    assert fit(tmp_path, resume=tmp_path / "2.ckpt").seen == straight.seen[2:]
