"""A flat row is read whole: a question without its half would be learned, and nobody would see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from nexus.data.dialects import Wrong

Row = dict[str, Any]
T = TypeVar("T")

#: Columns that are part of what is asked or answered, whatever the schema.
_PARTS = ("system", "system_prompt", "instruction", "input", "context", "history", "completion", "response")


class _Read(Row):
    """A row that knows which of its columns were looked at."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.columns: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.columns.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dictionary."""
        self.columns.add(key)
        return super().get(key, default)


def whole(convert: Callable[[Row], T]) -> Callable[[Row], T]:
    """The same conversion, which refuses a row that says more than it reads.

    Args:
        convert: reads a row by its columns.

    Returns:
        A conversion that raises `Wrong` for such rows.
    """

    def checked(row: Row) -> T:
        read = _Read(row)
        parts = convert(read)
        lost = [key for key in _PARTS if row.get(key) not in (None, "", [], {}) and key not in read.columns]
        if lost:
            raise Wrong(
                f"what stands in {' and '.join(lost)} would be lost: write it into the column that is asked or "
                "answered, or leave the column out"
            )
        return parts

    return checked
