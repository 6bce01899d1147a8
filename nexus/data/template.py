"""Examples to tokens and loss masks, by the tokenizer's own chat template.

What is learned in a conversation is what the assistant says, its end-of-turn token included. Where the template marks
it with `{% generation %}` that is used. Otherwise the text is rendered up to each answer, with the generation prompt,
and up to behind it; both must be beginnings of the whole text, and the answer is what lies between.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from nexus.errors import NexusError
from nexus.text.think import join_think
from nexus.types import Example, Message, TokenizedExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CountTokens = Literal["completion", "all"]
LongRows = Literal["error", "drop", "truncate"]
Span = tuple[int, int]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Ends of a turn in published chat templates; a tokenizer's eos may be another token (Gemma, Llama 3, Qwen base).
_END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "</s>",
)
_CHUNK = 512


@dataclass
class RowCounts:
    """What became of the rows.

    Attributes:
        kept: rows that are trained on.
        truncated: kept rows that were cut at the length limit.
        dropped: rows left out, by reason.
    """

    kept: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str) -> None:
        """Count one dropped row."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


def tokenize_example(
    tokenizer: PreTrainedTokenizerBase, example: Example, *, count_tokens: CountTokens, max_seq_len: int
) -> TokenizedExample:
    """Tokens and loss mask of one row.

    Args:
        tokenizer: a fast tokenizer; conversations need its chat template.
        example: a conversation or a text.
        count_tokens: `completion` learns what the assistant says, `all` every token. Of a text, every token counts.
        max_seq_len: longest row allowed, in tokens.

    Returns:
        The row.

    Raises:
        NexusError: as `tokenize_examples`; `E-LEN-01` if the row is longer than `max_seq_len`, `E-DAT-15` if nothing
            is learned.
    """
    rows = list(tokenize_examples(tokenizer, [example], count_tokens=count_tokens))
    return limit_rows(rows, max_seq_len=max_seq_len, long_rows="error", refuse=_raise)[0][0]


def tokenize_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, count_tokens: CountTokens
) -> Iterator[TokenizedExample]:
    """Tokens and loss masks of many rows, whatever their length.

    Args:
        tokenizer: a fast tokenizer; conversations need its chat template.
        examples: conversations or texts.
        count_tokens: as in `tokenize_example`.

    Yields:
        One row for each example, in order.

    Raises:
        NexusError: `E-TOK-04` if no end-of-turn token is learned, `E-TOK-05` without chat template, `E-TOK-06` if the
            template fails, `E-TOK-07` if it leaves out part of the conversation, `E-TOK-08` if the answers cannot be
            located, `E-TOK-09` for a tokenizer without fast backend.
    """
    if not tokenizer.is_fast:
        raise NexusError(
            "E-TOK-09",
            f"{type(tokenizer).__name__} has no fast (Rust) backend, which maps tokens to places in the text",
            where="base_model.tokenizer",
            remedy="use a tokenizer folder with tokenizer.json",
        )
    ends = end_of_turn_ids(tokenizer)
    numbers = list(range(len(tokenizer)))  # shared int objects: 8 bytes a token instead of 36
    probed: set[tuple[object, ...]] = set()
    for first in range(0, len(examples), _CHUNK):
        chunk = examples[first : first + _CHUNK]
        texts, spans = [], []
        for example in chunk:
            text, row_spans = _render_row(tokenizer, example, count_tokens)
            texts.append(text)
            spans.append(row_spans)
            _probe(example, text, probed)
        raw = [example.text is not None for example in chunk]
        encoded = _encode(tokenizer, texts, raw)
        for example, row_spans, (ids, offsets), is_text in zip(chunk, spans, encoded, raw, strict=True):
            ids = [numbers[i] for i in ids]
            mask = [True] * len(ids) if row_spans is None else _mask(offsets, row_spans)
            if is_text and tokenizer.eos_token_id is not None and ids and ids[-1] != tokenizer.eos_token_id:
                ids.append(numbers[tokenizer.eos_token_id])
                mask.append(True)
            row = TokenizedExample(id=example.id, source=example.source, input_ids=ids, loss_mask=mask)
            _check_end(tokenizer, row, ends)
            yield row


