"""The folder of one run: its name, and whether it can be written, before any work starts."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from nexus.errors import NexusError, Problem
from nexus.storage.atomic import TEMPORARY_PREFIX, sync_path
from nexus.storage.locks import LOCK_NAME

#: A folder that holds one of these is somebody's run.
RUN_MARKS = ("status.json", "report.json", "config.yaml", "checkpoints", "package")


def run_name(*, capabilities: Sequence[str], method: str, when: datetime) -> str:
    """Name of a run folder, for example `20260117-093005_cot-tools_sft`.

    Args:
        capabilities: in any order; the name sorts them, since they commute.
        method: name of the method.
        when: start of the run.

    Returns:
        A name of letters, digits, `-` and `_`; `own-data` where no capability was chosen.
    """
    chosen = "-".join(sorted(capabilities)) or "own-data"
    return f"{when:%Y%m%d-%H%M%S}_{chosen}_{method}"


def output_problem(path: Path, *, key: str) -> Problem | None:
    """Whether a folder can be made and written at `path`; nothing stays behind.

    Args:
        path: the folder to be, existing or not.
        key: dotted key of the setting that named it, for the message.

    Returns:
        E-OUT-01 when it cannot be written, E-OUT-03 when a file is in the way, E-OUT-07 when the file system lacks
        what checkpoints that survive a kill need, else None.
    """
    existing = path
    try:
        while not existing.exists() and not existing.is_symlink():
            existing = existing.parent
    except OSError as error:  # a name that is too long, or a folder that this user may not even look into
        return _unwritable(path, error, key)
    if not existing.is_dir():
        return Problem("E-OUT-03", key, f"{str(existing)!r} is not a folder", "name a folder that is not a file")
    # Asked by doing: permission bits say nothing about read-only mounts, quotas and network file systems.
    probe = existing / f"{TEMPORARY_PREFIX}probe-{os.getpid()}"
    renamed = probe.with_name(f"{probe.name}-renamed")
    try:
        probe.write_bytes(b"probe")
        try:
            with probe.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_path(probe)
            os.replace(probe, renamed)
            sync_path(existing)
        except OSError as error:
            return _unsafe(existing, error, key)
        finally:
            for name in (probe, renamed):
                name.unlink(missing_ok=True)
    except OSError as error:
        return _unwritable(existing, error, key)
    return None


def _unsafe(path: Path, error: OSError, key: str) -> Problem:
    return Problem(
        "E-OUT-07",
        key,
        f"the file system under {str(path)!r} does not lock, flush and rename files ({error.strerror}), so that a "
        "checkpoint could be lost",
        f"choose a folder on a local disk with {key}=PATH or NEXUS_OUTPUT_DIR",
    )


def _unwritable(path: Path, error: OSError, key: str) -> Problem:
    return Problem(
        "E-OUT-01",
        key,
        f"{str(path)!r} cannot be written: {error.strerror}",
        f"choose another folder with {key}=PATH or NEXUS_OUTPUT_DIR",
    )


def holds_run(path: Path) -> bool:
    """True if the folder holds a run, finished or not.

    Args:
        path: a folder that may exist.

    Returns:
        False for no folder, an empty one, or one with other files only.
    """
    return any((path / mark).exists() for mark in RUN_MARKS)


def new_run_problem(path: Path, *, key: str) -> Problem | None:
    """Whether a new run can have the folder at `path`; nothing stays behind.

    Args:
        path: the folder to be, existing or not.
        key: dotted key of the setting that named it, for the message.

    Returns:
        E-OUT-01 not writable, E-OUT-03 a file in the way, E-OUT-04 it holds a run already, E-OUT-06 it holds other
        files, else None.
    """
    problem = output_problem(path, key=key)
    if problem is not None or not path.is_dir():
        return problem
    if holds_run(path):
        remedy = f"continue it with {resume_word(path)}, or choose another {key}"
        return Problem("E-OUT-04", key, f"{str(path)!r} holds a run already", remedy)
    others = sorted(entry.name for entry in path.iterdir() if entry.name != LOCK_NAME)
    if others:
        shown = ", ".join(others[:3]) + (", ..." if others[3:] else "")
        what = f"{str(path)!r} holds other files ({shown}), which a run could overwrite"
        return Problem("E-OUT-06", key, what, "name a new or an empty folder")
    return None


def create_run_folder(path: Path, *, key: str) -> Path:
    """Make the folder of a new run.

    Args:
        path: the folder to be; it may exist while it is empty.
        key: dotted key of the setting that named it, for the messages.

    Returns:
        The absolute path.

    Raises:
        NexusError: what `new_run_problem` finds.
    """
    problem = new_run_problem(path, key=key)
    if problem is not None:
        raise NexusError(problem.code, problem.message, where=problem.key, remedy=problem.remedy)
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def resume_word(path: Path) -> str:
    """The word that resumes the run in a folder, fit for a shell and for Hydra.

    Args:
        path: the run folder.

    Returns:
        `resume=PATH`, quoted where the path needs it.
    """
    if re.fullmatch(r"[\w./+@%:-]+", str(path)):
        return f"resume={path}"
    inner = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return shlex.quote(f'resume="{inner}"')


def free_space_problem(path: Path, *, needed_bytes: int, key: str) -> Problem | None:
    """Whether the disk under `path` has room.

    Args:
        path: the folder to be, existing or not.
        needed_bytes: what the run will write.
        key: dotted key of the setting that named it.

    Returns:
        E-OUT-02 with what is needed and what is there, else None.
    """
    existing = path
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free >= needed_bytes:
        return None
    return Problem(
        "E-OUT-02",
        key,
        f"the run needs {needed_bytes / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free under {str(existing)!r}",
        f"free some space or choose another {key}",
    )


def read_kept(file: Path) -> dict[str, Any]:
    """What a run wrote for itself as JSON.

    Args:
        file: an existing file of a run folder.

    Returns:
        Its content.

    Raises:
        NexusError: `E-RUN-03` if it is not what the run wrote.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise edited(file, str(error)) from error
    if not isinstance(content, dict):
        raise edited(file, f"it holds a {type(content).__name__}")
    return content


def edited(file: Path, why: str) -> NexusError:
    """The error about a file of a run folder that is not as the run left it.

    Args:
        file: the file.
        why: what is wrong with it.

    Returns:
        `E-RUN-03`.
    """
    return NexusError(
        "E-RUN-03",
        f"this is not what the run wrote: {why}",
        where=str(file),
        remedy="restore it from a copy, or remove it and resume the run, which then makes it again",
        status=65,
    )


def discard_empty(path: Path) -> None:
    """Remove a run folder that nothing was written to, when a check failed after it was made.

    Args:
        path: the run folder; it stays when it holds more than its lock.
    """
    if path.is_dir() and {entry.name for entry in path.iterdir()} <= {LOCK_NAME}:
        shutil.rmtree(path)
