"""Preference rows to tokens: the prompt once, then what is preferred and what is not. Imports no torch.

A pair that cannot teach a preference is refused by name and counted: equal answers, an empty one, answers to different
prompts. Where every answer counts on its own (`method=kto`), a pair becomes two rows, and a row may hold one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nexus.data.encode import end_of_turn_ids
from nexus.data.template import LongRows, RowCounts, tokenize_examples
from nexus.errors import NexusError
from nexus.types import Example, TokenizedExample, TokenizedGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Refuse = Callable[[NexusError], None]
_CHUNK = 256
_REMEDY = "remove the row, or allow some with data.max_bad_rows"


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, refuse: Refuse, counts: RowCounts
) -> Iterator[TokenizedGroup]:
    """Tokens of many preference rows, whatever their length.

    Each conversation is written as a whole, as in supervised training; the prompt ends where the answer begins. Tokens
    behind the end of its last turn are left out, since nothing is learned there.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        examples: of view `preference`; one of the two answers may be missing.
        refuse: called with the error for every row that cannot be used; raises when there are too many.
        counts: takes the reasons.

    Yields:
        For each usable example, in order, a group whose completions are chosen and rejected, or the one that there is;
        `values["desirable"]` is 1 for a chosen answer; `values["margin"]` is there if the example has one.

    Raises:
        NexusError: as `tokenize_examples`, and what `refuse` raises: `E-PREF-01` for answers that are equal as tokens,
            `E-PREF-02` for an empty answer, `E-PREF-03` for answers to different prompts.
    """
    ends = end_of_turn_ids(tokenizer)
    for first in range(0, len(examples), _CHUNK):
        chunk = examples[first : first + _CHUNK]
        whole = [
            replace(example, messages=(*example.messages, *answer), chosen=(), rejected=())
            for example in chunk
            for answer in (example.chosen, example.rejected)
            if answer
        ]
        rows = iter(tokenize_examples(tokenizer, whole, count_tokens="completion"))  # of one example after the other
        for example in chunk:
            earlier = sum(message["role"] == "assistant" for message in example.messages)
            desirable = tuple(float(good) for good, said in ((1, example.chosen), (0, example.rejected)) if said)
            sides = [_split(next(rows), earlier) for _ in desirable]
            wrong = _wrong(sides, ends)
            if wrong is not None:
                code, reason, what = wrong
                counts.drop(reason)
                refuse(NexusError(code, what, where=example.id, remedy=_REMEDY))
                continue
            margin = {} if example.margin is None else {"margin": (example.margin,) * len(sides)}
            yield TokenizedGroup(
                id=example.id,
                source=example.source,
                prompt_ids=sides[0][0],
                completions=tuple(ids for _, ids, _ in sides),
                loss_masks=tuple(mask for _, _, mask in sides),
                values={"desirable": desirable} | margin,
            )


Side = tuple[list[int], list[int], list[bool]]


def _split(row: TokenizedExample, earlier: int) -> Side:
    """Prompt, completion and its mask, split at the answer after `earlier` others; an empty completion if none is."""
    ids, mask = row.input_ids, row.loss_mask
    begins = [t for t, counts in enumerate(mask) if counts and (t == 0 or not mask[t - 1])]
    if len(begins) <= earlier:
        return ids, [], []
    start = begins[earlier]
    end = max(t for t, counts in enumerate(mask) if counts) + 1
    return ids[:start], ids[start:end], mask[start:end]


def _wrong(sides: list[Side], ends: frozenset[int]) -> tuple[str, str, str] | None:
    """Code, reason for the counts and words for what is wrong with a row."""
    for _, ids, mask in sides:
        if not any(counts and token not in ends for token, counts in zip(ids, mask, strict=True)):
            return "E-PREF-02", "empty_answer", "an answer is empty, so all that it would teach is to say nothing"
    if sides[0][0] != sides[-1][0]:
        return "E-PREF-03", "prompt_mismatch", "chosen and rejected answer different prompts once they are tokens"
    if len(sides) == 2 and sides[0][1] == sides[1][1]:
        return "E-PREF-01", "equal_answers", "chosen and rejected are the same once they are tokens"
    return None


def limit_pairs(
    groups: Sequence[TokenizedGroup], *, max_seq_len: int, long_rows: LongRows, counts: RowCounts
) -> list[TokenizedGroup]:
    """Apply the policy for long rows; a group is as long as its prompt with the longest completion.

    Args:
        groups: of one or two completions.
        max_seq_len: longest row allowed, in tokens.
        long_rows: `error`, `drop`, or `truncate` (keep the first `max_seq_len` tokens of prompt and completion).
        counts: takes what becomes of the groups.

    Returns:
        The groups to train on.

    Raises:
        NexusError: `E-LEN-01` for a long group under the policy `error`.
    """
    too_long = [group for group in groups if longest_row(group) > max_seq_len]
    if too_long and long_rows == "error":
        worst = max(too_long, key=longest_row)
        raise NexusError(
            "E-LEN-01",
            f"{len(too_long)} of {len(groups)} rows are longer than data.max_seq_len={max_seq_len}, the longest has "
            f"{longest_row(worst)} tokens",
            where=worst.id,
            remedy=f"data.max_seq_len={longest_row(worst)}, data.long_rows=drop or data.long_rows=truncate",
        )
    kept: list[TokenizedGroup] = []
    for group in groups:
        long = longest_row(group) > max_seq_len
        if long and long_rows == "drop":
            counts.drop("too_long")
            continue
        if long:
            room = max(0, max_seq_len - len(group.prompt_ids))
            group = replace(
                group,
                completions=tuple(ids[:room] for ids in group.completions),
                loss_masks=tuple(mask[:room] for mask in group.loss_masks),
            )
        if not all(map(any, group.loss_masks)):
            counts.drop("answer_beyond_max_seq_len")
        elif len(group.completions) == 2 and group.completions[0] == group.completions[1]:
            counts.drop("equal_up_to_max_seq_len")
        else:
            counts.truncated += long
            kept.append(group)
    counts.kept = len(kept)
    return kept


def longest_row(group: TokenizedGroup) -> int:
    """Tokens of the prompt with its longest completion."""
    return len(group.prompt_ids) + max(map(len, group.completions))


def whole_pairs(groups: Sequence[TokenizedGroup]) -> list[TokenizedGroup]:
    """The groups, each of which must have a chosen and a rejected completion.

    Args:
        groups: as `tokenize_pairs` makes them.

    Returns:
        The same groups; of their `values` the margin alone, 0 beside others that have one, and none if none has.

    Raises:
        NexusError: `E-PREF-05` for a group with a single completion.
    """
    single = next((group for group in groups if len(group.completions) != 2), None)
    if single is not None:
        raise NexusError(
            "E-PREF-05",
            "the row has one answer and a label, and there is nothing to prefer it to",
            where=single.id,
            remedy="method=kto learns from single answers",
        )
    if not any("margin" in group.values for group in groups):
        return [replace(group, values={}) for group in groups]
    return [replace(group, values={"margin": group.values.get("margin", (0.0, 0.0))}) for group in groups]


def measured_pairs(groups: Sequence[TokenizedGroup], *, insist: bool) -> list[TokenizedGroup]:
    """Of held-out groups those that have two answers: a single one can be learned from, but prefers nothing.

    Args:
        groups: as `tokenize_pairs` makes them.
        insist: whether nothing else is measured, so that it is an error if none is left of some.

    Returns:
        The pairs, as `whole_pairs`.

    Raises:
        NexusError: `E-PREF-05` if all of the groups have a single completion.
    """
    pairs = [group for group in groups if len(group.completions) == 2]
    if insist and groups and not pairs:
        raise NexusError(
            "E-PREF-05",
            f"all {len(groups)} held-out rows have one answer and a label, but what is measured is which of two "
            "answers the model prefers",
            where=groups[0].id,
            remedy="data.validation=FILE with rows of prompt, chosen and rejected",
        )
    return whole_pairs(pairs)


def insist_on_both_labels(groups: Sequence[TokenizedGroup]) -> None:
    """Refuse rows of which all are good answers, or all are bad ones.

    Args:
        groups: as `tokenize_pairs` makes them, at least one.

    Raises:
        NexusError: `E-PREF-06`, naming the label that is missing.
    """
    labels = {good for group in groups for good in group.values["desirable"]}
    if len(labels) > 1:
        return
    found, missing = ("true", "false") if labels == {1.0} else ("false", "true")
    remedy = f"give rows whose label is {missing} too"
    raise NexusError(
        "E-PREF-06",
        f"all {len(groups):,} answers have the label {found} and none has {missing}: KTO tells good ones from bad ones",
        where=groups[0].id,
        remedy=remedy + ("; method=sft imitates good answers (leave the label out)" if found == "true" else ""),
    )


def judged_rows(groups: Sequence[TokenizedGroup]) -> list[TokenizedGroup]:
    """Every answer on its own, with whether it is a good one, and beside it an answer to another prompt.

    The answer to another prompt is what KTO's baseline is estimated from; it is that of the next group, so that its
    log-probability under the reference can be computed once.

    Args:
        groups: as `tokenize_pairs` makes them.

    Returns:
        Groups of two completions, the judged one and the mismatched one; `values["desirable"]` is 1 for a good answer.

    Raises:
        NexusError: `E-PREF-04` if all groups have the same prompt.
    """
    rows = []
    for index, group in enumerate(groups):
        others = (groups[(index + step) % len(groups)] for step in range(1, len(groups)))
        other = next((other for other in others if other.prompt_ids != group.prompt_ids), None)
        if other is None:
            raise NexusError(
                "E-PREF-04",
                "all rows have the same prompt, but KTO's baseline is estimated from answers to other prompts",
                where=group.id,
                remedy="give rows with at least two prompts, or use method=dpo",
            )
        for side, good in enumerate(group.values["desirable"]):
            beside = min(side, len(other.completions) - 1)
            rows.append(
                replace(
                    group,
                    id=f"{group.id}:{'good' if good else 'bad'}",
                    completions=(group.completions[side], other.completions[beside]),
                    loss_masks=(group.loss_masks[side], other.loss_masks[beside]),
                    values={"desirable": (good, good)},
                )
            )
    return rows


def rows_of_pairs(groups: Sequence[TokenizedGroup], *, judged: bool) -> list[TokenizedGroup]:
    """Groups as a method reads them: every answer on its own, or whole pairs.

    Args:
        groups: what was tokenized.
        judged: whether each answer is judged on its own.

    Returns:
        Groups of two completions.

    Raises:
        NexusError: as `judged_rows` and `whole_pairs`.
    """
    return list(judged_rows(groups) if judged else whole_pairs(groups))
