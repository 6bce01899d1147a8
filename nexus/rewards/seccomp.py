"""The system calls that code in the sandbox is refused, as a seccomp filter.

The list takes away what the other walls do not cover: new processes (so that one process is all there is, and its
limits are limits of the whole), memory that no limit counts, sockets that no network namespace holds back (vsock,
netlink), and everything that namespaces, mounts, keys and tracing are made with.
"""

from __future__ import annotations

import errno
import platform
import struct
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class _Machine:
    """Numbers of one kind of processor, from the kernel's `unistd` tables.

    Attributes:
        audit: AUDIT_ARCH_*.
        refused: system calls that fail with EPERM.
        clone: number of clone, which may make threads but no processes.
        socket: number of socket, which may open local ones only.
    """

    audit: int
    refused: tuple[int, ...]
    clone: int
    socket: int


#: The same numbers everywhere: io_uring, the new mount calls, pidfd_getfd, process_madvise, memfd_secret.
_SHARED = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 440, 442, 447)
_CLONE3 = 435
_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        # fork vfork ptrace msgget semget shmget pivot_root chroot mount umount2 unshare setns process_vm_* bpf
        # perf_event_open add_key request_key keyctl userfaultfd memfd_create open_by_handle_at personality kexec
        refused=(57, 58, 101, 68, 64, 29, 155, 161, 165, 166, 272, 308, 310, 311, 321, 298, 248, 249, 250, 323, 319,
                 304, 135, 246, 320, *_SHARED),
        clone=56,
        socket=41,
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        # ptrace msgget semget shmget pivot_root chroot mount umount2 unshare setns process_vm_* bpf perf_event_open
        # add_key request_key keyctl userfaultfd memfd_create open_by_handle_at personality kexec
        refused=(117, 186, 190, 194, 41, 51, 40, 39, 97, 268, 270, 271, 280, 241, 217, 218, 219, 282, 279, 265, 92,
                 104, 294, *_SHARED),
        clone=220,
        socket=198,
    ),
}  # fmt: skip

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD = 0x00010000
_AF_UNIX = 1
_OTHER_ABI = 0x40000000


def machine_problem() -> str | None:
    """Why no filter can be made here; None if it can."""
    if sys.platform != "linux":
        return f"it needs Linux, this is {sys.platform}"
    if platform.machine() not in _MACHINES or sys.byteorder != "little" or sys.maxsize < 2**32:
        return f"it knows {' and '.join(_MACHINES)}, this is {platform.machine()}"
    return None


def filter_program() -> bytes:
    """The filter of this machine.

    Returns:
        Instructions `struct sock_filter`, 8 bytes each.

    Raises:
        KeyError: the machine is unknown; see `machine_problem`.
    """
    machine = _MACHINES[platform.machine()]

    def refuse_unless_equal(number: int) -> list[tuple[int, int, int, int]]:
        return [(_EQUAL, 1, 0, number), (_RETURN, 0, 0, _KILL)]

    program = [(_LOAD, 0, 0, _ARCHITECTURE), *refuse_unless_equal(machine.audit), (_LOAD, 0, 0, _NUMBER)]
    program += [(_AT_LEAST, 0, 1, _OTHER_ABI), (_RETURN, 0, 0, _KILL)]
    for number in machine.refused:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    # The C library falls back to clone, whose flags a filter can read.
    program += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    program += [(_EQUAL, 0, 4, machine.clone), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 1, 0, _CLONE_THREAD)]
    program += [(_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    program += [(_EQUAL, 0, 4, machine.socket), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 1, 0, _AF_UNIX)]
    program += [(_RETURN, 0, 0, _FAIL | errno.EACCES), (_RETURN, 0, 0, _ALLOW)]
    program += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
