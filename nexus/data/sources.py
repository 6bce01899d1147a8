"""Where rows come from: own files (JSON, JSONL, CSV, TSV, text) and embedded generators. Every row knows its place.

A row is a pair (place, columns); the place, for example `chats.jsonl:12`, stands in every later complaint about it.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nexus.data.synthetic import GENERATORS
from nexus.errors import NexusError

Row = tuple[str, dict[str, Any]]

MAX_LINE_BYTES = 64 * 2**20
KINDS_OF_FILE = (".jsonl", ".json", ".csv", ".tsv", ".txt")


class BadRows:
    """Rows that were refused, up to a limit.

    Args:
        limit: rows that may be bad; the next one is an error. With 0 the first bad row is an error itself.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.errors: list[NexusError] = []

    def refuse(self, error: NexusError) -> None:
        """Count a bad row.

        Args:
            error: what is wrong with it, and where.

        Raises:
            NexusError: `error` if no row may be bad, `E-DAT-15` if there are now too many.
        """
        if self.limit == 0:
            raise error
        self.errors.append(error)
        if len(self.errors) > self.limit:
            raise NexusError(
                "E-DAT-15",
                f"{len(self.errors)} bad rows, more than data.max_bad_rows={self.limit}; the first: {self.errors[0]}",
                where=error.where,
                remedy="repair the file, or raise data.max_bad_rows",
            )


def read_file(path: str | Path, bad_rows: BadRows) -> Iterator[Row]:
    """Rows of one file.

    A `.jsonl` file has one object a line, a `.json` file one array of objects, `.csv` and `.tsv` a header; a `.txt`
    file gives one row `{"text": ...}` for each paragraph (paragraphs are separated by blank lines).

    Args:
        path: the file.
        bad_rows: collects rows that cannot be read.

    Yields:
        Place and columns of each row.

    Raises:
        NexusError: `E-DAT-01` if there is no such file, `E-DAT-02` for garbage, `E-DAT-04` for an empty file,
            `E-DAT-05` for a row that is no object, `E-DAT-06` for bytes that are not UTF-8, `E-DAT-07` for NaN,
            `E-DAT-08` for content that contradicts the file's name, `E-DAT-09` for an endless line.
    """
    path = Path(path)
    _check_file(path)
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        rows = _read_jsonl(path, bad_rows)
    elif suffix == ".json":
        rows = _read_json(path, bad_rows)
    elif suffix == ".txt":
        rows = _read_text(path)
    else:
        rows = _read_csv(path, bad_rows, delimiter="\t" if suffix == ".tsv" else ",")
    count = 0
    for row in rows:
        count += 1
        yield row
    if count == 0 and not bad_rows.errors:
        raise NexusError("E-DAT-04", "the file has no rows", where=str(path), remedy="give a file with rows")


