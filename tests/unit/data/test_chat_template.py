"""What is learned of a conversation: the template's own mask, the end of the turn, nothing of the prompt."""

from typing import Any

import pytest

from nexus.data.sources import BadRows
from nexus.data.template import encode_prompts, limit_rows, tokenize_example, tokenize_examples
from nexus.data.token_rows import TokenRows
from nexus.errors import NexusError
from nexus.types import Example, TokenizedExample

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
    },
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, *calls: dict[str, Any]) -> dict[str, Any]:
    if not calls:
        return {"role": "assistant", "content": text}
    tool_calls = [{"type": "function", "function": {"name": "add", "arguments": call}} for call in calls]
    return {"role": "assistant", "content": text, "tool_calls": tool_calls}


SYSTEM = {"role": "system", "content": "Be brief."}
RESULT = {"role": "tool", "content": "2"}

CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "one turn": ([user("Hi"), says("Hello.")], []),
    "system": ([SYSTEM, user("Hi"), says("Hello.")], []),
    "three turns": ([user("1?"), says("One."), user("2?"), says("Two."), user("3?"), says("Three.")], []),
    "line breaks at the edges": ([user("\nHi\n"), says("\n\nHello.\n\n"), user(" "), says(" ok ")], []),
    "other scripts": ([user("日本語? 🙂"), says("はい 🙂 — naïve é"), user("ok"), says("🙂")], []),
    "thinking": ([user("2*3?"), says("<think>3+3=6</think>\n<answer>6</answer>")], []),
    "tools offered, none called": ([user("Hi"), says("Hello.")], [ADD]),
    "one call": ([SYSTEM, user("1+1?"), says("", {"a": 1})], [ADD]),
    "parallel calls": ([user("Both."), says("", {"a": 1}, {"a": 2}, {"a": 3})], [ADD]),
    "call, result, answer": ([user("1+1?"), says("", {"a": 1}), RESULT, says("2")], [ADD]),
    "words and a call": (
        [user("1+1?"), says("Let me see.", {"a": {"b": ["é", None]}}), RESULT, RESULT, says("2")],
        [ADD],
    ),
    "ends with a question": ([user("Hi"), says("Hello."), user("Bye")], []),
}


def example(name: str) -> Example:
    messages, tools = CONVERSATIONS[name]
    return Example(id=f"f.jsonl:{name}", source="f", messages=tuple(messages), tools=tuple(tools))


def one(tokenizer: Any, row: Example, count: str = "completion") -> TokenizedExample:
    return tokenize_example(tokenizer, row, count_tokens=count, max_seq_len=10_000)  # type: ignore[arg-type]


def runs(tokenizer: Any, row: TokenizedExample) -> list[str]:
    """Decoded text of every learned run."""
    found: list[list[int]] = []
    for i, (token, counts) in enumerate(zip(row.input_ids, row.loss_mask, strict=True)):
        if counts and (i == 0 or not row.loss_mask[i - 1]):
            found.append([])
        if counts:
            found[-1].append(token)
    return [tokenizer.decode(ids) for ids in found]


