"""Proves that the sandbox holds on this machine: programs that try to break out, use up the machine, or never end.

Each probe has a control, so that a wall which everything passes and a program which does nothing are told apart: the
listener answers from outside, the secret file can be read from outside, the working folder can be written.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from nexus.rewards.sandbox import Limits, Outcome, refusal, run_sandboxed

_TRY = """
def attempt(name, work):
    try:
        found = work()
    except BaseException as error:
        print("stopped", name, type(error).__name__)
    else:
        print("passed", name, found)
"""

_WORKS = (
    _TRY
    + """
import json, math, sys, threading
attempt("write here", lambda: open("file.txt", "w").write("x"))
thread = threading.Thread(target=lambda: print("thread ran"))
thread.start(); thread.join()
print(sys.stdin.read(), math.factorial(20))
"""
)

_NETWORK = (
    _TRY
    + """
import socket, subprocess
def connect(family, kind, address):
    link = socket.socket(family, kind)
    link.settimeout(2)
    link.connect(address)
    link.sendall(b"out")
    return address
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    attempt("network", lambda: connect(socket.AF_INET, kind, ("127.0.0.1", PORT)))
attempt("network", lambda: connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", PORT)))
attempt("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt("abstract socket", lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, "\\0ABSTRACT"))
attempt("name lookup", lambda: socket.getaddrinfo("example.com", 80))
"""
)

_OUTSIDE = (
    _TRY
    + """
import os, sys
attempt("read the secret", lambda: open("SECRET").read())
attempt("see the secret's folder", lambda: os.listdir("FOLDER"))
attempt("read /etc/passwd", lambda: open("/etc/passwd").read())
for folder in ("FOLDER", "/", "/usr", "/etc", "/dev", "/dev/shm", "/var/tmp", os.path.dirname(os.__file__)):
    attempt("write to " + folder, lambda: open(folder + "/nexus_probe", "w").write("x"))
attempt("see processes", lambda: os.listdir("/proc"))
attempt("see its parents", lambda: os.kill(OUTER, 0))
attempt("signal the first process", lambda: print("signal", os.kill(1, 9)))
for name in sorted(set(os.environ) - {"HOME", "TMPDIR", "LC_ALL"}):
    print("passed environment", name)
for descriptor in range(3, 64):
    attempt("descriptor", lambda: os.fstat(descriptor))
attempt("become root", lambda: os.setuid(0))
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
attempt("unshare", lambda: call("unshare", 0x10000000))
attempt("mount", lambda: call("mount", b"none", b"/box", b"tmpfs", 0, None))
attempt("ptrace", lambda: call("ptrace", 16, 1, 0, 0))
"""
)

_PROCESSES = (
    _TRY
    + """
import os, subprocess, threading, time
for _ in range(50):
    attempt("fork", os.fork)
attempt("spawn", lambda: os.posix_spawn("/bin/true", ["true"], {}))
attempt("subprocess", lambda: subprocess.run(["/bin/true"]))
import multiprocessing
attempt("multiprocessing", lambda: multiprocessing.get_context("fork").Process(target=print).start())
started = 1
try:
    while started < 2000:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        started += 1
except BaseException as error:
    print("threads", started, type(error).__name__, flush=True)
os._exit(0)
"""
)

_MEMORY = (
    _TRY
    + """
import ctypes, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    found = getattr(libc, name)(*arguments)
    if found == -1:
        raise OSError(ctypes.get_errno(), name)
    return found
attempt("shmget", lambda: call("shmget", 0, 1 << 20, 0o1666))
attempt("memfd_create", lambda: os.memfd_create("x"))
kept, mebibytes = [], 0
def grow():
    global mebibytes
    while True:
        kept.append(bytearray(1 << 20)); mebibytes += 1
try:
    grow()
except MemoryError:
    kept.clear(); print("memory", mebibytes)
mebibytes = 0
def share():
    global mebibytes
    while True:
        kept.append(mmap.mmap(-1, 1 << 20)); mebibytes += 1
try:
    share()
except OSError:
    print("shared", mebibytes)
"""
)

_DISK = """
written, files = 0, 0
try:
    while True:
        with open(f"f{files}", "wb") as file:
            files += 1
            for _ in range(64):
                written += file.write(b"x" * 4096); file.flush()
except OSError as error:
    print("disk", written, flush=True)
try:
    while True:
        open(f"g{files}", "w").close(); files += 1
except OSError as error:
    print("files", files, flush=True)
"""

_ENDLESS = "while True: pass"
_ASLEEP = "import signal, time\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n" + (
    "    except OSError: print(n)\ntime.sleep(3600)"
)
_LOUD = "while True: print('x' * 4096)"

Runner = Callable[[str, Limits], Outcome]


def _run(program: str, limits: Limits) -> Outcome:
    return run_sandboxed({"probe.py": program}, arguments=["probe.py"], stdin="given", limits=limits)


@contextmanager
def _listener() -> Iterator[tuple[socket.socket, socket.socket, str]]:
    """A TCP listener and an abstract local one, both of which answer from outside."""
    name = f"nexus-probe-{os.getpid()}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as local:
        tcp.bind(("127.0.0.1", 0))
        local.bind(f"\0{name}")
        for one in (tcp, local):
            one.listen()
            one.settimeout(5)
            with socket.socket(one.family) as caller:
                caller.connect(one.getsockname())
                one.accept()[0].close()
            one.setblocking(False)
        yield tcp, local, name


def _called(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def _network(limits: Limits, run: Runner) -> str:
    with _listener() as (tcp, local, name):
        program = _NETWORK.replace("PORT", str(tcp.getsockname()[1])).replace("ABSTRACT", name)
        found = run(program, limits)
        if _called(tcp) or _called(local):
            return "a program inside reached a listener outside"
    return _passed(found, at_least=7)


def _outside(limits: Limits, run: Runner) -> str:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        secret = Path(folder, "secret")
        secret.write_text("gold")
        program = _OUTSIDE.replace("SECRET", str(secret)).replace("FOLDER", folder).replace("OUTER", str(os.getpid()))
        # Process 1 of a namespace gets no signal from inside, though it may be sent one.
        problem = _passed(run(program, limits), at_least=70, harmless="signal the first process")
        if sorted(path.name for path in Path(folder).iterdir()) != ["secret"]:
            return "a program inside wrote a file outside"
    return problem


def _passed(found: Outcome, *, at_least: int, harmless: str = "") -> str:
    """What a program of attempts got through with; it must have come to its end."""
    lines = found.stdout.splitlines()
    passed = [line for line in lines if line.startswith("passed") and not (harmless and harmless in line)]
    stopped = [line for line in lines if line.startswith("stopped")]
    if passed:
        return f"a program inside {passed[0].removeprefix('passed ')}"
    if not found.ok or len(stopped) < at_least:
        return f"the probe did not come to its end: {found.ended} {found.code} {found.stderr[-300:]}"
    return ""


def _numbers(found: Outcome) -> dict[str, int]:
    words = [line.split() for line in found.stdout.splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}


def _works(limits: Limits, run: Runner) -> str:
    found = run(_WORKS, limits)
    right = found.ok and found.stdout == f"passed write here 1\nthread ran\ngiven {2432902008176640000}\n"
    return "" if right else f"a harmless program fails: {found}"


def _processes(limits: Limits, run: Runner) -> str:
    found = run(_PROCESSES, limits)
    threads = _numbers(found).get("threads", 10**6)
    if threads > limits.max_threads:
        return f"a program inside started {threads} threads"
    return _passed(found, at_least=53)


def _memory(limits: Limits, run: Runner) -> str:
    found = run(_MEMORY, limits)
    numbers = _numbers(found)
    for kind in ("memory", "shared"):
        if not 0 < numbers.get(kind, 0) <= limits.memory_mib:
            return f"a program inside took {numbers.get(kind)} MiB of {kind} memory: {found.ended} {found.code}"
    return _passed(found, at_least=2)


def _disk(limits: Limits, run: Runner) -> str:
    found = run(_DISK, limits)
    numbers = _numbers(found)
    if not 0 < numbers.get("disk", 0) <= limits.file_mib << 20 or not 0 < numbers.get("files", 0) <= limits.max_files:
        return f"a program inside wrote {numbers}: {found.ended} {found.code}"
    return ""


def _never_ends(limits: Limits, run: Runner) -> str:
    busy = run(_ENDLESS, replace(limits, cpu_seconds=1, wall_seconds=60.0))
    if busy.ended != "signal" or not 0.5 < busy.cpu_seconds < 3:
        return f"an endless loop ended with {busy}"
    asleep = run(_ASLEEP, replace(limits, wall_seconds=0.5))
    if asleep.ended != "wall_time":
        return f"a sleeping program ended with {asleep}"
    loud = run(_LOUD, limits)
    if loud.ended != "output" or len(loud.stdout) > limits.output_kib << 10:
        return f"a loud program ended with {loud.ended}"
    return ""


PROBES: dict[str, Callable[[Limits, Runner], str]] = {
    "a harmless program works": _works,
    "no network": _network,
    "nothing outside is read or written": _outside,
    "no further process": _processes,
    "memory ends": _memory,
    "disk ends": _disk,
    "time and output end": _never_ends,
}


def sandbox_problems(limits: Limits, run: Runner = _run) -> dict[str, str]:
    """Run every probe.

    Args:
        limits: those that programs will have.
        run: runs a program; a test hands in one without walls, to see that the probes can fail.

    Returns:
        What went wrong, by name of the probe; empty if the sandbox holds.

    Raises:
        NexusError: `E-SEC-05` if no sandbox can be had.
    """
    # A busy machine must not look like a hole in the sandbox; the probe of time sets its own limits.
    patient = replace(limits, cpu_seconds=max(limits.cpu_seconds, 20), wall_seconds=max(limits.wall_seconds, 120.0))
    found = {name: probe(patient, run) for name, probe in PROBES.items()}
    return {name: problem for name, problem in found.items() if problem}


@cache
def insist_on_sandbox(limits: Limits) -> None:
    """Prove the sandbox once in this process; about three seconds.

    Args:
        limits: those that programs will have.

    Raises:
        NexusError: `E-SEC-05` if no sandbox can be had, or if a probe got through one of its walls.
    """
    problems = sandbox_problems(limits)
    if problems:
        raise refusal("; ".join(f"{name}: {problem}" for name, problem in problems.items()))
