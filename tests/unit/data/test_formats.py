"""Every schema becomes the same conversation; everything else is refused with its place."""

import json
import re
from typing import Any

import pytest

from nexus.data.formats import to_example
from nexus.data.sources import generate_rows
from nexus.data.synthetic.pretrain import LATE_ROWS
from nexus.data.synthetic.pretrain import row as pretrain_row
from nexus.errors import NexusError
from nexus.types import Example

WANTED = ({"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "2"})
SYSTEM = {"role": "system", "content": "Be brief."}
SPEC = {"name": "add", "description": "Add", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": SPEC}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def convert(row: dict[str, Any], view: str = "sft", fields: dict[str, str] | None = None) -> Example:
    return to_example(row, place="f.jsonl:7", source="f", view=view, fields=fields or {})


@pytest.mark.parametrize(
    "row",
    [
        {"messages": list(WANTED)},
        {"messages": json.dumps(WANTED)},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is 1+1?"}]}, WANTED[1]]},
        {"conversations": [{"from": "human", "value": "What is 1+1?"}, {"from": "gpt", "value": "2"}]},
        {"conversations": list(WANTED)},
        {"prompt": "What is 1+1?", "completion": "2"},
        {"prompt": [WANTED[0]], "completion": [WANTED[1]]},
        {"prompt": "What is 1+1?", "response": "2"},
        {"instruction": "What is 1+1?", "input": "", "output": "2"},
        {"instruction": "What is 1+1?", "output": "2", "input": None},
        {"instruction": "What is 1+1?", "response": "2"},
        {"question": "What is 1+1?", "answer": "2", "id": 3},
    ],
)
def test_schemas(row: dict[str, Any]) -> None:
    example = convert(row)
    assert example.messages == WANTED
    assert (example.id, example.source, example.tools, example.text) == ("f.jsonl:7", "f", (), None)


def test_system_input_text_and_renamed_columns() -> None:
    assert convert({"system": "Be brief.", "question": "What is 1+1?", "answer": "2"}).messages == (SYSTEM, *WANTED)
    alpaca = convert({"instruction": "Add.", "input": "1, 1", "output": "2"})
    assert alpaca.messages[0]["content"] == "Add.\n\n1, 1"
    assert convert({"text": "once"}).text == "once"
    assert convert({"q": "What is 1+1?", "a": "2"}, fields={"question": "q", "answer": "a"}).messages == WANTED


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        json.dumps(CALL),
        {"function": {"name": "add", "arguments": '{"a": 1}'}},
        {"name": "add", "arguments": {"a": 1}},
    ],
)
@pytest.mark.parametrize("tools", [[TOOL], [SPEC], json.dumps([TOOL]), [json.dumps(SPEC)]])
def test_tools_and_calls_in_every_spelling(call: Any, tools: Any) -> None:
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "content": "2", "name": "add"}
    example = convert({"messages": [WANTED[0], asked, result, WANTED[1]], "tools": tools})
    assert example.tools == (TOOL,)
    assert example.messages == (
        WANTED[0],
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "2", "name": "add"},
        WANTED[1],
    )


