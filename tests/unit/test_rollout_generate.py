"""The sampler against transformers' generate, fresh forward passes and exact distributions."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from nexus.data.collate import collate_micro_batch
from nexus.functional.logprobs import token_logprobs
from nexus.models.adapters import apply_adapter
from nexus.models.head import output_head, target_hidden_states, target_logprobs
from nexus.models.loader import load_model
from nexus.rollout.generate import draw, generate
from nexus.rollout.plain import PlainSteps, plain_decoder
from nexus.types import TokenizedGroup
from tests import small

BASE = small.SIZES | {"vocab_size": 61}
ARCHITECTURES = {
    "qwen3": {"model_type": "qwen3"},
    "llama": {"model_type": "llama"},
    "gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 4.0,
    },
}


class Decoder:
    """The two things that the sampler asks of a tokenizer, without a vocabulary."""

    eos_token_id = 2

    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens is False
        return " ".join(map(str, tokens))


#: Steps of the decoder of their family, or the model's own forward.
WAYS = [("qwen3", "steps"), ("llama", "steps"), ("qwen3", "forward"), ("llama", "forward"), ("gemma3", "forward")]


@pytest.fixture(params=WAYS, ids=" by ".join)
def model(request, monkeypatch):
    name, way = request.param
    model = load(name)
    assert (plain_decoder(model) is None) == (name == "gemma3")
    if way == "forward":
        monkeypatch.setattr("nexus.rollout.generate.plain_decoder", lambda model: None)
    return model


@functools.cache
def load(name):
    made = load_model(
        path=None,
        architecture={**BASE, **ARCHITECTURES[name]},
        revision=None,
        trust_remote_code=False,
        seed=1,
        dtype="fp32",
    )
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return made


def make_prompts(lengths=(3, 11, 7, 20, 1, 7)):
    g = torch.Generator().manual_seed(0)
    return [torch.randint(3, 61, (n,), generator=g).tolist() for n in lengths]


def run(model, prompts, **change):
    settings = {
        "model": model,
        "tokenizer": Decoder(),
        "prompts": prompts,
        "max_new_tokens": 12,
        "temperature": 0.0,
        "seeds": list(range(len(prompts))),
        "batch_size": 4,
        **change,
    }
    return generate(**settings)


def greedy_reference(model, prompt, stops):
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=stops,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_equals_transformers_with_unequal_prompts_and_stops(model):
    prompts = make_prompts()
    free = [greedy_reference(model, prompt, [2]) for prompt in prompts]
    stops = [2, free[1][4], free[3][2]]  # so that rows leave in the middle of a batch
    expected = [greedy_reference(model, prompt, stops) for prompt in prompts]
    assert len({len(tokens) for tokens in expected}) > 1
    answers = run(model, prompts, stop_token_ids=stops)
    assert [list(a.token_ids) for a in answers] == expected
    assert [a.finished for a in answers] == [tokens[-1] in stops for tokens in expected]
    for answer in answers:
        kept = answer.token_ids[:-1] if answer.finished else answer.token_ids
        assert answer.text == " ".join(map(str, kept))


def test_greedy_equals_transformers_on_the_same_left_padded_batch(model):
    prompts = make_prompts()
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=12, eos_token_id=2, pad_token_id=0)
    expected = [row[: row.index(2) + 1] if 2 in row else row for row in out[:, width:].tolist()]
    assert [list(a.token_ids) for a in run(model, prompts, batch_size=len(prompts))] == expected


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_answers_are_those_of_a_training_forward(model, packing, temperature):
    """Groups as training lays them out: packed with a prompt once before its two answers, or padded on the right."""
    prompts = [prompt for prompt in make_prompts() for _ in range(2)]
    answers = run(model, prompts, temperature=temperature)
    groups = [
        TokenizedGroup(
            id=str(index),
            source="test",
            prompt_ids=prompts[index],
            completions=tuple(list(answer.token_ids) for answer in answers[index : index + 2]),
            loss_masks=tuple([True] * len(answer.token_ids) for answer in answers[index : index + 2]),
        )
        for index in range(0, len(prompts), 2)
    ]
    batch = collate_micro_batch(groups, packing=packing, pad_token_id=0, loss_scale=1.0)
    with torch.no_grad():
        made = target_logprobs(model, batch, chunk_size=16, temperature=temperature or 1.0).logprobs
        if temperature == 0.0:
            logits = torch.nn.functional.linear(target_hidden_states(model, batch), output_head(model).weight)
            assert torch.equal(logits.argmax(-1), batch.targets), "a factor or a cap of the logits keeps the order"
    sampled = torch.tensor([value for answer in answers for value in answer.logprobs])
    assert torch.allclose(made, sampled, atol=1e-4)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, None), (1.0, None), (0.7, None), (1.3, 0.8)])
def test_logprobs_equal_a_fresh_forward(model, temperature, top_p):
    prompts = make_prompts()
    for prompt, answer in zip(prompts, run(model, prompts, temperature=temperature, top_p=top_p), strict=True):
        ids = torch.tensor([prompt + list(answer.token_ids)])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1] / (temperature or 1.0)
        if top_p is not None:  # second implementation: token by token
            for row in logits:
                total, kept = 0.0, []
                for token in row.argsort(descending=True).tolist():
                    kept.append(token)
                    total += row.softmax(-1)[token].item()
                    if total >= top_p:
                        break
                row[[i for i in range(len(row)) if i not in kept]] = -torch.inf
        expected = token_logprobs(logits=logits, tokens=torch.tensor(answer.token_ids))
        assert torch.allclose(torch.tensor(answer.logprobs), expected, atol=1e-4)
        assert len(answer.token_ids) >= 1


def test_a_sample_depends_on_its_seed_alone(model):
    prompts = make_prompts()
    together = run(model, prompts, temperature=1.0)
    for i, prompt in enumerate(prompts):
        [alone] = run(model, [prompt], temperature=1.0, seeds=[i])
        assert alone.token_ids == together[i].token_ids
    assert [a.token_ids for a in run(model, prompts, temperature=1.0, batch_size=1)] == [a.token_ids for a in together]
    assert any(
        a.token_ids != b.token_ids
        for a, b in zip(run(model, prompts, temperature=1.0, seeds=range(9, 15)), together, strict=True)
    )


def test_repeated_prompts_are_prefilled_once_and_answered_each(model, monkeypatch):
    prompt = make_prompts()[1]
    widths = []
    step = PlainSteps.step
    monkeypatch.setattr(
        PlainSteps, "step", lambda self, tokens: (widths.append((len(tokens), 1)), step(self, tokens))[1]
    )
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    samples = run(model, [prompt] * 4, temperature=1.0)
    hook.remove()
    assert widths[0] == (1, 11)
    assert widths[1] == (4, 1)
    for seed, sample in enumerate(samples):
        assert run(model, [prompt], temperature=1.0, seeds=[seed])[0].token_ids == sample.token_ids


def test_streaming_sees_every_token_in_order(model):
    prompts = make_prompts()
    seen = {i: [] for i in range(len(prompts))}
    answers = run(model, prompts, on_token=lambda i, token: seen[i].append(token), stop_token_ids=[2, 5])
    assert seen == {i: list(a.token_ids) for i, a in enumerate(answers)}


def test_works_through_an_adapter_and_leaves_mode_and_gradients_alone(model):
    prompts = make_prompts()
    expected = [a.token_ids for a in run(model, prompts)]
    adapter = {**small.LORA, "r": 2, "alpha": 4, "dropout": 0.5}
    adapted = apply_adapter(copy.deepcopy(model), adapter, seed=0).train()
    assert [a.token_ids for a in run(adapted, prompts)] == expected
    assert adapted.training
    assert torch.is_grad_enabled()
    adapted(input_ids=torch.tensor([prompts[0]]), use_cache=False).logits.sum().backward()


def test_draw_inverts_the_distribution_exactly():
    """Over a fine grid of uniform numbers each token is drawn in proportion to its probability, over block borders."""
    g = torch.Generator().manual_seed(0)
    probs = torch.rand(700, generator=g)
    probs[300:560] = 0.0  # a whole block and its surroundings are impossible
    probs[-1] = 0.0
    probs /= probs.sum()
    n = 200_000
    grid = (torch.arange(n) + 0.5) / n
    drawn = torch.cat([draw(probs=probs.expand(1000, -1), uniform=part) for part in grid.split(1000)])
    counts = torch.bincount(drawn, minlength=700) / n
    assert (counts - probs).abs().max() < 2e-5
    assert counts[probs == 0].sum() == 0
    edges = draw(probs=probs.expand(2, -1), uniform=torch.tensor([0.0, 1.0 - 2**-24]))
    assert edges.tolist() == [0, 698]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"max_new_tokens": 0}, "positive"),
        ({"batch_size": 0}, "positive"),
        ({"temperature": -1.0}, "not negative"),
        ({"top_p": 0.0}, "top_p"),
        ({"seeds": [1]}, "6 prompts but 1 seeds"),
        ({"prompts": [[]] * 6}, "empty"),
    ],
)
def test_mistakes(model, change, text):
    with pytest.raises(ValueError, match=text):
        run(model, **{"prompts": make_prompts(), "seeds": list(range(6)), **change})
