"""Talks with a package or a base model: one answer, or a conversation on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from nexus.data.template import encode_prompts
from nexus.errors import NexusError
from nexus.hardware.processor import use_processor
from nexus.rollout.generate import generate
from nexus.stages import assemble
from nexus.stages.prepare import base_facts, make_tokenizer
from nexus.types import Example, Message


def chat(config: dict[str, Any]) -> None:
    """Answer `prompt`, or every line that is typed until an empty one or the end of input.

    Args:
        config: checked and resolved, plain containers of `conf/generate.yaml`.

    Raises:
        NexusError: if the model cannot be loaded, or a conversation outgrows its context.
    """
    use_processor(config["hardware"]["threads"])
    facts = base_facts(config["base_model"])
    tokenizer = make_tokenizer(config, facts)
    model = assemble.load_for_inference(config)
    messages: list[Message] = [{"role": "system", "content": config["system"]}] if config["system"] else []
    for turn, text in enumerate(_inputs(config["prompt"])):
        _insist_on_unicode(text)
        messages.append({"role": "user", "content": text})
        answer = _answer(model, tokenizer, messages, config, config["seed"] + turn, facts.max_position_embeddings)
        messages.append({"role": "assistant", "content": answer})


def _inputs(prompt: str | None) -> Iterator[str]:
    """The given prompt alone, or lines from standard input."""
    if prompt is not None:
        yield prompt
        return
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.rstrip("\n")


def _insist_on_unicode(text: str) -> None:
    """Refuse bytes that are no UTF-8; Python carries them along as halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NexusError(
            "E-DAT-34",
            f"the prompt is not UTF-8 text (at character {error.start + 1})",
            where="prompt",
            remedy="convert it, for example with iconv -t utf-8",
        ) from error


def _answer(model: Any, tokenizer: Any, messages: list[Message], config: dict[str, Any], seed: int, limit: int) -> str:
    """Generate one answer, printing it as it comes if `stream`."""
    example = Example(id="chat", source="chat", messages=tuple(messages), tools=tuple(config["tools"]))
    [prompt] = encode_prompts(tokenizer, [example])
    if len(prompt) + config["max_new_tokens"] > limit:
        raise NexusError(
            "E-LEN-02",
            f"the conversation has {len(prompt)} tokens; with {config['max_new_tokens']} new ones it passes {limit}",
            remedy="start a new conversation, or lower max_new_tokens",
        )
    printed = 0
    ids: list[int] = []

    def stream(row: int, token: int) -> None:
        """Print what is new, holding back bytes of an unfinished character."""
        nonlocal printed
        if token in stops:
            return
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):
            print(text[printed:], end="", flush=True)
            printed = len(text)

    stops = {tokenizer.eos_token_id}
    [generation] = generate(
        model=model,
        tokenizer=tokenizer,
        prompts=[prompt],
        max_new_tokens=config["max_new_tokens"],
        temperature=config["temperature"],
        seeds=[seed],
        batch_size=1,
        on_token=stream if config["stream"] else None,
    )
    print("" if config["stream"] else generation.text, flush=True)
    if not generation.finished:
        print(f"[stopped at max_new_tokens={config['max_new_tokens']}]", file=sys.stderr)
    return generation.text