def test_sharegpt_function_call() -> None:
    turns = [
        {"from": "human", "value": "What is 1+1?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "2"},
    ]
    example = convert({"conversations": turns, "tools": json.dumps([SPEC]), "system": "Be brief."})
    assert [m["role"] for m in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert example.messages[2]["tool_calls"] == [CALL]


def test_preference_and_prompts() -> None:
    bad = {"role": "assistant", "content": "3"}
    for row in (
        {"prompt": [WANTED[0]], "chosen": [WANTED[1]], "rejected": [bad]},
        {"prompt": "What is 1+1?", "chosen": "2", "rejected": "3"},
        {"chosen": list(WANTED), "rejected": [WANTED[0], bad]},
    ):
        example = convert(row, view="preference")
        assert (example.messages, example.chosen, example.rejected) == ((WANTED[0],), (WANTED[1],), (bad,))
    example = convert({"prompt": [WANTED[0]], "gold": {"answer": "2"}, "tools": [TOOL]}, view="prompts")
    assert (example.messages, example.gold, example.tools) == ((WANTED[0],), {"answer": "2"}, (TOOL,))


@pytest.mark.parametrize("generator", ["tools", "cot", "reasoning", "thinking"])
@pytest.mark.parametrize("view", ["sft", "preference", "prompts"])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_embedded_generators_fit(generator: str, view: str, split: str) -> None:
    rows = list(generate_rows(generator, view=view, split=split, count=20, seed=3))
    assert len(rows) == 20
    examples = [to_example(row, place=place, source="g", view=view, fields={}) for place, row in rows]
    assert all(example.messages for example in examples)
    assert all((view == "preference") == bool(example.chosen and example.rejected) for example in examples)
    assert all((view == "prompts") == (example.gold is not None) for example in examples)


def test_pretraining_rows_are_read_word_for_word() -> None:
    """They speak of marks, and `<tool_call>Oslo</tool_call>` is no call there."""
    marked = 0
    for index in range(LATE_ROWS, LATE_ROWS + 1500):
        row = pretrain_row(index, split="train", seed=3)
        example = to_example(row, place="p", source="g", view="sft", fields={})
        assert example.text == row.get("text")
        said = [(m["role"], m["content"]) for m in row.get("messages", ())]
        assert [(m["role"], m["content"]) for m in example.messages] == said
        assert not any(m.keys() - {"role", "content"} for m in example.messages)
        marked += any("<tool_call>" in content or "<think>" in content for _, content in said)
    assert marked > 50


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ({"quesion": "a", "answr": "b"}, "E-DAT-12", "nearest is question+answer, missing: question, answer"),
        ({"instruct": "a", "output": "b"}, "E-DAT-12", "columns: instruct, output; the nearest is instruction+output"),
        ({"message": []}, "E-DAT-12", "nearest is messages"),
        ({}, "E-DAT-12", "columns: none"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "E-DAT-12", "view preference"),
        ({"prompt": "a", "gold": {}}, "E-DAT-12", "view prompts"),
        ({"messages": "hi"}, "E-DAT-05", "not JSON"),
        ({"messages": []}, "E-DAT-05", "messages is empty"),
        ({"messages": ["hi"]}, "E-DAT-05", "messages[0] must be an object"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "E-DAT-05", "'robot'"),
        ({"messages": [{"role": "user"}]}, "E-DAT-05", "messages[0] has no content"),
        ({"messages": [{"role": "user", "content": 3}]}, "E-DAT-05", "messages[0].content must be text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "E-DAT-05", "kind image"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "E-DAT-05", "tool_calls[0]"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "["}]}]},
            "E-DAT-05",
            "tool_calls[0].arguments is text that is not JSON",
        ),
        ({"messages": list(WANTED), "tools": [{}]}, "E-DAT-05", "tools[0]"),
        (
            {"prompt": "a", "completion": 3},
            "E-DAT-05",
            "completion must be text or a list of turns",
        ),
        ({"text": ["a"]}, "E-DAT-05", "text must be text"),
    ],
)
def test_refusals_name_place_and_reason(row: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(NexusError) as caught:
        convert(row)
    assert (caught.value.code, caught.value.where, caught.value.status) == (code, "f.jsonl:7", 65)
    assert words in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "reasoning", "answer"),
    [
        ("<think>\na\n</think>\n\nb", "a", "b"),
        ("  <think>a</think>b", "a", "b"),
        ("<think></think>b", None, "b"),
        ("<think>a</think>", "a", ""),
        ("<think>a, but it never ends", None, "<think>a, but it never ends"),
        ("b <think>a</think>", None, "b <think>a</think>"),
        ("<Thought>a</Thought>b", "a", "b"),
    ],
)
def test_reasoning_in_front_of_an_answer(content: str, reasoning: str | None, answer: str) -> None:
    turn = convert({"prompt": "q", "completion": content}).messages[1]
    assert turn == {"role": "assistant", "content": answer} | ({"reasoning_content": reasoning} if reasoning else {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('<tool_call>{"name": "add"', "without its other tag"),
        ('<tool_call>{"name": "add",}]</tool_call>', "neither JSON nor a Python literal"),
        ("<tool_call>[1]</tool_call>", "must be an object with name and arguments"),
        ("<tool_call>__import__('os').getcwd()</tool_call>", "neither JSON nor a Python literal"),
    ],
)
def test_broken_calls_in_text_are_refused_but_may_be_what_is_rejected(content: str, words: str) -> None:
    with pytest.raises(NexusError, match=re.escape(words)):
        convert({"prompt": "q", "completion": content})
    pair = {"prompt": "q", "chosen": json.dumps(CALL), "rejected": content}
    assert convert(pair, view="preference").rejected == ({"role": "assistant", "content": content},)


