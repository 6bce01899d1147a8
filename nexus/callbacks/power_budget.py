"""Holds training while the GPU has drawn more than a budget in the last while: a small supply, a warm room."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from nexus.callbacks.hold import Desk
from nexus.callbacks.polled import PolledCallback
from nexus.errors import NexusError
from nexus.hardware.power import MeanDraw, must_rest
from nexus.hardware.sensors import Poller, Sensor

log = logging.getLogger(__name__)

#: Polls without an answer after which the power is not known.
_POLLS = 5


class PowerBudget(PolledCallback):
    """Rests at step boundaries so that the card's mean power stays within a budget.

    A single instant may be above it: what limits those is the card's own power limit (`nvidia-smi -pl`).

    Args:
        enabled: whether it does anything.
        watts: the budget, in the mean of the window, rests included.
        resume_watts: a rest ends at or below.
        window_seconds: length of the window.
        seconds_between_polls: interval of the thread that reads.
        max_pause_seconds: a longer rest saves and ends the run: the card draws too much even then.
        find_power: the sensor of the card that trains, None without one; given by the run.
        desk: of the training; given by the run.

    Raises:
        ValueError: for limits that cannot be.
    """

    def __init__(
        self,
        *,
        enabled: bool,
        watts: float,
        resume_watts: float,
        window_seconds: float,
        seconds_between_polls: float,
        max_pause_seconds: float,
        find_power: Callable[[], Sensor | None],
        desk: Desk,
    ) -> None:
        if not 0 < resume_watts < watts:
            raise ValueError("resume_watts must be above 0 and below watts")
        if not 0 < seconds_between_polls < window_seconds or max_pause_seconds <= 0:
            raise ValueError(
                "seconds_between_polls must be above 0 and below window_seconds, max_pause_seconds above 0"
            )
        self.enabled = enabled
        self.watts = watts
        self.resume_watts = resume_watts
        self.window_seconds = window_seconds
        self.seconds_between_polls = seconds_between_polls
        self.max_pause_seconds = max_pause_seconds
        self.find_power = find_power
        self.desk = desk
        self._warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the sensor and begin to read it; without one, say so once."""
        if not self.enabled:
            return
        sensor = self.find_power()
        if sensor is None:
            log.warning(
                "W-THM-04  the power of the GPU cannot be read (it needs a CUDA device and the package nvidia-ml-py), "
                "so the budget does not hold the run"
            )
            return
        mean = MeanDraw(sensor, seconds=self.window_seconds)
        self.poller = Poller({"gpu": mean}, seconds=self.seconds_between_polls)
        self.poller.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Rest if the budget is used up."""
        mean = self.mean()
        if self.poller is None or trainer.global_step >= trainer.max_steps:
            return
        if mean is None:
            if not self._warned:
                self._warned = True
                log.warning("W-THM-05  the power of the GPU is not known any more; until it is, nothing holds the run")
            return
        if must_rest(mean, resting=False, watts=self.watts, resume_watts=self.resume_watts):
            began = time.monotonic()
            reason = f"gpu {mean:.0f} W in the mean of {self.window_seconds:g} s, budget {self.watts:g} W"
            self.desk.hold(trainer, state="power budget", reason=reason, until=lambda: self._rested(trainer, began))

    def mean(self) -> float | None:
        """Mean power of the window in watts; None while it is not known."""
        reading = None if self.poller is None else self.poller.readings["gpu"]
        if reading is None or time.monotonic() - reading.at > _POLLS * self.seconds_between_polls:
            return None
        return reading.value

    def measured(self) -> dict[str, float]:
        """Mean power for `metrics.csv`, if the sensor answers."""
        mean = self.mean()
        return {} if mean is None else {"perf/gpu_watts": round(mean, 1)}

    def _rested(self, trainer: Trainer, began: float) -> bool:
        """Whether a rest is over; an unknown power never ends it.

        Args:
            trainer: saves a checkpoint before the run ends.
            began: when the rest did, on the monotonic clock.

        Returns:
            True once the mean is low enough.

        Raises:
            NexusError: `E-THM-04` after a checkpoint, when it takes too long.
        """
        mean = self.mean()
        if mean is not None and not must_rest(mean, resting=True, watts=self.watts, resume_watts=self.resume_watts):
            return True
        if time.monotonic() - began < self.max_pause_seconds:
            return False
        self.desk.save(trainer)
        found = "is not known" if mean is None else f"is {mean:.0f} W"
        raise NexusError(
            "E-THM-04",
            f"the GPU's mean power {found} after a rest of {self.max_pause_seconds:g} s",
            where="callbacks.power_budget",
            remedy=f"raise resume_watts={self.resume_watts:g} above what the card draws at rest, or end what else uses "
            "it, then resume the run; it was saved",
            status=75,
        )
