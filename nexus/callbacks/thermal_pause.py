"""Pauses training when GPU or processor are too hot, until they have cooled down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from nexus.callbacks.hold import Desk
from nexus.callbacks.polled import PolledCallback
from nexus.errors import NexusError
from nexus.hardware.sensors import Poller, Sensor
from nexus.hardware.thermal import Heat, HeatLimits, Verdict, advance

log = logging.getLogger(__name__)


class ThermalPause(PolledCallback):
    """Holds training from the first step boundary after a reading above the limit until all sensors say cool.

    Core temperatures are read, not those of memory chips, which may be 20 degrees hotter.

    Args:
        enabled: whether it does anything.
        gpu_pause_at: the GPU pauses training above, in degrees Celsius.
        gpu_resume_at: at or below, it lets training go on.
        cpu_pause_at: the same for the processor.
        cpu_resume_at: the same for the processor.
        seconds_between_polls: interval of the thread that reads.
        min_pause_seconds: shortest pause.
        max_pause_seconds: a longer one saves and ends the run.
        unknown_after_seconds: an older reading is none.
        stuck_after_seconds: a value that stays the same for so long is none, unless it is hot.
        on_unknown: `train`, `pause` or `stop` while a sensor is unknown.
        find_sensors: sensors by `gpu` and `cpu`; given by the run.
        desk: of the training; given by the run.

    Raises:
        ValueError: for limits that cannot be.
    """

    def __init__(
        self,
        *,
        enabled: bool,
        gpu_pause_at: float,
        gpu_resume_at: float,
        cpu_pause_at: float,
        cpu_resume_at: float,
        seconds_between_polls: float,
        min_pause_seconds: float,
        max_pause_seconds: float,
        unknown_after_seconds: float,
        stuck_after_seconds: float,
        on_unknown: str,
        find_sensors: Callable[[], dict[str, Sensor]],
        desk: Desk,
    ) -> None:
        if seconds_between_polls <= 0 or unknown_after_seconds <= seconds_between_polls:
            raise ValueError("seconds_between_polls must be above 0 and below unknown_after_seconds")
        self.enabled = enabled
        self.limits = {
            name: HeatLimits(
                pause_at=pause_at,
                resume_at=resume_at,
                min_pause=min_pause_seconds,
                max_pause=max_pause_seconds,
                unknown_after=unknown_after_seconds,
                stuck_after=stuck_after_seconds,
                on_unknown=Verdict(on_unknown),
            )
            for name, pause_at, resume_at in (
                ("gpu", gpu_pause_at, gpu_resume_at),
                ("cpu", cpu_pause_at, cpu_resume_at),
            )
        }
        self.seconds_between_polls = seconds_between_polls
        self.find_sensors = find_sensors
        self.desk = desk
        self.heat: dict[str, Heat] = {}
        self._warned: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the sensors and begin to read them; without any, say so once."""
        if not self.enabled:
            return
        sensors = self.find_sensors()
        wanted = ["gpu", "cpu"] if pl_module.device.type == "cuda" else ["cpu"]
        missing = [name for name in wanted if name not in sensors]
        if missing:
            log.warning(
                "W-THM-01  heat of the %s cannot be read (a GPU needs the package nvidia-ml-py), so it does not pause "
                "the run; hardware.cooldown=true rests by the clock",
                " and ".join(missing),
            )
        if sensors:
            self.poller = Poller(sensors, seconds=self.seconds_between_polls)
            self.poller.start()
            self.heat = {name: Heat(same_since=time.monotonic()) for name in sensors}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the latest readings; hold training while one is hot."""
        if self.poller is None:
            return
        if self._judge(trainer) is Verdict.PAUSE:
            self.desk.hold(
                trainer,
                state="too hot",
                reason=self._reason(),
                until=lambda: self._judge(trainer) is Verdict.TRAIN,
            )

    def measured(self) -> dict[str, float]:
        """Temperatures for `metrics.csv`, of the sensors that answer."""
        return {f"perf/{name}_celsius": heat.celsius for name, heat in self.heat.items() if heat.celsius is not None}

    def _judge(self, trainer: Trainer) -> Verdict:
        """The strictest verdict over all sensors.

        Args:
            trainer: saves a checkpoint before the run stops.

        Returns:
            The verdict; `Verdict.STOP` is never returned.

        Raises:
            NexusError: `E-THM-03` after a checkpoint, when the run is to stop.
        """
        assert self.poller is not None
        now, readings = time.monotonic(), self.poller.readings
        for name, heat in self.heat.items():
            self.heat[name] = advance(heat, self.limits[name], readings[name], now)
            if not self.heat[name].known and name not in self._warned:
                self._warned.add(name)
                log.warning("W-THM-02  the temperature of the %s is not known any more", name)
        self.desk.board.update(
            temperature={name: heat.celsius for name, heat in self.heat.items() if heat.celsius is not None}
        )
        verdicts = [heat.verdict for heat in self.heat.values()]
        if Verdict.STOP in verdicts:
            self.desk.save(trainer)
            raise NexusError(
                "E-THM-03",
                f"the machine does not cool down, or its temperature is unknown ({self._reason()})",
                where="callbacks.thermal_pause",
                remedy="clean fans and filters, limit the card's power, then resume the run; it was saved",
                status=75,
            )
        return Verdict.PAUSE if Verdict.PAUSE in verdicts else Verdict.TRAIN

    def _reason(self) -> str:
        parts = []
        for name, heat in self.heat.items():
            if heat.verdict is not Verdict.TRAIN:
                value = f"{heat.celsius:g} C" if heat.known else "unknown"
                parts.append(f"{name} {value}, limits {self.limits[name].pause_at:g}/{self.limits[name].resume_at:g}")
        return "; ".join(parts)