def generate_rows(generator: str, *, view: str, split: str, count: int, seed: int) -> Iterator[Row]:
    """Rows of an embedded generator.

    Args:
        generator: name in `nexus.data.synthetic.GENERATORS`.
        view: `sft`, `preference` or `prompts`.
        split: `train` or `eval`.
        count: number of rows.
        seed: seed of the generator.

    Yields:
        Place and columns of each row.

    Raises:
        NexusError: `E-DAT-01` for an unknown generator.
    """
    if generator not in GENERATORS:
        raise NexusError(
            "E-DAT-01",
            f"no embedded generator {generator!r}{nearest(generator, list(GENERATORS))}",
            where="dataset.generator",
            remedy=f"one of {', '.join(sorted(GENERATORS))}",
            status=66,
        )
    for index, row in enumerate(GENERATORS[generator](view=view, split=split, count=count, seed=seed)):
        yield str(row.get("id", f"{generator}/{split}/{index}")), row


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean X?` for the known name closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _check_file(path: Path) -> None:
    if path.is_file():
        if path.suffix.lower() not in KINDS_OF_FILE:
            raise NexusError(
                "E-DAT-08",
                f"{path.suffix or 'a name without ending'} is not a kind of data file that Nexus reads",
                where=str(path),
                remedy=f"convert it to one of {' '.join(KINDS_OF_FILE)}",
            )
        return
    if path.is_dir():
        files = sorted(p.name for p in path.iterdir() if p.suffix.lower() in KINDS_OF_FILE)
        listing = f"it holds {', '.join(files[:5])}" if files else "it holds no data file"
        raise NexusError("E-DAT-01", f"this is a folder; {listing}", where=str(path), remedy="name files", status=66)
    parent = path.parent
    hint = "; its folder does not exist either"
    if parent.is_dir():
        hint = nearest(path.name, [p.name for p in parent.iterdir()])
    raise NexusError(
        "E-DAT-01",
        f"no such data file{hint}",
        where=str(path),
        remedy="paths are relative to the folder in which the command runs",
        status=66,
    )


def _decode(raw: bytes, place: str, path: Path) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NexusError(
            "E-DAT-06",
            f"byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8",
            where=place,
            remedy=f"convert the file, for example: iconv -f latin1 -t utf-8 {path.name}",
        ) from error


def _no_nan(literal: str) -> Any:
    raise ValueError(f"{literal} is not JSON")


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_nan)
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if "\n" in text.rstrip() else ""
        snippet = text[max(0, error.pos - 30) : error.pos + 30].strip()
        raise NexusError(
            "E-DAT-02",
            f"not valid JSON: {error.msg} at column {error.colno}, near {snippet!r}",
            where=f"{place}{line}",
            remedy="repair the line, or allow some bad rows with data.max_bad_rows",
        ) from error
    except ValueError as error:
        raise NexusError("E-DAT-07", f"{error}", where=place, remedy="write null or leave the field out") from error
    except RecursionError as error:
        raise NexusError("E-DAT-02", "JSON is nested too deeply", where=place, remedy="repair the row") from error


def _need_object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NexusError(
            "E-DAT-05",
            f"a row must be an object with named columns, this is a {type(value).__name__}",
            where=place,
            remedy='write for example {"prompt": "...", "completion": "..."}',
        )
    return value


def _read_jsonl(path: Path, bad_rows: BadRows) -> Iterator[Row]:
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = f"{path.name}:{number}"
            if len(raw) > MAX_LINE_BYTES:
                raise NexusError(
                    "E-DAT-09", "the line is longer than 64 MiB", where=place, remedy="one row a line, or use .json"
                )
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            if number == 1 and raw.lstrip().startswith(b"["):
                raise NexusError(
                    "E-DAT-08",
                    "this .jsonl file holds a JSON array",
                    where=place,
                    remedy="rename it to .json, or write one object a line",
                )
            try:
                row = _need_object(_parse(_decode(raw, place, path), place), place)
            except NexusError as error:
                bad_rows.refuse(error)
                continue
            yield place, row


def _read_json(path: Path, bad_rows: BadRows) -> Iterator[Row]:
    text = _decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), path.name, path)
    if not text.strip():
        return
    try:
        value = _parse(text, path.name)
    except NexusError as error:
        if "Extra data" in error.message:
            raise NexusError(
                "E-DAT-08",
                "this .json file holds more than one JSON value",
                where=error.where,
                remedy="one object a line is called .jsonl: rename it",
            ) from error
        raise
    if isinstance(value, dict):
        raise NexusError(
            "E-DAT-08",
            f"this .json file holds one object (keys: {', '.join(sorted(value))[:80]}), not an array of rows",
            where=path.name,
            remedy="write [row, row, ...]; a single row goes into a .jsonl file",
        )
    for index, row in enumerate(_need_list(value, path.name), start=1):
        place = f"{path.name}:row {index}"
        try:
            yield place, _need_object(row, place)
        except NexusError as error:
            bad_rows.refuse(error)


def _need_list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise NexusError(
            "E-DAT-08",
            f"this .json file holds a {type(value).__name__}, not an array of rows",
            where=place,
            remedy="write [row, row, ...]",
        )
    return value


def _read_csv(path: Path, bad_rows: BadRows, *, delimiter: str) -> Iterator[Row]:
    text = _decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), path.name, path)
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = len(reader.fieldnames or ())  # reads the header
    while True:
        place = f"{path.name}:{reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            bad_rows.refuse(NexusError("E-DAT-02", f"not valid CSV: {error}", where=place, remedy="check the quotes"))
            continue
        if None in row or None in row.values():
            have = sum(v is not None for k, v in row.items() if k is not None) + len(row.get(None) or ())
            bad_rows.refuse(
                NexusError(
                    "E-DAT-02",
                    f"{have} cells, but the header names {columns}",
                    where=place,
                    remedy='put text with commas or line breaks between double quotes (")',
                )
            )
            continue
        yield place, row


def _read_text(path: Path) -> Iterator[Row]:
    text = _decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), path.name, path)
    start, paragraph = 1, list[str]()
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            if not paragraph:
                start = number
            paragraph.append(line.rstrip("\r"))
        elif paragraph:
            yield f"{path.name}:{start}", {"text": "\n".join(paragraph)}
            paragraph = []
