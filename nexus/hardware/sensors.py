"""Temperatures and power, read off the training thread; a sensor that fails says so and never 0 degrees."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

#: Drivers of processor sensors in `/sys/class/hwmon`: Intel, AMD (two), ARM boards.
_PROCESSOR_DRIVERS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")


class Sensor(Protocol):
    """Something that knows a temperature, or a power."""

    def read(self) -> float | None:
        """Degrees Celsius or watts now; None if the sensor does not answer."""


@dataclass(frozen=True)
class Reading:
    """A value and when it was taken.

    Attributes:
        value: degrees Celsius or watts; None if the sensor did not answer.
        at: seconds on the monotonic clock.
    """

    value: float | None
    at: float


class NvmlSensor:
    """An NVIDIA card, by the driver's own library (package nvidia-ml-py).

    Args:
        uuid: of the card, since numbers change with `CUDA_VISIBLE_DEVICES`.

    Raises:
        Exception: an `NVMLError` where there is no driver or no such card.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml: Any = importlib.import_module("pynvml")
        self._nvml.nvmlInit()
        self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)

    def read(self) -> float | None:
        """Degrees Celsius of the core; memory chips may be hotter."""
        try:
            return float(self._nvml.nvmlDeviceGetTemperature(self._handle, self._nvml.NVML_TEMPERATURE_GPU))
        except self._nvml.NVMLError:  # under WSL some calls fail with codes of their own; all mean: not known
            return None


class NvmlPower(NvmlSensor):
    """What an NVIDIA card draws, by the driver's own library."""

    def read(self) -> float | None:
        """Watts of the whole card, as the driver measures them."""
        try:
            return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000  # it counts in thousandths
        except self._nvml.NVMLError:  # some laptops and virtual cards do not tell
            return None


class HwmonSensor:
    """A processor by the kernel's files; the hottest of them counts.

    Args:
        files: `temp*_input`, in thousandths of a degree.
    """

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def read(self) -> float | None:
        """Degrees Celsius."""
        found = []
        for file in self.files:
            try:
                found.append(int(file.read_text()) / 1000)
            except (OSError, ValueError):
                continue  # a core that sleeps does not answer
        return max(found, default=None)


class PsutilSensor:
    """A processor by psutil, where the kernel's files are elsewhere."""

    def __init__(self) -> None:
        self._psutil: Any = importlib.import_module("psutil")

    def read(self) -> float | None:
        """Degrees Celsius."""
        chips = self._psutil.sensors_temperatures()
        return max((entry.current for name in _PROCESSOR_DRIVERS for entry in chips.get(name, [])), default=None)


def find_sensors(cuda_uuid: str | None, *, hwmon: Path = Path("/sys/class/hwmon")) -> dict[str, Sensor]:
    """Sensors of this machine that answer now.

    Args:
        cuda_uuid: the card that trains, as the driver calls it (`GPU-...`); None if none does.
        hwmon: the kernel's folder.

    Returns:
        By `gpu` and `cpu`; what cannot be read is missing.
    """
    found: dict[str, Sensor] = {}
    if cuda_uuid is not None and importlib.util.find_spec("pynvml") is not None:
        pynvml = importlib.import_module("pynvml")
        # no driver library, or a card that it does not know: the caller tells what is missing
        with contextlib.suppress(pynvml.NVMLError):
            found["gpu"] = NvmlSensor(cuda_uuid)
    files = [
        file
        for name in sorted(hwmon.glob("*/name"))
        if name.read_text().strip() in _PROCESSOR_DRIVERS
        for file in sorted(name.parent.glob("temp*_input"))
    ]
    if files:
        found["cpu"] = HwmonSensor(files)
    elif importlib.util.find_spec("psutil") is not None and hasattr(
        importlib.import_module("psutil"), "sensors_temperatures"
    ):
        found["cpu"] = PsutilSensor()
    return {name: sensor for name, sensor in found.items() if sensor.read() is not None}


def find_power(cuda_uuid: str | None) -> Sensor | None:
    """What tells the power of the card that trains.

    Args:
        cuda_uuid: the card, as the driver calls it (`GPU-...`); None if none does.

    Returns:
        None where nothing answers.
    """
    if cuda_uuid is None or importlib.util.find_spec("pynvml") is None:
        return None
    pynvml = importlib.import_module("pynvml")
    with contextlib.suppress(pynvml.NVMLError):  # no driver library, or a card that it does not know
        sensor = NvmlPower(cuda_uuid)
        return sensor if sensor.read() is not None else None
    return None


class Poller:
    """A thread that reads sensors; a driver call that hangs holds up nobody else.

    Args:
        sensors: by name.
        seconds: between two rounds.
    """

    def __init__(self, sensors: Mapping[str, Sensor], *, seconds: float) -> None:
        self.sensors = dict(sensors)
        self.seconds = seconds
        self.readings: dict[str, Reading] = {}
        self._broken: set[str] = set()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read once, then go on reading beside."""
        self._round()
        self._thread = threading.Thread(target=self._run, name="nexus-sensors", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; a second call does nothing. It does not wait for a driver that hangs."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
            self._thread = None

    def _run(self) -> None:
        while not self._ended.wait(self.seconds):
            self._round()

    def _round(self) -> None:
        for name, sensor in self.sensors.items():
            try:
                value = sensor.read()
            except Exception as error:  # a driver's own kinds; the thread must live on, or readings end without a word
                value = None
                if name not in self._broken:
                    log.warning("W-THM-03  the sensor of the %s fails: %r", name, error)
                self._broken.add(name)
            self.readings[name] = Reading(value, time.monotonic())
