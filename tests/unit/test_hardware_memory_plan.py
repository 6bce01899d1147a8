"""The plan's arithmetic by hand, and against the tensors that autograd really keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from nexus.hardware import memory_parts as parts
from nexus.hardware.memory_plan import GIB, MemorySettings, format_bytes, plan_memory
from nexus.hardware.memory_remedies import Offer, Options, memory_problem, remedies
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
    storage="bf16",
    trains_base=False,
    adapter_parameters=100,
    adapter_rank=3,
    dora=False,
    optimizer="adamw",
    checkpointing="off",
    micro_batch_tokens=64,
    longest_row=32,
    target_tokens=40,
    several_micro_batches=True,
    chunk_tokens=32,
    score_rows=4,
    score_tokens=20,
    prompt_tokens=12,
    scores_after=True,
    packages=True,
    on_gpu=False,
    overhead_bytes=1_000,
    fragmentation=0.5,
)
CHECKPOINTING = {"true": "on", "offload": "offload"}
OFFER = Offer(rank=16, parameters=600_000_000 // 50)
EVERYTHING = Options({"lora": OFFER, "qlora": OFFER}, frozenset({"adamw_8bit"}), CHECKPOINTING)
LAYER = 4 * 2 * 8 + 2 * (5 * 8 + 3 * 8 + 2 * 4 + 4 * 16 + 7 * 3) + 4 * (2 + 2)  # bytes of a token
LOSS = 32 * 50 * 6  # one chunk, a 32-bit and a 16-bit copy
CACHE = 2 * 2 * 1 * 4 * 2 * 4 * 20
PROMPTS = 4 * 12 * (3 * 16 + 4 * 8) * 2 + 2 * 4 * 50 * 4


def test_lines_by_hand() -> None:
    plan = plan_memory(FACTS, SETTINGS)
    found = {phase.name: {item.name: item.num_bytes for item in phase.items} for phase in plan.phases}
    weights = {"base weights": 2_000, "adapter weights": 400}
    activations = 64 * (2 * LAYER + 8 * 2)
    assert found == {
        "score": weights | {"cache": CACHE, "prompts": PROMPTS},
        "train": weights | {"optimizer": 800, "gradients": 400, "activations": activations, "loss": LOSS},
        "score again": weights | {"cache": CACHE, "prompts": PROMPTS, "optimizer": 800},
        "package": {"merged weights": 2_000, "reopened package": 2_000, "optimizer": 800},
    }
    assert plan.train.moment == "the loss of the last micro-batch"
    assert plan.peak is plan.train
    assert plan.resident_bytes == 2_400
    assert plan.total_bytes == int(1.5 * (3_600 + activations + LOSS)) + 1_000
    assert plan.rows()[-1][2] == format_bytes(plan.total_bytes)


def test_what_stays_beside_a_policy() -> None:
    """Reinforcement keeps what it trains once more, and a reward model, while it samples and while it trains."""
    kept = replace(SETTINGS, rollout_rows=2, keeps_reference=True, judge_parameters=500, judge_bytes=1_000)
    alone = replace(SETTINGS, rollout_rows=2)
    for phase, bare in zip(plan_memory(FACTS, kept).phases, plan_memory(FACTS, alone).phases, strict=True):
        added = {item.name: item.num_bytes for item in phase.items if item not in bare.items}
        assert added == ({"reference": 400, "reward model": 1_000} if phase.name in ("rollout", "train") else {})
    full = replace(kept, precision="fp32", storage="fp32", trains_base=True, adapter_parameters=0, adapter_rank=0)
    assert {item.name: item.num_bytes for item in plan_memory(FACTS, full).train.items}["reference"] == 4_000


def test_full_training_by_hand() -> None:
    """Weights and optimizer stay; the end of a backward pass adds gradients and embedding tables."""
    full = replace(SETTINGS, precision="fp32", storage="fp32", trains_base=True, adapter_parameters=0, adapter_rank=0)
    one = replace(full, several_micro_batches=False, micro_batch_tokens=1, target_tokens=1, longest_row=1)
    few = plan_memory(FACTS, one).train
    assert few.moment == "the end of the last backward pass"
    assert {item.name: item.num_bytes for item in few.items} == {
        "base weights": 4_000,
        "optimizer": 8_000,
        "gradients": 4_000,
        "embedding gradient": 2 * 4 * 400,
    }
    one_batch = plan_memory(FACTS, replace(full, precision="bf16", several_micro_batches=False))
    names = {item.name for item in one_batch.train.items}
    assert {item.name: item.num_bytes for item in one_batch.train.items}["16-bit copies"] == 2 * (1_000 - 400)
    assert "gradients" not in names, "the only micro-batch of a step begins without gradients"


def test_weights_by_storage() -> None:
    """A tied table of 50 x 8 stays in 16 bits; 600 weights of the layers take what their format needs."""
    assert parts.weight_bytes(FACTS, "fp32", "bf16") == 4_000
    assert parts.weight_bytes(FACTS, "bf16", "bf16") == 2_000
    assert parts.weight_bytes(FACTS, "nf4", "bf16") == int(600 * (4 + 0.125 + 0.001953125) / 8 + 800)
    assert parts.weight_bytes(FACTS, "nf4", "fp32") == int(600 * (4 + 0.125 + 0.001953125) / 8 + 1600)
    assert parts.weight_bytes(FACTS, "gptq4", "bf16") == int(600 * (4 + 16 / 128 + 4 / 128) / 8 + 800)
    assert parts.embedding_parameters(replace(FACTS, tied=False)) == 800


def test_optimizers() -> None:
    def state(kind: Any, trained: int = 1_000, base: bool = True) -> int:
        return parts.optimizer_bytes(FACTS, trained=trained, kind=kind, trains_base=base)

    assert state("adamw") == 8_000
    assert state("sgd") == 0
    assert state("adamw_8bit") == state("paged_adamw_8bit") == int(600 * (2 + 2 * 4 / 256)) + 8 * 400
    assert state("adamw_8bit", base=False) == int(1_000 * (2 + 2 * 4 / 256))
    assert state("muon") == 4 * 600 + 8 * 400  # one number for the layers, two for the table
    assert state("muon", trained=100, base=False) == 400


def test_optimizer_states_equal_the_libraries() -> None:
    """Bytes of the tensors that the optimizers really keep after a step."""
    from bitsandbytes.optim import AdamW8bit

    from nexus.methods.muon import MuonAdamW

    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"layers": torch.nn.Linear(256, 512, bias=False)})
    named = [("layers.0.weight", next(model.parameters()))]
    made: dict[str, Any] = {
        "adamw": torch.optim.AdamW(model.parameters(), fused=True),
        "adamw_8bit": AdamW8bit(model.parameters()),
        "muon": MuonAdamW(named, lr=1e-3, muon_lr=1e-2, momentum=0.9, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0),
    }
    for kind, optimizer in made.items():
        model["layers"](torch.randn(4, 256)).square().sum().backward()
        optimizer.step()
        kept = sum(
            value.numel() * value.element_size()
            for state in optimizer.state.values()
            for name, value in state.items()
            if isinstance(value, torch.Tensor) and value.numel() > 1 and not name.startswith("qmap")
        )
        assert kept == parts.optimizer_bytes(FACTS, trained=256 * 512, kind=kind, trains_base=False), kind


def test_nf4_bytes_equal_bitsandbytes() -> None:
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(512, 1024)
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    scales = state.absmax.numel() * state.absmax.element_size()
    scales += state.state2.absmax.numel() * state.state2.absmax.element_size()
    stored = packed.numel() * packed.element_size() + scales
    assert stored == weight.numel() * parts.STORAGE_BITS["nf4"] / 8


def kept_bytes(config: Any, *, tokens: int, precision: str, lora: bool, dora: bool) -> int:
    """Bytes of distinct storages that autograd keeps in a forward pass of the decoder, without weights and casts."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if lora and precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    if lora:
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(r=4, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM")
        model = get_peft_model(model, adapter).get_base_model()
    # 16-bit copies of trained weights are planned for elsewhere
    trained = [p.shape for p in model.parameters() if p.requires_grad and p.ndim == 2]
    shapes = {tuple(shape) for way in trained for shape in (way, way[::-1])}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    held = []  # a storage that is freed could give its address to the next

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in shapes:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    ids = torch.arange(tokens)[None] % config.vocab_size
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config, Gemma3TextConfig])
@pytest.mark.parametrize("adapter", ["full", "lora", "dora"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("intermediate", "key_value_heads"), [(160, 4), (512, 1)])
def test_activations_against_autograd(
    kind: Any, adapter: str, precision: str, intermediate: int, key_value_heads: int
) -> None:
    sizes: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 24}
    config = kind(vocab_size=97, intermediate_size=intermediate, num_key_value_heads=key_value_heads, **sizes)
    facts = replace(
        FACTS, model_type=config.model_type, hidden_size=96, num_layers=3, num_heads=4, head_dim=24,
        num_kv_heads=key_value_heads, intermediate_size=intermediate,
    )  # fmt: skip
    planned, on_host = parts.activation_bytes(
        facts,
        tokens=128,
        precision=precision,
        trains_base=adapter == "full",
        rank=0 if adapter == "full" else 4,
        dora=adapter == "dora",
        checkpointing="off",
    )
    measured = kept_bytes(config, tokens=128, precision=precision, lora=adapter != "full", dora=adapter == "dora")
    assert on_host == 0
    assert 0.95 < planned / measured < 1.05, f"planned {planned}, autograd keeps {measured}"


