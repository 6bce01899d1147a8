"""Runs a program that a model wrote behind walls of the operating system, or not at all.

Linux only. The walls, all of them or none: new user (or, for root, a change to nobody), mount, process, network, IPC
and name namespaces; a root with Python and its libraries, read-only, and one small memory file system to work in; a
filter of system calls that refuses new processes, foreign sockets and kernel interfaces; limits on processor time,
wall time, memory, file size, open files, threads and output; an empty environment. `sandbox_probe` proves them.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from nexus.errors import NexusError
from nexus.rewards.seccomp import filter_program, machine_problem

_INSIDE = Path(__file__).with_name("sandbox_inside.py")
#: Seconds in which the walls must stand; a slow machine is no reason to call a program slow.
_START_SECONDS = 30.0
_LIBRARIES = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/nix/store")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        cpu_seconds: processor time; the kernel ends the program after it.
        wall_seconds: time on the clock, from the moment the program starts.
        memory_mib: address space of the program, in MiB; it is one process.
        file_mib: what it may write in total, in MiB.
        max_files: how many files and folders it may make.
        max_threads: threads of the one process.
        output_kib: what is read of its standard output and of its standard error, each, in KiB; more ends it.
    """

    cpu_seconds: int
    wall_seconds: float
    memory_mib: int
    file_mib: int
    max_files: int
    max_threads: int
    output_kib: int


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        ended: `exit`, `signal`, `wall_time`, or `output` if it wrote too much.
        code: exit status or number of the signal; 0 otherwise.
        stdout: what it wrote, up to the limit; bytes that are no UTF-8 are replaced.
        stderr: the same of standard error.
        cpu_seconds: processor time that it used; 0 if it did not end by itself.
    """

    ended: Literal["exit", "signal", "wall_time", "output"]
    code: int
    stdout: str
    stderr: str
    cpu_seconds: float

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.ended == "exit" and self.code == 0


def refusal(reason: str) -> NexusError:
    """The error of a machine where no sandbox can be had.

    Args:
        reason: what is missing.

    Returns:
        `E-SEC-05`.
    """
    return NexusError(
        "E-SEC-05",
        f"code that a model wrote runs in a sandbox only, and none can be had here: {reason}",
        remedy="leave the code reward out, or allow namespaces: Linux 5.12 or newer, "
        "kernel.unprivileged_userns_clone=1, a container with CAP_SYS_ADMIN or seccomp=unconfined",
    )


@cache
def _visible() -> tuple[str, ...]:
    """Paths that exist inside: the interpreter that this one descends from, its libraries, three devices."""
    base = (str(Path(sys.base_prefix).resolve()), str(Path(sys.base_exec_prefix).resolve()))
    paths = [path for path in (*_LIBRARIES, *base, *_DEVICES) if os.path.lexists(path)]
    inner = {path for path in paths for outer in paths if path != outer and Path(outer) in Path(path).parents}
    return tuple(path for path in dict.fromkeys(paths) if path not in inner and path != "/")


@cache
def _python() -> str:
    """The interpreter outside of any virtual environment, by its real path."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_exec_prefix) / "bin" / name
    return str((base if base.is_file() else Path(sys.executable)).resolve())


def run_sandboxed(files: Mapping[str, str], *, arguments: Sequence[str], stdin: str, limits: Limits) -> Outcome:
    """Run a Python program behind the walls.

    Args:
        files: text by file name; they lie in the working folder, which holds nothing else.
        arguments: of the interpreter, the program's file first; only the standard library can be imported.
        stdin: what the program reads.
        limits: what it may use.

    Returns:
        How it ended.

    Raises:
        NexusError: `E-SEC-05` if one of the walls cannot be built; nothing was run then.
        ValueError: a file name with a folder in it.
    """
    problem = machine_problem()
    if problem is not None:
        raise refusal(problem)
    if any("/" in name or name in ("", ".", "..") for name in files):
        raise ValueError(f"file names without folders are needed, not {list(files)}")
    spec = {
        **asdict(limits),
        "files": dict(files),
        "stdin": stdin,
        "arguments": list(arguments),
        "python": _python(),
        "visible": _visible(),
        "filter": filter_program().hex(),
    }
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            [_python(), "-I", "-S", "-B", str(_INSIDE), str(write_end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            pass_fds=(write_end,),
            start_new_session=True,
        )
    finally:
        os.close(write_end)
    try:
        return _watch(process, read_end, json.dumps(spec).encode(), limits)
    finally:
        process.kill()
        process.wait()
        os.close(read_end)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _watch(process: subprocess.Popen[bytes], report: int, spec: bytes, limits: Limits) -> Outcome:
    """Feed the inner side, collect what comes out, and end it if it writes too much or does not end."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdin.write(spec)
        process.stdin.close()
    except BrokenPipeError as error:
        raise refusal(f"the inner side ended at once: {process.stderr.read(2000)!r}") from error
    found = {report: b"", process.stdout.fileno(): b"", process.stderr.fileno(): b""}
    most = limits.output_kib << 10
    deadline = time.monotonic() + limits.wall_seconds + _START_SECONDS
    ended = ""
    with selectors.DefaultSelector() as selector:
        for descriptor in found:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and not ended:
            ready = selector.select(max(deadline - time.monotonic(), 0.0))
            if not ready:
                ended = "wall_time"
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fd)
                found[key.fd] += chunk
                if key.fd != report and len(found[key.fd]) > most:
                    ended = "output"
    stdout, stderr = (found[stream.fileno()][:most].decode("utf-8", "replace") for stream in (
        process.stdout, process.stderr))  # fmt: skip
    if ended == "output":
        return Outcome("output", 0, stdout, stderr, 0.0)
    lines = [json.loads(line) for line in found[report].splitlines()]
    failed = next((line for line in lines if line["ended"] == "failed"), None)
    if failed is not None or (not lines and not ended):
        raise refusal(failed["reason"] if failed else f"the inner side ended without a word: {stderr[-2000:]}")
    if not lines:
        raise refusal(f"the walls did not stand after {_START_SECONDS:g} s")
    last = lines[-1]
    return Outcome(last["ended"], last["code"], stdout, stderr, last["cpu_seconds"])
