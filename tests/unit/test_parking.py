"""What leaves the GPU during a pause, and how it comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from nexus.callbacks import hold
from nexus.callbacks.hold import Desk
from nexus.callbacks.run_control import RunControl
from nexus.flags import Flags
from nexus.hardware.parking import Parking
from nexus.storage.run_status import Board
from tests import small


class Afar(nn.Linear):
    """A layer that says it is on a GPU, and that there is no room for it `full` times."""

    def __init__(self, full: int) -> None:
        super().__init__(2, 2)
        self.moves: list[str] = []
        self.full = full

    def to(self, device: Any) -> Any:  # type: ignore[override]
        self.moves.append(torch.device(device).type)
        if self.moves[-1] == "cuda" and self.full:
            self.full -= 1
            raise torch.OutOfMemoryError("no room")
        return self


def parked_afar(full: int) -> tuple[Afar, Parking]:
    layer = Afar(full)
    parking = Parking([layer], [])
    parking._modules = [(layer, torch.device("cuda"))]
    return layer, parking


def test_without_room_everything_waits_on_the_host() -> None:
    layer, parking = parked_afar(full=2)
    assert parking.is_needed
    parking.park()
    assert [parking.bring_back() for _ in range(3)] == [False, False, True]
    assert layer.moves == ["cpu", "cuda", "cpu", "cuda", "cpu", "cuda"]


def test_a_hold_lasts_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hold, "_RETURN_SECONDS", 0.1)
    layer, parking = parked_afar(full=3)
    desk = Desk(board=Board(tmp_path), flags=Flags())
    trainer = small.make_trainer(tmp_path, max_steps=1)
    desk.hold(trainer, state="paused", reason="asked", until=lambda: True, parking=parking)
    assert layer.moves[-1] == "cuda"
    assert desk.held_seconds >= 0.3
    printed = capsys.readouterr().out
    assert "the GPU is free" in printed
    assert printed.count("W-RUN-05") == 1


class PauseAt(Callback):
    """Asks for a pause after a step, and a checkpoint and the end of the pause once it is there."""

    def __init__(self, flags: Flags, step: int) -> None:
        self.flags = flags
        self.step = step

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            self.flags.ask("pause")


def test_on_a_processor_there_is_nothing_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, device="cpu", step=None, found=[])
    assert "W-RUN-06" in capsys.readouterr().out


def trained(folder: Path, *, device: str, step: int | None, found: list[int]) -> dict[str, torch.Tensor]:
    """Weights after four steps, with a pause after `step`; the device's memory in use during it."""
    flags = Flags()
    desk = Desk(board=Board(folder), flags=flags)
    control = RunControl(pause_offload=True, desk=desk)
    callbacks: list[Callback] = [control] if step is None else [PauseAt(flags, step), control]

    def look_and_resume(trainer: Any) -> None:
        if desk.holding:
            found.append(torch.cuda.memory_allocated() if device == "cuda" else 0)
            flags.ask("resume")

    desk.serve = look_and_resume  # type: ignore[method-assign]
    method = small.make_method(total_steps=4)
    steps = [small.make_step(small.make_rows(3, seed=index)) for index in range(4)]
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_steps=4, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    method.configure_model()
    method.train()
    trainer.fit(method, datamodule=small.Given(steps))
    return {name: value.detach().cpu().clone() for name, value in method.state_dict().items()}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_training_goes_on_with_the_same_weights(device: str, tmp_path: Path) -> None:
    whole = trained(tmp_path, device=device, step=None, found=[])
    seen: list[int] = []
    paused = trained(tmp_path, device=device, step=2, found=seen)
    assert len(seen) == 1
    assert seen[0] < 2**19  # weights and state are 1.7 MB
    assert all(torch.equal(whole[name], paused[name]) for name in whole | paused)