def encode_prompts(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[list[int]]:
    """Tokens after which the model is to answer.

    Args:
        tokenizer: conversations need its chat template.
        examples: the prompts' turns (or texts to go on with).

    Returns:
        Token ids of each prompt, the generation prompt included.

    Raises:
        NexusError: as `tokenize_examples`.
    """
    prompts: list[list[int]] = []
    for example in examples:
        is_text = example.text is not None
        text = example.text or _render(tokenizer, example, example.messages, generation_prompt=True)[0]
        # A template writes its own special tokens; a text gets those that the tokenizer puts in front.
        encoded: Any = tokenizer(text, add_special_tokens=is_text, verbose=False)
        prompts.append(encoded["input_ids"])
    return prompts


def limit_rows(
    rows: Sequence[TokenizedExample], *, max_seq_len: int, long_rows: LongRows, refuse: Callable[[NexusError], None]
) -> tuple[list[TokenizedExample], RowCounts]:
    """Apply the policy for long rows, and refuse rows in which nothing is learned.

    Args:
        rows: tokenized rows.
        max_seq_len: longest row allowed, in tokens.
        long_rows: `error`, `drop`, or `truncate` (keep the first `max_seq_len` tokens).
        refuse: called with the error for every row without a learned token; raises when there are too many.

    Returns:
        The rows to train on, and what became of the others.

    Raises:
        NexusError: `E-LEN-01` for a long row under the policy `error`.
    """
    too_long = [row for row in rows if len(row.input_ids) > max_seq_len]
    if too_long and long_rows == "error":
        worst = max(too_long, key=lambda row: len(row.input_ids))
        raise NexusError(
            "E-LEN-01",
            f"{len(too_long)} of {len(rows)} rows are longer than data.max_seq_len={max_seq_len}, the longest has "
            f"{len(worst.input_ids)} tokens",
            where=worst.id,
            remedy=f"data.max_seq_len={len(worst.input_ids)}, data.long_rows=drop or data.long_rows=truncate",
        )
    kept: list[TokenizedExample] = []
    counts = RowCounts()
    for row in rows:
        long = len(row.input_ids) > max_seq_len
        if long and long_rows == "drop":
            counts.drop("too_long")
            continue
        if long:
            row = TokenizedExample(row.id, row.source, row.input_ids[:max_seq_len], row.loss_mask[:max_seq_len])
        if row.num_target_tokens == 0 and long:
            counts.drop("answer_beyond_max_seq_len")
        elif row.num_target_tokens == 0:
            refuse(_nothing_to_learn(row))
            counts.drop("nothing_to_learn")
        else:
            counts.truncated += long
            kept.append(row)
    counts.kept = len(kept)
    return kept, counts


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the tokens that may end a turn: the tokenizer's eos, and the usual chat templates' own."""
    vocabulary = tokenizer.get_added_vocab()
    found = {vocabulary[token] for token in _END_OF_TURN if token in vocabulary}
    return frozenset(found if tokenizer.eos_token_id is None else {*found, tokenizer.eos_token_id})


def _raise(error: NexusError) -> None:
    raise error


def _nothing_to_learn(row: TokenizedExample) -> NexusError:
    return NexusError(
        "E-DAT-15",
        "nothing is learned from the row: it has no assistant turn and no text",
        where=row.id,
        remedy="remove the row, or allow some with data.max_bad_rows",
    )


def _render_row(
    tokenizer: PreTrainedTokenizerBase, example: Example, count_tokens: CountTokens
) -> tuple[str, list[Span] | None]:
    """Text of a row and the spans that are learned; None means all of it."""
    if example.text is not None:
        return example.text, None
    if count_tokens == "all":
        return _render(tokenizer, example, example.messages)[0], None
    if _marks_answers(_template(tokenizer, example)):
        return _render(tokenizer, example, example.messages)
    return _locate_answers(tokenizer, example)


@lru_cache(maxsize=8)
def _marks_answers(template: str) -> bool:
    return _GENERATION.search(template) is not None


def _template(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    if not tokenizer.chat_template:
        raise NexusError(
            "E-TOK-05",
            "the tokenizer has no chat template, so a conversation cannot be written as tokens",
            where=example.id,
            remedy="set base_model.chat_template, choose an instruct model, or train on plain text with method=cpt",
        )
    template: str = tokenizer.get_chat_template(tools=list(example.tools) or None)
    return template


def _render(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    messages: Sequence[Message],
    *,
    generation_prompt: bool = False,
) -> tuple[str, list[Span]]:
    """The template's text of `messages`, and the character spans of its `{% generation %}` blocks."""
    from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    template = _template(tokenizer, example)
    turns = [_turn(message, template) for message in messages]
    try:
        texts, spans = render_jinja_template(
            [turns],
            tools=list(example.tools) or None,
            chat_template=template,
            return_assistant_tokens_mask=_marks_answers(template),
            add_generation_prompt=generation_prompt,
            **tokenizer.special_tokens_map,
        )
    except SecurityError as error:
        raise NexusError("E-SEC-03", f"the chat template tries to escape its sandbox: {error}") from error
    except TemplateSyntaxError as error:
        raise NexusError(
            "E-TOK-06",
            f"syntax error in the chat template: {error.message}",
            where=f"template line {error.lineno}",
            remedy="repair base_model.chat_template",
        ) from error
    except (TemplateError, TypeError) as error:
        raise NexusError(
            "E-TOK-06",
            f"the chat template refuses the conversation: {error}",
            where=example.id,
            remedy="change the row's roles or their order, or set base_model.chat_template",
        ) from error
    return texts[0], [(a, b) for a, b in spans[0] if b > a] if spans else []


def _turn(message: Message, template: str) -> Message:
    """A turn as the template reads it; where that has no field for reasoning, it stands in the text, in think tags."""
    # As apply_chat_template does: templates test for a missing key, not for None.
    turn = {key: value for key, value in message.items() if value is not None}
    if "reasoning_content" in turn and "reasoning_content" not in template:
        turn["content"] = join_think(turn.pop("reasoning_content"), turn["content"])
    return turn


def _locate_answers(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[str, list[Span]]:
    """Answers of a template without `{% generation %}`, by rendering what precedes each of them."""
    text, _ = _render(tokenizer, example, example.messages)
    ends = [tokenizer.convert_ids_to_tokens(i) for i in sorted(end_of_turn_ids(tokenizer))]
    spans = []
    for index, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        before, _ = _render(tokenizer, example, example.messages[:index], generation_prompt=True)
        through, _ = _render(tokenizer, example, example.messages[: index + 1])
        start = len(before)
        if not text.startswith(before):
            raise _not_located(example, index, "the text before it changes when later turns are added")
        if text.startswith(through):
            answer = text[start : len(through)]
        else:  # e.g. Qwen3 writes an empty think block into the last turn alone: go up to the end-of-turn token
            found = [at + len(end) for end in ends if (at := text.find(end, start)) >= 0]
            if not found:
                raise _not_located(example, index, "it has no end-of-turn token")
            answer = text[start : min(found)]
        # White space behind the end-of-turn token belongs to the next turn: generation stops before it.
        spans.append((start, start + len(answer.rstrip())))
    return text, [(a, b) for a, b in spans if b > a]


def _not_located(example: Example, index: int, why: str) -> NexusError:
    return NexusError(
        "E-TOK-08",
        f"the chat template does not show which tokens are answer {index}: {why}",
        where=example.id,
        remedy="put {% generation %} around the assistant's turn in base_model.chat_template, or train with method=cpt",
    )


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], raw: list[bool]
) -> list[tuple[list[int], list[Span]]]:
    """Ids and character offsets; templates write their own special tokens, texts get the tokenizer's."""
    encoded: dict[int, tuple[list[int], list[Span]]] = {}
    for special in (False, True):
        which = [i for i, is_text in enumerate(raw) if is_text is special]
        if not which:
            continue
        batch: Any = tokenizer(
            [texts[i] for i in which],
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        encoded.update(zip(which, zip(batch["input_ids"], batch["offset_mapping"], strict=True), strict=True))
    return [encoded[i] for i in range(len(texts))]


def _mask(offsets: list[Span], spans: list[Span]) -> list[bool]:
    """True for tokens that share a character with a span; both lists ascend."""
    mask = [False] * len(offsets)
    token = 0
    for start, end in spans:
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        while token < len(offsets) and offsets[token][0] < end:
            mask[token] = True
            token += 1
    return mask


def _check_end(tokenizer: PreTrainedTokenizerBase, row: TokenizedExample, ends: frozenset[int]) -> None:
    """The last learned tokens must hold an end of turn, else the model never learns to stop."""
    learned = [token for token, counts in zip(row.input_ids[-64:], row.loss_mask[-64:], strict=True) if counts]
    if not any(row.loss_mask):
        return  # refused and counted elsewhere
    if not learned:
        learned = [token for token, counts in zip(row.input_ids, row.loss_mask, strict=True) if counts]
    if not ends.intersection(learned[-3:]):  # some templates learn a line break behind it
        raise NexusError(
            "E-TOK-04",
            f"no end-of-turn token is learned, so the model would never stop; the learned part ends with "
            f"{tokenizer.decode(learned[-3:])!r}",
            where=row.id,
            remedy="let the chat template write the tokenizer's eos_token at the end of the assistant's turn",
        )


def _probe(example: Example, text: str, probed: set[tuple[object, ...]]) -> None:
    """For the first row of each make-up of roles and calls: is everything of it in the text?"""
    if example.text is not None:
        return
    fields = ("tool_calls", "reasoning_content")
    makeup = ((m["role"], bool(m["content"]), *(key in m for key in fields)) for m in example.messages)
    kind = (bool(example.tools), *makeup)
    if kind in probed:
        return
    probed.add(kind)
    needed = [("tools", tool["function"]["name"]) for tool in example.tools]
    for message in example.messages:
        answer = re.sub(r"<think>.*?</think>", "", message["content"], flags=re.DOTALL)  # dropped from earlier turns
        needed.append((f"the {message['role']} turn", answer.strip()))
        needed += [("tool_calls", call["function"]["name"]) for call in message.get("tool_calls", ())]
    # Some templates drop the reasoning of earlier turns on purpose, none that of the last one.
    needed.append(("the reasoning", example.messages[-1].get("reasoning_content", "").strip()))
    # Templates may trim, indent, or write a tool's result as JSON.
    bare = "".join(text.split())
    written = {
        words: (words, json.dumps(words)[1:-1], json.dumps(words, ensure_ascii=False)[1:-1]) for _, words in needed
    }
    lost = next((w for w, words in needed if not any("".join(s.split()) in bare for s in written[words])), None)
    if lost is not None:
        raise NexusError(
            "E-TOK-07",
            f"the chat template leaves out {lost}",
            where=example.id,
            remedy="choose a model whose template writes it, or set base_model.chat_template",
        )
