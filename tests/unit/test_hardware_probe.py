"""The machine is read without torch, and settings that it cannot honor are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nexus.errors import NexusError
from nexus.hardware.probe import Device, choose_device, choose_precision, probe_devices, probe_host

OLD_GPU = Device("cuda", 0, "Old", 2**33, 2**33, ("fp32",))
NEW_GPU = Device("cuda", 0, "New", 2**34, 2**34, ("bf16", "fp32"))
CPU = Device("cpu", 0, "Some CPU", 2**34, 2**33, ("fp32",))


def fake_system(folder: Path, *, limit: str) -> tuple[Path, Path]:
    proc, cgroup = folder / "proc", folder / "cgroup"
    proc.mkdir()
    cgroup.mkdir()
    (proc / "meminfo").write_text("MemTotal:  16000 kB\nMemFree: 1 kB\nMemAvailable:  9000 kB\nHugePages_Total: 0\n")
    (proc / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 3GHz\n")
    (cgroup / "memory.max").write_text(limit)
    (cgroup / "memory.current").write_text("1024000\n")
    return proc, cgroup


def test_host_of_a_written_system(tmp_path: Path) -> None:
    proc, cgroup = fake_system(tmp_path, limit="max\n")
    host = probe_host(proc=proc, cgroup=cgroup)
    assert (host.memory_bytes, host.available_bytes) == (16000 * 1024, 9000 * 1024)
    assert host.processor == "Some CPU @ 3GHz"
    (cgroup / "memory.max").write_text("4096000\n")
    host = probe_host(proc=proc, cgroup=cgroup)
    assert (host.memory_bytes, host.available_bytes) == (4096000, 4096000 - 1024000)


def test_host_of_this_machine() -> None:
    host = probe_host()
    assert 0 < host.available_bytes <= host.memory_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert host.num_cpus == len(os.sched_getaffinity(0))


def test_system_without_meminfo(tmp_path: Path) -> None:
    with pytest.raises(NexusError) as caught:
        probe_host(proc=tmp_path, cgroup=tmp_path)
    assert (caught.value.code, caught.value.status) == ("E-DEV-04", 69)


def test_host_needs_no_torch() -> None:
    code = "import sys; from nexus.hardware.probe import probe_host; probe_host(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_devices_of_this_machine() -> None:
    devices = probe_devices(probe_host())
    assert devices[-1].kind == "cpu"
    assert len(devices) == torch.cuda.device_count() + 1
    assert all(device.precisions for device in devices)


def test_choice_of_device() -> None:
    assert choose_device((NEW_GPU, CPU), accelerator="auto") is NEW_GPU
    assert choose_device((NEW_GPU, CPU), accelerator="cpu") is CPU
    assert choose_device((CPU,), accelerator="auto") is CPU
    with pytest.raises(NexusError, match="Some CPU") as caught:
        choose_device((CPU,), accelerator="gpu")
    assert caught.value.code == "E-DEV-01"


def test_choice_of_precision() -> None:
    assert choose_precision(NEW_GPU, precision="auto") == "bf16"
    assert choose_precision(OLD_GPU, precision="auto") == "fp32"
    assert choose_precision(CPU, precision="bf16") == "bf16"
    with pytest.raises(NexusError) as caught:
        choose_precision(OLD_GPU, precision="bf16")
    assert caught.value.code == "E-DEV-02"
