"""The tokenizer of ``nexus_tiny``: a byte-level BPE made for copying, with chat, tool and think tokens.

A word has the same tokens with and without a space before it, because letters, single digits, single line breaks and
runs of everything else are split before the merges (GPT-2's split glues the space to the word). Copying a name out of
a sentence into a JSON string is then literally copying tokens. Two exceptions keep the next token a matter of the last
one and rows short: an underscore belongs to the word before it, and the commonest little words,
which are seldom copied, take the spaces around them. A line break is always alone, so that what follows
``<|im_start|>assistant`` can never merge with it: the tokens of a prompt are a prefix of the tokens of prompt and
answer.

Run ``python -m nexus.data.synthetic.tokenizer OUT=<folder>`` to rebuild the shipped folder; it is deterministic.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexus.data.synthetic import pretrain, stdlib_text, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 4096
NUM_RESERVED = 64
PAD, START, END, END_OF_TEXT = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = (
    PAD,
    START,
    END,
    END_OF_TEXT,
    "<think>",
    "</think>",
    "<tools>",
    "</tools>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<answer>",
    "</answer>",
    "<|image|>",
    "<|audio|>",
    "<|video|>",
    *(f"<|reserved_{index}|>" for index in range(NUM_RESERVED)),
)
LITTLE_WORDS = (
    "a an the my your his her their our its this that to of in on at for from with by and or as is are was be it i you "
    "we me can could would will please do does not no then if so but into until due about what which who when where how"
)
KIND_WORDS = "string integer number boolean array object true false null minutes hours days"
SPLIT_PATTERN = rf" ?(?i:{LITTLE_WORDS.replace(' ', '|')}) " r"|\p{L}+_?|\p{N}|\n|[^\p{L}\p{N}\n_]+|_+"
SAMPLE_ROWS = 30_000
WORD_WEIGHT = 400
SAMPLE_SEED = 20260

CHAT_TEMPLATE = r"""
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content is mapping -%}
        {{- content | tojson -}}
    {%- elif content is not none and content is defined -%}
        {%- for part in content -%}
            {%- if part is string -%}
                {{- part -}}
            {%- elif part.type in ['image', 'audio', 'video'] -%}
                {{- '<|' + part.type + '|>' -}}
            {%- else -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro kind_of(schema) -%}
    {%- if schema.type is defined and schema.type is string -%}
        {{- (schema['items'].type ~ '[]') if schema.type == 'array' and schema['items'] is defined
            and schema['items'].type is defined else schema.type -}}
    {%- elif schema.type is defined -%}
        {{- schema.type | join(' or ') -}}
    {%- else -%}
        {{- 'any' -}}
    {%- endif -%}
    {%- if schema.enum is defined -%}
        {{- '=' + schema.enum | join('|') -}}
    {%- endif -%}
{%- endmacro -%}
{%- macro signature(function) -%}
    {{- function.name + '(' -}}
    {%- if function.parameters is defined and function.parameters.properties is defined -%}
        {%- set required = function.parameters.required if function.parameters.required is defined else [] -%}
        {%- for key, schema in function.parameters.properties.items() -%}
            {{- key + ('' if key in required else '?') + ': ' + kind_of(schema) + ('' if loop.last else ', ') -}}
        {%- endfor -%}
    {%- endif -%}
    {{- ')' -}}
    {%- if function.description is defined and function.description -%}
        {{- ' - ' + function.description -}}
    {%- endif -%}
{%- endmacro -%}
{%- set first_is_system = messages and messages[0].role == 'system' -%}
{%- if tools -%}
    {{- '<|im_start|>system\n' -}}
    {%- if first_is_system -%}
        {{- text_of(messages[0].content) + '\n' -}}
    {%- endif -%}
    {{- '<tools>\n' -}}
    {%- for tool in tools -%}
        {{- signature(tool.function if tool.function is defined else tool) + '\n' -}}
    {%- endfor -%}
    {{- '</tools><|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{- '<|im_start|>assistant\n' -}}
        {%- generation -%}
            {%- if message.reasoning_content is defined and message.reasoning_content -%}
                {{- '<think>' + message.reasoning_content + '</think>\n' -}}
            {%- endif -%}
            {%- set content = text_of(message.content) -%}
            {{- content -}}
            {%- if message.tool_calls is defined and message.tool_calls -%}
                {%- for call in message.tool_calls -%}
                    {%- set function = call.function if call.function is defined else call -%}
                    {%- if not loop.first or content -%}
                        {{- '\n' -}}
                    {%- endif -%}
                    {{- '<tool_call>{"name": ' + (function.name | tojson) + ', "arguments": ' -}}
                    {{- function.arguments if function.arguments is string else function.arguments | tojson -}}
                    {{- '}</tool_call>' -}}
                {%- endfor -%}
            {%- endif -%}
            {{- '<|im_end|>' -}}
        {%- endgeneration -%}
        {{- '\n' -}}
    {%- elif message.role == 'tool' -%}
        {{- '<|im_start|>tool\n<tool_response>' + text_of(message.content) + '</tool_response><|im_end|>\n' -}}
    {%- elif not (loop.first and message.role == 'system' and tools) -%}
        {{- '<|im_start|>' + message.role + '\n' + text_of(message.content) + '<|im_end|>\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
""".strip()


def _sample(count: int, seed: int) -> Iterator[str]:
    yield from stdlib_text.chunks("train")
    # Invented names would take most merges; the words that a request is made of deserve a token each.
    nouns, verbs = (*words.NOUNS, *words.OFFICE_NOUNS), (*words.VERBS, *words.OFFICE_VERBS)
    for word in (*nouns, *verbs, *words.ADJECTIVES, *KIND_WORDS.split()):
        yield f"{word}\n" * WORD_WEIGHT
    for word in (*nouns, *verbs):
        yield f"{word}_\n" * (WORD_WEIGHT // 2)
    for word in verbs:
        yield f"{word.capitalize()}\n" * (WORD_WEIGHT // 2)
    for word in LITTLE_WORDS.split():
        yield f"x {word} {word} {word.capitalize()} " * (WORD_WEIGHT // 2)
    # The dense copying at the start of the stream would spend the merges on strings of random letters.
    for index in range(pretrain.WARM_ROWS, pretrain.WARM_ROWS + count):
        row = pretrain.row(index, split="train", seed=seed)
        if "text" in row:
            yield row["text"]
        else:
            yield from (message["content"] for message in row["messages"])


def build(*, vocab_size: int = VOCAB_SIZE, rows: int = SAMPLE_ROWS, seed: int = SAMPLE_SEED) -> PreTrainedTokenizerFast:
    """Train the tokenizer on a fixed sample of the pretraining corpus.

    Args:
        vocab_size: number of entries, special tokens included.
        rows: number of rows of the corpus to learn the merges from.
        seed: seed of the sample.

    Returns:
        A fast tokenizer with special tokens and chat template.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    specials: list[Any] = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=12,
        show_progress=False,
    )
    backend.train_from_iterator(_sample(rows, seed), trainer=trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in (PAD, END)],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def main(arguments: list[str]) -> int:
    """Build the tokenizer and save it in the form of transformers.

    Args:
        arguments: one item `OUT=<folder>`.

    Returns:
        The exit status: 0, or 64 when the folder is missing from the command line.
    """
    if len(arguments) != 1 or not arguments[0].startswith("OUT="):
        print("usage: python -m nexus.data.synthetic.tokenizer OUT=<folder>", file=sys.stderr)
        return 64
    folder = Path(arguments[0].removeprefix("OUT="))
    build().save_pretrained(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
