"""One process at a time in a run folder.

The lock is the kernel's (`flock`), so a killed process never leaves one behind and nobody has to remove a file by hand.
The file's content only says who holds it, for the message to the other one.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from nexus.errors import NexusError

LOCK_NAME = ".lock"


@dataclass(frozen=True)
class LockHolder:
    """Who wrote the lock file.

    Attributes:
        pid: process id on `host`.
        host: name of the machine.
        since: start, seconds since 1970.
    """

    pid: int
    host: str
    since: float

    def is_dead(self) -> bool:
        """True if the process was of this machine and is gone; another machine's processes cannot be seen."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False  # it lives, under another user
        return False


def read_holder(folder: Path) -> LockHolder | None:
    """Who holds or last held the lock.

    Args:
        folder: a run folder.

    Returns:
        None if nobody ever locked it, gave the lock back, or was killed while writing the file.
    """
    path = folder / LOCK_NAME
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
        return LockHolder(pid=int(content["pid"]), host=str(content["host"]), since=float(content["since"]))
    except (ValueError, KeyError, TypeError):
        # Half written by a process that was killed: the kernel's lock decides, the text is only for people.
        return None


class RunLock:
    """Exclusive use of a run folder, as a context manager.

    Args:
        folder: an existing folder.

    Attributes:
        abandoned: who held it before and died without giving it back; None if the folder was left in order.
    """

    def __init__(self, folder: Path):
        self.path = folder / LOCK_NAME
        self.abandoned: LockHolder | None = None
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        """Take the lock.

        Returns:
            Itself, to read `abandoned`.

        Raises:
            NexusError: E-RUN-01 when somebody else holds it, E-OUT-01 when the folder cannot be written, E-OUT-07 when
                its file system has no locks.
        """
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise NexusError(
                "E-OUT-01",
                f"the run folder cannot be written: {error.strerror}",
                where=str(self.path.parent),
                remedy="make it writable, or copy it to a place where it is",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise self._refusal() from error
        except OSError as error:
            os.close(descriptor)
            raise NexusError(
                "E-OUT-07",
                f"the file system of the run folder does not lock files: {error.strerror}",
                where=str(self.path.parent),
                remedy="copy the run folder to a local disk",
            ) from error
        self.abandoned = read_holder(self.path.parent)
        holder = LockHolder(pid=os.getpid(), host=socket.gethostname(), since=time.time())
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode("utf-8"), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor is not None:
            # Emptied, not removed: a file that is removed and made anew can be locked twice.
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def _refusal(self) -> NexusError:
        holder = read_holder(self.path.parent)
        who = "another process"
        remedy = "wait for it, stop it, or choose another run_dir"
        if holder is not None:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
            who = f"process {holder.pid} on {holder.host} since {since}"
            if holder.is_dead():
                who = f"worker processes of the dead process {holder.pid}"
                remedy = "they end within seconds; try again"
        return NexusError("E-RUN-01", f"the run folder is in use by {who}", where=str(self.path.parent), remedy=remedy)


@contextmanager
def waiting_lock(folder: Path, *, name: str = LOCK_NAME) -> Iterator[None]:
    """A moment alone in a folder that several processes write to; the others wait, and a killed holder lets go.

    Args:
        folder: an existing folder.
        name: of the lock's file.

    Yields:
        Nothing.
    """
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
