"""One row as the model sees it, with what is learned in color; `dry_run` prints it."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from nexus.types import TokenizedExample, TokenizedGroup, TokenizedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEARNED, GIVEN = "bold green", "dim"


def masked_sample(tokenizer: PreTrainedTokenizerBase, row: TokenizedExample | TokenizedGroup | TokenizedPrompt) -> Text:
    """Decode a row, learned tokens in green and the others dim; of a group the prompt once, then each completion.

    Args:
        tokenizer: the one that encoded the row.
        row: the row.

    Returns:
        Printable text with a headline; special tokens are shown.
    """
    parts = _parts(row) if isinstance(row, TokenizedGroup) else []
    learned = sum(sum(mask) for _, _, mask in parts) if parts else row.num_target_tokens
    text = Text(f"{row.id}: {len(row.input_ids)} tokens, ")
    text.append(f"{learned} learned", style=LEARNED)
    text.append("\n")
    if isinstance(row, TokenizedExample):
        # The first token has nothing before it and is never learned, whatever the mask says.
        return text.append_text(_colored(tokenizer, row.input_ids, [False, *row.loss_mask[1:]]))
    if isinstance(row, TokenizedPrompt):
        text.append_text(_colored(tokenizer, row.input_ids, row.loss_mask))
        return text.append(f"\n--- gold: {row.example.gold}")
    text.append_text(_colored(tokenizer, row.prompt_ids, [False] * len(row.prompt_ids)))
    for title, ids, mask in parts:
        text.append(f"\n--- {title}\n")
        text.append_text(_colored(tokenizer, ids, mask))
    return text


def _parts(row: TokenizedGroup) -> list[tuple[str, list[int], list[bool]]]:
    """What the one or two completions of a group are, their tokens, and which of these are learned."""
    labels, ids, masks = row.values.get("desirable", ()), row.completions, row.loss_masks
    if len(ids) == 2 and len(set(labels)) != 1:  # always in this order
        return list(zip(("chosen", "rejected"), ids, masks, strict=True))
    parts = [("a good answer" if labels[0] else "a bad answer", ids[0], masks[0])]
    if len(ids) == 2:  # one of `pairs.judged_rows`
        parts.append(("an answer to another prompt: the baseline rests on such", ids[1], [False] * len(ids[1])))
    return parts


def _colored(tokenizer: PreTrainedTokenizerBase, tokens: list[int], counts: list[bool]) -> Text:
    text = Text()
    for learned, run in groupby(zip(tokens, counts, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        text.append(tokenizer.decode(ids, clean_up_tokenization_spaces=False), style=LEARNED if learned else GIVEN)
    return text
