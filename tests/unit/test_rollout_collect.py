"""Groups of rewarded answers: what they hold, what their seeds promise, and what rewards may not do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nexus.errors import NexusError
from nexus.rewards.registry import build_rewards
from nexus.rollout.collect import Task, Visit, sample_seed
from nexus.rollout.engines import Sampling, make_engine
from nexus.rollout.plain import PlainSteps
from nexus.rollout.vllm import engine_problems, merged_weights
from tests import rollouts, small


@pytest.fixture(scope="module")
def corpus():
    return rollouts.make_prompts()


@pytest.fixture(scope="module")
def model():
    return rollouts.make_method(rollouts.GRPO).policy


def begins(completion: str) -> float:
    return float(completion[:1] < "e")


def test_groups_hold_every_answer_with_its_reward(corpus, model) -> None:
    visits = [Visit(prompt, 0) for prompt in corpus.rows[:3]]
    weighted = rollouts.rewards_of(rollouts.number_of_tokens, begins)
    weighted = replace(weighted, functions=(weighted.functions[0], replace(weighted.functions[1], weight=0.5)))
    groups = rollouts.make_collector(weighted).collect(model, visits)
    assert [group.id for group in groups] == [visit.prompt.id for visit in visits]
    for group, visit in zip(groups, visits, strict=True):
        assert group.prompt_ids == visit.prompt.input_ids
        assert len(group.completions) == len(group.loss_masks) == 3
        lengths = tuple(float(len(tokens)) for tokens in group.completions)
        assert group.values["reward/number_of_tokens"] == lengths
        texts = [small.make_tokenizer().decode(tokens) for tokens in group.completions]
        components = group.values["reward/begins"]
        assert components == tuple(begins(text) for text in texts)
        assert group.values["reward"] == tuple(a + 0.5 * b for a, b in zip(lengths, components, strict=True))
        stops = [tokens[-1] == small.make_tokenizer().eos_token_id for tokens in group.completions]
        assert group.values["finished"] == tuple(map(float, stops))
        assert all(map(all, group.loss_masks))


def test_a_reward_that_another_source_has_is_nan_there(corpus, model) -> None:
    tasks = {
        "nexus_tools": Task(rollouts.rewards_of(rollouts.number_of_tokens), 8),
        "other": Task(rollouts.rewards_of(begins), 2),
    }
    rows = [corpus.rows[0], replace(corpus.rows[1], source="other"), corpus.rows[2]]
    collector = rollouts.make_collector(tasks["other"].rewards, tasks=tasks)
    groups = collector.collect(model, [Visit(row, 0) for row in rows])
    assert [math.isnan(group.values["reward/begins"][0]) for group in groups] == [True, False, True]
    assert [math.isnan(group.values["reward/number_of_tokens"][0]) for group in groups] == [False, True, False]
    assert max(map(len, groups[1].completions)) <= 2, "each source has its own limit"
    assert [group.id for group in groups] == [row.id for row in rows]


def test_an_answer_depends_on_its_prompt_and_its_seed_alone(corpus, model) -> None:
    collector = rollouts.make_collector(rollouts.rewards_of(rollouts.number_of_tokens))
    visits = [Visit(prompt, 0) for prompt in corpus.rows[:4]]
    together = collector.collect(model, visits)
    other = rollouts.make_collector(rollouts.rewards_of(rollouts.number_of_tokens), batch_size=64)
    alone = [other.collect(model, [visit])[0] for visit in reversed(visits)]
    assert [group.completions for group in together] == [group.completions for group in reversed(alone)]
    assert all(len({tuple(tokens) for tokens in group.completions}) == 3 for group in together)
    again = collector.collect(model, [Visit(corpus.rows[0], 1)])[0]
    assert again.completions != together[0].completions, "the next epoch draws anew"


def test_seeds_are_distinct(corpus) -> None:
    seeds = {
        sample_seed(seed=seed, visit=Visit(prompt, epoch), sample=sample)
        for seed in (1, 2)
        for prompt in corpus.rows
        for epoch in (0, 1)
        for sample in range(4)
    }
    assert len(seeds) == 2 * len(corpus.rows) * 2 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def fails(completion: str) -> float:
    raise KeyError("table")


def nothing(completion: str) -> float:
    return math.nan


def reads_gold(completion: str, gold: dict) -> float:
    return 1.0


@pytest.mark.parametrize(("function", "code"), [(fails, "E-RL-04"), (nothing, "E-RL-02"), (reads_gold, "E-DAT-31")])
def test_what_is_wrong_with_a_reward_names_row_and_reward(corpus, model, function, code: str) -> None:
    prompt = corpus.rows[1]
    if function is reads_gold:
        prompt = replace(prompt, example=replace(prompt.example, gold=None))
    with pytest.raises(NexusError) as caught:
        rollouts.make_collector(rollouts.rewards_of(function)).collect(model, [Visit(prompt, 0)])
    assert caught.value.code == code
    assert prompt.id in caught.value.where
    assert function.__name__ in caught.value.where


def test_logprobs_of_training_are_those_of_sampling(corpus, model) -> None:
    seen: list[tuple[float, ...]] = []
    native = make_engine("native")

    def listen(**given):
        answers = native(**given)
        seen.extend(answer.logprobs for answer in answers)
        return answers

    method = rollouts.make_method(rollouts.GRPO, temperature=0.7)
    collector = rollouts.make_collector(rollouts.rewards_of(rollouts.number_of_tokens), engine=listen, temperature=0.7)
    data = rollouts.make_data(method, rollouts.rewards_of(begins), collector=collector, num_iterations=2)
    [first, second] = data.answer([Visit(prompt, 0) for prompt in corpus.rows[:2]])
    found = [*first.token_values["old_logprobs"], *second.token_values["old_logprobs"]]
    assert [len(values) for values in found] == [len(values) for values in seen]
    for ours, theirs in zip(found, seen, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-4, rtol=0)


def test_transformers_engine_samples_from_the_same_distribution(model, corpus) -> None:
    tokenizer = small.make_tokenizer()
    sampling = Sampling(max_new_tokens=6, temperature=0.8, top_p=None, batch_size=3)
    prompts = [corpus.rows[i].input_ids for i in (0, 0, 1, 2)]
    state = torch.random.get_rng_state()
    engine = make_engine("transformers")
    given = {"model": model, "tokenizer": tokenizer, "prompts": prompts, "seeds": [3, 4, 5, 6], "sampling": sampling}
    answers = engine(**given)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [answer.token_ids for answer in engine(**given)] == [answer.token_ids for answer in answers]
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer.token_ids]])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / 0.8, -1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=0)
        assert answer.finished == (answer.token_ids[-1] == tokenizer.eos_token_id)


def test_vllm_is_refused_by_name_where_it_is_missing() -> None:
    config = {"method": {"rollout": {"engine": "vllm"}}}
    [problem] = engine_problems(config)
    assert (problem.code, problem.key) == ("E-DEP-06", "method.rollout.engine")
    with pytest.raises(NexusError, match="vllm is not installed"):
        make_engine("vllm")
    assert engine_problems({"method": {}}) == []
    assert engine_problems({"method": {"rollout": {"engine": "native"}}}) == []


def test_merged_weights_have_the_names_and_the_function_of_the_plain_model() -> None:
    method = rollouts.make_method(rollouts.GRPO, adapter=small.LORA)
    with torch.no_grad():
        for name, p in method.policy.named_parameters():
            if "lora_B" in name:
                p.fill_(0.02)
    ids = torch.arange(5, 15)[None]
    method.policy.eval()
    plain = rollouts.make_method(rollouts.GRPO).policy.eval()
    with torch.no_grad():
        expected = method.policy(input_ids=ids).logits
        with merged_weights(method.policy) as weights:
            missing, unexpected = plain.load_state_dict({n: w.clone() for n, w in weights}, strict=False)
        assert (set(missing) - {"lm_head.weight"}, unexpected) == (set(), [])
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(method.policy(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-4)


def test_generation_that_never_stops_ends_at_its_limit_and_is_counted(corpus, monkeypatch) -> None:
    """So small a model as this one never comes to a stop token by itself."""
    options = {"parse": 0.1, "name": 0.2, "arguments": 0.6, "schema": 0.1, "partial": 0.3}
    rewards = build_rewards({"tool_call": {"function": "tool_call", "weight": 1.0, "options": options}})
    method = rollouts.make_method(rollouts.GRPO)
    passes: list[int] = []
    hook = method.policy.register_forward_hook(lambda *_: passes.append(1))
    step = PlainSteps.step
    monkeypatch.setattr(PlainSteps, "step", lambda *arguments: (passes.append(1), step(*arguments))[1])
    data = rollouts.make_data(method, rewards, corpus=corpus, collector=rollouts.make_collector(rewards, batch_size=64),
                              patience=2)  # fmt: skip
    steps = iter(data.train_dataloader())
    method.prepare_step(next(steps))
    hook.remove()
    assert len(passes) == 8, "a pass for each token of the limit, the first one with the prompts"
    found = {name: float(method.batch_metrics[name]) for name in ("completion/finished", "completion/length")}
    assert found == {"completion/finished": 0.0, "completion/length": 8.0}
    assert float(method.batch_metrics["reward/mean"]) == 0.0, "what did not come to its end earns nothing"
    with pytest.raises(NexusError, match="no answer earns a reward") as caught:
        next(steps)
    assert caught.value.code == "E-RL-01"
    assert data.loader.counts.tokens == 2 * 2 * 3 * 8
