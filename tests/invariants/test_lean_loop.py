"""The lean loop and Lightning's own: the same hooks in the same order, counts, checkpoints and weights, bit for bit.

A Lightning that trains otherwise than the one that `stages.lean_loop` was written after shows here.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.demos.boring_classes import BoringModel

from nexus.data.module import NexusDataModule
from nexus.methods.sft import SFT
from nexus.models.saved_state import read_state
from nexus.stages.lean_loop import LeanEpochLoop, LeanStrategy
from tests import small

STEPS = 6
both_loops = pytest.mark.parametrize("lean", [True, False], ids=["lean", "own"])


def hooks_of(kind: type) -> list[str]:
    """Names of all hooks of a class of Lightning."""
    return [name for name in dir(kind) if name.startswith("on_") or name in ("setup", "teardown")]


def situation(trainer: Trainer) -> dict[str, Any]:
    """What a hook can see of the loop."""
    loop = trainer.fit_loop.epoch_loop
    logged = trainer._logger_connector
    return {
        "fx": trainer.lightning_module._current_fx_name,
        "step": trainer.global_step,
        "loops": copy.deepcopy(trainer.fit_loop.state_dict()),
        "batch": (loop.batch_idx, loop.total_batch_idx, trainer.is_last_batch, loop._results.batch is not None),
        "first": logged._first_loop_iter,
        "has_gradient": [p.grad is not None for p in trainer.lightning_module.parameters()].count(True),
        "grad_mode": torch.is_grad_enabled(),
    }


def recording(base: type, names: list[str]) -> type:
    """A class that notes every hook with the kinds of its arguments and the situation."""

    def make(name: str) -> Any:
        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            trainer = self.trainer if isinstance(self, LightningModule) else args[0]
            given = [type(one).__name__ for one in args] + sorted(kwargs)
            numbers = [one for one in args if isinstance(one, int)]
            self.calls.append((self.label, name, given, numbers, situation(trainer)))
            return getattr(base, name)(self, *args, **kwargs)

        return hook

    return type(f"Recording{base.__name__}", (base,), {name: make(name) for name in names})


RecordingCallback = recording(Callback, hooks_of(Callback))
TRANSFERS = ["on_before_batch_transfer", "on_after_batch_transfer"]
RecordingMethod = recording(SFT, sorted({*hooks_of(SFT), *TRANSFERS}))


def fit(
    folder: Path, *, lean: bool, until: int = STEPS, method: Any = None, resume: Path | None = None, **more: Any
) -> Any:
    """Train to step `until` and return the trainer; there is a checkpoint of the last step."""
    method = small.make_method(neftune_alpha=5.0, total_steps=STEPS) if method is None else method
    method.configure_model()
    method.train()
    callbacks = [*more.pop("callbacks", []), small.make_saver(folder)]
    trainer = small.make_trainer(folder, max_steps=until, callbacks=callbacks, lean=lean, **more)
    data = NexusDataModule(small.make_corpus(small.make_tokenizer()))
    trainer.fit(method, datamodule=data, ckpt_path=None if resume is None else str(resume), weights_only=True)
    return trainer


def same(ours: Any, theirs: Any) -> bool:
    """Whether two states are equal, tensors to the bit."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else bool(ours == theirs)


