"""What this machine has: processors, memory, devices, number formats. Only `probe_devices` needs torch."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from nexus.errors import NexusError


@dataclass(frozen=True)
class Host:
    """The machine without its accelerators.

    Attributes:
        processor: its name, for reports.
        num_cpus: processors that this process may use.
        memory_bytes: memory of the machine, or of the container where that is less.
        available_bytes: of it, what can be had now without swapping.
    """

    processor: str
    num_cpus: int
    memory_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class Device:
    """Something that can compute.

    Attributes:
        kind: `cpu` or `cuda`, as torch calls it.
        index: number among its kind.
        name: what the maker calls it.
        memory_bytes: its memory.
        free_bytes: of it, what nobody holds now.
        precisions: number formats that are fast and safe to train in, the best first.
    """

    kind: str
    index: int
    name: str
    memory_bytes: int
    free_bytes: int
    precisions: tuple[str, ...]

    @property
    def label(self) -> str:
        """Name for reports, for example `cuda:0 NVIDIA GeForce RTX 5080`."""
        return f"{self.kind}:{self.index} {self.name}" if self.kind != "cpu" else f"cpu {self.name}"


def probe_host(*, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Host:
    """Look at the machine without torch.

    Args:
        proc: the kernel's process file system.
        cgroup: the kernel's control groups; a container's limit stands there.

    Returns:
        What was found.

    Raises:
        NexusError: E-DEV-04 on a system without `/proc/meminfo`.
    """
    total, available = _read_meminfo(proc / "meminfo")
    limit, used = _read_cgroup(cgroup)
    if limit is not None and limit < total:
        available = min(available, max(limit - used, 0))
        total = limit
    return Host(
        processor=_processor_name(proc / "cpuinfo"),
        num_cpus=len(os.sched_getaffinity(0)),
        memory_bytes=total,
        available_bytes=available,
    )


def _read_meminfo(path: Path) -> tuple[int, int]:
    if not path.is_file():
        raise NexusError(
            "E-DEV-04",
            "this system does not tell its memory",
            where=str(path),
            remedy="run Nexus on Linux or under WSL 2",
        )
    fields = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if value.split()[1:] == ["kB"]:
            fields[name] = int(value.split()[0]) * 1024
    return fields["MemTotal"], fields["MemAvailable"]


def _read_cgroup(folder: Path) -> tuple[int | None, int]:
    """Limit (None = unlimited) and use of a version 2 control group, bytes."""
    limit_file, used_file = folder / "memory.max", folder / "memory.current"
    if not (limit_file.is_file() and used_file.is_file()):
        return None, 0
    limit = limit_file.read_text(encoding="utf-8").strip()
    return (None if limit == "max" else int(limit)), int(used_file.read_text(encoding="utf-8"))


def _processor_name(path: Path) -> str:
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def probe_devices(host: Host) -> tuple[Device, ...]:
    """Look at what torch can compute on.

    Args:
        host: the result of `probe_host`, for the memory of the processor.

    Returns:
        CUDA devices first, the processor last; never empty.
    """
    import torch

    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        # bf16 before Ampere (compute capability 8) is emulated: slow, and torch calls it supported.
        precisions = ("bf16", "fp32") if properties.major >= 8 else ("fp32",)
        devices.append(Device("cuda", index, properties.name, total, free, precisions))
    # Processors compute bf16 correctly but, without AMX, several times slower than fp32.
    fast_bf16 = bool(torch.cpu.get_capabilities()["amx_bf16"]) if platform.machine() == "x86_64" else False
    precisions = ("fp32", "bf16") if fast_bf16 else ("fp32",)
    devices.append(Device("cpu", 0, host.processor, host.memory_bytes, host.available_bytes, precisions))
    return tuple(devices)


def choose_device(devices: tuple[Device, ...], *, accelerator: str) -> Device:
    """The device that a setting means.

    Args:
        devices: the result of `probe_devices`.
        accelerator: `auto` (the first device), `cpu` or `gpu`.

    Returns:
        One of `devices`.

    Raises:
        NexusError: E-DEV-01 when `gpu` is asked for and there is none.
    """
    if accelerator == "auto":
        return devices[0]
    kind = {"cpu": "cpu", "gpu": "cuda"}[accelerator]
    for device in devices:
        if device.kind == kind:
            return device
    found = ", ".join(device.label for device in devices)
    raise NexusError(
        "E-DEV-01",
        f"no CUDA device; found: {found}",
        where="hardware.accelerator",
        remedy="use hardware=auto or hardware=cpu, or install a torch built for CUDA",
    )


def other_gpus(devices: tuple[Device, ...], chosen: Device) -> str | None:
    """What to tell somebody whose run leaves GPUs of this machine idle.

    Args:
        devices: the result of `probe_devices`.
        chosen: the one that computes.

    Returns:
        A line `W-DEV-03  ...`; None if there is no other GPU, or the processor was chosen.
    """
    gpus = [device for device in devices if device.kind == "cuda"]
    if chosen.kind != "cuda" or len(gpus) < 2:
        return None
    return (
        f"W-DEV-03  hardware: {len(gpus)} GPUs are visible and one is used, {chosen.label}; "
        "CUDA_VISIBLE_DEVICES=N chooses another"
    )


def choose_precision(device: Device, *, precision: str) -> str:
    """The number format that a setting means on a device.

    Args:
        device: where to compute.
        precision: `auto` (the device's best), `fp32` or `bf16`.

    Returns:
        `fp32` or `bf16`.

    Raises:
        NexusError: E-DEV-02 when a GPU has no bf16 of its own.
    """
    if precision == "auto":
        return device.precisions[0]
    if precision not in device.precisions and device.kind == "cuda":
        raise NexusError(
            "E-DEV-02",
            f"{device.label} has no {precision} of its own",
            where="hardware.precision",
            remedy=f"use hardware.precision={device.precisions[0]}",
        )
    return precision
