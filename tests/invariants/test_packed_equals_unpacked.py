"""Rows packed into one sequence get, per token, what they get alone: hidden states and gradients."""

from __future__ import annotations

import re

import pytest
import torch

from nexus.models.attention import make_plan, packed, packing_support
from nexus.models.head import LogitForm, hidden_states, output_head, target_hidden_states
from nexus.models.loader import load_model
from nexus.types import MicroBatch
from tests import small

WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES = {
    "qwen3": {"model_type": "qwen3"},
    "llama": {"model_type": "llama"},
    "gemma3": {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, "final_logit_softcapping": 4.0, **WINDOW},
    "gemma2": {"model_type": "gemma2", "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, **WINDOW},
}
LENGTHS = (5, 9, 9, 20, 1, 3)  # neighbors of equal length, rows longer than the window, a row of one token


def build(name):
    model = load_model(
        path=None,
        architecture={**small.SIZES, **ARCHITECTURES[name]},
        revision=None,
        trust_remote_code=False,
        seed=1,
        dtype="fp32",
    )
    with torch.no_grad():  # random weights of the usual size hardly attend: make neighbors matter
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model


def rows():
    g = torch.Generator().manual_seed(0)
    return [torch.randint(3, 64, (n,), generator=g) for n in LENGTHS]


def pack(parts):
    ends = torch.tensor([len(p) for p in parts]).cumsum(0).tolist()
    flat = torch.cat(parts)
    targets = torch.arange(0, len(flat), 3)
    return MicroBatch(
        input_ids=flat[None],
        position_ids=torch.cat([torch.arange(len(p)) for p in parts])[None],
        attention_mask=None,
        segments=tuple(zip([0, *ends[:-1]], ends, strict=True)),
        labels=flat[None],
        target_positions=targets,
        targets=flat[targets],
        loss_scale=1.0,
        num_tokens=len(flat),
        num_target_tokens=len(targets),
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_hidden_states_and_gradients(name, checkpointing):
    model, parts = build(name), rows()
    batch = pack(parts)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    together = hidden_states(model, batch)[0]
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(5))
    (together * weights).sum().backward()
    packed_grads = [p.grad.clone() for p in model.base_model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_disable()
    # second implementation: transformers' own eager attention, one row at a time
    model.set_attn_implementation("eager")
    alone = torch.cat([model.base_model(input_ids=part[None], use_cache=False).last_hidden_state[0] for part in parts])
    (alone * weights).sum().backward()
    assert (together - alone).abs().max() < 1e-4 * alone.abs().max()
    assert len(packed_grads) > 10
    for (key, parameter), grad in zip(model.base_model.named_parameters(), packed_grads, strict=True):
        assert (grad - parameter.grad).norm() < 1e-4 * parameter.grad.norm().clamp(min=1e-3), key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padded_batch_equals_packed_and_head_equals_the_models_own_logits(name):
    model, parts = build(name), rows()
    batch = pack(parts)
    width = max(LENGTHS)
    ids = torch.zeros(len(parts), width, dtype=torch.long)
    for row, part in enumerate(parts):
        ids[row, : len(part)] = part
    mask = torch.arange(width)[None] < torch.tensor(LENGTHS)[:, None]
    positions = torch.arange(width)[None].expand(len(parts), -1)
    padded = MicroBatch(
        ids, positions, mask, (), ids, mask.flatten().nonzero()[:, 0], ids[mask], 1.0, sum(LENGTHS), sum(LENGTHS)
    )
    with torch.no_grad():
        together = hidden_states(model, batch)[0]
        separate = target_hidden_states(model, padded)
        assert (together - separate).abs().max() < 1e-4 * separate.abs().max()
        head, form = output_head(model), LogitForm.of(model)
        logits = form.apply(together * form.hidden_scale @ head.weight.T)
        model.set_attn_implementation("eager")
        own = torch.cat([model(input_ids=part[None], use_cache=False).logits[0] for part in parts])
    assert (logits - own).abs().max() < 1e-4 * own.abs().max()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_contract_at_load_accepts_these(name):
    assert packing_support(build(name)).supported


def support_of(kind, extra):
    model = load_model(
        path=None,
        architecture={**small.SIZES, "model_type": kind, **extra},
        revision=None,
        trust_remote_code=False,
        seed=1,
        dtype="fp32",
    )
    return packing_support(model)


def test_contract_at_load_refuses_recurrent_state_sinks_and_own_attention():
    cases = {
        "lfm2": ({"conv_L_cache": 3, "full_attn_idxs": [1], "block_ff_dim": 48}, "follow the plan|influence"),
        "bloom": ({"n_head": 4, "n_layer": 2}, "attention is eager"),
        "gpt_oss": ({"num_local_experts": 2, "num_experts_per_tok": 1}, "attention is eager"),
    }
    for kind, (extra, reason) in cases.items():
        support = support_of(kind, extra)
        assert not support.supported, kind
        assert re.search(reason, support.reason), support.reason


@pytest.mark.parametrize(
    ("kind", "extra", "reason"),
    [
        ("phimoe", {"sliding_window": 70}, "windows of 70 tokens that only its mask knows"),
        ("mistral", {"sliding_window": 70}, ""),
        ("qwen2_moe", {"moe_intermediate_size": 16, "num_experts": 4}, ""),  # a mask with a window that no layer reads
    ],
)
def test_a_window_that_only_the_mask_knows_is_refused_whatever_its_size(kind, extra, reason):
    support = support_of(kind, extra)
    assert support.supported == (not reason), support
    assert reason in support.reason


def test_a_model_that_drops_the_plan_is_caught():
    model = build("qwen3")
    batch = pack(rows())
    with packed(), pytest.raises(RuntimeError, match="dropped the segment plan"):
        model.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)


def test_plan_merges_equal_neighbors_and_counts_layers():
    batch = pack(rows())
    plan = make_plan(batch.segments)
    assert plan.runs == ((0, 1, 5), (5, 2, 9), (23, 1, 20), (43, 1, 1), (44, 1, 3))
    model = build("qwen3")
    with packed():
        model.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, plan=plan, use_cache=False)
    assert plan.used == 2


@pytest.mark.parametrize("segments", [(), ((0, 3), (4, 6)), ((0, 3), (2, 6)), ((0, 0),), ((1, 3),)])
def test_plan_refuses_gaps_overlaps_and_empty_rows(segments):
    with pytest.raises(ValueError, match="segment"):
        make_plan(segments)


def test_segments_must_cover_the_sequence():
    batch = pack(rows())
    short = MicroBatch(**{**batch.__dict__, "segments": batch.segments[:-1]})
    with pytest.raises(ValueError, match="segments end at 44, the sequence at 47"):
        hidden_states(build("qwen3"), short)
