"""What `samples.jsonl` shows of a conversation: all of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nexus.callbacks.samples import SamplePrompt, Samples
from nexus.data.module import NexusDataModule
from nexus.data.synthetic import tool_results
from nexus.data.template import encode_prompts
from nexus.rollout.environment import make_environment
from nexus.rollout.generate import generate
from nexus.types import Example, Generation
from tests import small

TOKENIZER = small.make_tokenizer()
ROWS = list(tool_results.rows(view="sft", split="train", count=2, seed=6))
EXAMPLES = [Example(row["id"], "rows", tuple(row["messages"][:1]), tools=tuple(row["tools"])) for row in ROWS]


def train(folder: Path, prompts: dict[str, SamplePrompt]) -> tuple[Any, list[dict[str, Any]]]:
    """The model behind two steps, and what was sampled from it."""
    samples = Samples(
        every_n_steps=2, count=2, path=str(folder / "samples.jsonl"), prompts=prompts, tokenizer=TOKENIZER
    )
    method = small.make_method()
    method.configure_model()
    trainer = small.make_trainer(folder, max_steps=2, callbacks=[samples])
    trainer.fit(method, datamodule=NexusDataModule(small.make_corpus(TOKENIZER)))
    return method.policy, [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def greedy(model: Any, example: Example, limit: int) -> Generation:
    prompts = encode_prompts(TOKENIZER, [example])
    [answer] = generate(
        model=model, tokenizer=TOKENIZER, prompts=prompts, max_new_tokens=limit, temperature=0.0, seeds=[0],
        batch_size=1,
    )  # fmt: skip
    return answer


def test_what_an_environment_says_and_the_answer_to_it_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls are given, since so small a model never makes one; what follows their results is the model's own."""
    calls = [f"<tool_call>{json.dumps(row['messages'][1]['tool_calls'][0]['function'])}</tool_call>" for row in ROWS]
    encoded = encode_prompts(TOKENIZER, EXAMPLES)
    given = {tuple(ids): call for ids, call in zip(encoded, calls, strict=True)}

    def calls_first(*, prompts: Any, **settings: Any) -> list[Generation]:
        if tuple(prompts[0]) not in given:
            return generate(prompts=prompts, **settings)
        texts = [given[tuple(prompt)] for prompt in prompts]
        ids = [(*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id) for text in texts]
        return [Generation(row, text, (0.0,) * len(row), True) for row, text in zip(ids, texts, strict=True)]

    monkeypatch.setattr("nexus.callbacks.samples.generate", calls_first)
    environment = make_environment({"name": "tools", "max_turns": 2})
    model, rows = train(
        tmp_path,
        {
            example.id: SamplePrompt(ids, example.tools, environment, 160)
            for example, ids in zip(EXAMPLES, encoded, strict=True)
        },
    )
    assert [row["id"] for row in rows] == [example.id for example in EXAMPLES]
    for row, call, source, example in zip(rows, calls, ROWS, EXAMPLES, strict=True):
        called, result, answered = row["turns"]
        assert [turn["role"] for turn in row["turns"]] == ["assistant", "tool", "assistant"]
        assert called["content"] == call
        assert result["content"] == source["messages"][2]["content"]
        # the second implementation: the template over all turns at once
        whole = replace(example, messages=(*source["messages"][:2], result))
        assert answered["content"].startswith(greedy(model, whole, 8).text)
        assert row["answer"] == f"{call}\n{answered['content']}"


def test_the_answer_is_to_the_last_turn_of_a_prompt_with_several(tmp_path: Path) -> None:
    said = ({"role": "assistant", "content": "Which one?"}, {"role": "user", "content": "The second."})
    long = replace(EXAMPLES[0], messages=(*EXAMPLES[0].messages, *said))
    [ids] = encode_prompts(TOKENIZER, [long])
    model, [row] = train(tmp_path, {long.id: SamplePrompt(ids, long.tools, None, 6)})
    assert row["answer"] == greedy(model, long, 6).text
    assert "turns" not in row
