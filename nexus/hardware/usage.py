"""Memory that this process uses now and used at most: the device's if training runs on one, else the process's own."""

from __future__ import annotations

import functools
import os
import resource
import sys
from pathlib import Path

from nexus.hardware.processor import give_memory_back

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def memory_in_use_bytes() -> int:
    """Memory in use now.

    Returns:
        Bytes that torch allocated on the CUDA device if it has touched one, else the process's resident memory.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.memory_allocated())
    # read in every logged step, and so kept open: opening it costs more than reading it
    return int(os.pread(_statm(os.getpid()), 256, 0).split()[1]) * _PAGE_BYTES


@functools.cache
def _statm(process: int) -> int:
    """The file of this process's memory, asked for by its number: a fork must not read that of its parent."""
    return os.open("/proc/self/statm", os.O_RDONLY)


def peak_memory_bytes() -> int:
    """Largest memory in use so far, counted as in `memory_in_use_bytes`.

    Returns:
        Bytes.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return _high_water_bytes()


def _high_water_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak_memory() -> bool:
    """Let `peak_memory_bytes` begin again from what is in use now.

    Memory that the C library holds free for later (scoring the base leaves some) goes back to the system first:
    training would fill it unseen, and seem to need less than it does.

    Returns:
        False where the system does not allow it for a process's resident memory; the peak then stays the whole
        process's.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return True
    give_memory_back()
    try:
        # 5 sets the high-water mark of resident memory to its present value (Linux 4.0, man 5 proc)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return peak_memory_bytes() - memory_in_use_bytes() < _RESET_SLACK


#: Another thread may have allocated between the two readings.
_RESET_SLACK = 64 * 2**20
