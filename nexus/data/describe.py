"""What a corpus says about itself on the console."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nexus.data.token_rows import TokenRows

#: Reasons for which a row is left out that are also counted as bad rows.
_REFUSED = ("nothing_to_learn", "equal_answers", "empty_answer", "prompt_mismatch")


def describe_rows(facts: Mapping[str, Any], *, rows_per_step: int, remarks: Sequence[str]) -> str:
    """One paragraph: rows, tokens, steps, and what was left out.

    Args:
        facts: `Corpus.summary`.
        rows_per_step: `data.global_batch_size`.
        remarks: further lines.

    Returns:
        Lines for the console.
    """
    share = 100 * facts["target_tokens"] / facts["tokens"]
    lines = [
        f"data  {facts['rows']:,} rows, {facts['tokens']:,} tokens ({share:.0f} % learned), longest "
        f"{facts['longest_row']:,}; {facts['held_out_rows']:,} held out; {facts['steps']:,} steps of "
        f"{min(rows_per_step, facts['rows'])} rows"
    ]
    left_out = [f"{count} {reason.replace('_', ' ')}" for reason, count in facts["dropped"].items()]
    left_out += [f"{facts['truncated']} truncated"] if facts["truncated"] else []
    unusable = facts["bad_rows"] - sum(facts["dropped"].get(reason, 0) for reason in _REFUSED)
    left_out += [f"{unusable} unusable"] if unusable > 0 else []
    if facts["duplicates"]:
        lines.append(f"      {facts['duplicates']:,} rows repeat another row token for token")
    if left_out:
        lines.append(f"      left out or cut: {', '.join(left_out)}")
    if leaked := facts["held_out_rows_also_trained"]:
        lines.append(
            f"W-DAT-42  {leaked:,} of {facts['held_out_rows']:,} held-out rows are trained on too, so their scores say "
            "what was learned by heart -- leave them out of data.train or data.validation"
        )
    return "\n".join([*lines, *remarks])


def unmeasured_remarks(unmeasured: int, *, measured: int) -> list[str]:
    """What is not measured of rows that are judged one by one.

    Args:
        unmeasured: held-out rows with a single answer.
        measured: held-out pairs.

    Returns:
        Lines `W-PREF-nn  what`, none if all is measured.
    """
    lines = []
    if unmeasured:
        lines.append(f"W-PREF-07  {unmeasured:,} held-out rows have a single answer, and are not measured")
    if not measured:
        lines.append(
            "W-PREF-08  no held-out preference is measured, since no pair is held out: a single answer with a label "
            "prefers nothing (such rows are all trained on) -- data.validation=FILE with prompt, chosen and rejected"
        )
    return lines


def _ends_twice(rows: TokenRows, ends: Collection[int]) -> NDArray[np.bool_]:
    """[R] whether a turn ends twice in one run of learned tokens; the template's own ends have other tokens between."""
    found = np.flatnonzero(np.isin(rows.input_ids, list(ends)) & rows.loss_mask)
    twice = np.zeros(len(rows), dtype=np.bool_)
    if len(found):
        row = np.searchsorted(rows.offsets, found, side="right") - 1
        learned_between = np.logical_and.reduceat(rows.loss_mask, found)[:-1]
        twice[row[1:][learned_between & (row[1:] == row[:-1])]] = True
    return twice


def sft_remarks(rows: TokenRows, *, count_tokens: str, ends: Collection[int]) -> list[str]:
    """What is learned otherwise than its rows look.

    Of plain text every token is, where only answers were to be; of an empty answer only its end; and an answer that
    spells the end of a turn teaches to go on behind it, as the user if it says so.

    Args:
        rows: to train on.
        count_tokens: `completion` or `all`.
        ends: ids of the tokens that end a turn.

    Returns:
        Lines `W-DAT-nn  what`, or none.
    """
    if count_tokens == "all":
        return []
    lines = []
    empty = int(((rows.targets == 1) & (rows.lengths > 2)).sum())
    if empty:
        lines.append(
            f"W-DAT-44  {empty:,} of {len(rows):,} rows have an empty answer: of such a row nothing but the end is "
            "learned, so the model learns to say nothing -- leave them out if that is not meant"
        )
    forged = int((_ends_twice(rows, ends) & (rows.targets < rows.lengths - 1)).sum())
    if forged:
        lines.append(
            f"W-DAT-45  {forged:,} of {len(rows):,} rows have an answer that spells the token which ends a turn: it is "
            "learned as that token, and what stands behind it as a turn of its own -- write the mark in other words, "
            "or leave the rows out"
        )
    # A conversation has at least the words around an answer, which are not learned; a text has nothing but itself.
    whole = int(((rows.targets == rows.lengths - 1) & (rows.lengths > 1)).sum())
    if whole:
        lines.append(
            f"W-DAT-43  {whole:,} of {len(rows):,} rows are plain text, without question and answer: every token of "
            "them is learned, as method=cpt does -- choose it if that is meant, else give prompt and completion"
        )
    return lines
