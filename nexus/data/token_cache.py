"""Tokenized rows kept on disk under a hash of everything that they follow from, and mapped into memory the next time.

An entry is a folder of `.npy` files with a manifest. It appears whole or not at all, whoever is killed while writing;
one that does not fit its manifest is made again, and said so.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nexus.data.hub import commit_of
from nexus.data.token_rows import TokenRows
from nexus.errors import NexusError
from nexus.storage.atomic import atomic_folder, remove_leftovers, write_json
from nexus.storage.locks import waiting_lock
from nexus.storage.manifest import file_sha256, verify_manifest, write_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNTRACEABLE = (
    "a source may change without a trace (a data set of the hub without a revision while HF_HUB_OFFLINE is set, or a "
    "folder with links to other folders)"
)
_FACTS = "rows.json"
_PARTS = ("rows", "held_out_rows")
_ARRAYS = ("input_ids", "loss_mask", "offsets", "names", "name_offsets", "source_index")
_CLOCK = re.compile(r"""strftime_now(?:\s*\(\s*(["'])(?P<format>.*?)\1\s*\)|\s+is\s+defined)""")


@dataclass(frozen=True)
class CorpusRows:
    """What reading and tokenizing a corpus gives, before rows are cut or dropped for their length.

    Attributes:
        rows: training rows.
        held_out_rows: held-out rows.
        bad_rows: errors of the rows that were counted instead of refused.
    """

    rows: TokenRows
    held_out_rows: TokenRows
    bad_rows: list[NexusError]


class TokenCache:
    """Entries under one folder, which may be removed at any time.

    Args:
        folder: where entries lie; made when the first one is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending: tuple[Path, CorpusRows, float] | None = None

    def fetch(self, identify: Callable[[], Mapping[str, Any] | None], build: Callable[[], CorpusRows]) -> CorpusRows:
        """The rows that `build` would give; says on standard error whether they were there. Writes nothing.

        Where there is nothing to read (capabilities that are only scored), it says nothing and keeps nothing.

        Args:
            identify: finds out all that the rows follow from, as plain containers; None if that cannot be told. Asked
                again behind `build`: rows of sources that changed meanwhile are not kept.
            build: reads and tokenizes.

        Returns:
            Rows, mapped from the entry if there was one.

        Raises:
            NexusError: whatever `identify` and `build` raise.
        """
        identity = identify()
        if identity is None:
            _say(f"not used: {_UNTRACEABLE}")
            return build()
        key = cache_key(identity)
        entry = self.folder / key
        started = time.perf_counter()
        found = self._open(entry)
        if found is not None:
            cached, made_in = found
            seconds = time.perf_counter() - started
            _say(f"hit: {_describe(cached)} in {seconds:.2f} s instead of {made_in:.2f} s ({entry})")
            return cached
        built = build()
        if not len(built.rows) + len(built.held_out_rows):
            return built
        seconds = time.perf_counter() - started
        _say(f"miss: {_describe(built)} read and tokenized in {seconds:.2f} s")
        again = identify()
        if again is not None and cache_key(again) == key:
            self._pending = entry, built, seconds
        else:
            _say("W-DAT-41  not kept: a source changed while it was read")
        return built

    def keep(self) -> None:
        """Write what `fetch` had to build, if anything; a call of its own, since a refused start writes nothing.

        A cache that cannot be written is no reason to stop: that is said on standard error.
        """
        if self._pending is not None:
            _say(self._write(*self._pending))
            self._pending = None

    def _open(self, entry: Path) -> tuple[CorpusRows, float] | None:
        if not entry.is_dir():
            return None
        try:
            verify_manifest(entry)
            facts = json.loads((entry / _FACTS).read_text(encoding="utf-8"))
            parts = {part: _load(entry, part, facts["sources"][part]) for part in _PARTS}
        except (NexusError, OSError, ValueError, KeyError) as error:
            why = error.message if isinstance(error, NexusError) else str(error)
            _say(f"damaged entry is made again: {why} ({entry})")
            return None
        bad_rows = [NexusError(**error) for error in facts["bad_rows"]]
        return CorpusRows(**parts, bad_rows=bad_rows), facts["seconds"]

    def _write(self, entry: Path, rows: CorpusRows, seconds: float) -> str:
        """Write an entry; returns what became of it."""
        names = ("code", "message", "where", "remedy", "status")
        facts = {
            "seconds": seconds,
            "sources": {part: getattr(rows, part).sources for part in _PARTS},
            "bad_rows": [{name: getattr(error, name) for name in names} for error in rows.bad_rows],
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with waiting_lock(self.folder):
                remove_leftovers(self.folder)  # of writers that were killed; the lock says that none is alive
                if _is_whole(entry):
                    return f"another process kept the same rows meanwhile ({entry})"
                with atomic_folder(entry, replace=True) as temporary:
                    for part in _PARTS:
                        for name in _ARRAYS:
                            np.save(temporary / f"{part}.{name}.npy", getattr(getattr(rows, part), name))
                    write_json(temporary / _FACTS, facts)
                    write_manifest(temporary, exclude=(), extra={})
        except (NexusError, OSError) as error:
            return f"W-DAT-40  not kept: {error}"
        return f"kept for the next time ({entry})"


def cache_key(identity: Mapping[str, Any]) -> str:
    """Name of an entry: a hash over `identity` and the code and libraries that make rows of it.

    Args:
        identity: plain containers.

    Returns:
        32 hexadecimal digits.
    """
    # Not sorted: the order of sources is the order of rows, that of a field map the order in which columns are renamed.
    content = json.dumps({"identity": identity, "code": _code()})
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides about tokens: the tokenizer as it is in memory, and its chat template."""
    tokenizer("", verbose=False)  # leaves no trace of an earlier call's padding or truncation
    backend: Any = tokenizer.backend_tokenizer
    template = json.dumps(tokenizer.chat_template, sort_keys=True, ensure_ascii=False)
    return {
        "class": type(tokenizer).__name__,
        "backend": hashlib.sha256(backend.to_str().encode()).hexdigest(),
        # lies in the backend too, but not in what it writes
        "split_special_tokens": tokenizer.split_special_tokens,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat_template": hashlib.sha256(template.encode()).hexdigest(),
        "clock": _clock(tokenizer.chat_template),
    }


def _clock(template: str | dict[str, str] | None) -> list[str]:
    """What a template that writes the time would write now: the day at least, all of it if that cannot be told."""
    text = "\n".join(template.values()) if isinstance(template, dict) else template or ""
    if "strftime_now" not in text:
        return []
    now = datetime.now()
    if "strftime_now" in _CLOCK.sub("", text):  # called by another name, or with a format that is computed
        return [now.isoformat()]
    formats = [call["format"] for call in _CLOCK.finditer(text) if call["format"] is not None]
    return [now.date().isoformat(), *(now.strftime(form) for form in formats)]


def source_identity(files: Sequence[str], cards: Iterable[Mapping[str, Any]]) -> list[Any] | None:
    """What decides about the rows of sources: contents of files, commits of repositories; generators are code.

    Args:
        files: the user's own files and folders.
        cards: dataset cards.

    Returns:
        Plain containers, one for each file and each path of a card; None if a source may change without a trace, so
        that nothing may be kept.

    Raises:
        NexusError: `E-DAT-20` if the hub does not tell the newest commit of a repository.
    """
    contents = cache(_contents)  # cards of two splits may name the same folder
    found: list[Any] = [contents(Path(name)) for name in files]
    for card in cards:
        if card["kind"] == "embedded":
            continue
        for path in [card["path"]] if isinstance(card["path"], str) else card["path"]:
            here = Path(path).expanduser() if card["kind"] == "hub" else Path(path)
            is_far = card["kind"] == "hub" and not here.is_dir()  # a repository may lie here as a folder
            found.append(commit_of(path, card["revision"]) if is_far else contents(here))
    return None if None in found else found


def _contents(path: Path) -> dict[str, str] | None:
    """Hashes by name; empty for a path that leads nowhere, an error of whoever reads it; None with linked folders."""
    if not path.is_dir():
        return {path.name: file_sha256(path)} if path.is_file() else {}
    inside = sorted(path.rglob("*"))
    if any(entry.is_symlink() and entry.is_dir() for entry in inside):
        return None  # not looked into here, but maybe by a library that reads the folder
    return {entry.relative_to(path).as_posix(): file_sha256(entry) for entry in inside if entry.is_file()}


@cache
def _code() -> dict[str, str]:
    """The code that turns sources into tokens, and the versions of the libraries that it calls."""
    from importlib.metadata import version

    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for file in sorted([*(package / "data").rglob("*.py"), *(package / "text").rglob("*.py"), package / "types.py"]):
        digest.update(file.relative_to(package).as_posix().encode())
        digest.update(file.read_bytes())
    libraries = ("transformers", "tokenizers", "jinja2", "numpy", "datasets", "pyarrow")
    return {"nexus": digest.hexdigest(), "python": sys.version} | {name: version(name) for name in libraries}


def _is_whole(entry: Path) -> bool:
    try:
        verify_manifest(entry)
    except NexusError:
        return False
    return True


def _load(entry: Path, part: str, sources: list[str]) -> TokenRows:
    arrays = {name: np.load(entry / f"{part}.{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
    return TokenRows(**arrays, sources=tuple(sources))


def _describe(rows: CorpusRows) -> str:
    held_out = f" and {len(rows.held_out_rows):,} held out" if len(rows.held_out_rows) else ""
    return f"{len(rows.rows):,} rows{held_out}"


def _say(line: str) -> None:
    print(f"token cache: {line}", file=sys.stderr, flush=True)
