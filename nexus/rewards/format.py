"""Reward of the form of an answer: the wanted tags, each exactly once, in order, and filled."""

from __future__ import annotations

import re
from typing import Literal

#: Tags that this reward knows; those that are not wanted must not occur.
TAGS = ("think", "answer")
_TAG = re.compile(rf"<(/?)({'|'.join(TAGS)})>")


def format_tags(
    completion: str, *, finished: bool, tags: list[Literal["think", "answer"]], opened_by_prompt: bool
) -> float:
    """1 if the tags stand as they should, else 0.

    Every wanted tag opens once and closes once, in the order of the list, none inside another, with something
    between; no other known tag occurs. Nothing follows the last tag, and nothing comes before a leading `<think>`;
    before `<answer>` there may be text, for that is where written steps stand.

    Args:
        completion: what the model wrote.
        finished: False if the token limit ended the completion.
        tags: wanted tags in order.
        opened_by_prompt: the template writes the first opening tag itself, so that the completion begins inside.

    Returns:
        0 or 1.
    """
    text = f"<{tags[0]}>{completion}" if opened_by_prompt and tags else completion
    found = list(_TAG.finditer(text))
    wanted = [(slash, tag) for tag in tags for slash in ("", "/")]
    if not finished or [match.groups() for match in found] != wanted:
        return 0.0
    if not tags:
        return float(bool(text.strip()))
    filled = all(
        text[opening.end() : closing.start()].strip() for opening, closing in zip(found[::2], found[1::2], strict=True)
    )
    starts = tags[0] != "think" or not text[: found[0].start()].strip()
    return float(filled and starts and not text[found[-1].end() :].strip())
