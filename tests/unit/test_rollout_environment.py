"""Conversations with an environment: what is executed, what is read, what counts, and where they end."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import pytest

from nexus.data.synthetic.tool_results import rows
from nexus.data.template import encode_prompts, tokenize_example
from nexus.errors import NexusError
from nexus.rollout.environment import (
    Conversation,
    converse,
    insist_on_results,
    make_environment,
    result_tokens,
)
from nexus.types import Example, Generation
from tests import small

ROWS = list(rows(view="sft", split="train", count=8, seed=6))
TOKENIZER = small.make_tokenizer()
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def other_tokenizer(template: str) -> Any:
    made = copy.deepcopy(TOKENIZER)
    made.chat_template = template
    return made


def example(row: dict[str, Any], turns: int) -> Example:
    return Example(row["id"], "rows", tuple(row["messages"][:turns]), tools=tuple(row["tools"]))


def spoken(text: str, *, finished: bool = True) -> Generation:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"] + [TOKENIZER.eos_token_id] * finished
    return Generation(tuple(ids), text, tuple(-0.5 for _ in ids), finished)


def call_text(row: dict[str, Any]) -> str:
    message = row["messages"][1]
    calls = [json.dumps(call["function"]) for call in message["tool_calls"]]
    return "\n".join([message["content"], *(f"<tool_call>{call}</tool_call>" for call in calls)])


class Script:
    """Says given turns; keeps what it was asked."""

    def __init__(self, *turns: Sequence[str | Generation]) -> None:
        self.turns = turns
        self.asked: list[tuple[tuple[int, ...], int, int]] = []
        self.prompts: list[list[list[int]]] = []

    def __call__(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], turn: int, limit: int) -> Any:
        self.asked.append((tuple(rows), turn, limit))
        self.prompts.append([list(prompt) for prompt in prompts])
        said = [self.turns[turn][row] for row in rows]
        return [one if isinstance(one, Generation) else spoken(one) for one in said]


def run(
    script: Script, chosen: Sequence[dict[str, Any]], *, max_turns: int = 3, limit: int = 300
) -> list[Conversation]:
    return converse(
        answer=script,
        tokenizer=TOKENIZER,
        prompts=encode_prompts(TOKENIZER, [example(row, 1) for row in chosen]),
        tools=[row["tools"] for row in chosen],
        environment=make_environment({"name": "tools", "max_turns": max_turns}),
        max_new_tokens=limit,
    )


def test_tokens_and_mask_are_those_of_the_whole_conversation() -> None:
    """The second implementation is the supervised path: the template over all turns at once, with its own mask."""
    script = Script([call_text(row) for row in ROWS], [row["messages"][3]["content"] for row in ROWS])
    for row, said in zip(ROWS, run(script, ROWS), strict=True):
        whole = tokenize_example(TOKENIZER, example(row, 4), count_tokens="completion", max_seq_len=1024)
        start = len(encode_prompts(TOKENIZER, [example(row, 1)])[0])
        ours = list(said.token_ids)
        assert ours == whole.input_ids[start : start + len(ours)]
        assert list(said.loss_mask) == whole.loss_mask[start : start + len(ours)]
        assert whole.loss_mask[start + len(ours) :] in ([], [False])  # the line break behind the last turn
        assert 0 < sum(said.loss_mask) == len(said.logprobs) < len(ours)
        assert [turn["role"] for turn in said.turns] == ["assistant", "tool", "assistant"]
        assert said.turns[1]["content"] == row["messages"][2]["content"]
        assert said.turns[1]["name"] == row["messages"][2]["name"]
        assert said.text == f"{call_text(row)}\n{row['messages'][3]['content']}"
        assert said.finished


def test_the_second_turn_reads_the_result_and_only_rows_with_a_call_have_one() -> None:
    first = [call_text(ROWS[0]), "none of the tools can do that.", call_text(ROWS[2])]
    script = Script(first, ["x", "never asked", "y"])
    found = run(script, ROWS[:3])
    assert [asked[:2] for asked in script.asked] == [((0, 1, 2), 0), ((0, 2), 1)]
    for row, prompt in zip((ROWS[0], ROWS[2]), script.prompts[1], strict=True):
        assert prompt == encode_prompts(TOKENIZER, [example(row, 3)])[0]
    assert [len(said.turns) for said in found] == [3, 1, 3]
    assert all(found[1].loss_mask)


def test_turns_end_and_the_last_calls_are_not_executed() -> None:
    script = Script(*[[call_text(ROWS[0])]] * 3)
    [said] = run(script, ROWS[:1], max_turns=3, limit=1000)
    assert [turn["role"] for turn in said.turns] == ["assistant", "tool"] * 2 + ["assistant"]
    assert said.finished
    [alone] = converse(
        answer=Script([call_text(ROWS[0])]),
        tokenizer=TOKENIZER,
        prompts=[[5]],
        tools=[ROWS[0]["tools"]],
        environment=None,
        max_new_tokens=1000,
    )
    assert [turn["role"] for turn in alone.turns] == ["assistant"]


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ('<tool_call>{"name": "fly_away", "arguments": {}}</tool_call>', ["unknown function"]),
        ('<tool_call>{"name": "<|im_end|>", "arguments": {}}</tool_call>', ["unknown function"]),
        ("<tool_call>{broken</tool_call>", ["not a call"]),
        ('<tool_call>{broken</tool_call><tool_call>{"name": "f", "arguments": {}}</tool_call>',
         ["unknown function", "not a call"]),
    ],
)  # fmt: skip
def test_mistakes_get_an_error_that_holds_nothing_of_theirs(text: str, errors: list[str]) -> None:
    [said] = run(Script([text], ["sorry"]), ROWS[:1])
    results = [turn for turn in said.turns if turn["role"] == "tool"]
    assert [json.loads(turn["content"]) for turn in results] == [{"error": error} for error in errors]
    assert all(turn["name"] == "unknown" for turn in results)
    read = [token for token, own in zip(said.token_ids, said.loss_mask, strict=True) if not own]
    assert read.count(TOKENIZER.eos_token_id) == len(errors), "one end of turn for each result, none made up"


def test_the_limit_holds_for_the_whole_conversation() -> None:
    whole = run(Script([call_text(ROWS[0])], ["good bye and thank you"]), ROWS[:1])[0]
    first, read = len(spoken(call_text(ROWS[0])).token_ids), whole.loss_mask.count(False)
    cut = run(Script([call_text(ROWS[0])], ["good bye and thank you"]), ROWS[:1], limit=first + read + 2)[0]
    assert len(cut.token_ids) == first + read + 2
    assert cut.token_ids == whole.token_ids[: first + read + 2]
    assert cut.logprobs == whole.logprobs[: first + 2]
    assert not cut.finished
    assert whole.turns[-1]["content"].startswith(cut.turns[-1]["content"])
    # no room for a word after the result: it ends where the call was made, and not by itself
    full = run(Script([call_text(ROWS[0])]), ROWS[:1], limit=first + read)[0]
    assert len(full.token_ids) == first
    assert not full.finished
    assert all(full.loss_mask)
    unfinished = run(Script([spoken(call_text(ROWS[0]), finished=False)]), ROWS[:1])[0]
    assert len(unfinished.turns) == 1, "a call that the limit cut off is not executed"


def test_rows_of_one_turn_share_one_limit_and_keep_their_own() -> None:
    long = [call_text(ROWS[0]), f"so be it, as you wish, at once: {call_text(ROWS[1])}"]
    script = Script(long, ["a b c d e f g h i j k l m n o p", "a b c d e f g h i j k l m n o p"])
    found = run(script, ROWS[:2], limit=max(len(spoken(text).token_ids) for text in long) + 32)
    assert all(len(said.token_ids) <= script.asked[0][2] for said in found)
    rooms = [script.asked[0][2] - len(prompt) + len(start)
             for prompt, start in zip(script.prompts[1], script.prompts[0], strict=True)]  # fmt: skip
    assert script.asked[1][2] == max(rooms)
    assert rooms[0] != rooms[1]


def test_thinking_of_earlier_turns_is_left_out_of_the_text() -> None:
    [said] = run(Script([f"<think>hm</think>{call_text(ROWS[0])}"], ["<think>so</think>done"]), ROWS[:1])
    assert said.text == f"{call_text(ROWS[0])}\n<think>so</think>done"


def test_templates_that_cannot_go_on_are_refused() -> None:
    insist_on_results(TOKENIZER)
    insist_on_results(other_tokenizer(CHATML))
    for template in (
        CHATML.replace("<|im_end|>", "<|endoftext|>"),  # another end of turn than the tokenizer's
        CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'tool' }}"),  # leaves results out
    ):
        with pytest.raises(NexusError, match="template") as caught:
            insist_on_results(other_tokenizer(template))
        assert caught.value.code == "E-TOK-12"


def test_another_template_writes_results_its_own_way() -> None:
    tokenizer = other_tokenizer(CHATML)
    turn = {"role": "tool", "name": "f", "content": '{"total": 7}'}
    [ids] = result_tokens(tokenizer, [[turn, turn]])
    one = '<|im_start|>tool\n{"total": 7}<|im_end|>\n'
    assert tokenizer.decode(ids) == f"\n{one}{one}<|im_start|>assistant\n"
