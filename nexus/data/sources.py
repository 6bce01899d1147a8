"""Where rows come from: own files and folders, and embedded generators. Every row knows its place.

A row is a pair (place, columns); the place, for example `chats.jsonl:12`, stands in every later complaint about it.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from nexus.data.hub import is_saved, read_saved, without_filling
from nexus.data.synthetic import GENERATORS
from nexus.errors import NexusError

Row = tuple[str, dict[str, Any]]

MAX_LINE_BYTES = 64 * 2**20
KINDS_OF_FILE = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
#: First bytes that name an encoding; those of UTF-32 begin as those of UTF-16 do.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
#: Without them: at which of every four bytes ASCII characters, which no text lacks, have a NUL.
_ZEROS: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "utf-16le",
    (True, False, True, False): "utf-16be",
    (False, True, True, True): "utf-32le",
    (True, True, True, False): "utf-32be",
}
_EVALUATION = {"test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "heldout"}


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


def read_path(path: str | Path, bad_rows: BadRows) -> Iterator[Row]:
    """Rows of a file, of all data files of a folder, or of a data set that `datasets` saved to a folder.

    Args:
        path: the file or folder; of a folder, see `data_files`.
        bad_rows: collects rows that cannot be read.

    Yields:
        Place and columns of each row.

    Raises:
        NexusError: as `read_file`, `data_files` and `hub.read_saved`.
    """
    path = Path(path)
    if not path.is_dir():
        yield from read_file(path, bad_rows)
    elif is_saved(path):
        yield from read_saved(path, split=None)
    else:
        for file in data_files(path):
            yield from read_file(file, bad_rows, name=file.relative_to(path).as_posix())


def data_files(folder: Path) -> list[Path]:
    """The data files below a folder.

    Args:
        folder: is searched to any depth; whatever begins with a dot, or is of another kind, is no data file.

    Returns:
        At least one file, sorted by path.

    Raises:
        NexusError: `E-DAT-01` if there is none, `E-DAT-17` if some are named as a test or validation split and others
            are not.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if _kind(path) in KINDS_OF_FILE
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise NexusError(
            "E-DAT-01",
            f"the folder holds no data file ({' '.join(KINDS_OF_FILE)})",
            where=str(folder),
            remedy="name a file, or a folder with some",
            status=66,
        )

    def is_evaluation(path: Path) -> bool:
        words = re.split(r"[^a-z0-9]+", path.relative_to(folder).as_posix().lower())
        return not _EVALUATION.isdisjoint(words)

    held_out = [path for path in files if is_evaluation(path)]
    if held_out and len(held_out) < len(files):
        rest = next(path for path in files if path not in held_out)
        raise NexusError(
            "E-DAT-17",
            f"the folder mixes splits: {len(held_out)} of its {len(files)} files are named for evaluation, for example "
            f"{held_out[0].relative_to(folder)} beside {rest.relative_to(folder)}",
            where=str(folder),
            remedy="name the files of one split, or put them into a folder of their own",
        )
    return files


def read_file(path: str | Path, bad_rows: BadRows, *, name: str | None = None) -> Iterator[Row]:
    """Rows of one file.

    A `.jsonl` file has one object a line, a `.json` file one array of objects (or one object that holds the rows by
    their names), `.csv` and `.tsv` a header; a `.txt` file gives one row `{"text": ...}` for each paragraph (paragraphs
    are separated by blank lines). All but `.parquet` may be compressed, with `.gz` behind the name.

    Args:
        path: the file.
        bad_rows: collects rows that cannot be read.
        name: what the file is called in places; None is its own name.

    Yields:
        Place and columns of each row.

    Raises:
        NexusError: `E-DAT-01` if there is no such file, `E-DAT-02` for garbage, `E-DAT-04` for an empty file,
            `E-DAT-05` for a row that is no object, `E-DAT-06` for bytes that are not UTF-8, `E-DAT-07` for NaN,
            `E-DAT-08` for content that contradicts the file's name, `E-DAT-09` for an endless line, `E-DAT-10` for a
            damaged Parquet or gzip file.
    """
    path = Path(path)
    _check_file(path)
    name, kind = name or path.name, _kind(path)
    if kind == ".jsonl":
        rows = _read_jsonl(path, name, bad_rows)
    elif kind == ".json":
        rows = _read_json(path, name, bad_rows)
    elif kind == ".txt":
        rows = _read_text(path, name)
    elif kind == ".parquet":
        rows = _read_parquet(path, name)
    else:
        rows = _read_csv(path, name, bad_rows, delimiter="\t" if kind == ".tsv" else ",")
    count = 0
    try:
        if kind != ".parquet":
            _insist_on_bytes(path, name)
        for row in rows:
            count += 1
            yield row
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise NexusError(
            "E-DAT-10", f"the gzip file is damaged: {error}", where=name, remedy="copy or download it again"
        ) from error
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


