"""Embedded seeded generators of rows, by name; a generator's module is imported when it is first called."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

Rows = Callable[..., Iterator[dict[str, Any]]]


def _lazy(name: str, function: str = "rows") -> Rows:
    def rows(*, view: str, split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
        module = importlib.import_module(f"{__name__}.{name}")
        found: Iterator[dict[str, Any]] = getattr(module, function)(view=view, split=split, count=count, seed=seed)
        return found

    rows.__doc__ = f"Rows of `{__name__}.{name}.{function}`; see there for arguments and errors."
    return rows


#: Every generator takes (view, split, count, seed) by keyword and yields plain rows; row i does not depend on count.
GENERATORS: dict[str, Rows] = {
    **{name: _lazy(name) for name in ("tools", "cot", "reasoning", "thinking", "safety", "over_refusal", "pretrain")},
    "tool_results": _lazy("tool_results"),
    "pretrain_more": _lazy("pretrain", "more_rows"),
    "pretrain_pieces": _lazy("pretrain", "piece_rows"),
}
