"""Files and folders that are there whole or not at all, also after a kill or a power cut.

Everything is written beside its target (never in `$TMPDIR`, which may lie on another device, where a move is a copy),
flushed to the disk, and then renamed over the target in one step.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nexus.errors import NexusError

#: Unfinished writes begin so; whoever lists a folder skips these names.
TEMPORARY_PREFIX = ".tmp-"
_DISK_FULL = "E-OUT-02"


def _temporary_name(target: Path) -> Path:
    # Process and thread in the name: two writers of one target never share a temporary file.
    return target.with_name(f"{TEMPORARY_PREFIX}{target.name}-{os.getpid()}-{threading.get_ident()}")


def sync_path(path: Path) -> None:
    """Flush one file, or the entries of one folder, to the disk.

    Args:
        path: an existing file or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Let a library write a file under a temporary name; it takes its real name when the block ends without error.

    Args:
        target: the file that appears or is replaced; its folder exists.

    Yields:
        Where to write, in the folder of `target`.

    Raises:
        NexusError: E-OUT-02 when the disk is full.
    """
    temporary = _temporary_name(target)
    try:
        yield temporary
        sync_path(temporary)
        os.replace(temporary, target)
        sync_path(target.parent)
    except OSError as error:
        named = _disk_full(error, target)
        if named is not None:
            raise named from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def is_disk_full(error: OSError | NexusError) -> bool:
    """Whether a write failed because the disk, or the user's share of it, is full.

    Args:
        error: of the system, or of this module.

    Returns:
        False for everything else that can be wrong.
    """
    if isinstance(error, NexusError):
        return error.code == _DISK_FULL
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _disk_full(error: OSError, target: Path) -> NexusError | None:
    """Disk full is the user's to mend; any other failure of the system keeps its own text."""
    if not is_disk_full(error):
        return None
    return NexusError(
        _DISK_FULL,
        "the disk is full; the previous version is untouched",
        where=str(target),
        remedy="free some space or choose another folder with run_dir=",
    )


def write_bytes(target: Path, content: bytes) -> None:
    """Replace a file by `content`.

    Args:
        target: file in an existing folder.
        content: the whole new content.
    """
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path, content: str) -> None:
    """Replace a file by UTF-8 text.

    Args:
        target: file in an existing folder.
        content: the whole new content.
    """
    write_bytes(target, content.encode("utf-8"))


def write_json(target: Path, content: Any) -> None:
    """Replace a file by indented JSON with keys in the order given.

    Args:
        target: file in an existing folder.
        content: plain containers; NaN and infinity are refused, since they are not JSON.

    Raises:
        ValueError: `content` holds NaN or infinity.
        TypeError: `content` holds something that is not a plain container.
    """
    write_text(target, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(target: Path, *, replace: bool) -> Iterator[Path]:
    """Build a folder beside its target; it takes its real name when the block ends without error.

    Args:
        target: the folder that appears; its parent exists.
        replace: an existing folder of that name is exchanged for the new one; otherwise it is an error.

    Yields:
        The empty folder to fill, in the parent of `target`.

    Raises:
        NexusError: E-OUT-04 when `target` exists and `replace` is off; E-OUT-02 when the disk is full.
    """
    if target.exists() and not replace:
        raise _exists(target)
    temporary = _temporary_name(target)
    aside = _temporary_name(target.with_name(f"{target.name}-old"))
    try:
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        if target.exists():
            if not replace:  # it came into being while the block ran
                raise _exists(target)
            os.rename(target, aside)
        os.rename(temporary, target)
        sync_path(target.parent)
    except OSError as error:
        named = _disk_full(error, target)
        if named is not None:
            raise named from error
        raise
    finally:
        if aside.exists() and not target.exists():
            os.rename(aside, target)
        for leftover in (temporary, aside):
            if leftover.exists():
                shutil.rmtree(leftover)


def _exists(target: Path) -> NexusError:
    return NexusError(
        "E-OUT-04", "the folder exists already", where=str(target), remedy="choose another name or remove it first"
    )


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_path(Path(parent) / name)
        sync_path(Path(parent))


def remove_leftovers(folder: Path) -> list[str]:
    """Remove what killed writers left behind.

    A folder that was moved aside but whose successor never arrived gets its name back, so nothing finished is lost.

    Args:
        folder: where to look, not below it. The caller holds the lock of the run folder, so no writer is alive in it.

    Returns:
        The names that were removed, sorted.
    """
    removed: list[str] = []
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith(TEMPORARY_PREFIX):
            continue
        stem = entry.name.removeprefix(TEMPORARY_PREFIX).rsplit("-", 2)[0]
        original = folder / stem.removesuffix("-old")
        if entry.is_dir() and stem.endswith("-old") and not original.exists():
            os.rename(entry, original)
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
        removed.append(entry.name)
    return removed
