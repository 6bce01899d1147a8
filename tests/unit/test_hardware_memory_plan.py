"""The plan's arithmetic by hand, and against the tensors that autograd really keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from nexus.hardware.memory_plan import (
    MemorySettings,
    activation_bytes,
    format_bytes,
    memory_problem,
    plan_memory,
)
from nexus.types import ModelFacts

FACTS = ModelFacts(
    path="nowhere",
    model_type="llama",
    num_parameters=1_000,
    parameters_by_dtype={"BF16": 1_000},
    num_bytes=2_000,
    num_layers=2,
    hidden_size=8,
    intermediate_size=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    vocab_size=50,
    max_position_embeddings=64,
    sliding_window=None,
    tied=True,
)
SETTINGS = MemorySettings(
    precision="bf16",
    base_bits=16,
    train_base=False,
    num_adapter_parameters=100,
    micro_batch_tokens=64,
    chunk_tokens=16,
    optimizer_state_numbers=2,
    checkpoint_activations=False,
)


def test_lines_by_hand() -> None:
    plan = plan_memory(FACTS, SETTINGS)
    layer = 6 * 8 + 3 * 8 + 3 * 4 + 4 * 16
    assert {item.name: item.num_bytes for item in plan.items} == {
        "base weights": 2_000,
        "adapter weights": 400,
        "gradients": 400,
        "optimizer": 800,
        "activations": 64 * (2 * layer + 3 * 8) * 2,
        "logits": 3 * 16 * 50 * 4,
    }
    assert plan.total_bytes == sum(item.num_bytes for item in plan.items)
    assert plan.rows()[-1] == ("total", format_bytes(plan.total_bytes), "")
    full = plan_memory(FACTS, replace(SETTINGS, train_base=True, base_bits=32, checkpoint_activations=True))
    assert {item.name: item.num_bytes for item in full.items} == {
        "base weights": 4_000,
        "adapter weights": 400,
        "gradients": 4_400,
        "optimizer": 8_800,
        "activations": 64 * (2 * 8 + layer) * 2,
        "logits": 3 * 16 * 50 * 4,
    }
    assert plan_memory(FACTS, replace(SETTINGS, base_bits=4)).items[0].num_bytes == int(1_000 * 4.127 / 8)


def kept_bytes(config: LlamaConfig | Qwen3Config, *, tokens: int) -> int:
    """Bytes of distinct storages that autograd keeps in a forward pass of the decoder, weights left out."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").model
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(input_ids=torch.arange(tokens)[None] % config.vocab_size, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize(("intermediate", "num_layers", "key_value_heads"), [(128, 2, 4), (512, 4, 2), (192, 6, 1)])
def test_activations_against_autograd(
    kind: type[LlamaConfig], intermediate: int, num_layers: int, key_value_heads: int
) -> None:
    config = kind(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=intermediate,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        head_dim=16,
    )
    facts = replace(
        FACTS,
        hidden_size=64,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=key_value_heads,
        head_dim=16,
        intermediate_size=intermediate,
    )
    planned = activation_bytes(facts, replace(SETTINGS, precision="fp32", micro_batch_tokens=128))
    measured = kept_bytes(config, tokens=128)
    assert measured <= planned * 1.12, f"planned {planned}, autograd keeps {measured}"
    assert measured >= planned * 0.88, f"planned {planned}, autograd keeps {measured}"


def test_what_fits_has_no_problem() -> None:
    plan = plan_memory(FACTS, SETTINGS)
    assert memory_problem(plan, limit_bytes=plan.total_bytes, limit_key="hardware.memory_gib") is None
    problem = memory_problem(plan, limit_bytes=plan.total_bytes - 1, limit_key="hardware.memory_gib")
    assert problem is not None
    assert (problem.code, problem.key) == ("E-MEM-01", "hardware.memory_gib")


def test_each_remedy_is_enough() -> None:
    facts = replace(FACTS, num_parameters=600_000_000, hidden_size=1024, num_layers=28, num_heads=16, num_kv_heads=8)
    facts = replace(facts, head_dim=128, intermediate_size=3072, vocab_size=151_936)
    settings = replace(
        SETTINGS, train_base=True, num_adapter_parameters=0, micro_batch_tokens=8_192, chunk_tokens=2_048
    )
    plan = plan_memory(facts, settings)

    def remedies(limit: int) -> str:
        problem = memory_problem(plan, limit_bytes=limit, limit_key="hardware.memory_gib")
        assert problem is not None
        return problem.remedy

    close = plan.total_bytes - 2**28
    found = dict(remedy.split("=") for remedy in remedies(close).split("; or "))
    assert list(found) == ["hardware.micro_batch_tokens", "method.module.chunk_size", "adapter"]
    tokens, chunk = int(found["hardware.micro_batch_tokens"]), int(found["method.module.chunk_size"])
    assert plan_memory(facts, replace(settings, micro_batch_tokens=tokens)).total_bytes <= close
    assert plan_memory(facts, replace(settings, micro_batch_tokens=tokens + 64)).total_bytes > close
    assert plan_memory(facts, replace(settings, chunk_tokens=chunk)).total_bytes <= close
    assert plan_memory(facts, replace(settings, chunk_tokens=chunk + 16)).total_bytes > close
    # Below weights, gradients and optimizer (14 bytes a weight) a smaller micro-batch cannot help.
    assert not remedies(13 * facts.num_parameters).startswith("hardware.micro_batch_tokens")
    assert "hardware.micro_batch_tokens" in remedies(15 * facts.num_parameters)
    # Where neither is enough by itself, both together may be; a frozen base lies in the computation's precision.
    adapter, short = remedies(6 * facts.num_parameters).split()
    assert adapter == "adapter=lora"
    tokens = int(short.removeprefix("hardware.micro_batch_tokens="))
    frozen = replace(settings, train_base=False, num_adapter_parameters=facts.num_parameters // 50)
    frozen = replace(frozen, base_bits=16 if settings.precision == "bf16" else 32)
    assert plan_memory(facts, replace(frozen, micro_batch_tokens=tokens)).total_bytes <= 6 * facts.num_parameters
    assert plan_memory(facts, replace(frozen, micro_batch_tokens=tokens + 64)).total_bytes > 6 * facts.num_parameters


def test_nothing_helps() -> None:
    problem = memory_problem(plan_memory(FACTS, SETTINGS), limit_bytes=100, limit_key="hardware.memory_gib")
    assert problem is not None
    assert problem.remedy == "choose a smaller base_model"