def test_there_are_twelve() -> None:
    assert len(CONVERSATIONS) == 12


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_mask_is_the_templates_own(tiny_tokenizer: Any, name: str) -> None:
    wanted = tiny_tokenizer.apply_chat_template(
        CONVERSATIONS[name][0],
        tools=CONVERSATIONS[name][1] or None,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    row = one(tiny_tokenizer, example(name))
    assert row.input_ids == wanted["input_ids"]
    assert row.loss_mask == [bool(m) for m in wanted["assistant_masks"]]
    assert 0 < sum(row.loss_mask) < len(row.loss_mask)
    learned = runs(tiny_tokenizer, row)
    assert len(learned) == sum(m["role"] == "assistant" for m in CONVERSATIONS[name][0])
    assert all(text.endswith("<|im_end|>") for text in learned)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_mask_of_a_template_that_marks_nothing(qwen_tokenizer: Any, name: str) -> None:
    messages, tools = CONVERSATIONS[name]
    row = one(qwen_tokenizer, example(name))
    assert row.input_ids == qwen_tokenizer.apply_chat_template(messages, tools=tools or None, return_dict=False)
    learned = runs(qwen_tokenizer, row)
    answers = [(i, m) for i, m in enumerate(messages) if m["role"] == "assistant"]
    assert len(learned) == len(answers)
    for text, (index, message) in zip(learned, answers, strict=True):
        think = "<think>\n\n</think>\n\n" if index == len(messages) - 1 else ""
        assert text.startswith(think + message["content"])
        assert text.endswith("<|im_end|>")
        assert text.count("<tool_call>") == len(message.get("tool_calls", ()))


def test_both_ways_agree_where_the_template_is_the_same(tiny_tokenizer: Any, tokenizer: Any) -> None:
    plain = tokenizer.chat_template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    assert len(plain) < len(tokenizer.chat_template)
    tokenizer.chat_template = plain
    for name in CONVERSATIONS:
        assert one(tokenizer, example(name)) == one(tiny_tokenizer, example(name))


def test_prompt_is_the_beginning_of_prompt_and_answer(tiny_tokenizer: Any) -> None:
    for name in CONVERSATIONS:
        row = example(name)
        last = max(i for i, m in enumerate(row.messages) if m["role"] == "assistant")
        prompt = Example(id="p", source="f", messages=row.messages[:last], tools=row.tools)
        [ids] = encode_prompts(tiny_tokenizer, [prompt])
        whole = one(tiny_tokenizer, row)
        assert whole.input_ids[: len(ids)] == ids
        assert whole.loss_mask[len(ids)]
        assert not whole.loss_mask[len(ids) - 1]


def test_batches_equal_single_rows(tiny_tokenizer: Any) -> None:
    examples = [example(name) for name in CONVERSATIONS]
    examples.insert(3, Example(id="t", source="f", text="plain"))
    together = list(tokenize_examples(tiny_tokenizer, examples, count_tokens="completion"))
    assert together == [one(tiny_tokenizer, row) for row in examples]


def test_of_a_text_every_token_counts_and_the_end(tiny_tokenizer: Any) -> None:
    row = one(tiny_tokenizer, Example(id="t", source="f", text="plain text"))
    assert tiny_tokenizer.decode(row.input_ids) == "plain text<|im_end|>"
    assert all(row.loss_mask)
    assert row.num_target_tokens == len(row.input_ids) - 1


def test_count_all_tokens(tiny_tokenizer: Any, qwen_tokenizer: Any) -> None:
    for tokenizer in (tiny_tokenizer, qwen_tokenizer):
        row = one(tokenizer, example("call, result, answer"), "all")
        assert all(row.loss_mask)
        assert row.input_ids == one(tokenizer, example("call, result, answer")).input_ids


@pytest.mark.parametrize(
    ("template", "code", "words"),
    [
        (None, "E-TOK-05", "no chat template"),
        ("{% for m in messages %}{{ m.content }}", "E-TOK-06", "syntax error"),
        ("{{ raise_exception('roles must alternate') }}", "E-TOK-06", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "E-SEC-03", "sandbox"),
        (
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
            "E-TOK-04",
            "never stop",
        ),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}", "E-TOK-07", "system"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "E-TOK-08", "answer 2"),
    ],
)
def test_templates_that_cannot_be_used(tokenizer: Any, template: str | None, code: str, words: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(NexusError) as caught:
        one(tokenizer, example("system"))
    assert caught.value.code == code
    assert words in caught.value.message


def test_what_a_user_writes_in_think_tags_is_no_thought(tokenizer: Any) -> None:
    asked = "Note <think>1337</think> down. What stands in <think>?"
    row = one(tokenizer, Example(id="i", source="f", messages=(user(asked), says("1337"))))
    assert asked in tokenizer.decode(row.input_ids)


def test_marks_of_a_thought_inside_an_answer(tokenizer: Any) -> None:
    """Whichever row comes first: a template that writes all of it is right, one that drops the beginning is not."""
    keeps = tokenizer.chat_template
    cuts = "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
    plain = Example(id="plain", source="f", messages=(user("1?"), says("2")))
    marked = Example(id="marked", source="f", messages=(user("How?"), says("Write <think>so</think> and go on.")))
    for rows in ([plain, marked], [marked, plain]):
        tokenizer.chat_template = keeps
        row = list(tokenize_examples(tokenizer, rows, count_tokens="completion"))[rows.index(marked)]
        assert "Write <think>so</think> and go on." in tokenizer.decode(row.input_ids)
        tokenizer.chat_template = cuts
        with pytest.raises(NexusError, match="leaves out the assistant turn") as caught:
            list(tokenize_examples(tokenizer, rows, count_tokens="all"))
        assert caught.value.where == "marked"
        assert "at the start of its answer" in caught.value.remedy


def test_a_template_that_forgets_the_tools(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(NexusError, match="leaves out tools"):
        one(tokenizer, example("tools offered, none called"), "all")
    with pytest.raises(NexusError, match="leaves out tool_calls"):
        one(tokenizer, Example(id="i", source="f", messages=(user("1+1?"), says("", {"a": 1}))), "all")


def test_a_tool_result_may_be_written_as_json(tokenizer: Any) -> None:
    plain = tokenizer.chat_template
    old, new = "text_of(message.content) + '</tool_r", "(message.content | tojson) + '</tool_r"
    tokenizer.chat_template = plain.replace(old, new)
    assert tokenizer.chat_template != plain
    result = {"role": "tool", "content": 'say "é"\nplease'}
    messages = (user("1?"), says("", {"a": 1}), result, says("2"))
    row = one(tokenizer, Example(id="i", source="f", messages=messages, tools=(ADD,)))
    assert len(runs(tokenizer, row)) == 2


def rows_of_length(*lengths: int) -> list[TokenizedExample]:
    return [TokenizedExample(f"r{n}", "s", list(range(n)), [i >= 4 for i in range(n)]) for n in lengths]


def test_policies_for_long_rows() -> None:
    rows = TokenRows.of(rows_of_length(5, 9, 7))
    refuse = BadRows(0).refuse
    with pytest.raises(NexusError, match="2 of 3 rows are longer than data.max_seq_len=6, the longest has 9") as caught:
        limit_rows(rows, max_seq_len=6, long_rows="error", refuse=refuse)
    assert (caught.value.code, caught.value.where) == ("E-LEN-01", "r9")
    kept, counts = limit_rows(rows, max_seq_len=6, long_rows="drop", refuse=refuse)
    assert [row.id for row in kept] == ["r5"]
    assert (counts.kept, counts.truncated, counts.dropped) == (1, 0, {"too_long": 2})
    kept, counts = limit_rows(rows, max_seq_len=6, long_rows="truncate", refuse=refuse)
    assert [len(row.input_ids) for row in kept] == [5, 6, 6]
    assert all(len(row.input_ids) == len(row.loss_mask) for row in kept)
    assert (counts.kept, counts.truncated, counts.dropped) == (3, 2, {})
    kept, counts = limit_rows(rows, max_seq_len=4, long_rows="truncate", refuse=refuse)
    assert (kept, counts.dropped) == ([], {"answer_beyond_max_seq_len": 3})
    kept, counts = limit_rows(rows, max_seq_len=9, long_rows="error", refuse=refuse)
    assert (kept, counts.truncated) == (rows, 0)


def test_rows_with_nothing_to_learn(tiny_tokenizer: Any) -> None:
    silent = Example(id="f.jsonl:2", source="f", messages=(user("Hi"),))
    with pytest.raises(NexusError, match="no assistant turn") as caught:
        one(tiny_tokenizer, silent)
    assert (caught.value.code, caught.value.where) == ("E-DAT-15", "f.jsonl:2")
    rows = tokenize_examples(tiny_tokenizer, [silent, example("one turn")], count_tokens="completion")
    kept, counts = limit_rows(rows, max_seq_len=99, long_rows="error", refuse=BadRows(1).refuse)
    assert [row.id for row in kept] == ["f.jsonl:one turn"]
    assert counts.dropped == {"nothing_to_learn": 1}
