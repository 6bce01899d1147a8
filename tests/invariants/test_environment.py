"""What an environment wrote is read and never learned, for every method of rollouts; seeds and resume hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nexus.callbacks.checkpoint import checkpoints
from nexus.data.collate import collate_step
from nexus.rollout.collect import Task, Visit
from nexus.rollout.engines import Sampling, make_engine
from nexus.rollout.environment import make_environment
from nexus.types import Generation, TokenizedGroup
from tests import rollouts, small

TOKENIZER = small.make_tokenizer()
NATIVE = make_engine("native")
RESULT = TOKENIZER.convert_tokens_to_ids("<tool_response>")
LIMIT = 110


class CallsFirst:
    """The policy as it is, but for the first turn, which is a right call with the policy's own log-probabilities.

    So small a model never comes to call by itself; what follows the result is its own.
    """

    def __init__(self, calls: dict[tuple[int, ...], str]) -> None:
        self.calls = calls

    def __call__(
        self, *, model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> list[Generation]:
        if tuple(prompts[0]) not in self.calls:
            given = replace(sampling, max_new_tokens=min(8, sampling.max_new_tokens))
            return NATIVE(model=model, tokenizer=tokenizer, prompts=prompts, seeds=seeds, sampling=given)
        found = []
        for prompt in prompts:
            text = self.calls[tuple(prompt)]
            ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model.eval()(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits
            rows = torch.log_softmax(logits[0, len(prompt) - 1 : -1].float() / sampling.temperature, -1)
            values = rows.gather(-1, torch.tensor(ids)[:, None])[:, 0]
            found.append(Generation(tuple(ids), text, tuple(values.tolist()), True))
        return found


@pytest.fixture(scope="module")
def corpus() -> Any:
    return rollouts.make_prompts(answer_tokens=LIMIT)


def said(turns: Sequence[Any]) -> float:
    """A reward that reads the whole conversation: its last turn, and that a result came before it."""
    return float(sum(map(ord, turns[-1]["content"])) % 7) + 10.0 * sum(turn["role"] == "tool" for turn in turns)


def call_of(visit: Visit) -> str:
    example = visit.prompt.example
    calls = example.gold["calls"] or [{"name": "nothing", "arguments": {}}]
    return f"<tool_call>{json.dumps(calls[0])}</tool_call>"


def make_collector(corpus: Any, **changes: Any) -> Any:
    visits = [Visit(prompt, 0) for prompt in corpus.rows]
    rewards = rollouts.rewards_of(said)
    task = Task(rewards, LIMIT, make_environment({"name": "tools", "max_turns": 2}))
    engine = CallsFirst({tuple(visit.prompt.input_ids): call_of(visit) for visit in visits})
    return rollouts.make_collector(rewards, tasks={"nexus_tools": task}, engine=engine, **changes)


def make_data(method: Any, corpus: Any, **changes: Any) -> Any:
    collector = make_collector(corpus, num_generations=2, temperature=method.temperature)
    critic = method if isinstance(method, rollouts.PPO) else None
    return rollouts.make_data(method, rollouts.rewards_of(said), corpus=corpus, collector=collector, critic=critic,
                              **changes)  # fmt: skip


def test_groups_hold_results_that_do_not_count(corpus: Any) -> None:
    model = rollouts.make_method(rollouts.GRPO).policy
    collector = make_collector(corpus, num_generations=2)
    groups = collector.collect(model, [Visit(prompt, 0) for prompt in corpus.rows[:3]])
    for group, prompt in zip(groups, corpus.rows, strict=False):
        for ids, mask in zip(group.completions, group.loss_masks, strict=True):
            assert len(ids) == len(mask) <= LIMIT
            read = [token for token, counts in zip(ids, mask, strict=True) if not counts]
            assert read.count(RESULT) == 1
            assert RESULT not in [token for token, counts in zip(ids, mask, strict=True) if counts]
            assert mask[0]
            assert mask[-1], "a conversation ends with words of the model"
        results = [json.loads(TOKENIZER.decode(ids).split("<tool_response>")[1].split("</tool_response>")[0])
                   for ids in group.completions]  # fmt: skip
        assert results[0] == results[1], "the same call gives the same result"
        assert ("error" in results[0]) == (not prompt.example.gold["calls"])
        assert all(value >= 10.0 for value in group.values["reward/said"])


def test_a_conversation_depends_on_its_prompt_and_its_seeds_alone(corpus: Any) -> None:
    model = rollouts.make_method(rollouts.GRPO).policy
    visits = [Visit(prompt, 0) for prompt in corpus.rows[:3]]
    collector = make_collector(corpus, num_generations=2)
    together = collector.collect(model, visits)
    alone = [make_collector(corpus, num_generations=2, batch_size=64).collect(model, [visit])[0] for visit in visits]
    assert [group.completions for group in together] == [group.completions for group in alone]
    for group in together:
        assert group.completions[0] != group.completions[1], "samples differ after equal calls"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_what_was_sampled_equal_a_fresh_forward(corpus: Any, temperature: float) -> None:
    seen: list[float] = []
    method = rollouts.make_method(rollouts.GRPO, temperature=temperature)
    collector = make_collector(corpus, num_generations=2, temperature=temperature)
    group = collector.collect(method.policy, [Visit(corpus.rows[0], 0)])[0]
    for ids, mask in zip(group.completions, group.loss_masks, strict=True):
        logits = method.policy.eval()(input_ids=torch.tensor([[*group.prompt_ids, *ids]]), use_cache=False).logits[0]
        start = len(group.prompt_ids)
        seen += [torch.log_softmax(logits[start + t - 1].float() / temperature, -1)[token].item()
                 for t, (token, counts) in enumerate(zip(ids, mask, strict=True)) if counts]  # fmt: skip
    data = rollouts.make_data(method, rollouts.rewards_of(said), corpus=corpus, collector=collector, num_iterations=2)
    [answered] = data.answer([Visit(corpus.rows[0], 0)])
    assert answered.completions == group.completions
    stored = [value for values in answered.token_values["old_logprobs"] for value in values]
    assert len(stored) == group.num_target_tokens
    torch.testing.assert_close(torch.tensor(stored), torch.tensor(seen), atol=1e-4, rtol=0)


def slow_loss(method: Any, groups: Sequence[TokenizedGroup]) -> torch.Tensor:
    """GRPO on policy, written out: each word of the model on its own, from a forward pass over its conversation."""
    total = torch.zeros(())
    for group in groups:
        rewards = torch.tensor(group.values["reward"])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        for ids, mask, advantage in zip(group.completions, group.loss_masks, advantages, strict=True):
            logits = method.policy(input_ids=torch.tensor([[*group.prompt_ids, *ids]]), use_cache=False).logits[0]
            terms = []
            for t, (token, counts) in enumerate(zip(ids, mask, strict=True)):
                if counts:
                    logprob = torch.log_softmax(logits[len(group.prompt_ids) + t - 1], -1)[token]
                    terms.append(-advantage * torch.exp(logprob - logprob.detach()))
            total = total + torch.stack(terms).mean() / len(rewards) / len(groups)
    return total


def gradients(method: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in method.policy.named_parameters() if p.grad is not None}
    method.zero_grad()
    return found


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_gradients_come_from_the_words_of_the_model_alone(corpus: Any, packing: bool) -> None:
    method = rollouts.make_method(rollouts.GRPO)
    groups = make_collector(corpus, num_generations=2).collect(method.policy, [Visit(p, 0) for p in corpus.rows[:2]])
    rewards = [(10.0, 13.0), (16.0, 12.0)]
    groups = [replace(g, values=g.values | {"reward": r}) for g, r in zip(groups, rewards, strict=True)]

    def step(groups: Sequence[TokenizedGroup]) -> Any:
        return collate_step(groups, packing=packing, micro_batch_size=1, micro_batch_tokens=None, pad_token_id=0,
                            world_size=1, loss_unit=method.loss_unit)  # fmt: skip

    method.policy.train()
    for batch in method.prepare_step(step(groups)):
        (method.loss(batch).loss * batch.loss_scale).backward()
    ours = gradients(method)
    slow_loss(method, groups).backward()
    theirs = gradients(method)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-4)
    assert any(value.abs().max() > 1e-4 for value in ours.values())

    counted = [replace(g, loss_masks=tuple([True] * len(mask) for mask in g.loss_masks)) for g in groups]
    for batch in method.prepare_step(step(counted)):
        (method.loss(batch).loss * batch.loss_scale).backward()
    assert any((gradients(method)[name] - value).abs().max() > 1e-4 for name, value in theirs.items()), (
        "the comparison would see results that count"
    )


@pytest.mark.parametrize("kind", [rollouts.DrGRPO, rollouts.DAPO, rollouts.GSPO, rollouts.RLOO, rollouts.PPO],
                         ids=lambda kind: kind.__name__)  # fmt: skip
def test_the_kin_learn_from_conversations(corpus: Any, kind: type) -> None:
    method = rollouts.make_method(kind, kl_coef=0.1 if kind in (rollouts.RLOO, rollouts.PPO) else 0.0)
    data = make_data(method, corpus)
    groups = data.answer([Visit(prompt, 0) for prompt in corpus.rows[:2]])
    counted = sum(group.num_target_tokens for group in groups)
    for group in groups:
        for values in group.token_values.values():
            assert [len(row) for row in values] == [sum(mask) for mask in group.loss_masks]
    batches = method.prepare_step(data.collate(groups))
    assert sum(batch.num_target_tokens for batch in batches) == counted
    for batch in batches:
        (method.loss(batch).loss * batch.loss_scale).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.policy.parameters() if p.grad is not None)


def train(corpus: Any, folder: Path, kind: type, *, steps: int, resume: Path | None = None) -> Any:
    torch.manual_seed(5 if resume is None else 99)
    method = rollouts.make_method(kind, adapter=small.LORA, kl_coef=0.1)
    data = make_data(method, corpus, num_iterations=2)
    saver = small.make_saver(folder)
    trainer = small.make_trainer(folder, max_steps=steps, callbacks=[saver])
    trainer.fit(method, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True)
    return method, data


def test_a_run_stopped_within_a_rollout_resumes_to_the_same_weights(tmp_path: Path, corpus: Any) -> None:
    whole, data = train(corpus, tmp_path / "whole", rollouts.GRPO, steps=4)
    train(corpus, tmp_path / "parts", rollouts.GRPO, steps=3)
    [(_, path)] = checkpoints(tmp_path / "parts" / "checkpoints")
    parts, resumed = train(corpus, tmp_path / "parts", rollouts.GRPO, steps=4, resume=path)
    assert resumed.loader.counts == data.loader.counts
    for (name, ours), theirs in zip(parts.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
