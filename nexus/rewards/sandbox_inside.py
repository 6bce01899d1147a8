"""The inner side of the sandbox: a program of its own that builds the walls, starts the code and reports its end.

It runs as `python -I -S -B sandbox_inside.py FD` and uses the standard library only. Three processes follow each
other: this one leaves the namespaces of the caller; its child is process 1 of the new ones, mounts a root in which only
Python and its libraries exist, read-only, and a small memory file system to work in; and the child of that gives up
every right, sets its limits, installs the filter of system calls and becomes the code. When process 1 ends, the kernel
ends everything inside. What happened is written to the descriptor FD, which the code never has.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
from typing import Any

NOBODY = 65534
BOX = "/box"

_NEW_MOUNTS, _NEW_NAMES, _NEW_IPC, _NEW_USERS, _NEW_PIDS, _NEW_NET, _NEW_CGROUP = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x02000000,
)  # fmt: skip
_NO_SUID, _NO_DEVICES, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 4096, 16384, 1 << 18
_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE, _SET_ATTRIBUTES = -100, 0x8000, 442
_ATTRIBUTE_READ_ONLY, _ATTRIBUTE_NO_SUID, _ATTRIBUTE_NO_DEVICES = 1, 2, 4
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_DEATH_SIGNAL, _NO_NEW_RIGHTS, _SECCOMP, _FILTER = 1, 38, 22, 2

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> None:
    """A function of the C library that gives -1 for an error."""
    if getattr(_libc, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _system_call(name: str, number: int, *arguments: Any) -> None:
    _libc.syscall.restype = ctypes.c_long
    if _libc.syscall(ctypes.c_long(number), *arguments) == -1:
        problem = ctypes.get_errno()
        raise OSError(problem, f"{name}: {os.strerror(problem)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def _restrict(path: str, *, devices: bool, recursive: bool = True) -> None:
    """Make a mount read-only, with everything below it."""
    attributes = _ATTRIBUTE_READ_ONLY | _ATTRIBUTE_NO_SUID | (0 if devices else _ATTRIBUTE_NO_DEVICES)
    wanted = struct.pack("<QQQQ", attributes, 0, 0, 0)
    flags = ctypes.c_uint(_AT_RECURSIVE if recursive else 0)
    _system_call(
        "mount_setattr", _SET_ATTRIBUTES, ctypes.c_int(_AT_FDCWD), path.encode(), flags, wanted, ctypes.c_size_t(32)
    )


def leave_namespaces() -> bool:
    """New namespaces for the child that is forked next.

    Returns:
        True if this process is root and must become nobody itself later; False if its user is nobody inside already.
    """
    user, group = os.geteuid(), os.getegid()
    flags = _NEW_MOUNTS | _NEW_NAMES | _NEW_IPC | _NEW_PIDS | _NEW_NET | _NEW_CGROUP
    if user == 0 and _is_known(NOBODY):
        _call("unshare", ctypes.c_int(flags))
        return True
    _call("unshare", ctypes.c_int(flags | _NEW_USERS))
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    return False


def _is_known(user: int) -> bool:
    """Whether this user exists here; in a container it may be that only root does."""
    with open("/proc/self/uid_map") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(first <= user < first + count for first, _, count in ranges)


def make_root(spec: dict[str, Any]) -> None:
    """A root with nothing but what `spec["visible"]` names, read-only, and the box to work in."""
    root = os.path.dirname(os.path.abspath(__file__))  # any folder: what it holds is hidden in this namespace only
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NO_SUID | _NO_DEVICES, "mode=0755,size=1m,nr_inodes=1024")
    for path in spec["visible"]:
        _show(path, root)
    box = root + BOX
    os.mkdir(box)
    size = f"size={spec['file_mib']}m,nr_inodes={spec['max_files']},mode=0700,uid={NOBODY},gid={NOBODY}"
    _mount("tmpfs", box, "tmpfs", _NO_SUID | _NO_DEVICES, size)
    for name, text in {**spec["files"], ".stdin": spec["stdin"]}.items():
        with open(os.path.join(box, name), "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(text)
        os.chmod(file.name, 0o644)
    if not os.path.lexists(root + "/tmp"):
        os.symlink(BOX, root + "/tmp")
    os.chdir(root)
    _system_call("pivot_root", _PIVOT_ROOT[os.uname().machine], b".", b".")
    _call("umount2", b".", ctypes.c_int(_DETACH))
    os.chdir("/")
    _restrict("/", devices=False, recursive=False)


def _show(path: str, root: str) -> None:
    """Let one path of the machine be seen under the new root, read-only; a link stays a link."""
    target = root + path
    if os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        with open(target, "w"):
            pass
    _mount(path, target, "", _BIND | _RECURSIVE)
    _restrict(target, devices=path.startswith("/dev/"))


def become_the_code(spec: dict[str, Any], *, was_root: bool) -> None:
    """Give up every right, set the limits, and become the program; returns only by raising."""
    os.chdir(BOX)
    stdin = os.open(".stdin", os.O_RDONLY)
    os.unlink(".stdin")
    os.dup2(stdin, 0)
    if was_root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    file_bytes = spec["file_mib"] << 20
    for limit, most in (
        (resource.RLIMIT_CPU, spec["cpu_seconds"]),
        (resource.RLIMIT_AS, spec["memory_mib"] << 20),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NPROC, spec["max_threads"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hardest = resource.getrlimit(limit)[1]
        allowed = most if hardest == resource.RLIM_INFINITY else min(most, hardest)
        resource.setrlimit(limit, (allowed, allowed))
    _call("prctl", ctypes.c_int(_NO_NEW_RIGHTS), *map(ctypes.c_ulong, (1, 0, 0, 0)))
    program = bytes.fromhex(spec["filter"])
    code = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _call("prctl", ctypes.c_int(_SECCOMP), ctypes.c_ulong(_FILTER), described, ctypes.c_ulong(0), ctypes.c_ulong(0))
    arguments = [spec["python"], "-I", "-S", "-B", "-X", "utf8", *spec["arguments"]]
    os.execve(spec["python"], arguments, {"HOME": BOX, "TMPDIR": BOX, "LC_ALL": "C.UTF-8"})


def _wait(child: int, seconds: float) -> dict[str, Any]:
    """How the code ended; it is not waited for longer than `seconds`."""
    handle = os.pidfd_open(child)
    watch = select.poll()
    watch.register(handle, select.POLLIN)
    if not watch.poll(seconds * 1000):
        return {"ended": "wall_time", "code": 0}
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    seconds_used = used.ru_utime + used.ru_stime
    if code >= 0:
        return {"ended": "exit", "code": code, "cpu_seconds": seconds_used}
    return {"ended": "signal", "code": -code, "cpu_seconds": seconds_used}


def first_process(spec: dict[str, Any], report: int, *, was_root: bool) -> None:
    """Process 1 inside: makes the root, starts the code, waits for it."""
    _call("prctl", ctypes.c_int(_DEATH_SIGNAL), *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))
    make_root(spec)
    child = os.fork()
    if child == 0:
        _guarded(lambda: become_the_code(spec, was_root=was_root), report)
    _tell(report, {"cpu_seconds": 0.0, **_wait(child, spec["wall_seconds"])})


def _tell(report: int, what: dict[str, Any]) -> None:
    os.write(report, json.dumps(what).encode() + b"\n")


def _guarded(work: Any, report: int) -> None:
    """Do something as the last act of a forked process; what goes wrong is reported."""
    try:
        work()
    except BaseException as error:
        _tell(report, {"ended": "failed", "reason": f"{type(error).__name__}: {error}"})
        os._exit(70)
    os._exit(0)


def main() -> None:
    """Read what to do from standard input and do it."""
    report = int(sys.argv[1])
    os.set_inheritable(report, False)
    spec = json.loads(sys.stdin.buffer.read())

    def outer() -> None:
        was_root = leave_namespaces()
        child = os.fork()
        if child == 0:
            _guarded(lambda: first_process(spec, report, was_root=was_root), report)
        os.waitpid(child, 0)

    _guarded(outer, report)


if __name__ == "__main__":
    main()
