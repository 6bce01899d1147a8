"""Weights and optimizer state in host memory while a run is paused, so that the GPU is free for something else."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_HOST = torch.device("cpu")


class Parking:
    """Moves what a training keeps on its GPU to host memory and back, bit for bit.

    State that the driver pages by itself (bitsandbytes' paged optimizers) stays where it is; so does the context of the
    device, which only the end of the process gives back.

    Args:
        modules: with all their weights on one device each.
        optimizers: over weights of these modules; between two steps, when no gradient is kept.
    """

    def __init__(self, modules: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
        self._modules = [(module, next(module.parameters()).device) for module in modules]
        self._optimizers = optimizers
        self._states: list[tuple[dict[Any, Any], Any, torch.device]] = []

    @property
    def is_needed(self) -> bool:
        """Whether anything is on a device that could be given away."""
        return any(home != _HOST for _, home in self._modules)

    def park(self) -> None:
        """Give the device away."""
        self._states = [(state, key, value.device) for state, key, value in self._elsewhere()]
        self._to_host()

    def bring_back(self) -> bool:
        """Take the device again.

        Returns:
            False if it has no room now; everything is in host memory then, as before.
        """
        try:
            for module, home in self._modules:
                module.to(home)
            for state, key, home in self._states:
                state[key] = state[key].to(home)
        except torch.OutOfMemoryError:
            self._to_host()
            return False
        self._states.clear()
        return True

    def _to_host(self) -> None:
        for module, _ in self._modules:
            module.to(_HOST)
        for state, key, _ in self._states:
            state[key] = state[key].to(_HOST)
        gc.collect()  # what refers to itself in circles still holds memory of the device
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()

    def _elsewhere(self) -> Iterator[tuple[dict[Any, Any], Any, Tensor]]:
        for optimizer in self._optimizers:
            for state in optimizer.state.values():
                for key, value in list(state.items()):
                    if isinstance(value, Tensor) and value.device != _HOST and not getattr(value, "is_paged", False):
                        yield state, key, value
