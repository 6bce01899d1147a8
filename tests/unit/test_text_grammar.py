"""The grammar of answers: thinking, tool calls, final answers, numbers, equations."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest

from nexus.errors import NexusError
from nexus.text.answers import Equation, equations, final_answer, marked_answer, normalize_number, same_number
from nexus.text.call_match import call_problems, count_matches, equal_values, value_problems
from nexus.text.think import split_think
from nexus.text.tool_calls import ParsedAnswer, ToolCall, parse_answer

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
F = ToolCall("f", {"a": 1})


@pytest.mark.parametrize(
    ("text", "thinking", "answer", "closed"),
    [
        ("plain ", None, "plain", True),
        ("<think>a</think>b", "a", "b", True),
        ("<think>\na\n</think>\n\nb\n", "a", "b", True),
        ("a</think>b", "a", "b", True),  # the template wrote the opening tag
        ("<think>a", "a", "", False),
        ("<think>a</think>b<think>c", "a\n\nc", "b", False),
        ("<think>a</think>b<think>c</think>d", "a\n\nc", "bd", True),
        ("<think></think>b", "", "b", True),
    ],
)
def test_split_think(text: str, thinking: str | None, answer: str, closed: bool):
    found = split_think(text)
    assert (found.thinking, found.answer, found.closed) == (thinking, answer, closed)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ParsedAnswer()),
        ("hello", ParsedAnswer(text="hello")),
        (CALL, ParsedAnswer((F,))),
        (f"{CALL}\n{CALL}", ParsedAnswer((F, F))),
        (f"<think>hm {CALL}</think>\n{CALL}", ParsedAnswer((F,))),
        (f"<think>{CALL}", ParsedAnswer()),
        (f"I will look.\n{CALL} Done.", ParsedAnswer((F,), [], "I will look.\n Done.")),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', ParsedAnswer((F,))),
        ('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', ParsedAnswer((F,))),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', ParsedAnswer((F,))),
        (
            '<tool_call>{"id": "1", "type": "function", "name": "f", "arguments": {"a": 1}}</tool_call>',
            ParsedAnswer((F,)),
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
            ParsedAnswer((ToolCall("f", {"a": "</tool_call>"}),)),
        ),
        ('{"name": "f", "parameters": {"a": 1}}', ParsedAnswer((F,))),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', ParsedAnswer((F,))),
        ('{"name": "f", "parameters": {"a": 1}}; {"name": "f", "arguments": {"a": 1}}', ParsedAnswer((F, F))),
        ('{"name": "f", "parameters": {"a": 1}}\n{"name": "f", "parameters": {"a": 1}}', ParsedAnswer((F, F))),
        ('{"city": "Oslo"}', ParsedAnswer(text='{"city": "Oslo"}')),
        ("{not json", ParsedAnswer(text="{not json")),
    ],
)
def test_calls_are_read(text: str, expected: ParsedAnswer):
    assert parse_answer(text) == expected


@pytest.mark.parametrize(
    "body",
    [
        "",
        "f(a=1)",
        '{"name": "f", "arguments": {"a": 1}',
        '{"name": "f", "arguments": {"a": 1}} and more',
        '{"name": "f", "arguments": {"a": 1, "a": 2}}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "a"}',
        '{"name": "f"}',
        '{"name": "f", "arguments": {}, "parameters": {}}',
        '{"name": "f", "arguments": {}, "extra": 1}',
        '{"name": "", "arguments": {}}',
        '{"name": 3, "arguments": {}}',
        '{"arguments": {"a": 1}}',
        '[{"name": "f", "arguments": {"a": 1}}]',
        "{'name': 'f', 'arguments': {}}",
        "[" * 100_000,
        '{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}",
    ],
)
def test_what_is_not_exactly_a_call_is_malformed_and_never_raises(body: str):
    parsed = parse_answer(f"<tool_call>{body}</tool_call>")
    assert parsed.calls == ()
    assert parsed.malformed == [body]
    both = parse_answer(f"{CALL}\n<tool_call>{body}</tool_call>\n{CALL}")
    assert both.calls == (F, F)
    assert both.malformed == [body]


@pytest.mark.parametrize(
    ("text", "calls", "malformed"),
    [
        (CALL.removesuffix("</tool_call>"), 0, 1),  # never closed
        (CALL.removesuffix("</tool_call>") + CALL, 1, 1),
        (CALL + "</tool_call>", 1, 1),
        ("</tool_call>", 0, 1),
        ("<tool_call>", 0, 1),
        ('{"name": "f", "parameters": {"a": 1}', 0, 1),
        ('{"name": "f", "parameters": {"a": 1}} thanks', 1, 1),
    ],
)
def test_broken_tags_and_tails_are_malformed(text: str, calls: int, malformed: int):
    parsed = parse_answer(text)
    assert (len(parsed.calls), len(parsed.malformed)) == (calls, malformed)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 19 </answer>", "19"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("so \\boxed{\\frac{1}{2}} holds", "\\frac{1}{2}"),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("we get\n#### 1,234\n", "1,234"),
        ("<answer>5</answer> #### 6 \\boxed{7}", "5"),
        ("<think><answer>1</answer></think>\\boxed{2}", "2"),
        ("the total is 42.", "42"),
        ("from 3 to -7", "-7"),
        ("12-7", "7"),
        ("it costs $1,250.50 now", "$1,250.50"),
        ("a share of 25%", "25%"),
        ("<think>5</think>none", None),
        ("no number", None),
        ("", None),
        ("<answer>9", "9"),  # unmarked: the tag never closed, the number still stands
    ],
)
def test_final_answer(text: str, answer: str | None):
    assert final_answer(text) == answer


def test_a_number_alone_is_not_marked():
    assert marked_answer("the total is 42") is None
    assert marked_answer("<answer></answer>") == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", Fraction(1234)), ("1234.50", Fraction(2469, 2)), ("007", Fraction(7)), ("-3/4", Fraction(-3, 4)),
        ("\\frac{1}{2}", Fraction(1, 2)), ("25%", Fraction(1, 4)), ("25\\%", Fraction(1, 4)), ("$12", Fraction(12)),
        (" 19. ", Fraction(19)), ("$5$", Fraction(5)), (".5", Fraction(1, 2)), ("−2", Fraction(-2)),
        ("+2", Fraction(2)),
        ("1/0", None), ("", None), ("12,34", None), ("1.2.3", None), ("abc", None), ("19 apples", None), ("1e3", None),
        ("1 1/2", Fraction(3, 2)), ("-1\\frac{1}{2}", Fraction(-3, 2)), ("1 1/0", None), ("1" * 5000, None),
    ],
)  # fmt: skip
def test_normalize_number(text: str, value: Fraction | None):
    assert normalize_number(text) == value


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("19", "19", True), ("19.0", "19", True), ("1,900", "1900", True), ("19 apples", "19", True),
        ("1/2", "0.5", True),
        ("25%", "25", True), ("25%", "0.25", True), ("25", "25%", True), ("50%", "0.5%", False), ("18", "19", False),
        ("18 or 19", "19", False), ("", "19", False), ("119", "19", False), ("-19", "19", False), ("19", "", False),
    ],
)  # fmt: skip
def test_same_number(answer: str, gold: str, same: bool):
    assert same_number(answer, gold) is same


def test_equations_are_lines():
    text = "12 + 7 = 19\nthen 19 - 4 = 15\n3x4=12\n 6 / 4 = 1.5 \n1 + 1 + 1 = 3\n5 / 0 = 0\n2 + 2 = 5"
    found = equations(text)
    assert found[0] == Equation(Fraction(12), "+", Fraction(7), Fraction(19))
    assert [e.operator for e in found] == ["+", "*", "/", "/", "+"]
    assert [e.holds for e in found] == [True, True, True, False, False]


NUMBER, INTEGER = {"type": "number"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("value", "gold", "schema", "equal"),
    [
        (5, 5.0, NUMBER, True), (5.0, 5, NUMBER, True), (5, 5.0, INTEGER, False), (5.0, 5, INTEGER, False),
        (5, 5, {}, True),
        (5, 5.0, {}, False), (True, 1, NUMBER, False), (1, True, {}, False), (True, True, {}, True),
        ("5", 5, NUMBER, False),
        ("Oslo", "oslo", {}, False), (["a", "b"], ["b", "a"], {}, False), ([1], [1.0], {"items": NUMBER}, True),
        ([1], [1, 2], {}, False), ({"a": 1}, {"a": 1.0}, {"properties": {"a": NUMBER}}, True),
        ({"a": 1}, {}, {}, False),
        (None, None, {}, True), (None, 0, {}, False), (5, 5.0, {"type": "float"}, True),
        (5, 5.0, {"type": ["null", "number"]}, True),
    ],
)  # fmt: skip
def test_equal_values(value: object, gold: object, schema: dict, equal: bool):
    assert equal_values(value, gold, schema) is equal


@pytest.mark.parametrize(
    ("value", "schema", "count"),
    [
        ("a", {"type": "string"}, 0), (1, {"type": "string"}, 1), (True, INTEGER, 1), (1.0, INTEGER, 1), (1, NUMBER, 0),
        (None, {"type": ["string", "null"]}, 0), ("c", {"type": "string", "enum": ["a", "b"]}, 1),
        (["a", 1, 2], {"type": "array", "items": {"type": "string"}}, 2),
        (3, {"anyOf": [{"type": "string"}, INTEGER]}, 0),
        ([], {"anyOf": [{"type": "string"}, INTEGER]}, 1), ({"a": 1}, {"type": "object"}, 0),
        ({"a": "x"}, {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "required": ["a", "b"]}, 2),
        ({"c": 1}, {"type": "object", "properties": {}}, 1), (1, {"type": "any"}, 0), (1, {}, 0),
        ({"c": 1}, {"type": "object", "properties": {}, "additionalProperties": True}, 0), (1, {"type": "int"}, 0),
    ],
)  # fmt: skip
def test_value_problems(value: object, schema: dict, count: int):
    assert len(value_problems(value, schema, "v")) == count


def test_an_unknown_type_is_an_error_not_a_pass():
    with pytest.raises(NexusError, match="E-DAT-30"):
        value_problems(1, {"type": "strnig"}, "v")


TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "", "parameters": {
        "type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "string"}}, "required": ["a"]}}},
    {"type": "function", "function": {"name": "now", "description": ""}},
]  # fmt: skip


def test_call_problems():
    assert call_problems(ToolCall("f", {"a": 1, "b": "x"}), TOOLS) == []
    assert call_problems(ToolCall("now", {}), TOOLS) == []
    assert call_problems(ToolCall("now", {"a": 1}), TOOLS) == ["now.a is not in the schema"]
    assert call_problems(ToolCall("f", {"b": "x"}), TOOLS) == ["f.a is missing"]
    assert call_problems(ToolCall("g", {}), TOOLS) == ["g is not on offer"]
    assert call_problems(ToolCall("f", {"a": 1, "a_": 2}), [TOOLS[0]["function"]]) == ["f.a_ is not in the schema"]


def test_count_matches_counts_each_call_once_in_any_order():
    one, two = {"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"a": 2.5}}
    assert count_matches([ToolCall("f", {"a": 2.5}), ToolCall("f", {"a": 1.0})], [one, two], TOOLS) == 2
    assert count_matches([ToolCall("f", {"a": 1})], [one, one], TOOLS) == 1
    assert count_matches([], [one], TOOLS) == 0


def test_the_grammar_needs_no_torch():
    code = (
        "import sys, nexus.text.tool_calls, nexus.text.call_match, nexus.text.answers\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'lightning', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numbers_of_thousands_of_digits_are_none():
    huge = "9" * 5000
    assert equations(f"{huge} + 1 = {huge}") == []
    assert not same_number(huge, "9")
    assert not same_number("9", huge)
