"""Recognizes the schema of a row by its columns and converts it to an `Example`.

A schema is a row of the table `SCHEMAS`: the columns it needs, the view that reads it, and a function. The first schema
whose needs are met wins, so the table goes from the most specific to the most general.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from nexus.errors import NexusError
from nexus.types import Example, Message

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "function_call",
}
VIEWS = ("sft", "preference", "prompts")


@dataclass(frozen=True)
class Schema:
    """A kind of row.

    Attributes:
        name: what users call it.
        needs: columns that make a row this kind.
        view: which view reads it.
        convert: makes the fields of an `Example` from the row.
    """

    name: str
    needs: tuple[str, ...]
    view: str
    convert: Callable[[dict[str, Any]], dict[str, Any]]


class _Wrong(Exception):
    """A column of the wrong type; `to_example` adds the place."""


def to_example(row: dict[str, Any], *, place: str, source: str, view: str, fields: dict[str, str]) -> Example:
    """Convert one row.

    Args:
        row: columns as read.
        place: name of the row, for example `chats.jsonl:12`; becomes the example's id.
        source: name of the data source.
        view: `sft`, `preference` or `prompts`.
        fields: our column name -> the row's column name, for data sets with names of their own.

    Returns:
        The example.

    Raises:
        NexusError: `E-DAT-12` if no schema fits or the schema is not one of this view, `E-DAT-05` for a value of the
            wrong type.
    """
    row = {key: value for key, value in row.items() if value is not None}
    for ours, theirs in fields.items():
        if theirs in row:
            row[ours] = row.pop(theirs)
    schema = next((s for s in SCHEMAS if s.view == view and all(key in row for key in s.needs)), None)
    if schema is None:
        raise _unknown(row, place, view)
    try:
        parts = schema.convert(row)
        parts["tools"] = parts.get("tools") or _tools(row)
    except _Wrong as error:
        raise NexusError(
            "E-DAT-05", f"{error} (schema {schema.name})", where=place, remedy="see the README for the schemas"
        ) from error
    return Example(id=place, source=source, **parts)


def _unknown(row: dict[str, Any], place: str, view: str) -> NexusError:
    other = next((s for s in SCHEMAS if all(key in row for key in s.needs)), None)
    keys = ", ".join(sorted(row)) or "none"
    if other is not None:
        return NexusError(
            "E-DAT-12",
            f"the row is of schema {other.name} (view {other.view}), but the method reads view {view}",
            where=place,
            remedy=f"needs {' or '.join(sorted({'+'.join(s.needs) for s in SCHEMAS if s.view == view}))}",
        )
    candidates = [s for s in SCHEMAS if s.view == view]

    def likeness(schema: Schema) -> float:
        best = [
            max((SequenceMatcher(None, need, key.lower()).ratio() for key in row), default=0.0) for need in schema.needs
        ]
        return sum(best) / len(best)

    near = max(candidates, key=likeness)
    missing = ", ".join(key for key in near.needs if key not in row)
    others = "; ".join("+".join(s.needs) for s in candidates if s is not near)
    return NexusError(
        "E-DAT-12",
        f"no known schema has these columns: {keys}; the nearest is {'+'.join(near.needs)}, missing: {missing}",
        where=place,
        remedy=f"rename the columns; also known: {others}",
    )


def _text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    raise _Wrong(f"{what} must be text, this is a {type(value).__name__}")


def _json_or(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise _Wrong(f"{what} is text that is not JSON: {error}") from error


def _content(value: Any, what: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list):  # OpenAI parts; other kinds than text need an encoder
        parts = [part for part in value if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) != len(value):
            kinds = sorted({str(part.get("type")) if isinstance(part, dict) else type(part).__name__ for part in value})
            raise _Wrong(f"{what} has parts of kind {', '.join(kinds)}; only text is read")
        return "".join(_text(part.get("text"), f"{what} part") for part in parts)
    return _text(value, what)


def _call(value: Any, what: str) -> dict[str, Any]:
    call = _json_or(value, what)
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _Wrong(f"{what} must be an object with name and arguments")
    arguments = _json_or(function.get("arguments") or {}, f"{what}.arguments")
    if not isinstance(arguments, dict):
        raise _Wrong(f"{what}.arguments must be an object, this is a {type(arguments).__name__}")
    kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _calls(value: Any, what: str) -> list[dict[str, Any]]:
    calls = _json_or(value, what)
    if not isinstance(calls, list):
        raise _Wrong(f"{what} must be a list, this is a {type(calls).__name__}")
    return [_call(call, f"{what}[{i}]") for i, call in enumerate(calls)]


def _message(value: Any, what: str) -> Message:
    if not isinstance(value, dict):
        raise _Wrong(f"{what} must be an object with role and content, this is a {type(value).__name__}")
    role_key, content_key = ("from", "value") if "from" in value else ("role", "content")
    given = value.get(role_key)
    role = ROLES.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        known = ", ".join(sorted(ROLES))
        raise _Wrong(f"{what}.{role_key} is {given!r}, known roles: {known}")
    if role == "function_call":
        calls = _json_or(value.get(content_key), f"{what}.{content_key}")
        calls = calls if isinstance(calls, list) else [calls]
        return {"role": "assistant", "content": "", "tool_calls": _calls(calls, f"{what}.{content_key}")}
    tool_calls = value.get("tool_calls")
    if tool_calls is None and isinstance(value.get("function_call"), dict):
        tool_calls = [value["function_call"]]
    if value.get(content_key) is None and not tool_calls:
        raise _Wrong(f"{what} has no {content_key}")
    message: Message = {"role": role, "content": _content(value.get(content_key), f"{what}.{content_key}")}
    if tool_calls:
        message["tool_calls"] = _calls(tool_calls, f"{what}.tool_calls")
    for key in ("name", "tool_call_id", "reasoning_content"):
        if isinstance(value.get(key), str):
            message[key] = value[key]
    return message


def _turns(value: Any, what: str, role: str | None = None) -> tuple[Message, ...]:
    """A list of turns, or a text that is one turn of `role`."""
    if role is not None and isinstance(value, str):
        return ({"role": role, "content": value},)
    if isinstance(value, str):
        value = _json_or(value, what)
    if not isinstance(value, list):
        raise _Wrong(f"{what} must be a list of turns, this is a {type(value).__name__}")
    if not value:
        raise _Wrong(f"{what} is empty")
    return tuple(_message(turn, f"{what}[{i}]") for i, turn in enumerate(value))


def _tools(row: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    tools = _json_or(row.get("tools") or [], "tools")
    if not isinstance(tools, list):
        raise _Wrong(f"tools must be a list, this is a {type(tools).__name__}")
    checked = []
    for i, given in enumerate(tools):
        tool = _json_or(given, f"tools[{i}]")
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _Wrong(f"tools[{i}] must be a function definition with a name")
        checked.append({"type": "function", "function": function})
    return tuple(checked)


def _system(row: dict[str, Any]) -> tuple[Message, ...]:
    text = row.get("system")
    return ({"role": "system", "content": _text(text, "system")},) if text else ()


def _conversation(column: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {"messages": (*_system(row), *_turns(row[column], column))}


def _pair(question: str, answer: str, extra: str = "") -> Callable[[dict[str, Any]], dict[str, Any]]:
    def convert(row: dict[str, Any]) -> dict[str, Any]:
        prompt = _turns(row[question], question, "user")
        if extra and row.get(extra):
            prompt = ({"role": "user", "content": f"{prompt[0]['content']}\n\n{_text(row[extra], extra)}"},)
        return {"messages": (*_system(row), *prompt, *_turns(row[answer], answer, "assistant"))}

    return convert


def _preference(row: dict[str, Any]) -> dict[str, Any]:
    chosen, rejected = (_turns(row[key], key, "assistant") for key in ("chosen", "rejected"))
    if "prompt" in row:
        prompt = _turns(row["prompt"], "prompt", "user")
    else:  # whole conversations: the prompt is what they have in common
        common = 0
        while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
            common += 1
        prompt, chosen, rejected = chosen[:common], chosen[common:], rejected[common:]
        if not prompt:
            raise _Wrong("chosen and rejected have no turn in common, and there is no prompt")
    return {"messages": (*_system(row), *prompt), "chosen": chosen, "rejected": rejected}


def _prompt(row: dict[str, Any]) -> dict[str, Any]:
    gold = _json_or(row["gold"], "gold")
    if not isinstance(gold, dict):
        raise _Wrong(f"gold must be an object, this is a {type(gold).__name__}")
    return {"messages": (*_system(row), *_turns(row["prompt"], "prompt", "user")), "gold": gold}


SCHEMAS: tuple[Schema, ...] = (
    Schema("preference", ("chosen", "rejected"), "preference", _preference),
    Schema("prompts with gold", ("prompt", "gold"), "prompts", _prompt),
    Schema("messages", ("messages",), "sft", _conversation("messages")),
    Schema("conversations (ShareGPT)", ("conversations",), "sft", _conversation("conversations")),
    Schema("prompt/completion", ("prompt", "completion"), "sft", _pair("prompt", "completion")),
    Schema("prompt/response", ("prompt", "response"), "sft", _pair("prompt", "response")),
    Schema("instruction/input/output", ("instruction", "output"), "sft", _pair("instruction", "output", "input")),
    Schema(
        "instruction/context/response", ("instruction", "response"), "sft", _pair("instruction", "response", "context")
    ),
    Schema("question/answer", ("question", "answer"), "sft", _pair("question", "answer", "context")),
    Schema("text", ("text",), "sft", lambda row: {"text": _text(row["text"], "text")}),
)
