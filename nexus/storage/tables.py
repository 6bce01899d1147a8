"""CSV tables that several runs append to: rows are there whole or not at all, and never between two other runs' rows.

A row is one line. Rows are appended by one write under a lock; what a killed writer left without a line's end is cut
off by the next one.
"""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nexus.errors import NexusError, Problem
from nexus.storage.locks import waiting_lock
from nexus.storage.redaction import redact_text

#: Not the run folder's lock: `run_dir=outputs` would make a run wait for itself.
_LOCK = ".tables.lock"


def table_problem(path: Path, columns: Sequence[str], *, key: str) -> Problem | None:
    """Whether rows with these columns can be appended to a table.

    Args:
        path: the table; it need not exist.
        columns: names in their order.
        key: dotted key of the setting that names the folder.

    Returns:
        `E-OUT-05` when the table has another header, else None.
    """
    header = _header(path)
    if header is None or header == list(columns):
        return None
    differing = sorted(set(header) ^ set(columns)) or ["their order"]
    return Problem(
        "E-OUT-05",
        key,
        f"{str(path)!r} has other columns ({', '.join(differing[:5])})",
        f"move the file away, or choose another folder with {key}=PATH; {key}=null writes no tables",
    )


def append_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, key: str) -> None:
    """Append rows to a table, which begins with its header.

    Args:
        path: the table; it and its folder are made if they are missing.
        columns: names in their order; a cell that a row lacks, or that is None, stays empty: it was not measured.
        rows: cells by column. Secrets are taken out, line breaks become spaces.
        key: dotted key of the setting that names the folder, for messages.

    Raises:
        NexusError: `E-OUT-05` when the table has another header, `E-OUT-02` when the disk is full, and then no row was
            written.
        ValueError: a row has a cell that is no column.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(path.parent, name=_LOCK):
        problem = table_problem(path, columns, key=key)
        if problem is not None:
            raise NexusError(problem.code, problem.message, where=problem.key, remedy=problem.remedy)
        _append(path, ",".join(columns) + "\n", text.getvalue())


def _append(path: Path, header: str, lines: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        whole = _whole_bytes(descriptor)
        os.ftruncate(descriptor, whole)
        content = (lines if whole else header + lines).encode("utf-8")
        try:
            if os.pwrite(descriptor, content, whole) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, whole)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NexusError(
                "E-OUT-02", "the disk is full; the table is as it was", where=str(path), remedy="free some space"
            ) from error
    finally:
        os.close(descriptor)


def _whole_bytes(descriptor: int) -> int:
    """Bytes up to the last line's end."""
    size = os.fstat(descriptor).st_size
    end = size
    while end > 0:
        start = max(0, end - 4096)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _header(path: Path) -> list[str] | None:
    """Columns of a table; None if there is none, or nothing but the beginning of a first line."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        line = file.readline(65536)
    return next(csv.reader([line.decode("utf-8", errors="replace")]), []) if line.endswith(b"\n") else None


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(redact_text(value).split()) if isinstance(value, str) else value
