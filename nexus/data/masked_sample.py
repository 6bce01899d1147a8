"""One row as the model sees it, with what is learned in color, or in brackets where there is none."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.text import Text

from nexus.types import TokenizedExample, TokenizedGroup, TokenizedPrompt

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

LEARNED, GIVEN = "bold green", "dim"
OPEN, CLOSE = "⟦", "⟧"
#: Of the characters that steer a terminal, all but line breaks and tabs: their picture, or their number.
_STEERING = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {
    code: f"\\x{code:02x}" for code in range(127, 160)
}


def show_sample(
    console: Console,
    tokenizer: PreTrainedTokenizerBase,
    row: TokenizedExample | TokenizedGroup | TokenizedPrompt,
    *,
    title: str,
) -> None:
    """Print a row under a title that tells how learned tokens are marked: a pipe and NO_COLOR leave no green.

    Args:
        console: to print on.
        tokenizer: the one that encoded the row.
        row: the row.
        title: in words.
    """
    color = console.color_system is not None and not console.no_color
    console.rule(f"{escape(title)} (learned tokens {'in green' if color else f'between {OPEN} and {CLOSE}'})")
    console.print(masked_sample(tokenizer, row, color=color))


def masked_sample(
    tokenizer: PreTrainedTokenizerBase, row: TokenizedExample | TokenizedGroup | TokenizedPrompt, *, color: bool
) -> Text:
    """Decode a row, learned tokens marked and the others dim; of a group the prompt once, then each completion.

    Args:
        tokenizer: the one that encoded the row.
        row: the row.
        color: whether green marks what is learned; else brackets do.

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
        return text.append_text(_marked(tokenizer, row.input_ids, [False, *row.loss_mask[1:]], color))
    if isinstance(row, TokenizedPrompt):
        text.append_text(_marked(tokenizer, row.input_ids, row.loss_mask, color))
        return text.append(f"\n--- gold: {row.example.gold}".translate(_STEERING))
    text.append_text(_marked(tokenizer, row.prompt_ids, [False] * len(row.prompt_ids), color))
    for title, ids, mask in parts:
        text.append(f"\n--- {title}\n")
        text.append_text(_marked(tokenizer, ids, mask, color))
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


def _marked(tokenizer: PreTrainedTokenizerBase, tokens: list[int], counts: list[bool], color: bool) -> Text:
    text = Text()
    for learned, run in groupby(zip(tokens, counts, strict=True), key=lambda pair: pair[1]):
        words = tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False).translate(_STEERING)
        text.append(f"{OPEN}{words}{CLOSE}" if learned and not color else words, style=LEARNED if learned else GIVEN)
    return text
