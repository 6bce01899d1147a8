"""Learning with an environment: of two ways to answer that a policy knows, rewards choose the one that calls."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from nexus.data.synthetic.tool_results import rows
from nexus.data.template import tokenize_example
from nexus.rewards.registry import Rewards, build_rewards
from nexus.rollout.collect import Task, Visit
from nexus.rollout.environment import make_environment
from nexus.types import Example, TokenizedExample
from tests import rollouts, small

LIMIT, STEPS = 120, 6
CARD = {"name": "nexus_tools", "kind": "embedded", "generator": "tool_results", "roles": ["train"], "rows": 1,
        "size": None, "eval_rows": 0, "seed": 3, "fields": {}, "weight": 1.0, "license": "MIT"}  # fmt: skip
OPTIONS = {"parse": 0.1, "name": 0.2, "arguments": 0.6, "schema": 0.1, "partial": 0.3}


def rewards() -> Rewards:
    call = {"function": "tool_call", "weight": 1.0, "options": OPTIONS}
    answer = {"function": "answer", "weight": 1.0, "options": {"tolerance": 0.0, "marked": True}}
    return build_rewards({"tool_call": call, "answer": answer})


def shown() -> list[TokenizedExample]:
    """One request answered in two ways: call, read and state; or a guess of the result."""
    [row] = rows(view="sft", split="train", count=1, seed=3)
    guess = {"role": "assistant", "content": "it is <answer>1</answer>"}
    return [
        tokenize_example(
            small.make_tokenizer(),
            Example(row["id"], "tools", tuple(turns), tools=tuple(row["tools"])),
            count_tokens="completion",
            max_seq_len=512,
        )
        for turns in (row["messages"], [row["messages"][0], guess])
    ]


def taught(folder: Path) -> dict[str, torch.Tensor]:
    """Weights after a supervised phase on both ways."""
    steps = 110
    adam = functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.0)
    learner = small.make_method(total_steps=steps, schedule="constant", optimizer=adam)
    small.fit_steps(learner, [small.make_step(shown())] * steps, folder)
    return {name: value.clone() for name, value in learner.policy.state_dict().items()}


@pytest.mark.slow
def test_rewards_lead_to_calls_whose_results_are_stated(tmp_path: Path) -> None:
    corpus = rollouts.make_prompts(
        sources={"tools": {"embedded": CARD}}, answer_tokens=LIMIT, max_steps=STEPS, global_batch_size=1
    )
    task = Task(rewards(), LIMIT, make_environment({"name": "tools", "max_turns": 3}))
    adam = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)
    method = rollouts.make_method(rollouts.GRPO, total_steps=STEPS, optimizer=adam)
    method.policy.load_state_dict(taught(tmp_path))
    collector = rollouts.make_collector(
        rewards(), tasks={"nexus_tools": task}, num_generations=16, batch_size=16, seed=5
    )
    visits = [Visit(corpus.rows[0], epoch) for epoch in range(90, 92)]  # 32 conversations that are in no step
    before = collector.collect(method.policy, visits)
    data = rollouts.make_data(method, rewards(), corpus=corpus, collector=collector, patience=STEPS)
    watch = rollouts.Watch()
    small.make_trainer(tmp_path, max_steps=STEPS, callbacks=[watch]).fit(method, datamodule=data)
    after = collector.collect(method.policy, visits)
    earned = [sum(sum(group.values["reward"]) for group in groups) / 32 for groups in (before, after)]
    called = [sum(not all(mask) for group in groups for mask in group.loss_masks) / 32 for groups in (before, after)]
    print(f"reward {earned}, conversations with a result {called}")
    assert 0.2 < called[0] < 0.8, "both ways are known, and there is room above the start"
    assert called[1] > called[0] + 0.15
    assert earned[1] > earned[0] + 0.15
    assert len(watch.rows) == STEPS
