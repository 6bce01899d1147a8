"""`status.json` and `control/` of a run folder: what a run tells about itself, and what is asked of it by files."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nexus.errors import NexusError
from nexus.storage.atomic import write_json
from nexus.storage.redaction import redact_text

STATUS_NAME = "status.json"
CONTROL_NAME = "control"


class Board:
    """The content of `status.json`, kept by a run and replaced on disk as a whole.

    Args:
        folder: an existing run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STATUS_NAME
        self.fields: dict[str, Any] = {
            "state": "starting",
            "reason": "",
            "step": None,
            "steps": None,
            "temperature": {},
            "last_checkpoint": None,
            "eta_seconds": None,
            "paused_seconds": 0.0,
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "host": socket.gethostname(),
        }
        self._lock = threading.Lock()  # an older content must not replace a newer one
        self._written: dict[str, Any] = {}

    def update(self, **fields: Any) -> None:
        """Change fields; the file follows with the next `publish`."""
        self.fields |= fields

    def set_state(self, state: str, reason: str = "") -> None:
        """Change what the run does, on disk too.

        Args:
            state: one or two words.
            reason: why; secrets are taken out.
        """
        self.update(state=state, reason=redact_text(reason))
        self.publish()

    def publish(self) -> None:
        """Replace the file if anything has changed.

        Raises:
            NexusError: `E-OUT-02` when the disk is full.
        """
        with self._lock:
            fields = dict(self.fields)
            if fields != self._written:
                write_json(self.path, fields | {"time": round(time.time(), 3)})
                self._written = fields


def read_status(folder: Path) -> dict[str, Any]:
    """What the run in `folder` told last.

    Args:
        folder: a run folder.

    Returns:
        The fields of `Board` and `time`.

    Raises:
        NexusError: `E-MIS-06` if there is no such run, `E-RUN-03` if the file is no status.
    """
    path = folder / STATUS_NAME
    if not path.is_file():
        what = "there is no run in this folder" if folder.is_dir() else "there is no such folder"
        raise NexusError("E-MIS-06", what, where=str(folder), remedy="give the folder that the run named at its start")
    try:
        status: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {"state": status["state"], "reason": status["reason"], "pid": int(status["pid"]), **status}
    except (ValueError, KeyError, TypeError) as error:
        raise NexusError(
            "E-RUN-03",
            f"this is not the status of a run: {error!r}",
            where=str(path),
            remedy="do not edit it by hand",
            status=65,
        ) from error


def process_start(pid: int) -> str | None:
    """What tells a process from an earlier or later one of the same number: the boot and its start in clock ticks.

    Args:
        pid: process id on this machine.

    Returns:
        None if the process is gone or has ended, or where the system does not say (no `/proc`).
    """
    try:
        # the name in parentheses may hold spaces and parentheses itself; state is field 3, start is field 22
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def is_running(status: Mapping[str, Any]) -> bool | None:
    """Whether the process that wrote a status still lives.

    Args:
        status: as `read_status` gives it.

    Returns:
        None for a process of another machine, which cannot be seen from here.
    """
    if status.get("host") != socket.gethostname():
        return None
    if status.get("started") is not None:
        return process_start(status["pid"]) == str(status["started"])
    try:
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it lives, under another user
    return True


def lay_request(folder: Path, word: str) -> None:
    """Ask the run in `folder` for something; asking twice is asking once.

    Args:
        folder: a run folder.
        word: name of the file, one of `nexus.flags.WORDS`.
    """
    control = folder / CONTROL_NAME
    control.mkdir(exist_ok=True)
    opposite = {"pause": "resume", "resume": "pause"}.get(word)
    if opposite is not None:
        (control / opposite).unlink(missing_ok=True)
    (control / word).touch()


def take_requests(folder: Path, words: Sequence[str]) -> list[str]:
    """What was asked since the last call.

    Args:
        folder: a run folder.
        words: names to look for.

    Returns:
        Those that were there, in the order of `words`; their files are gone.
    """
    taken = []
    for word in words:
        try:
            (folder / CONTROL_NAME / word).unlink()
        except (FileNotFoundError, NotADirectoryError):
            continue
        taken.append(word)
    return taken
