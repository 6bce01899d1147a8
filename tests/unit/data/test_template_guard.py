"""Templates from outside: what the probe finds, and that none can hang or fill the process that reads rows."""

import time
from typing import Any

import pytest

from nexus.data.template import check_template, encode_prompts, tokenize_examples
from nexus.data.template_guard import is_shipped
from nexus.errors import NexusError
from nexus.types import Example

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"  # noqa: E501
HUNGRY = "{% set x = 'A' * 3000000000 %}"
LOUD = "{{ 'A' * 5000000 }}"  # jinja writes it out when it compiles: ten times as much takes the limit's 2 s
BOMBS = {"endless": ENDLESS, "hungry": HUNGRY, "loud": LOUD}


def talk(text: str = "Hi") -> Example:
    turns = ({"role": "user", "content": text}, {"role": "assistant", "content": "Hello."})
    return Example(id="own.jsonl:7", source="own", messages=turns)


def findings(tokenizer: Any, template: str) -> list[tuple[str, str]]:
    tokenizer.chat_template = template
    return [(finding.code, finding.part) for finding in check_template(tokenizer)]


def test_shipped_templates_need_no_child(tiny_tokenizer: Any, tokenizer: Any) -> None:
    assert is_shipped(tiny_tokenizer)
    tokenizer.chat_template += " "
    assert not is_shipped(tokenizer)
    assert check_template(tokenizer) == []  # the same, probed
    tokenizer.chat_template = None
    assert is_shipped(tokenizer)
    assert check_template(tokenizer) == []


def test_a_template_of_another_make_passes(qwen_tokenizer: Any) -> None:
    assert check_template(qwen_tokenizer) == []


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, [("E-TOK-07", "tools")]),
        (
            CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
            [("E-TOK-07", "system"), ("E-TOK-07", "tools")],
        ),  # noqa: E501
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
            + CHATML,
            [("E-TOK-06", "system"), ("E-TOK-07", "tools")],
        ),  # noqa: E501
        (
            CHATML.replace("{% for m in messages %}", "{% for m in messages[-1:] %}"),
            [("E-TOK-07", "user and assistant"), ("E-TOK-07", "system"), ("E-TOK-07", "tools"), ("E-TOK-08", "prompt")],
        ),  # noqa: E501
        ("{% if add_generation_prompt %}Answer! {% endif %}" + CHATML, [("E-TOK-07", "tools"), ("E-TOK-08", "prompt")]),
        ("{{ 1 / 0 }}", [("E-TOK-06", part) for part in ("user and assistant", "system", "tools")]),
        ("{{ 'x' if }}", [("E-TOK-06", part) for part in ("user and assistant", "system", "tools")]),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            [("E-TOK-06", part) for part in ("user and assistant", "system", "tools")],
        ),  # noqa: E501
    ],
    ids=["no tools", "loses system", "refuses system", "last turn only", "prefix", "division", "syntax", "recursion"],
)
def test_what_is_wrong_is_named(tokenizer: Any, template: str, expected: list[tuple[str, str]]) -> None:
    assert findings(tokenizer, template) == expected


def test_messages_say_which_turn_and_what_changed(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML.replace("{% for m in messages %}", "{% for m in messages[-1:] %}")
    first = check_template(tokenizer)[0]
    assert "the user turn 'Quokka one asks?'" in first.message
    assert "base_model.chat_template" in first.remedy
    tokenizer.chat_template = "{% if add_generation_prompt %}Answer! {% endif %}" + CHATML
    assert "behind 'Answer! <|im_start|>user" in check_template(tokenizer)[-1].message


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_stopped_by_the_probe(tokenizer: Any, kind: str) -> None:
    tokenizer.chat_template = BOMBS[kind] + CHATML
    started = time.process_time()
    with pytest.raises(NexusError, match="the chat template was stopped") as caught:
        check_template(tokenizer)
    assert (caught.value.code, caught.value.status) == ("E-SEC-04", 77)
    assert time.process_time() - started < 2  # of this process: the work was the child's


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_that_wait_for_a_row_are_stopped_too(tokenizer: Any, kind: str) -> None:
    tokenizer.chat_template = "{% if 'boom' in messages[0].content %}" + BOMBS[kind] + "{% endif %}" + CHATML
    assert ("E-SEC-04", "any") not in findings(tokenizer, tokenizer.chat_template)
    rows = [talk(), talk("boom")]
    with pytest.raises(NexusError, match="the chat template was stopped") as caught:
        tokenize_examples(tokenizer, rows, count_tokens="completion")
    assert caught.value.code == "E-SEC-04"
    assert "own.jsonl:7" in caught.value.where
    with pytest.raises(NexusError, match="the chat template was stopped"):
        encode_prompts(tokenizer, rows)
    assert len(tokenize_examples(tokenizer, rows[:1], count_tokens="completion")) == 1


def test_an_escape_is_a_matter_of_safety(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages.__class__.__base__ }}"
    with pytest.raises(NexusError, match="escape its sandbox") as caught:
        check_template(tokenizer)
    assert caught.value.code == "E-SEC-03"


def test_limits_change_no_token(tokenizer: Any, tiny_tokenizer: Any) -> None:
    rows = [talk(f"row {n} 🦘") for n in range(600)] + [Example(id="t", source="own", text="plain")]
    free = tokenize_examples(tiny_tokenizer, rows, count_tokens="completion")
    tokenizer.chat_template += " "
    for processes in (1, 2):
        assert tokenize_examples(tokenizer, rows, count_tokens="completion", processes=processes) == free
    assert tokenize_examples(tiny_tokenizer, rows, count_tokens="completion", processes=3) == free
    assert encode_prompts(tokenizer, rows[:3]) == encode_prompts(tiny_tokenizer, rows[:3])


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_keep_their_place(tokenizer: Any, processes: int) -> None:
    rows = [talk(str(n)) for n in range(700)]
    lost = tuple({**turn, "role": "bystander"} if turn["role"] == "user" else turn for turn in rows[0].messages)
    for index in (650, 300):
        rows[index] = Example(id=f"bad:{index}", source="own", messages=lost)
    tokenizer.chat_template = CHATML.replace("in messages", "in messages if m.role != 'bystander'")
    with pytest.raises(NexusError) as caught:
        tokenize_examples(tokenizer, rows, count_tokens="completion", processes=processes)
    assert (caught.value.code, caught.value.where) == ("E-TOK-07", "bad:300")
