"""Lightning's training loop without what a step here never needs: the same hooks, counts and checkpoints, sooner.

Lightning asks every callback about every hook, writes the name of the hook that runs through `nn.Module.__setattr__`,
looks for a validation that is due and reads signatures, in each step. Here only those are called who have
something to do, found once, and what `make_trainer` fixes is not asked again.
`tests/invariants/test_lean_loop.py` compares hooks, counts and weights with those of Lightning's own loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.core.optimizer import do_nothing_closure
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.manual import _ManualOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.optim import Optimizer

_FX = "_current_fx_name"
_CALLBACK_HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
_TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def _overridden(owner: Any, base: type, name: str) -> Callable[..., Any] | None:
    """The hook as `owner` has it, by its class or set on it; None if it is that of `base`, which does nothing."""
    hook = getattr(owner, name)
    return hook if callable(hook) and getattr(hook, "__func__", hook) is not getattr(base, name) else None


class Hooks:
    """Who does something in the hooks of a step.

    Callbacks that come or go while training are noticed from the next hook on; a method that is replaced on one of them
    while training is not.

    Args:
        trainer: whose callbacks and module are asked, once there is a module.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.module: LightningModule = trainer.lightning_module
        self._known: list[Callback] = []
        self._callbacks: dict[str, list[Callable[..., Any]]] = {name: [] for name in _CALLBACK_HOOKS}
        self._own = {name: _overridden(self.module, LightningModule, name) for name in _CALLBACK_HOOKS}
        selector = trainer._data_connector._datahook_selector
        assert selector is not None, "set when the data are connected"
        bases = {True: LightningModule, False: LightningDataModule}
        owners = {name: selector.get_instance(name) for name in _TRANSFER_HOOKS}
        before, _, after = (_overridden(owner, bases[owner is self.module], name) for name, owner in owners.items())
        # the default transfer does something, unlike all other defaults
        self._before_transfer, self._after_transfer = before, after
        self._transfer = owners["transfer_batch_to_device"].transfer_batch_to_device

    def call(self, name: str, *args: Any) -> Any:
        """Run a hook of all callbacks in their order, then the module's.

        Args:
            name: one of `_CALLBACK_HOOKS`.
            *args: of the hook.

        Returns:
            What the module's hook returns; None without one.
        """
        trainer, module = self.trainer, self.module
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if callbacks != self._known:
            self._known = list(callbacks)
            for each in _CALLBACK_HOOKS:
                found = (_overridden(callback, Callback, each) for callback in callbacks)
                self._callbacks[each] = [hook for hook in found if hook is not None]
        hooks, own = self._callbacks[name], self._own[name]
        if not hooks and own is None:
            return None
        before = self.enter(name)
        for hook in hooks:
            hook(trainer, module, *args)
        response = None if own is None else own(*args)
        self.enter(before)
        return response

    def enter(self, name: str | None) -> str | None:
        """Note which hook runs, as `self.log` must know.

        Args:
            name: of the hook.

        Returns:
            That of the hook that ran until now.
        """
        state = self.module.__dict__  # past nn.Module's search for parameters, which takes longer than most hooks
        before: str | None = state[_FX]
        state[_FX] = name
        return before

    def to_device(self, batch: Any, device: torch.device) -> Any:
        """Run the hooks that bring a batch to the device.

        Args:
            batch: as the loader gave it.
            device: where it is computed.

        Returns:
            The batch there.
        """
        outer = self.enter(_TRANSFER_HOOKS[0])
        if self._before_transfer is not None:
            batch = self._before_transfer(batch, 0)
        self.enter(_TRANSFER_HOOKS[1])
        batch = self._transfer(batch, device, 0)
        self.enter(_TRANSFER_HOOKS[2])
        if self._after_transfer is not None:
            batch = self._after_transfer(batch, 0)
        self.enter(outer)
        return batch


class LeanStrategy(SingleDeviceStrategy):
    """One device; backward and optimizer step call the hooks that exist and nothing else.

    Attributes:
        hooks: those of the training that runs; set by its loop.
    """

    hooks: Hooks

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Backward pass between its hooks; no number format here scales the loss.

        Args:
            closure_loss: scalar.
            optimizer: not used.
            *args: of `Tensor.backward`.
            **kwargs: of `Tensor.backward`.

        Returns:
            The loss without its graph.
        """
        self.hooks.call("on_before_backward", closure_loss)
        self.hooks.module.backward(closure_loss, *args, **kwargs)
        self.hooks.call("on_after_backward")
        return closure_loss.detach()

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Step after its hook.

        Args:
            optimizer: the one of torch.
            closure: computes the loss again, for optimizers that want it; the hook then runs as Lightning does it.
            model: not used.
            **kwargs: of `Optimizer.step`.

        Returns:
            What the optimizer returns.
        """
        if closure is not do_nothing_closure:
            return super().optimizer_step(optimizer, closure, model, **kwargs)
        self.hooks.call("on_before_optimizer_step", optimizer)
        return optimizer.step(**kwargs)