def _kind(path: Path) -> str:
    """Ending of a file's name that says how to read it, without `.gz` (a compressed Parquet file is none)."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if suffix == ".gz" else suffix
    return suffix if suffix == ".gz" and inner == ".parquet" else inner


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _whole_text(path: Path, name: str) -> str:
    with _open(path) as file:
        return _decode(file.read().removeprefix(b"\xef\xbb\xbf"), name, path)


def _check_file(path: Path) -> None:
    if path.is_file():
        if _kind(path) not in KINDS_OF_FILE:
            raise NexusError(
                "E-DAT-08",
                f"{path.suffix or 'a name without ending'} is not a kind of data file that Nexus reads",
                where=str(path),
                remedy=f"convert it to one of {' '.join(KINDS_OF_FILE)}",
            )
        return
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


def _insist_on_bytes(path: Path, name: str) -> None:
    """Refuse UTF-16 and UTF-32 as a whole: much of them is valid UTF-8 with a NUL beside every character."""
    with _open(path) as file:
        head = file.read(4096)
    many = len(head) / 40  # a tenth of the bytes at one of the four places
    zeros = tuple(head[place::4].count(0) > many for place in range(4))
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), _ZEROS.get(zeros))
    if encoding is not None:
        raise NexusError(
            "E-DAT-06",
            f"the file is {encoding.upper()}, not UTF-8",
            where=name,
            remedy=f"convert the file, for example: iconv -f {encoding} -t utf-8 {path.name}",
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


def _read_jsonl(path: Path, name: str, bad_rows: BadRows) -> Iterator[Row]:
    with _open(path) as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = f"{name}:{number}"
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


def _read_json(path: Path, name: str, bad_rows: BadRows) -> Iterator[Row]:
    text = _whole_text(path, name)
    if not text.strip():
        return
    try:
        value = _parse(text, name)
    except NexusError as error:
        if "Extra data" in error.message:
            raise NexusError(
                "E-DAT-08",
                "this .json file holds more than one JSON value",
                where=error.where,
                remedy="one object a line is called .jsonl: rename it",
            ) from error
        raise
    if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
        yield from ((f"{name}:{key}", row) for key, row in value.items())  # rows by their names, as in CoT-Collection
        return
    if isinstance(value, dict):
        raise NexusError(
            "E-DAT-08",
            f"this .json file holds one object (keys: {', '.join(sorted(value))[:80]}), not an array of rows",
            where=name,
            remedy="write [row, row, ...]; a single row goes into a .jsonl file",
        )
    for index, row in enumerate(_need_list(value, name), start=1):
        place = f"{name}:row {index}"
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


def _read_csv(path: Path, name: str, bad_rows: BadRows, *, delimiter: str) -> Iterator[Row]:
    text = _whole_text(path, name)
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = list(reader.fieldnames or ())  # reads the header
    columns = len(header)
    if twice := [column for column in dict.fromkeys(header) if header.count(column) > 1]:
        raise NexusError(
            "E-DAT-02",
            f"the header names {', '.join(map(repr, twice))} more than once, and one of them would not be read",
            where=f"{name}:1",
            remedy="give every column a name of its own",
        )
    if columns == 1 and (mark := next((mark for mark in ";|\t," if mark in header[0]), None)) is not None:
        raise NexusError(
            "E-DAT-02",
            f"the header has one column, {header[0]!r}: the file seems to be separated by {mark!r}",
            where=f"{name}:1",
            remedy="separate by commas (.csv) or tabs (.tsv)",
        )
    while True:
        lines = reader.reader.line_num  # the other one's stands still at an error
        place = f"{name}:{lines + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            swallowed = reader.reader.line_num - lines
            if swallowed > 1:  # counted as one bad row, all rows in it would be lost unseen
                raise NexusError(
                    "E-DAT-02",
                    f"a quote that opens here is not closed properly, so that {swallowed} lines are one row",
                    where=place,
                    remedy="close the quote, and double those inside a cell; data.max_bad_rows does not pass over this",
                ) from error
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


def _read_text(path: Path, name: str) -> Iterator[Row]:
    text = _whole_text(path, name)
    start, paragraph = 1, list[str]()
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            if not paragraph:
                start = number
            paragraph.append(line.rstrip("\r"))
        elif paragraph:
            yield f"{name}:{start}", {"text": "\n".join(paragraph)}
            paragraph = []


def _read_parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}:row {number}", without_filling(row)
    except (pyarrow.ArrowException, OSError) as error:
        raise NexusError(
            "E-DAT-10", f"the Parquet file is damaged: {error}", where=name, remedy="copy or download it again"
        ) from error
