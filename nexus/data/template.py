"""Examples to tokens and loss masks, by the tokenizer's own chat template.

What is learned in a conversation is what the assistant says, its end-of-turn token included. Where the template marks
it with `{% generation %}` that is used. Otherwise the text is rendered up to each answer, with the generation prompt,
and up to behind it; both must be beginnings of the whole text, and the answer is what lies between.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nexus.data.chat_render import render_chat
from nexus.data.encode import Piece, RenderedRow, Span, encode_rows, end_of_turn_ids, insist_on_fast
from nexus.data.template_guard import (
    Finding,
    guarded_map,
    insist_on_size,
    is_shipped,
    memory_limits,
    probe_template,
    row_limits,
)
from nexus.data.token_rows import TokenRows
from nexus.errors import NexusError
from nexus.text.think import THINK_CLOSE, join_think
from nexus.types import Example, Message, TokenizedExample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CountTokens = Literal["completion", "all"]
LongRows = Literal["error", "drop", "truncate"]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
#: Besides jinja2's own: what Python raises for an operation that does not fit the conversation.
_FAULTS_OF_TEMPLATES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
_PIECE_ROWS = 256
_PIECE_CHARACTERS = 4 * 2**20


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

    def drop(self, reason: str, rows: int = 1) -> None:
        """Count dropped rows."""
        if rows:
            self.dropped[reason] = self.dropped.get(reason, 0) + rows


def nothing_left(found: int, counts: RowCounts) -> NexusError:
    """`E-DAT-13`: no row is left to train on.

    Args:
        found: rows that there were.
        counts: what became of them.

    Returns:
        The error, to be raised.
    """
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.dropped.items())
    return NexusError(
        "E-DAT-13",
        f"0 of {found} rows are left to train on" + (f" ({reasons})" if reasons else ""),
        where="data",
        remedy="raise data.max_seq_len, or mend the rows" if found else "data.train=FILE or +capability=NAME",
    )


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
    rows = tokenize_examples(tokenizer, [example], count_tokens=count_tokens)
    return limit_rows(rows, max_seq_len=max_seq_len, long_rows="error", refuse=_raise)[0][0]


def tokenize_examples(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    count_tokens: CountTokens,
    processes: int = 1,
    watch: Callable[[Iterable[Piece], list[int]], Iterable[Piece]] | None = None,
) -> TokenRows:
    """Tokens and loss masks of many rows, whatever their length.

    Args:
        tokenizer: a fast tokenizer; conversations need its chat template.
        examples: conversations or texts.
        count_tokens: as in `tokenize_example`.
        processes: child processes that share the work; 1 does it in this one, unless the chat template comes from
            outside: that never runs here.
        watch: shows progress; gets the pieces as they come and the rows of each, and passes them on.

    Returns:
        One row for each example, in order; the same for every number of processes.

    Raises:
        NexusError: `E-TOK-04` if no end-of-turn token is learned, `E-TOK-05` without chat template, `E-TOK-06` if the
            template fails, `E-TOK-07` if it leaves out part of the conversation, `E-TOK-08` if the answers cannot be
            located, `E-TOK-09` for a tokenizer without fast backend, `E-TOK-10` for a process that died, `E-SEC-03` and
            `E-SEC-04` for a template that is dangerous.
    """
    insist_on_fast(tokenizer)
    pieces = _cut(examples)
    guarded = not is_shipped(tokenizer) and any(example.text is None for example in examples)

    def one(index: int) -> Piece:
        rows = examples[pieces[index]]
        return encode_rows(tokenizer, _render_rows(tokenizer, rows, count_tokens, guarded=guarded))

    def place(index: int) -> str:
        return f"{examples[pieces[index].start].id} to {examples[pieces[index].stop - 1].id}"

    done: Iterable[Piece] = map(one, range(len(pieces)))
    if guarded or processes > 1:
        done = guarded_map(one, len(pieces), processes=processes, where=place)
    if watch is not None:
        done = watch(done, [piece.stop - piece.start for piece in pieces])
    finished = list(done)
    return TokenRows.from_parts(
        ids=[(example.id, example.source) for example in examples],
        input_ids=[piece.input_ids for piece in finished],
        loss_mask=[piece.loss_mask for piece in finished],
        lengths=[length for piece in finished for length in piece.lengths],
    )


def _cut(examples: Sequence[Example]) -> list[slice]:
    """Pieces of work; their bounds depend on the rows alone, so that errors do not depend on the machine."""
    pieces, start, size = [], 0, 0
    for index, example in enumerate(examples):
        size += len(example.text or "") + sum(len(turn["content"]) for turn in example.messages)
        if index + 1 - start == _PIECE_ROWS or size >= _PIECE_CHARACTERS or index + 1 == len(examples):
            pieces.append(slice(start, index + 1))
            start, size = index + 1, 0
    return pieces


def _render_rows(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], count_tokens: CountTokens, *, guarded: bool
) -> list[RenderedRow]:
    """Texts with their learned spans; `guarded` sets limits and is for child processes only."""
    probed: set[tuple[object, ...]] = set()
    rows = []
    with memory_limits(examples) if guarded else nullcontext():
        for example in examples:
            with row_limits(example) if guarded else nullcontext():
                text, spans = _render_row(tokenizer, example, count_tokens)
            if guarded:
                insist_on_size(example, text)
            _probe(example, text, probed)
            rows.append(RenderedRow(example.id, text, spans, is_raw=example.text is not None))
    return rows


def check_template(tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """What a probe conversation shows to be wrong with the tokenizer's chat template, unless Nexus shipped it.

    Args:
        tokenizer: with or without chat template.

    Returns:
        Findings; none for a tokenizer without template.

    Raises:
        NexusError: `E-SEC-03` or `E-SEC-04` for a template that is dangerous.
    """
    if not tokenizer.chat_template or is_shipped(tokenizer):
        return []
    return probe_template(
        lambda example, prompt: _render(tokenizer, example, example.messages, generation_prompt=prompt)[0]
    )


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
    guarded = not is_shipped(tokenizer) and any(example.text is None for example in examples)

    def text_of(index: int) -> str:
        example = examples[index]
        if example.text is not None:
            return example.text
        with memory_limits([example]) if guarded else nullcontext(), row_limits(example) if guarded else nullcontext():
            text, _ = _render(tokenizer, example, example.messages, generation_prompt=True)
        if guarded:
            insist_on_size(example, text)
        return text

    texts: Iterable[str] = map(text_of, range(len(examples)))
    if guarded:
        texts = guarded_map(text_of, len(examples), processes=1, where=lambda index: examples[index].id)
    prompts: list[list[int]] = []
    for example, text in zip(examples, texts, strict=True):
        # A template writes its own special tokens; a text gets those that the tokenizer puts in front.
        encoded: Any = tokenizer(text, add_special_tokens=example.text is not None, verbose=False)
        prompts.append(encoded["input_ids"])
    return prompts


def limit_rows(
    rows: TokenRows, *, max_seq_len: int, long_rows: LongRows, refuse: Callable[[NexusError], None]
) -> tuple[TokenRows, RowCounts]:
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
    lengths = rows.lengths
    long = lengths > max_seq_len
    if long.any() and long_rows == "error":
        worst = int(lengths.argmax())
        raise NexusError(
            "E-LEN-01",
            f"{long.sum()} of {len(rows)} rows are longer than data.max_seq_len={max_seq_len}, the longest has "
            f"{lengths[worst]} tokens",
            where=rows.name(worst),
            remedy=f"data.max_seq_len={lengths[worst]}, data.long_rows=drop or data.long_rows=truncate",
        )
    counts = RowCounts()
    chosen = np.flatnonzero(~long) if long_rows == "drop" else np.arange(len(rows))
    counts.drop("too_long", int(long.sum()) if long_rows == "drop" else 0)
    cut = rows.take(chosen, max_seq_len=max_seq_len)
    silent = cut.targets == 0
    was_long = long[chosen]
    counts.drop("answer_beyond_max_seq_len", int((silent & was_long).sum()))
    for index in np.flatnonzero(silent & ~was_long).tolist():
        refuse(_nothing_to_learn(cut.name(index)))
        counts.drop("nothing_to_learn")
    kept = cut.take(np.flatnonzero(~silent), max_seq_len=max_seq_len)
    counts.truncated = int((was_long & ~silent).sum())
    counts.kept = len(kept)
    return kept, counts


def _raise(error: NexusError) -> None:
    raise error


def _nothing_to_learn(place: str) -> NexusError:
    return NexusError(
        "E-DAT-15",
        "nothing is learned from the row: it has no assistant turn and no text",
        where=place,
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

    template = _template(tokenizer, example)
    turns = [_turn(message, template) for message in messages]
    try:
        text, spans = render_chat(
            template,
            turns,
            tools=example.tools or None,
            generation_prompt=generation_prompt,
            marks_answers=_marks_answers(template),
            special_tokens=tokenizer.special_tokens_map,
        )
    except SecurityError as error:
        raise NexusError(
            "E-SEC-03",
            f"the chat template tries to escape its sandbox: {error}",
            where=example.id,
            remedy="do not use this tokenizer, or set base_model.chat_template to a template that you trust",
        ) from error
    except TemplateSyntaxError as error:
        raise NexusError(
            "E-TOK-06",
            f"syntax error in the chat template: {error.message}",
            where=f"template line {error.lineno}",
            remedy="repair base_model.chat_template",
        ) from error
    except (
        TemplateError,
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
        raise NexusError(
            "E-TOK-06",
            f"the chat template refuses the conversation: {error}",
            where=example.id,
            remedy="change the row's roles or their order, or set base_model.chat_template",
        ) from error
    return text, [(a, b) for a, b in spans if b > a]


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


def _probe(example: Example, text: str, probed: set[tuple[object, ...]]) -> None:
    """For the first row of each make-up of roles and calls: is everything of it in the text?"""
    if example.text is not None:
        return
    fields = ("tool_calls", "reasoning_content")
    marked = [message["role"] == "assistant" and THINK_CLOSE in message["content"] for message in example.messages]
    makeup = ((m["role"], bool(m["content"]), *(key in m for key in fields)) for m in example.messages)
    kind = (bool(example.tools), any(marked), *makeup)
    if kind in probed:
        return
    probed.add(kind)
    bare = "".join(text.split())  # templates may trim and indent

    def stands(words: str) -> bool:
        as_json = (json.dumps(words, ensure_ascii=ascii)[1:-1] for ascii in (True, False))  # a tool's result may be
        return any("".join(form.split()) in bare for form in (words, *as_json))

    needed = [("tools", tool["function"]["name"]) for tool in example.tools]
    for message in example.messages:
        said = message["content"]
        if message["role"] == "assistant" and not stands(said):
            # templates drop the thoughts of earlier answers, never what a user wrote
            said = re.sub(r"<think>.*?</think>", "", said, flags=re.DOTALL)
        needed.append((f"the {message['role']} turn", said))
        needed += [("tool_calls", call["function"]["name"]) for call in message.get("tool_calls", ())]
    # Some templates drop the reasoning of earlier turns on purpose, none that of the last one.
    needed.append(("the reasoning", example.messages[-1].get("reasoning_content", "")))
    lost = next((what for what, words in needed if not stands(words)), None)
    if lost is not None:
        raise NexusError(
            "E-TOK-07",
            f"the chat template leaves out {lost}",
            where=example.id,
            remedy=f"write a thought at the start of its answer: the template may take {THINK_CLOSE} for the end of one"
            if any(marked)
            else "choose a model whose template writes it, or set base_model.chat_template",
        )