@pytest.mark.parametrize(("given", "read"), [(2, 2.0), (0.25, 0.25), ("0.5", 0.5), ("", None), (None, None)])
def test_margins(given: Any, read: float | None) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_gap": given}
    example = to_example(row, place="x", source="s", view="preference", fields={"margin": "score_gap"})
    assert example.margin == read


@pytest.mark.parametrize("given", [-1, "much", float("nan"), float("inf"), True, [1.0]])
def test_margins_that_are_no_lead(given: Any) -> None:
    with pytest.raises(NexusError, match="margin must be a number of at least 0") as caught:
        convert({"prompt": "q", "chosen": "a", "rejected": "b", "margin": given}, view="preference")
    assert caught.value.code == "E-DAT-05"


def test_pairs_without_a_preference_are_refused() -> None:
    with pytest.raises(NexusError) as caught:
        convert({"prompt": "q", "chosen": "a", "rejected": "a"}, view="preference")
    assert (caught.value.code, caught.value.where) == ("E-PREF-01", "f.jsonl:7")
    with pytest.raises(NexusError, match="no turn in common"):
        convert({"chosen": "a", "rejected": "b"}, view="preference")


def test_golds_that_no_metric_compares_are_refused() -> None:
    with pytest.raises(NexusError, match="is not a number"):
        convert({"problem": "Which sign?", "answer": "\\text{positive}"}, view="prompts")


@pytest.mark.parametrize("answer", ["output", "response"])
@pytest.mark.parametrize("extra", ["input", "context"])
def test_an_instruction_is_read_with_what_it_is_about(answer: str, extra: str) -> None:
    row = {"instruction": "Add.", extra: "1, 1", answer: "2"}
    example = to_example(row, place="rows:1", source="rows", view="sft", fields={})
    assert example.messages[0]["content"] == "Add.\n\n1, 1"
    pair = {"instruction": "Add.", extra: "1, 1", "chosen": "2", "rejected": "3"}
    example = to_example(pair, place="rows:1", source="rows", view="preference", fields={})
    assert example.messages[-1]["content"] == "Add.\n\n1, 1"


@pytest.mark.parametrize(
    ("view", "row", "lost"),
    [
        ("sft", {"prompt": "Add.", "input": "1, 1", "response": "2"}, "input"),
        ("sft", {"prompt": "Add.", "context": "1, 1", "completion": "2"}, "context"),
        ("sft", {"question": "And?", "answer": "2", "history": [["Hi", "Hello"]]}, "history"),
        ("sft", {"instruction": "And?", "output": "2", "history": [["Hi", "Hello"]]}, "history"),
        ("sft", {"text": "Once", "system": "Be brief."}, "system"),
        ("sft", {"prompt": "Add.", "completion": "2", "response": "3"}, "response"),
        ("sft", {"query": "Add.", "response": "2", "system": "a", "system_prompt": "b"}, "system_prompt"),
        ("prompts", {"question": "Add.", "answer": "2", "context": "1, 1"}, "context"),
        ("prompts", {"prompt": "Add.", "gold": {"answer": "2"}, "input": "1, 1"}, "input"),
        ("preference", {"prompt": "Add.", "input": "1, 1", "chosen": "2", "rejected": "3"}, "input"),
        ("preference", {"prompt": "Add.", "input": "1, 1", "completion": "2", "label": True}, "input"),
    ],
)
def test_a_row_whose_schema_would_lose_a_part_of_it_is_refused(view: str, row: dict[str, Any], lost: str) -> None:
    with pytest.raises(NexusError) as error:
        to_example(row, place="rows:1", source="rows", view=view, fields={})
    assert error.value.code == "E-DAT-05"
    assert f"what stands in {lost} would be lost" in str(error.value)
    kept = {key: "" if key == lost else value for key, value in row.items()}
    assert to_example(kept, place="rows:1", source="rows", view=view, fields={}).source == "rows"


def test_an_answer_that_must_not_be_learned_is_refused() -> None:
    turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2", "weight": 0}]
    with pytest.raises(NexusError, match=r"messages\[1\].weight is 0"):
        convert({"messages": turns})
    turns[1]["weight"] = 1
    assert convert({"messages": turns}).messages[1]["content"] == "2"