def test_checkpointed_activations() -> None:
    def kept(how: str) -> tuple[int, int]:
        return parts.activation_bytes(
            FACTS, tokens=10, precision="fp32", trains_base=True, rank=0, dora=False, checkpointing=how
        )

    assert kept("on") == (10 * (2 * 8 * 4 + 3 * 8 * 4), 0)
    assert kept("offload") == (10 * (2 * 8 * 4 + 3 * 8 * 4), 10 * 2 * 8 * 4)
    host = plan_memory(FACTS, replace(SETTINGS, checkpointing="offload"))
    device = plan_memory(FACTS, replace(SETTINGS, checkpointing="offload", on_gpu=True))
    assert [phase.name for phase in device.phases] == ["score", "train", "score again"], "packages are made on the host"
    assert host.train.num_bytes - device.train.num_bytes == 64 * 2 * 8 * 2


def test_what_fits_has_no_problem() -> None:
    plan = plan_memory(FACTS, SETTINGS)
    total = plan.total_bytes
    assert memory_problem(plan, limit_bytes=total, limit_key="hardware.memory_gib", options=EVERYTHING) is None
    problem = memory_problem(plan, limit_bytes=total - 1, limit_key="hardware.memory_gib", options=EVERYTHING)
    assert problem is not None
    assert (problem.code, problem.key) == ("E-MEM-01", "hardware.memory_gib")


