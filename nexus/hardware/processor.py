"""How torch uses the processor: its threads, and the pages of its memory."""

from __future__ import annotations

import ctypes
import functools
import os


def use_processor(threads: int | None) -> None:
    """Set the threads, and have tensors of 2 MiB and more made of huge pages where the system offers them.

    Logits and the head's gradient are hundreds of MiB that come and go in every step, and the first touch of each page
    costs. Torch reads its switch at the first large tensor, so this comes
    before any weight; a value that the user has set stays.

    Args:
        threads: of torch; None leaves them to torch.
    """
    import torch

    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if threads is not None:
        torch.set_num_threads(threads)


def give_memory_back() -> None:
    """Give the pages back that nobody uses any more, before something large is made.

    glibc keeps what was freed between two things that live. Rows of other lengths in every step leave gaps that the
    next step does not fit, hundreds of MiB after a few. Other allocators are left alone.
    """
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
