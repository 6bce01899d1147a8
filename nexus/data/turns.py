"""The values of a row as chat turns: roles, contents, reasoning, tool calls, tool results and tool definitions."""

from __future__ import annotations

import json
from typing import Any

from nexus.data.dialects import (
    Wrong,
    describes_markup,
    schema_of_parameters,
    split_calls,
    split_reasoning,
    split_results,
    tools_in,
)
from nexus.types import Message

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
    "tool_response": "tool",
    "function_call": "function_call",
    "tool_call": "function_call",
}
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")

ToolSpecs = tuple[dict[str, Any], ...]


def text_of(value: Any, what: str) -> str:
    """A value that must be text.

    Args:
        value: anything.
        what: name of the value, for the message.

    Returns:
        The text.

    Raises:
        Wrong: if it is none.
    """
    if isinstance(value, str):
        return value
    raise Wrong(f"{what} must be text, this is a {type(value).__name__}")


def json_or(value: Any, what: str) -> Any:
    """A value that may be written as JSON.

    Args:
        value: text is decoded, everything else stays.
        what: name of the value, for the message.

    Returns:
        The value.

    Raises:
        Wrong: for text that is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Wrong(f"{what} is text that is not JSON: {error}") from error


def calls_of(value: Any, what: str) -> list[dict[str, Any]]:
    """Structured tool calls.

    Args:
        value: a list of calls, or JSON of one; each has name and arguments, or is wrapped in `function`.
        what: name of the value, for the message.

    Returns:
        Calls in OpenAI's form with arguments as an object.

    Raises:
        Wrong: if one is no call.
    """
    calls = json_or(value, what)
    if not isinstance(calls, list):
        raise Wrong(f"{what} must be a list, this is a {type(calls).__name__}")
    return [_call(call, f"{what}[{i}]") for i, call in enumerate(calls)]


def _call(value: Any, what: str) -> dict[str, Any]:
    call = json_or(value, what)
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Wrong(f"{what} must be an object with name and arguments")
    given = function.get("arguments", function.get("parameters"))
    arguments = json_or(given or {}, f"{what}.arguments")
    if not isinstance(arguments, dict):
        raise Wrong(f"{what}.arguments must be an object, this is a {type(arguments).__name__}")
    kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def tools_of(value: Any, what: str = "tools") -> ToolSpecs:
    """Tool definitions.

    Args:
        value: a list of definitions, or JSON of it or of its entries; None is no tool.
        what: name of the value, for the message.

    Returns:
        Definitions in OpenAI's form, parameters as a JSON schema.

    Raises:
        Wrong: if one is no definition.
    """
    tools = json_or(value or [], what)
    if not isinstance(tools, list):
        raise Wrong(f"{what} must be a list, this is a {type(tools).__name__}")
    checked = []
    for i, given in enumerate(tools):
        tool = json_or(given, f"{what}[{i}]")
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Wrong(f"{what}[{i}] must be a function definition with a name")
        parameters = json_or(function.get("parameters"), f"{what}[{i}].parameters")
        if isinstance(parameters, dict):
            function = function | {"parameters": schema_of_parameters(parameters)}
        elif parameters is not None:
            raise Wrong(f"{what}[{i}].parameters must be an object, this is a {type(parameters).__name__}")
        checked.append({"type": "function", "function": function})
    return tuple(checked)


def assistant(
    content: str,
    *,
    what: str,
    reasoning: str | None = None,
    calls: list[Any] | None = None,
    keep_broken: bool = False,
) -> Message:
    """An assistant's turn; reasoning and calls inside its text are taken out.

    Args:
        content: what the assistant said.
        what: name of the value, for the message.
        reasoning: what it thought, where a column holds it.
        calls: its calls, where a column holds them.
        keep_broken: leave a call that cannot be read in the text: an answer may be rejected for just that.

    Returns:
        The turn, with `reasoning_content` and `tool_calls` where there are any.

    Raises:
        Wrong: for a call that cannot be read.
    """
    if not reasoning:
        reasoning, content = split_reasoning(content)
    if not calls:
        try:
            rest, found = split_calls(content, what)
            content, calls = rest, calls_of(found, f"{what}.tool_calls")
        except Wrong:
            if not keep_broken:
                raise
    message: Message = {"role": "assistant", "content": content}
    if reasoning and reasoning.strip():
        message["reasoning_content"] = reasoning.strip()
    if calls:
        message["tool_calls"] = calls_of(calls, f"{what}.tool_calls")
    return message


def turns_of(value: Any, what: str, role: str | None = None, *, keep_broken: bool = False) -> tuple[Message, ...]:
    """A list of turns, or one turn of `role`.

    Args:
        value: turns with role and content, or from and value (ShareGPT), or JSON of them; where `role` is given, a text
            or a single turn too.
        what: name of the value, for the message.
        role: who says a plain text; None if there must be turns.
        keep_broken: as in `assistant`.

    Returns:
        At least one turn.

    Raises:
        Wrong: if it is something else.
    """
    if role is not None and isinstance(value, str):
        if role == "assistant":
            return (assistant(value, what=what, keep_broken=keep_broken),)
        return ({"role": role, "content": value},)
    if role is not None and isinstance(value, dict):
        value = [value]
    if isinstance(value, str):
        value = json_or(value, what)
    if not isinstance(value, list):
        kinds = "a list of turns" if role is None else "text or a list of turns"
        raise Wrong(f"{what} must be {kinds}, this is of type {type(value).__name__}")
    if not value:
        raise Wrong(f"{what} is empty")
    return tuple(turn for i, given in enumerate(value) for turn in _messages(given, f"{what}[{i}]", keep_broken))


def conversation_of(value: Any, what: str, *, system: Any = None) -> tuple[tuple[Message, ...], ToolSpecs]:
    """A whole conversation, and the tools that its system prompt describes.

    A system prompt that writes the tools out between `<tools>` tags, or explains marks for reasoning that are taken
    away, is left out: the chat template of the model says it in the model's own words.

    Args:
        value: as in `turns_of`.
        what: name of the value, for the message.
        system: a system prompt from a column of its own; a conversation that begins with one keeps that.

    Returns:
        Turns and tools.

    Raises:
        Wrong: as `turns_of`.
    """
    turns = turns_of(value, what)
    if system and turns[0]["role"] != "system":
        turns = ({"role": "system", "content": text_of(system, "system")}, *turns)
    tools: ToolSpecs = ()
    kept = []
    for turn in turns:
        if turn["role"] == "system":
            described = tools_in(turn["content"])
            if described is not None:
                tools = tools_of(described, f"{what} <tools>")
            if described is not None or describes_markup(turn["content"]):
                continue
        kept.append(turn)
    if not kept:
        raise Wrong(f"{what} holds a system prompt alone")
    return tuple(kept), tools


def _messages(value: Any, what: str, keep_broken: bool) -> list[Message]:
    """The turns that one entry of a list stands for: parallel tool results may share one."""
    if not isinstance(value, dict):
        raise Wrong(f"{what} must be an object with role and content, this is a {type(value).__name__}")
    role_key, content_key = ("from", "value") if "from" in value else ("role", "content")
    given = value.get(role_key)
    role = ROLES.get(given.lower().replace("-", "_")) if isinstance(given, str) else None
    if role is None:
        known = ", ".join(sorted(ROLES))
        raise Wrong(f"{what}.{role_key} is {given!r}, known roles: {known}")
    if role == "function_call":
        calls = json_or(value.get(content_key), f"{what}.{content_key}")
        calls = calls if isinstance(calls, list) else [calls]
        return [assistant("", calls=calls, what=f"{what}.{content_key}")]
    tool_calls = json_or(value.get("tool_calls"), f"{what}.tool_calls")
    if not tool_calls and isinstance(value.get("function_call"), dict):
        tool_calls = [value["function_call"]]
    reasoning = next((value[key] for key in _REASONING_KEYS if isinstance(value.get(key), str)), None)
    if value.get(content_key) is None and not tool_calls and not reasoning:
        raise Wrong(f"{what} has no {content_key}")
    content = _content(value.get(content_key), f"{what}.{content_key}")
    if role == "assistant":
        if value.get("weight") == 0:
            raise Wrong(f"{what}.weight is 0, and every answer of a conversation is learned; end it before that answer")
        if value.get("literal") is True:  # text about marks: nothing in it is a call or reasoning
            return [_named({"role": role, "content": content}, value)]
        if tool_calls is not None and not isinstance(tool_calls, list):
            raise Wrong(f"{what}.tool_calls must be a list, this is a {type(tool_calls).__name__}")
        said = assistant(content, what=what, reasoning=reasoning, calls=tool_calls, keep_broken=keep_broken)
        return [_named(said, value)]
    contents = split_results(content) if role == "tool" else [content]
    return [_named({"role": role, "content": part}, value) for part in contents]


def _named(message: Message, value: dict[str, Any]) -> Message:
    return message | {key: value[key] for key in ("name", "tool_call_id") if isinstance(value.get(key), str)}


def _content(value: Any, what: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list):  # OpenAI parts; other kinds than text need an encoder
        parts = [part for part in value if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) != len(value):
            kinds = sorted({str(part.get("type")) if isinstance(part, dict) else type(part).__name__ for part in value})
            raise Wrong(f"{what} has parts of kind {', '.join(kinds)}; only text is read")
        return "".join(text_of(part.get("text"), f"{what} part") for part in parts)
    return text_of(value, what)
