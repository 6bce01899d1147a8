"""Memory that this process uses now and used at most: the device's if training runs on one, else the process's own."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def memory_in_use_bytes() -> int:
    """Memory in use now.

    Returns:
        Bytes that torch allocated on the CUDA device if it has touched one, else the process's resident memory.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.memory_allocated())
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory_bytes() -> int:
    """Largest memory in use so far, counted as in `memory_in_use_bytes`.

    Returns:
        Bytes.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
