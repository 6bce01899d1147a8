"""How torch uses the processor."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import os, re
import torch
from nexus.hardware.processor import use_processor
use_processor(1)
large = torch.zeros(64 * 2**20, dtype=torch.uint8)
smaps = open("/proc/self/smaps_rollup").read()
print(torch.get_num_threads(), re.search(r"AnonHugePages: *([0-9]+) kB", smaps)[1])
"""


def run(**environment: str) -> list[int]:
    """Threads, and KiB on huge pages, of a process with a tensor of 64 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )  # fmt: skip
    return [int(number) for number in done.stdout.split()]


@pytest.mark.skipif(
    not SWITCH.is_file() or "[madvise]" not in SWITCH.read_text(), reason="the system does not leave huge pages to us"
)
def test_large_tensors_lie_on_huge_pages_unless_the_user_says_no():
    threads, pages = run()
    assert threads == 1
    assert pages >= 48 * 1024
    assert run(THP_MEM_ALLOC_ENABLE="0")[1] < 16 * 1024


GAPS = """
import torch
from nexus.hardware.processor import give_memory_back
from nexus.hardware.usage import memory_in_use_bytes
held = [(torch.ones(2**18), torch.ones(16)) for _ in range(200)]  # a MiB, then something that lives on
kept = [small for _, small in held]
del held
before = memory_in_use_bytes()
give_memory_back()
print((before - memory_in_use_bytes()) >> 20, len(kept))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_between_what_lives_is_given_back():
    environment = {"MALLOC_MMAP_THRESHOLD_": str(2**25)}  # where glibc arrives by itself after a large free
    done = subprocess.run([sys.executable, "-c", GAPS], env=environment, capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert kept == 200
    assert given_back >= 150
