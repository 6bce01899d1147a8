"""Tool calls of public rows, written by chat templates in the styles of Qwen, Llama and Hermes, are read back the same.

The templates are short, but write calls, tools and results in the way of those families. What is read back is what the
loss mask says is learned, so a wrong mask fails here too.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from nexus.data.formats import to_example
from nexus.data.template import tokenize_example
from nexus.errors import NexusError
from nexus.text.think import split_think
from nexus.text.tool_calls import parse_answer
from nexus.types import Example

FOLDER = Path(__file__).parent / "schemas"

QWEN = (
    "{%- set ns = namespace(first=messages[0].role == 'system') %}"
    "{%- if tools %}{{- '<|im_start|>system\n' + (messages[0].content if ns.first else 'You are helpful.') }}"
    "{{- '\n\n# Tools\n\n<tools>' }}{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}"
    '{{- \'\n</tools>\n\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>\' }}'
    "{{- '<|im_end|>\n' }}"
    "{%- elif ns.first %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\n' + message.content }}"
    "{%- for call in message.tool_calls %}"
    "{%- if not loop.first or message.content %}{{- '\n' }}{%- endif %}"
    '{{- \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA = (
    "{%- macro header(role) %}{{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}{%- endmacro %}"
    "{{- '<|begin_of_text|>' }}"
    "{%- if messages[0].role == 'system' or tools %}{{- header('system') }}"
    "{%- if tools %}{{- 'Environment: ipython\n' }}{%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\n\n' }}"
    "{%- endfor %}{%- endif %}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content | trim }}{%- endif %}{{- '<|eot_id|>' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}"
    "{{- header('ipython') }}{{- message.content }}{{- '<|eot_id|>' }}"
    "{%- elif message.tool_calls is defined %}"
    "{%- if message.tool_calls | length != 1 %}"
    "{{- raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}"
    "{%- set call = message.tool_calls[0].function %}{{- header('assistant') }}"
    "{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}"
    "{%- elif message.role != 'system' %}{{- header(message.role) }}{{- message.content | trim }}{{- '<|eot_id|>' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- header('assistant') }}{%- endif %}"
)
HERMES = (
    "{%- if tools %}{{- '<|im_start|>system\nYou are a function calling AI model. <tools> ' }}"
    "{%- for tool in tools %}{{- tool | tojson }}{{- '' if loop.last else '\n' }}{%- endfor %}"
    "{{- ' </tools> For each function call return JSON within <tool_call></tool_call> tags.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' and message.tool_calls is defined %}{{- '<|im_start|>assistant' }}"
    "{%- for call in message.tool_calls %}"
    "{{- '\n<tool_call>\n' }}{{- {'arguments': call.function.arguments, 'name': call.function.name} | tojson }}"
    "{{- '\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{{- '<|im_start|>tool\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant' }}{%- endif %}"
)
#: Template and token that ends a turn.
STYLES = {"qwen": (QWEN, "<|im_end|>"), "llama": (LLAMA, "<|eot_id|>"), "hermes": (HERMES, "<|im_end|>")}
SETS = ("xlam_60k", "hermes_func_calling", "glaive_v2", "glaive_sharegpt", "apigen_mt_5k", "mobile_actions")


@pytest.fixture(scope="module", params=sorted(STYLES))
def style(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> tuple[str, Any, str]:
    """Name of a style, a tokenizer that has it, and its end-of-turn token."""
    template, end = STYLES[request.param]
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|begin_of_text|>", "<|eot_id|>"]})
    tokenizer.chat_template = template
    return request.param, tokenizer, end


def examples(name: str) -> list[Example]:
    fixture = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return [
        to_example(row, place=f"{name}:{i}", source=name, view="sft", fields={})
        for i, row in enumerate(fixture["rows"])
    ]


def learned_answers(tokenizer: Any, end: str, example: Example) -> list[str]:
    """What the loss mask marks, turn by turn."""
    row = tokenize_example(tokenizer, example, count_tokens="completion", max_seq_len=4096)
    text = tokenizer.decode([token for token, counts in zip(row.input_ids, row.loss_mask, strict=True) if counts])
    answers = text.split(end)
    assert not answers.pop().strip()
    return answers


@pytest.mark.parametrize("name", SETS)
def test_calls_come_back(style: tuple[str, Any, str], name: str) -> None:
    which, tokenizer, end = style
    compared = 0
    for example in examples(name):
        said = [message for message in example.messages if message["role"] == "assistant"]
        if which == "llama" and any(len(message.get("tool_calls", ())) > 1 for message in said):
            with pytest.raises(NexusError, match="single tool-calls") as caught:
                tokenize_example(tokenizer, example, count_tokens="completion", max_seq_len=4096)
            assert (caught.value.code, caught.value.where) == ("E-TOK-06", example.id)
            continue
        answers = learned_answers(tokenizer, end, example)
        assert len(answers) == len(said)
        for answer, message in zip(answers, said, strict=True):
            parsed = parse_answer(answer)
            wanted = [
                (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())
            ]
            assert [(call.name, call.arguments) for call in parsed.calls] == wanted
            assert parsed.malformed == []
            assert parsed.text == message["content"].strip()
            compared += len(wanted)
    assert compared >= 1


def test_reasoning_reaches_templates_that_have_no_field_for_it(style: tuple[str, Any, str]) -> None:
    _, tokenizer, end = style
    for name in ("openthoughts_114k", "s1k_1_1", "cot_collection"):
        for example in examples(name):
            [answer] = learned_answers(tokenizer, end, example)
            thought = split_think(answer)
            assert thought.thinking == example.messages[-1]["reasoning_content"]
            assert thought.answer == example.messages[-1]["content"]


def test_reasoning_that_a_template_drops_is_noticed(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    [example, _] = examples("s1k_1_1")
    assert "Wait, check" in learned_answers(tokenizer, "<|im_end|>", example)[0]
    tokenizer.chat_template = tokenizer.chat_template.replace("'<think>' + message.reasoning_content", "'<think>'")
    with pytest.raises(NexusError, match="leaves out the reasoning") as caught:
        learned_answers(tokenizer, "<|im_end|>", example)
    assert caught.value.code == "E-TOK-07"
