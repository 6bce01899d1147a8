"""Haystacks of the needle benchmark: as long as they say, one right answer, no fact in both splits."""

from __future__ import annotations

import random

import pytest

from tests.benchmarks.models import load_tokenizer
from tests.benchmarks.needle import LENGTHS, QUESTIONS, encode, haystack


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("questions", [1, QUESTIONS])
def test_a_haystack_is_as_long_as_it_says_and_answers_its_questions(tokens: int, questions: int) -> None:
    tokenizer = load_tokenizer()
    chat = haystack(random.Random(tokens), tokenizer, split="eval", tokens=tokens, questions=questions)
    assert [message["role"] for message in chat] == ["user", "assistant"] * questions
    length = len(encode(tokenizer, chat if questions > 1 else chat[:1]))
    assert tokens - 48 < length <= tokens  # the next line of the table did not fit
    *lines, first = chat[0]["content"].split("\n")
    table = dict(line.split(": ", 1) for line in lines)
    assert len(table) == len(lines) == len(set(table.values()))
    asked = [first, *(message["content"] for message in chat[2::2])]
    keys = [question.removeprefix("What is ").removesuffix("?") for question in asked]
    assert len(set(keys)) == questions
    assert [table[key] for key in keys] == [message["content"] for message in chat[1::2]]


def test_no_fact_is_in_both_splits() -> None:
    tokenizer = load_tokenizer()
    facts: dict[str, set[str]] = {}
    for split in ("train", "eval"):
        rng = random.Random(split)
        chats = [haystack(rng, tokenizer, split=split, tokens=1024, questions=1) for _ in range(20)]
        facts[split] = {line for chat in chats for line in chat[0]["content"].split("\n")[:-1]}
        assert len(facts[split]) > 1000
    assert not facts["train"] & facts["eval"]
