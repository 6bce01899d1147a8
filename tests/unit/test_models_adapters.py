"""LoRA through PEFT: what is trained, how many numbers, and that merging changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from nexus.errors import NexusError
from nexus.models.adapters import adapter_state, apply_adapter, merge_adapter, parameter_counts
from nexus.models.head import output_head
from nexus.models.loader import load_model
from tests import small

ARCHITECTURE = small.SIZES | {"model_type": "qwen3", "tie_word_embeddings": True}
LORA = small.LORA
IDS = torch.tensor([[5, 9, 33, 61, 7]])


def base(dtype="fp32"):
    return load_model(path=None, architecture=ARCHITECTURE, revision=None, trust_remote_code=False, seed=1, dtype=dtype)


def trained(model):
    """Give B (which starts at 0) values, as training would."""
    g = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=g)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits.float()


def test_counts_equal_peft_and_arithmetic_and_the_head_is_left_alone():
    model = apply_adapter(base(), LORA, seed=0)
    counts = parameter_counts(model)
    # r * (inputs + outputs) over q, k, v, o, gate, up, down of both layers
    by_hand = 2 * 4 * sum([32 + 32, 32 + 16, 32 + 16, 32 + 32, 32 + 48, 32 + 48, 48 + 32])
    assert (counts.trainable, counts.total) == model.get_nb_trainable_parameters()
    assert counts.trainable == by_hand
    assert output_head(model).weight.shape == (64, 32)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_" not in n)
    assert sum(p.requires_grad for p in model.parameters()) == len(adapter_state(model)) == 2 * 7 * 2


def test_none_trains_everything():
    model = base().requires_grad_(False)
    assert apply_adapter(model, {"name": "none"}, seed=0) is model
    counts = parameter_counts(model)
    assert counts.trainable == counts.total == sum(p.numel() for p in model.parameters()) > 0


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_new_adapter_changes_nothing_and_a_merged_one_equals_it(use_rslora):
    plain = logits(base())
    model = apply_adapter(base(), {**LORA, "use_rslora": use_rslora}, seed=0)
    assert torch.equal(logits(model), plain)
    adapted = logits(trained(model))
    assert (adapted - plain).abs().max() > 1e-2
    merged = merge_adapter(model)
    assert type(merged).__name__ == "Qwen3ForCausalLM"
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert torch.allclose(logits(merged), adapted, atol=1e-5)


def test_bfloat16_merge_rounds_once():
    model = trained(apply_adapter(base("bf16"), LORA, seed=0))
    exact = copy.deepcopy(model).float()
    for module in exact.modules():
        if hasattr(module, "merge"):
            module.merge()
    wanted = {n: p for n, p in exact.named_parameters() if n.endswith("base_layer.weight")}
    merged = dict(merge_adapter(model).named_parameters())
    assert len(wanted) == 14
    for name, value in wanted.items():
        short = name.removeprefix("base_model.model.").replace(".base_layer", "")
        assert merged[short].dtype == torch.bfloat16
        assert torch.equal(merged[short], value.bfloat16()), short


def test_seed_decides_the_adapter_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    states = [adapter_state(apply_adapter(base(), LORA, seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    key = next(name for name in states[0] if "lora_A" in name)
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])


def test_merge_refuses_nan():
    model = apply_adapter(base(), LORA, seed=0)
    next(p for n, p in model.named_parameters() if "lora_B" in n).data.fill_(torch.nan)
    with pytest.raises(NexusError) as caught:
        merge_adapter(model)
    assert caught.value.code == "E-NUM-03"


@pytest.mark.parametrize(
    ("change", "code", "where", "text"),
    [
        ({"r": 0}, "E-CFG-21", "adapter.r", "out of range"),
        ({"r": -4}, "E-CFG-21", "adapter.r", "out of range"),
        ({"alpha": 0}, "E-CFG-21", "adapter.alpha", "out of range"),
        ({"dropout": 1.0}, "E-CFG-21", "adapter.dropout", "out of range"),
        ({"target_modules": ["q_proj", "qkv"]}, "E-CFG-22", "adapter.target_modules", "qkv"),
        ({"target_modules": []}, "E-CFG-22", "adapter.target_modules", "empty list"),
        ({"target_modules": "everything"}, "E-CFG-22", "adapter.target_modules", "everything"),
        ({"name": "lorra"}, "E-CFG-21", "adapter.name", "lorra"),
    ],
)
def test_mistakes_have_codes(change, code, where, text):
    with pytest.raises(NexusError, match=text) as caught:
        apply_adapter(base(), {**LORA, **change}, seed=0)
    assert (caught.value.code, caught.value.where, caught.value.status) == (code, where, 64)


def test_an_adapted_head_is_refused_by_the_fused_path():
    model = apply_adapter(base(), {**LORA, "target_modules": ["q_proj", "lm_head"]}, seed=0)
    with pytest.raises(NexusError, match="plain linear") as caught:
        output_head(model)
    assert caught.value.code == "E-MOD-12"
