"""Splits what a model thought from what it answered."""

from __future__ import annotations

import re
from dataclasses import dataclass

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

_BLOCK = re.compile(re.escape(THINK_OPEN) + r"(.*?)" + re.escape(THINK_CLOSE), re.DOTALL)


@dataclass(frozen=True)
class Thought:
    """A model's text in two parts.

    Attributes:
        thinking: what stood between the tags, blocks joined by a blank line; None if the model did not think.
        answer: what stood outside, stripped; empty while the thinking has not ended.
        closed: False if the last thinking block never ended.
    """

    thinking: str | None
    answer: str
    closed: bool


def split_think(text: str) -> Thought:
    """Split a model's text into thinking and answer.

    Templates of some models put the opening tag into the prompt, so a closing tag without an opening one ends a
    thinking block that began with the text.

    Args:
        text: what the model wrote.

    Returns:
        Both parts.
    """
    close, opening = text.find(THINK_CLOSE), text.find(THINK_OPEN)
    if close >= 0 and (opening < 0 or opening > close):
        text = THINK_OPEN + text
    blocks = [block.strip() for block in _BLOCK.findall(text)]
    answer = _BLOCK.sub("", text)
    head, tag, tail = answer.partition(THINK_OPEN)
    if tag:
        blocks.append(tail.strip())
    return Thought("\n\n".join(blocks) if blocks else None, head.strip(), closed=not tag)


def join_think(thinking: str, answer: str) -> str:
    """A text in which the thinking stands in front of the answer, as reasoning models write it.

    Args:
        thinking: without tags.
        answer: what follows it.

    Returns:
        A text that `split_think` takes apart again.
    """
    return f"{THINK_OPEN}\n{thinking}\n{THINK_CLOSE}\n\n{answer}"
