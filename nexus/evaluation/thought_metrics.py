"""Scores of one answer that thinks first: reasoning at a level, and the review of a draft. All lie between 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus.text.answers import ANSWER_CLOSE, ANSWER_OPEN, marked_answer
from nexus.text.steps import NO, YES, read_review, read_work, shared_start
from nexus.text.think import split_think

REASONING_METRICS = ("exact_match", "level", "steps", "format", "exact_low", "exact_medium", "exact_high")
THINKING_METRICS = ("corrected", "exact_match", "kept", "steps", "format")


def reasoning_metrics(prompt_row: Mapping[str, Any], answer_text: str, *, finished: bool) -> dict[str, float]:
    """Score an answer whose prompt asks for a level of reasoning.

    - `exact_match`: the answer is the right one, to the letter: what it marks as its answer, else all that stands
      outside the thinking, a final period aside.
    - `level`: the thought has the form of the level that was asked for (see `nexus.text.steps`), right or wrong.
    - `steps`: how far the thought goes the right way from its start, over the length of the longer way; 0 if it has the
      form of no level.
    - `format`: one closed thought that is not empty, then one marked answer and nothing else.
    - `exact_low`, `exact_medium`, `exact_high`: `exact_match` on the rows of that level.

    Args:
        prompt_row: `gold` = {"answer", "level", "states", "steps"}.
        answer_text: what the model wrote, tags kept, stop token removed.
        finished: False if the token limit ended the answer; then nothing counts.

    Returns:
        Metric values; of the last three, the one that applies.
    """
    gold = prompt_row["gold"]
    exact = _exact(answer_text, gold["answer"]) if finished else 0.0
    work = read_work(split_think(answer_text).thinking or "") if finished else None
    right = gold["states"] if work is not None and work.level == "low" else gold["steps"]
    return {
        "exact_match": exact,
        "level": float(work is not None and work.level == gold["level"]),
        "steps": shared_start(work.units, right) if work is not None else 0.0,
        "format": _form(answer_text) if finished else 0.0,
        f"exact_{gold['level']}": exact,
    }


def thinking_metrics(prompt_row: Mapping[str, Any], answer_text: str, *, finished: bool) -> dict[str, float]:
    """Score an answer that reviews a draft in its thinking.

    - `exact_match`: as for reasoning.
    - `corrected`: only where the draft holds a mistake: the review agrees up to it, says no at it, and the answer is
      the right one.
    - `kept`: only where the draft is right: the review agrees with all of it, and the answer is the right one.
    - `steps`: how far the review's own steps go the right way, over the length of the longer way; 0 if the thought is
      no review.
    - `format`: as for reasoning.

    Copying the draft's answer is right as often as drafts are, so `exact_match` alone says little; `corrected` does.

    Args:
        prompt_row: `gold` = {"answer", "steps", "mistake"}; the last one is the place of the wrong step or None.
        answer_text: what the model wrote, tags kept, stop token removed.
        finished: False if the token limit ended the answer; then nothing counts.

    Returns:
        Metric values; of `corrected` and `kept`, the one that applies.
    """
    gold = prompt_row["gold"]
    exact = _exact(answer_text, gold["answer"]) if finished else 0.0
    review = (read_review(split_think(answer_text).thinking or "") if finished else None) or ()
    verdicts = [line.verdict for line in review if line.verdict is not None]
    planted = gold["mistake"] is not None
    due = [YES] * gold["mistake"] + [NO] if planted else [YES] * len(gold["steps"])
    return {
        "exact_match": exact,
        "corrected" if planted else "kept": float(bool(exact) and verdicts == due),
        "steps": shared_start([line.step.text for line in review], gold["steps"]),
        "format": _form(answer_text) if finished else 0.0,
    }


def _exact(answer_text: str, gold: str) -> float:
    marked = marked_answer(answer_text)
    said = split_think(answer_text).answer.removesuffix(".") if marked is None else marked
    return float(said == gold)


def _form(answer_text: str) -> float:
    thought = split_think(answer_text)
    marked = thought.answer.startswith(ANSWER_OPEN) and thought.answer.endswith(ANSWER_CLOSE)
    once = thought.answer.count(ANSWER_OPEN) == thought.answer.count(ANSWER_CLOSE) == 1
    return float(bool(thought.thinking) and thought.closed and marked and once)
