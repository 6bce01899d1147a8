"""Compares tool calls with the right ones and with the schemas on offer.

In the manner of the AST check of the Berkeley Function Calling Leaderboard (Patil et al., ICML 2025): values are
compared as data, not as text, and the order of parallel calls does not matter. Stricter than BFCL in two ways: strings
must be equal to the letter (BFCL drops case, blanks and punctuation), and there is one right value per argument.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nexus.errors import NexusError
from nexus.text.tool_calls import ParsedAnswer, ToolCall

#: Types of JSON schema, and the Python names that some data sets write instead.
_TYPES: dict[str, str] = {
    "string": "string", "integer": "integer", "number": "number", "boolean": "boolean", "array": "array",
    "object": "object", "null": "null", "any": "any", "str": "string", "int": "integer", "float": "number",
    "bool": "boolean", "list": "array", "tuple": "array", "dict": "object",
}  # fmt: skip
_WORD = re.compile(r"[^\W_]+")
_TAG = re.compile(r"<[^<>]*>")


def _types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Types that a schema allows; empty if it does not say."""
    named = schema.get("type", ())
    found = []
    for name in (named,) if isinstance(named, str) else named:
        if name not in _TYPES:
            raise NexusError(
                "E-DAT-30", f"a tool's schema has the unknown type {name!r}", remedy=f"use one of {sorted(_TYPES)}"
            )
        found.append(_TYPES[name])
    return () if "any" in found else tuple(found)


def _has_type(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    match name:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int)
        case "number":
            return isinstance(value, (int, float))
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    return name == "null" and value is None


def equal_values(value: Any, gold: Any, schema: Mapping[str, Any]) -> bool:
    """Whether two JSON values are the same.

    Args:
        value: what the model wrote.
        gold: what is right.
        schema: schema of the value; an integer equals a float only where it says `number`.

    Returns:
        True if types and values are equal; lists in order, objects in any order of keys.

    Raises:
        NexusError: `E-DAT-30` if the schema has an unknown type.
    """
    if isinstance(value, bool) or isinstance(gold, bool):
        return value is gold
    if isinstance(value, (int, float)) and isinstance(gold, (int, float)):
        return value == gold and (type(value) is type(gold) or "number" in _types(schema))
    if isinstance(value, list) and isinstance(gold, list):
        items = schema.get("items", {})
        return len(value) == len(gold) and all(equal_values(v, g, items) for v, g in zip(value, gold, strict=True))
    if isinstance(value, dict) and isinstance(gold, dict):
        inner = schema.get("properties", {})
        return value.keys() == gold.keys() and all(equal_values(value[k], gold[k], inner.get(k, {})) for k in gold)
    return type(value) is type(gold) and bool(value == gold)


def value_problems(value: Any, schema: Mapping[str, Any], where: str) -> list[str]:
    """What is wrong with a value by its schema.

    Keys that the schema does not name are wrong unless it allows `additionalProperties`; `format` and `pattern` are
    not checked.

    Args:
        value: a JSON value.
        schema: type (also a list of types), enum, anyOf, items, properties and required are understood.
        where: name of the value in the problems.

    Returns:
        One sentence for each problem; empty if the value is valid.

    Raises:
        NexusError: `E-DAT-30` if the schema has an unknown type.
    """
    if "anyOf" in schema:
        if any(not value_problems(value, option, where) for option in schema["anyOf"]):
            return []
        return [f"{where} fits none of the allowed forms"]
    types = _types(schema)
    if types and not any(_has_type(value, name) for name in types):
        return [f"{where} is not of type {' or '.join(types)}"]
    found = []
    if "enum" in schema and not any(equal_values(value, option, schema) for option in schema["enum"]):
        found.append(f"{where} is none of {schema['enum']}")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            found += value_problems(item, schema["items"], f"{where}[{index}]")
    if isinstance(value, dict) and ("properties" in schema or "required" in schema):
        inner = schema.get("properties", {})
        found += [f"{where}.{key} is missing" for key in schema.get("required", ()) if key not in value]
        for key, item in value.items():
            if key in inner:
                found += value_problems(item, inner[key], f"{where}.{key}")
            elif not schema.get("additionalProperties", False):
                found.append(f"{where}.{key} is not in the schema")
    return found


def parameters_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Parameter schemas by function name.

    Args:
        tools: definitions in the HF form, or the bare inner objects.

    Returns:
        One schema for each function; `{"properties": {}}` for a function without parameters.
    """
    functions = [tool.get("function", tool) for tool in tools]
    return {f["name"]: dict(f.get("parameters") or {"type": "object", "properties": {}}) for f in functions}


def call_problems(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with a call by the tools on offer.

    Args:
        call: the call.
        tools: definitions in the HF form.

    Returns:
        One sentence for each problem; empty if the call is valid.

    Raises:
        NexusError: `E-DAT-30` if a schema has an unknown type.
    """
    offered = parameters_of(tools)
    if call.name not in offered:
        return [f"{call.name} is not on offer"]
    return value_problems(call.arguments, {"type": "object", "properties": {}} | offered[call.name], call.name)


def count_matches(
    calls: Sequence[ToolCall], gold: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> int:
    """How many right calls were made, each counted once, in any order.

    Args:
        calls: what the model called.
        gold: right calls, `{"name", "arguments"}`.
        tools: definitions in the HF form; they decide where an integer may stand for a float.

    Returns:
        Number of right calls that have a partner with equal name and arguments. Equality of a call with two different
        right ones is impossible, so taking the first free partner is the best assignment.

    Raises:
        NexusError: `E-DAT-30` if a schema has an unknown type.
    """
    offered = parameters_of(tools)
    left = list(calls)
    matched = 0
    for right in gold:
        schema = offered.get(right["name"], {})
        for index, call in enumerate(left):
            if call.name == right["name"] and equal_values(call.arguments, right["arguments"], schema):
                del left[index]
                matched += 1
                break
    return matched


def declines(parsed: ParsedAnswer, tools: Sequence[Mapping[str, Any]], prompt: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an answer says something instead of calling, and something of its own.

    Args:
        parsed: an answer in which nothing is malformed.
        tools: definitions in the HF form.
        prompt: chat turns; what the user wrote is not a sentence of one's own.

    Returns:
        True for at least two different words without a call, also in some other notation, that are no copy of a
        request; tags and numbers are no words.
    """
    said = [word.lower() for word in _WORD.findall(_TAG.sub(" ", parsed.text))]
    if parsed.calls or len({word for word in said if not word.isdigit()}) < 2:
        return False
    names = [tool.get("function", tool)["name"] for tool in tools]
    attempts = "|".join(re.escape(name) for name in names)
    # A call in some other notation is a call: find_hotel(city="Oslo"), {"name": "find_hotel" ...
    if '"name"' in parsed.text or (attempts and re.search(rf"(?<!\w)(?:{attempts})\s*[({{]", parsed.text)):
        return False
    text = f" {' '.join(said)} "
    for turn in prompt:
        if turn["role"] == "user":
            asked = f" {' '.join(word.lower() for word in _WORD.findall(str(turn['content'])))} "
            if text in asked or asked in text:
                return False
    return True
