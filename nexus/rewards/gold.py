"""What a reward compares with; a row that lacks it is an error, never a reward of nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus.errors import NexusError

Gold = Mapping[str, Any]
"""What travels with a prompt: `answer` and `steps`, `calls`, `tests` or whatever a reward of your own reads."""


def gold_value(gold: Gold, key: str) -> Any:
    """One entry of a row's gold.

    Args:
        gold: what the row carries.
        key: the entry that a reward needs.

    Returns:
        Its value; an empty list is one (no tool fits), an empty text is none.

    Raises:
        NexusError: `E-DAT-31` if it is not there.
    """
    value = gold.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise NexusError(
            "E-DAT-31",
            f"the row has no gold {key!r} (it has {', '.join(map(repr, gold)) or 'nothing'})",
            remedy="a right answer must travel with every prompt that is rewarded; add it, or leave this reward out",
        )
    return value
