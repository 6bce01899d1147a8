"""Reasoning, tool calls and turns that public data sets write inside plain text, taken out of it.

Every reader here is exact: text that only resembles a dialect stays text, and text that begins one and breaks it off is
refused by `Wrong`, because a model trained on it would learn the damage.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from nexus.text.think import THINK_CLOSE, THINK_OPEN
from nexus.text.tool_calls import CALL_CLOSE, CALL_OPEN

#: Marks around reasoning and, where there are any, around the answer behind it.
_REASONING = (
    (THINK_OPEN, THINK_CLOSE, "", ""),
    ("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>"),  # OpenThoughts
    ("<Thought>", "</Thought>", "<Output>", "</Output>"),  # OpenO1
)
_CALL = re.compile(re.escape(CALL_OPEN) + r"\s*(.*?)\s*" + re.escape(CALL_CLOSE), re.DOTALL)
_RESULT = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
_TOOLS = re.compile(r"<tools>\s*([\[{].*?)\s*</tools>", re.DOTALL)  # prompts also name the empty pair of tags
_HH_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")
_GLAIVE_TURN = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE): ?")
_GLAIVE_CALL = re.compile(
    r'<functioncall>\s*\{\s*"name":\s*"([^"]+)"(?:,\s*"arguments":\s*(?:\'(.*)\'|(\{.*\})))?\s*\}', re.DOTALL
)
_GLAIVE_END = "<|endoftext|>"
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_PYTHON_TYPES = {
    "str": "string", "string": "string", "int": "integer", "integer": "integer", "float": "number", "number": "number",
    "bool": "boolean", "boolean": "boolean", "list": "array", "tuple": "array", "set": "array", "array": "array",
    "dict": "object", "object": "object",
}  # fmt: skip


class Wrong(Exception):
    """A value that does not fit its schema; `formats.to_example` adds the place."""


def data_of(text: str, what: str) -> Any:
    """Data written as JSON, or as the Python literal that several data sets hold instead (single quotes, None).

    Args:
        text: for example `{"a": 1}` or `{'a': None}`.
        what: name of the value, for the message.

    Returns:
        Plain containers.

    Raises:
        Wrong: if it is neither.
    """
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise Wrong(f"{what} is text that is neither JSON nor a Python literal: {error}") from error


def split_reasoning(text: str) -> tuple[str | None, str]:
    """Reasoning in front of an answer, and the answer.

    Args:
        text: an assistant's turn.

    Returns:
        The reasoning, or None if the turn does not begin with some that ends; and the rest. White space around both
        goes, since chat templates write their own.
    """
    start = text.lstrip()
    for opening, closing, answer_open, answer_close in _REASONING:
        if not start.startswith(opening) or closing not in start:
            continue
        reasoning, _, answer = start.removeprefix(opening).partition(closing)
        answer = answer.strip()
        if answer_open and answer.startswith(answer_open):
            answer = answer.removeprefix(answer_open).removesuffix(answer_close)
        return reasoning.strip(), answer.strip()
    return None, text


def describes_markup(system: str) -> bool:
    """Whether a system prompt teaches marks that `split_reasoning` takes away; `<think>` belongs to models instead."""
    return any(opening in system for opening, _, _, _ in _REASONING[1:])


def split_calls(text: str, what: str) -> tuple[str, list[Any]]:
    """Calls between `<tool_call>` tags (Hermes, Qwen), and the text around them.

    Args:
        text: an assistant's turn.
        what: name of the value, for the message.

    Returns:
        The text without calls, stripped if there are any; and the calls, not checked yet.

    Raises:
        Wrong: for a call that has no end or is not data.
    """
    if CALL_OPEN not in text:
        return text, []
    found = [data_of(body, f"{what} <tool_call>") for body in _CALL.findall(text)]
    rest = _CALL.sub("", text)
    if CALL_OPEN in rest or CALL_CLOSE in rest:
        raise Wrong(f"{what} has a {CALL_OPEN} without its other tag")
    calls = [call for entry in found for call in (entry if isinstance(entry, list) else [entry])]
    return rest.strip(), calls


def split_results(text: str) -> list[str]:
    """Results of parallel calls that one turn holds between `<tool_response>` tags; without tags the text itself."""
    return _RESULT.findall(text) or [text]


def tools_in(system: str) -> list[Any] | None:
    """Definitions between `<tools>` tags of a system prompt, or None if it has none."""
    block = _TOOLS.search(system)
    if block is None:
        return None
    return _objects(block[1]) if block[1].startswith("{") else list(data_of(block[1], "<tools>"))


def _objects(text: str) -> list[Any]:
    """JSON objects one after the other, with anything that is no object between them."""
    decoder = json.JSONDecoder(strict=False)
    found, position = [], text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except ValueError as error:
            raise Wrong(f"a tool's definition is not JSON: {error}") from error
        found.append(value)
        position = text.find("{", end)
    return found


def hh_turns(text: str, what: str) -> list[dict[str, str]]:
    """Turns of Anthropic's helpful-harmless sets: `\\n\\nHuman: .. \\n\\nAssistant: ..`.

    Args:
        text: a whole conversation.
        what: name of the column, for the message.

    Returns:
        Turns with role and content.

    Raises:
        Wrong: if text stands before the first turn.
    """
    parts = _HH_TURN.split("\n\n" + text.lstrip())
    if parts[0].strip():
        raise Wrong(f"{what} does not begin with a turn of Human or Assistant")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def is_hh(value: Any) -> bool:
    """Whether a value is a conversation that `hh_turns` reads."""
    return isinstance(value, str) and "\n\nAssistant:" in value and value.lstrip().startswith(("Human:", "Assistant:"))


def glaive_turns(system: str, chat: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """A row of glaive-function-calling: `SYSTEM: ..` with the functions, and `USER: .. ASSISTANT: <functioncall> ..`.

    Args:
        system: the column `system`.
        chat: the column `chat`.

    Returns:
        Turns (the system's only where it offers no function, since chat templates introduce tools themselves), and the
        functions.

    Raises:
        Wrong: for text before the first turn, or a call or function that is not data.
    """
    instruction = system.strip().removeprefix("SYSTEM:").strip()
    tools = _objects(instruction) if "{" in instruction else []
    turns: list[dict[str, Any]] = [] if tools or not instruction else [{"role": "system", "content": instruction}]
    parts = _GLAIVE_TURN.split(chat)
    if parts[0].strip():
        raise Wrong("chat does not begin with USER: or ASSISTANT:")
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        content = said.replace(_GLAIVE_END, "").strip()
        if speaker == "ASSISTANT":
            turns.append(_glaive_answer(content))
        else:
            turns.append({"role": "user" if speaker == "USER" else "tool", "content": content})
    return turns, tools


def _glaive_answer(content: str) -> dict[str, Any]:
    found = _GLAIVE_CALL.search(content)
    if found is None:
        if "<functioncall>" in content:
            raise Wrong(f"chat has a <functioncall> that cannot be read: {content[:80]!r}")
        return {"role": "assistant", "content": content}
    # The arguments are JSON inside single quotes; an apostrophe in them is sometimes escaped, which JSON forbids.
    arguments = (found[2] or found[3] or "{}").replace("\\'", "'")
    around = (content[: found.start()] + content[found.end() :]).strip()
    call = {"name": found[1], "arguments": data_of(arguments, "<functioncall> arguments")}
    return {"role": "assistant", "content": around, "tool_calls": [call]}


def without_calculator(answer: str) -> str:
    """A solution of gsm8k without its calculator marks: `48/2 = <<48/2=24>>24` becomes `48/2 = 24`."""
    return _CALCULATOR.sub("", answer)


def schema_of_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of parameters; those of xlam name the parameters directly, with Python types.

    Args:
        parameters: a JSON schema, or `{"city": {"type": "str, optional", "description": ".."}}`.

    Returns:
        A JSON schema; a parameter is required unless it is called optional or has a default.
    """
    flat = parameters and all(isinstance(entry, dict) for entry in parameters.values())
    if not flat or set(parameters) <= {"properties", "$defs"}:
        return parameters
    properties, required = {}, []
    for name, given in parameters.items():
        kind = str(given.get("type", "")).strip()
        optional = "optional" in kind.lower() or "default" in given
        word = re.match(r"(?:optional\[)?\s*([a-z]+)", kind.lower())
        known = _PYTHON_TYPES.get(word[1]) if word else None
        rest = {key: value for key, value in given.items() if key != "type"}
        properties[name] = ({"type": known} if known else {}) | rest
        if not optional:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required}