def test_every_hook_is_called_as_lightning_calls_it(tmp_path: Path) -> None:
    heard: dict[bool, list[Any]] = {}
    for lean in (True, False):
        calls = heard[lean] = []
        method = small.make_method(RecordingMethod, chunk_size=16, total_steps=STEPS)
        method.label, method.calls = "method", calls
        callbacks = [RecordingCallback(), RecordingCallback()]
        for index, callback in enumerate(callbacks):
            callback.label, callback.calls = index, calls
        fit(tmp_path / str(lean), lean=lean, method=method, callbacks=callbacks)
    for ours, theirs in zip(heard[True], heard[False], strict=True):
        assert ours == theirs
    names = {name for _, name, *_ in heard[True]}
    assert {"on_train_batch_start", "on_before_backward", "on_before_optimizer_step", *TRANSFERS} <= names
    assert sum(name == "on_after_backward" for _, name, *_ in heard[True]) > 3 * STEPS  # some steps have two


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_equal_weights_and_checkpoints(tmp_path: Path, precision: str) -> None:
    ours, theirs = (fit(tmp_path / str(lean), lean=lean, precision=precision) for lean in (True, False))
    states = [read_state(tmp_path / str(lean) / "checkpoints" / f"step={STEPS:08d}") for lean in (True, False)]
    assert same(*states)
    assert states[0]["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == STEPS
    assert same(*({name: p.detach() for name, p in t.lightning_module.named_parameters()} for t in (ours, theirs)))
    assert ours.lightning_module.tokens_seen == theirs.lightning_module.tokens_seen


@pytest.mark.parametrize("stop", [2, 3])
@both_loops
def test_a_checkpoint_of_either_loop_serves_the_other(tmp_path: Path, lean: bool, stop: int) -> None:
    fit(tmp_path / "whole", lean=not lean)
    fit(tmp_path / "parts", lean=lean, until=stop)
    fit(tmp_path / "parts", lean=not lean, resume=tmp_path / "parts" / "checkpoints" / f"step={stop:08d}")
    whole, parts = (read_state(tmp_path / run / "checkpoints" / f"step={STEPS:08d}") for run in ("whole", "parts"))
    assert same(parts["state_dict"], whole["state_dict"])
    assert same(parts["optimizer_states"], whole["optimizer_states"])
    assert (
        parts["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        == whole["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    )


class Logging(Callback):
    """Logs through the module, in two hooks."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.log("index", float(batch_idx), on_step=True, on_epoch=True, batch_size=1)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.log("norm", pl_module.step_metrics["train/grad_norm"], batch_size=len(batch))


class Loss(SFT):
    """Gives its loss back, as `training_step` may, and logs in it."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)
        self.log("own", self.step_metrics["train/loss"], batch_size=1)
        return {"loss": torch.tensor(self.step_metrics["train/loss"])}


def test_what_is_logged_through_the_module_arrives(tmp_path: Path) -> None:
    found = []
    for lean in (True, False):
        outputs: list[Any] = []
        ends = LambdaCallback(
            on_train_batch_end=lambda trainer, module, given, *_, outputs=outputs: outputs.append(given)
        )
        method = small.make_method(Loss, chunk_size=16, total_steps=STEPS)
        trainer = fit(tmp_path / str(lean), lean=lean, method=method, callbacks=[Logging(), ends])
        found.append(
            ({**trainer.callback_metrics}, {**trainer.logged_metrics}, {**trainer.progress_bar_metrics}, outputs)
        )
    assert same(*found)
    assert {"index", "index_step", "index_epoch", "norm", "own"} <= found[0][0].keys()
    assert [sorted(given) for given in found[0][3]] == [["loss"]] * STEPS


class Late(Callback):
    """Comes and goes while training: `seen` are the steps at whose end it was there."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(trainer.global_step)


@both_loops
def test_callbacks_may_come_and_go(tmp_path: Path, lean: bool) -> None:
    late = Late()

    def change(trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            trainer.callbacks.append(late)
        if trainer.global_step == 4:
            trainer.callbacks.remove(late)

    fit(tmp_path, lean=lean, callbacks=[LambdaCallback(on_train_batch_start=change)])
    assert late.seen == [3, 4]


@both_loops
def test_should_stop_and_minus_one_end_as_ever(tmp_path: Path, lean: bool) -> None:
    def stop(trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == 3

    trainer = fit(tmp_path / "stop", lean=lean, callbacks=[LambdaCallback(on_train_batch_end=stop)])
    assert trainer.global_step == 3

    class Skips(SFT):
        """Leaves the first epoch of the loader early."""

        skipped = False

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            if batch_idx == 1 and not self.skipped:
                self.skipped = True
                return -1
            return None

    method = small.make_method(Skips, chunk_size=16, total_steps=STEPS)
    trainer = fit(tmp_path / "skip", lean=lean, method=method, until=4)
    progress = trainer.fit_loop.epoch_loop.batch_progress.total
    assert (trainer.global_step, progress.ready, progress.completed) == (4, 5, 4)


@both_loops
def test_an_exception_reaches_every_callback(tmp_path: Path, lean: bool) -> None:
    heard: list[Any] = []

    def fail(trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            raise RuntimeError("a hook failed")

    calls = {
        "on_before_optimizer_step": fail,
        "on_exception": lambda trainer, module, error: heard.append(situation(trainer) | {"error": str(error)}),
    }
    with pytest.raises(RuntimeError, match="a hook failed"):
        fit(tmp_path, lean=lean, callbacks=[LambdaCallback(**calls)])
    [found] = heard
    assert (found["step"], found["error"], found["fx"]) == (2, "a hook failed", "on_exception")
    steps = found["loops"]["epoch_loop.manual_optimization.optim_step_progress"]["total"]
    assert steps == {"ready": 3, "completed": 2}


def test_a_training_of_another_kind_is_refused(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_steps": 2, "default_root_dir": str(tmp_path), "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    trainer = Trainer(strategy=LeanStrategy("cpu"), limit_val_batches=0, **common)
    trainer.fit_loop.epoch_loop = LeanEpochLoop(trainer, max_steps=2)
    with pytest.raises(TypeError, match="automatic_optimization = False"):
        trainer.fit(BoringModel())
    trainer = Trainer(accumulate_grad_batches=1, profiler="simple", **common)
    trainer.fit_loop.epoch_loop = LeanEpochLoop(trainer, max_steps=2)
    method = small.make_method()
    method.configure_model()
    with pytest.raises(TypeError, match="strategy=LeanStrategy.*limit_val_batches=0, no profiler"):
        trainer.fit(method, datamodule=NexusDataModule(small.make_corpus(small.make_tokenizer())))