class _LeanOptimization(_ManualOptimization):
    """Calls `training_step` of a module that takes its optimizer steps itself."""

    def advance(self, kwargs: OrderedDict[str, Any]) -> None:
        """One step.

        Args:
            kwargs: arguments of `training_step`, in their order.
        """
        strategy = self.trainer.strategy
        assert isinstance(strategy, LeanStrategy)
        before = strategy.hooks.enter("training_step")
        made = strategy.training_step(*kwargs.values())
        strategy.hooks.enter(before)
        self._output = {} if made is None else self.output_result_cls.from_training_step_output(made).asdict()


class LeanEpochLoop(_TrainingEpochLoop):
    """One optimizer step after the other, each with the hooks that somebody overrides.

    Progress is counted in the same objects and at the same moments as in Lightning's own loop, so that checkpoints of
    either serve both.

    Args:
        trainer: made with `LeanStrategy`.
        max_steps: optimizer steps of the training.
    """

    def __init__(self, trainer: Trainer, *, max_steps: int) -> None:
        super().__init__(trainer, max_steps=max_steps)
        self.manual_optimization = _LeanOptimization(trainer)

    @property
    def global_step(self) -> int:
        """Optimizer steps so far; the method takes them itself."""
        return self.manual_optimization.optim_step_progress.total.completed

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Refuse a training of another kind, and find who has hooks.

        Args:
            data_fetcher: hands out batches.

        Raises:
            TypeError: for what this loop leaves out.
        """
        super().on_run_start(data_fetcher)
        trainer = self.trainer
        strategy, precision, module = trainer.strategy, trainer.precision_plugin, trainer.lightning_module
        fits = {
            "automatic_optimization = False": not module.automatic_optimization,
            "strategy=LeanStrategy(...)": isinstance(strategy, LeanStrategy) and strategy.model is module,
            "precision 32-true or bf16-mixed": type(precision) is Precision
            or (type(precision) is MixedPrecision and precision.scaler is None),
            "limit_val_batches=0": trainer.limit_val_batches == 0,
            "accumulate_grad_batches=1": trainer.accumulate_grad_batches == 1,
            "a training_step that takes (batch, batch_idx)": not isinstance(data_fetcher, _DataLoaderIterDataFetcher),
            "no profiler": isinstance(trainer.profiler, PassThroughProfiler),
        }
        missing = [what for what, there in fits.items() if not there]
        if missing:
            raise TypeError(f"{type(self).__name__} is for trainings with {', '.join(missing)}")
        assert isinstance(strategy, LeanStrategy)
        self._strategy = strategy
        strategy.hooks = self._hooks = Hooks(trainer)
        data_fetcher._start_profiler = data_fetcher._stop_profiler = do_nothing_closure

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """One optimizer step.

        Args:
            data_fetcher: hands out batches.

        Raises:
            StopIteration: if the module's `on_train_batch_start` ends the epoch.
        """
        if self.val_loop.restarting:
            self.val_loop.restarting = False
        hooks, progress = self._hooks, self.batch_progress
        connector, results = self.trainer._logger_connector, self._results
        batch, _, _ = next(data_fetcher)
        batch_idx = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = hooks.to_device(batch, self._strategy.root_device)
        progress.increment_ready()
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        if hooks.call("on_train_batch_start", batch, batch_idx) == -1:
            progress.increment_by(0, is_last_batch=True)
            progress.increment_processed()
            raise StopIteration
        progress.increment_started()
        outputs = self.manual_optimization.run(OrderedDict(batch=batch, batch_idx=batch_idx))
        progress.increment_processed()
        hooks.call("on_train_batch_end", outputs, batch, batch_idx)
        if results:
            connector.on_batch_end()
        else:  # nothing went through `self.log`, so that there are no metrics to gather
            results.batch = results.batch_size = None
        progress.increment_completed()
        if results:
            connector.update_train_step_metrics()

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Count the step; there is neither a validation nor a plateau to look for.

        Args:
            data_fetcher: not used.

        Raises:
            SIGTERMException: if the process was told to end.
        """
        self._batches_that_stepped += 1
        self._save_loggers_on_train_batch_end()
        if self.trainer.received_sigterm and not self._is_training_done:
            raise SIGTERMException