LARGE = replace(
    FACTS, num_parameters=600_000_000, hidden_size=1024, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128,
    intermediate_size=3072, vocab_size=151_936,
)  # fmt: skip
HEAVY = replace(
    SETTINGS, trains_base=True, storage="fp32", adapter_parameters=0, adapter_rank=0, micro_batch_tokens=8_192,
    longest_row=2_048, target_tokens=8_192, chunk_tokens=512, score_rows=0, on_gpu=True, overhead_bytes=GIB,
    fragmentation=0.05,
)  # fmt: skip


def changed(settings: MemorySettings, words: str) -> MemorySettings:
    """The settings under typed overrides, by another road than the search takes."""
    for override in words.split():
        key, value = override.split("=")
        if key == "hardware.micro_batch_tokens":
            settings = replace(settings, micro_batch_tokens=int(value), target_tokens=int(value))
        elif key == "data.max_seq_len":
            settings = replace(settings, longest_row=int(value))
        elif key == "hardware.gradient_checkpointing":
            settings = replace(settings, checkpointing={"true": "on"}.get(value, value))
        elif key == "optimizer":
            settings = replace(settings, optimizer=value)  # type: ignore[arg-type]
        elif key == "adapter":
            settings = replace(
                settings, trains_base=False, adapter_rank=16, adapter_parameters=12_000_000,
                storage="nf4" if value == "qlora" else "bf16",
            )  # fmt: skip
        else:
            assert override == "data.long_rows=truncate"
    tokens = max(settings.micro_batch_tokens, settings.longest_row)  # a row is never cut over micro-batches
    return replace(settings, micro_batch_tokens=tokens, target_tokens=tokens)


@pytest.mark.parametrize("gib", [26, 20, 14, 10, 8, 6, 4, 3, 2.5])
def test_each_remedy_is_enough_and_not_more(gib: float) -> None:
    plan, limit = plan_memory(LARGE, HEAVY), int(gib * GIB)
    assert plan.total_bytes > 26 * GIB
    found = remedies(plan, limit_bytes=limit, options=EVERYTHING)
    assert found, "something always helps down to here"
    assert len(found) <= 3
    for words in found:
        settings = changed(HEAVY, words)
        assert plan_memory(LARGE, settings).total_bytes <= limit, words
        for left_out in words.replace(" data.long_rows=truncate", "").split():
            less = [word for word in words.split() if word != left_out]
            assert plan_memory(LARGE, changed(HEAVY, " ".join(less))).total_bytes > limit, f"{left_out} is not needed"
        if "micro_batch_tokens" in words and "max_seq_len" not in words:
            more = replace(
                settings, micro_batch_tokens=settings.micro_batch_tokens + 64, target_tokens=settings.target_tokens + 64
            )
            assert plan_memory(LARGE, more).total_bytes > limit, words


def test_only_what_can_be_chosen_is_suggested() -> None:
    plan = plan_memory(LARGE, HEAVY)
    bare = Options({"lora": OFFER}, frozenset({"adamw"}), {})
    words = " ".join(remedies(plan, limit_bytes=14 * GIB, options=bare))
    assert "adapter=lora" in words
    assert not any(word in words for word in ("qlora", "checkpointing", "8bit"))


def test_nothing_helps() -> None:
    plan = plan_memory(FACTS, SETTINGS)
    problem = memory_problem(plan, limit_bytes=1_001, limit_key="hardware.memory_gib", options=EVERYTHING)
    assert problem is not None
    assert problem.remedy == "choose a smaller base_model"


def test_a_limit_below_what_is_not_tensors() -> None:
    plan = plan_memory(FACTS, SETTINGS)
    problem = memory_problem(plan, limit_bytes=1_000, limit_key="hardware.memory_gib", options=EVERYTHING)
    assert problem is not None
    assert "hardware.overhead_gib" in problem.message
    assert problem.remedy == f"raise hardware.memory_gib to {format_bytes(plan.total_bytes)} or more"
