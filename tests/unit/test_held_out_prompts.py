"""Prompts that leave no room for an answer: refused before the work, or left out, counted and told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nexus.data.template import encode_prompts
from nexus.errors import NexusError
from nexus.models.facts import read_facts
from nexus.stages.held_out_prompts import held_out_prompts
from nexus.stages.prepare import Prepared
from tests import small


def setting(room: int, *, long_rows: str, method: str = "sft") -> tuple[dict[str, Any], Prepared, list[int]]:
    """A run on a model with `room` more positions than its longest held-out prompt and an answer need."""
    tokenizer = small.make_tokenizer()
    corpus = small.make_corpus(tokenizer, setup=False)
    lengths = [len(ids) for ids in encode_prompts(tokenizer, corpus.eval_prompts("tools"))]
    assert len(set(lengths)) == 2
    facts = replace(read_facts(small.ASSETS / "nexus_tiny"), max_position_embeddings=max(lengths) + 8 + room)
    config = {
        "capabilities": {"tools": {"max_new_tokens": 8}},
        "method": {"name": method},
        "data": {"long_rows": long_rows},
    }
    return config, Prepared(facts, {}, tokenizer, corpus), lengths


def test_prompts_with_room_are_all_there() -> None:
    config, prepared, lengths = setting(0, long_rows="error")
    said: list[str] = []
    assert len(held_out_prompts(config, prepared, tell=said.append)["tools"]) == len(lengths)
    assert said == []


@pytest.mark.parametrize("long_rows", ["error", "truncate"])
def test_a_prompt_without_room_is_refused(long_rows: str) -> None:
    config, prepared, lengths = setting(-1, long_rows=long_rows)
    with pytest.raises(NexusError) as caught:
        held_out_prompts(config, prepared, tell=None)
    assert caught.value.code == "E-LEN-05"
    assert caught.value.message.startswith("1 of 2 held-out prompts")
    assert f"the longest has {max(lengths)} tokens" in caught.value.message
    assert "data.long_rows=drop" in caught.value.remedy


def test_left_out_prompts_are_counted_and_told() -> None:
    config, prepared, lengths = setting(-1, long_rows="drop")
    said: list[str] = []
    [kept] = held_out_prompts(config, prepared, tell=said.append)["tools"]
    assert len(encode_prompts(prepared.tokenizer, [kept])[0]) == min(lengths)
    [line] = said
    assert "1 of 2 held-out prompts" in line
    config, prepared, _ = setting(-400, long_rows="drop")
    with pytest.raises(NexusError, match="2 of 2 held-out prompts"):
        held_out_prompts(config, prepared, tell=None)


def test_a_reward_model_answers_none() -> None:
    config, prepared, _ = setting(-400, long_rows="error", method="reward_model")
    assert held_out_prompts(config, prepared, tell=None) == {}
