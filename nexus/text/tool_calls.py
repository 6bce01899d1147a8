"""Reads tool calls out of a model's answer.

Two forms are understood: `<tool_call>{"name": .., "arguments": {..}}</tool_call>`, several of them, with or without
text around (Hermes, Qwen, nexus_tiny), and a bare JSON object `{"name": .., "parameters": {..}}`, several separated by
`;` or white space, as the whole answer (Llama 3). Whatever starts a call but is not exactly one is kept as malformed:
nothing is repaired, nothing raises.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from nexus.text.think import split_think

CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"
PYTHON_TAG = "<|python_tag|>"

_ARGUMENT_KEYS = ("arguments", "parameters")
_OTHER_KEYS = {"id", "type"}


@dataclass(frozen=True)
class ToolCall:
    """One call.

    Attributes:
        name: of the function, not empty.
        arguments: by name.
    """

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ParsedAnswer:
    """What an answer consists of.

    Attributes:
        calls: the well-formed calls in order.
        malformed: the text of each thing that began as a call and is none.
        text: the rest of the answer, without thinking and calls, stripped.
    """

    calls: tuple[ToolCall, ...] = ()
    malformed: list[str] = field(default_factory=list)
    text: str = ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _decode(text: str, start: int) -> tuple[Any, int] | None:
    """The JSON value at `start` and where it ends, or None if none is there."""
    while start < len(text) and text[start].isspace():
        start += 1
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):  # too deeply nested is not a call either
        return None


def _as_call(value: Any) -> ToolCall | None:
    """A decoded value as a call, or None if it is not exactly one."""
    if not isinstance(value, dict):
        return None
    keys = [key for key in _ARGUMENT_KEYS if key in value]
    if len(keys) != 1 or value.keys() - _OTHER_KEYS != {"name", keys[0]}:
        return None
    name, arguments = value["name"], value[keys[0]]
    if isinstance(arguments, str):  # the OpenAI form: JSON inside a string
        decoded = _decode(arguments, 0)
        arguments = decoded[0] if decoded and not arguments[decoded[1] :].strip() else None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments)


def _tagged(text: str) -> ParsedAnswer:
    """Calls between tags. JSON is decoded first, so a closing tag inside a string does not end a call."""
    calls: list[ToolCall] = []
    malformed: list[str] = []
    rest: list[str] = []
    position = 0
    while (start := text.find(CALL_OPEN, position)) >= 0:
        rest.append(text[position:start])
        body = start + len(CALL_OPEN)
        decoded = _decode(text, body)
        if decoded:
            end = decoded[1]
            while end < len(text) and text[end].isspace():
                end += 1
            call = _as_call(decoded[0])
            if call and text.startswith(CALL_CLOSE, end):
                calls.append(call)
                position = end + len(CALL_CLOSE)
                continue
        ends = [at for at in (text.find(CALL_CLOSE, body), text.find(CALL_OPEN, body)) if at >= 0]
        end = min(ends, default=len(text))
        malformed.append(text[body:end])
        position = end + len(CALL_CLOSE) if text.startswith(CALL_CLOSE, end) else end
    rest.append(text[position:])
    plain = "".join(rest)
    malformed += [CALL_CLOSE] * plain.count(CALL_CLOSE)
    return ParsedAnswer(tuple(calls), malformed, plain.replace(CALL_CLOSE, "").strip())


def _bare(text: str) -> ParsedAnswer:
    """Calls as bare JSON; an answer that does not begin with an object is text."""
    body = text.removeprefix(PYTHON_TAG).lstrip()
    if not body.startswith("{"):
        return ParsedAnswer(text=text)
    calls: list[ToolCall] = []
    position = 0
    while position < len(body):
        decoded = _decode(body, position)
        call = _as_call(decoded[0]) if decoded else None
        if decoded is None or call is None:
            # Some other JSON is an answer like any other; a broken call is not.
            named = calls or '"name"' in body or body != text
            return ParsedAnswer(tuple(calls), [body[position:]]) if named else ParsedAnswer(text=text)
        calls.append(call)
        position = decoded[1]
        while position < len(body) and (body[position].isspace() or body[position] == ";"):
            position += 1
    return ParsedAnswer(tuple(calls))


def parse_answer(text: str) -> ParsedAnswer:
    """Read the tool calls of one answer.

    Calls inside the thinking are thoughts, not calls; while the thinking has not ended there is no answer.

    Args:
        text: what the model wrote, without its stop token.

    Returns:
        Calls, malformed calls and the remaining text.
    """
    answer = split_think(text).answer
    return _tagged(answer) if CALL_OPEN in answer or CALL_CLOSE in answer else _bare(answer)
