"""English prose that any Python installation holds: the documentation inside the standard library.

The text comes from the docstrings of a fixed list of modules (read with ``ast``, nothing is imported or run) and from
the topics of ``pydoc``. It differs a little between versions of Python, so the card of a model that was trained on it
names the version.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from nexus.data.synthetic import words

SKIPPED_FOLDERS = (
    "test", "tests", "site-packages", "idlelib", "lib2to3", "turtledemo", "ensurepip", "__pycache__", "config-",
)  # fmt: skip
MIN_CHARACTERS, MAX_CHARACTERS = 120, 420
_LETTER_SHARE = 0.68
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def _docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _files() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [path for path in root.rglob("*.py") if not _is_skipped(path.relative_to(root))]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _is_skipped(path: Path) -> bool:
    return any(part.startswith(SKIPPED_FOLDERS) for part in path.parts)


def _topics() -> Iterator[str]:
    from pydoc_data import topics

    for name in sorted(topics.topics):
        yield topics.topics[name]


def _paragraphs(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        flat = " ".join(block.split()).replace("*", "").replace("``", "").replace('"', "'")
        if ">>>" in flat or not flat.isascii() or flat.count("=") > 2 or "::" in flat or "__" in flat:
            continue
        letters = sum(character.isalpha() or character == " " for character in flat)
        if len(flat) >= 40 and letters / len(flat) > _LETTER_SHARE + 0.2:
            yield flat


def _chunks(paragraphs: Iterator[str]) -> Iterator[str]:
    held = ""
    for sentence in (part for paragraph in paragraphs for part in _SENTENCE.split(paragraph)):
        if held and len(held) + len(sentence) > MAX_CHARACTERS:
            if len(held) >= MIN_CHARACTERS:
                yield held[:MAX_CHARACTERS].rsplit(" ", 1)[0] if len(held) > MAX_CHARACTERS else held
            held = ""
        held = f"{held} {sentence}".strip()
    if MIN_CHARACTERS <= len(held) <= MAX_CHARACTERS:
        yield held


@lru_cache(maxsize=2)
def chunks(split: str) -> tuple[str, ...]:
    """Short passages of the standard library's documentation.

    Args:
        split: "train" or "eval".

    Returns:
        The passages of that split in a fixed order, without repeats, 120 to 420 characters each.
    """
    found: dict[str, None] = {}
    for path in _files():
        try:
            source = path.read_text(encoding="utf-8")
            texts = list(_docstrings(source))
        except (UnicodeDecodeError, SyntaxError):
            continue  # a few files of the standard library are deliberately broken or in another encoding
        for text in texts:
            found.update(dict.fromkeys(_chunks(_paragraphs(text))))
    for text in _topics():
        found.update(dict.fromkeys(_chunks(_paragraphs(text))))
    return tuple(chunk for chunk in found if words.in_split(chunk, split))
