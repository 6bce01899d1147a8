"""The planned peak of training against every tensor that torch makes in two whole optimizer steps.

The models have the published widths and few layers. Their tensors are fake (shapes without memory), so the steps run on
any machine; a dispatch mode adds up the storages that are alive after each operation.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from nexus.functional import sft
from nexus.functional.sft import sft_loss
from nexus.hardware.memory_plan import MemorySettings, plan_memory
from nexus.models.adapters import apply_lora
from nexus.models.attention import enable_segments
from nexus.models.checkpointing import checkpoint_layers
from nexus.models.embedding import gradient_by_index
from nexus.models.facts import facts_of
from nexus.models.head import LogitForm, output_head, target_hidden_states
from nexus.models.published import decoder_tensors, published_config
from nexus.types import MicroBatch, ModelFacts

ROWS, LENGTH, LEARNED, CHUNK, RANK = 4, 512, 300, 256, 16
GIB = 2**30


class Storages(TorchDispatchMode):
    """Sums the storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, int] = {}

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.known:
            self.known[key] = storage.nbytes()
            self.now += self.known[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, key)

    def remove(self, key: int) -> None:
        self.now -= self.known.pop(key)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace every tensor of a model on the meta device by a fake one of the processor; ties stay ties."""
    made: dict[int, torch.Tensor] = {}
    kept = []  # while `made` knows a tensor by its id, it must not be freed
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    with mode:
                        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = (
                        nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
                    )
                    kept.append(tensor)
                tensors[name] = made[id(tensor)]  # type: ignore[assignment]


def make_batch() -> MicroBatch:
    """A packed micro-batch, whose values nobody reads."""
    tokens, learned = ROWS * LENGTH, ROWS * LEARNED
    return MicroBatch(
        input_ids=torch.empty(1, tokens, dtype=torch.long),
        position_ids=torch.empty(1, tokens, dtype=torch.long),
        attention_mask=None,
        segments=tuple((row * LENGTH, (row + 1) * LENGTH) for row in range(ROWS)),
        labels=torch.empty(1, tokens, dtype=torch.long),
        target_positions=torch.empty(learned, dtype=torch.long),
        targets=torch.empty(learned, dtype=torch.long),
        loss_scale=0.5,
        num_tokens=tokens,
        num_target_tokens=learned,
    )


def measured_peak(config: dict[str, Any], *, precision: str, lora: bool, checkpointing: bool, micro: int) -> int:
    """Peak of two optimizer steps, done as `methods.base` does them."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    dtype = torch.bfloat16 if lora and precision == "bf16" else torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)
        model.tie_weights()
        enable_segments(model)
        if checkpointing:
            checkpoint_layers(model, offload=False)
        if lora:
            model = apply_lora(
                model, r=RANK, alpha=32, dropout=0.0, target_modules="all-linear", use_rslora=False, use_dora=False,
                pissa=None, seed=0,
            )  # fmt: skip
    make_fake(model, mode)
    gradient_by_index(model)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    storages = Storages()
    with mode:
        batch, optimizer = make_batch(), torch.optim.AdamW(trained, fused=True)
        for tensor in [*model.parameters(), *model.buffers()]:
            storages.add(tensor)
        with storages:
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    for _ in range(micro):
                        backward(model, batch)
                    nn.utils.clip_grad_norm_(trained, 1.0)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
    return storages.peak


def backward(model: Any, batch: MicroBatch) -> None:
    """Forward and backward pass of one micro-batch, as `methods.sft` computes its loss."""
    hidden, head = target_hidden_states(model, batch), output_head(model)
    output = sft_loss(
        hidden=hidden, weight=head.weight, bias=head.bias, targets=batch.targets, form=LogitForm.of(model),
        chunk_size=CHUNK,
    )  # fmt: skip
    (output.loss * batch.loss_scale).backward()


def planned_peak(
    facts: ModelFacts, added: int, *, precision: str, lora: bool, checkpointing: bool, micro: int, on_gpu: bool = False
) -> int:
    settings = MemorySettings(
        precision=precision,
        storage="bf16" if lora and precision == "bf16" else "fp32",
        trains_base=not lora,
        adapter_parameters=added if lora else 0,
        adapter_rank=RANK if lora else 0,
        dora=False,
        optimizer="adamw",
        checkpointing="on" if checkpointing else "off",
        micro_batch_tokens=ROWS * LENGTH,
        longest_row=LENGTH,
        target_tokens=ROWS * LEARNED,
        several_micro_batches=micro > 1,
        chunk_tokens=CHUNK,
        score_rows=0,
        score_tokens=0,
        prompt_tokens=0,
        scores_after=False,
        packages=False,
        on_gpu=on_gpu,
        overhead_bytes=0,
        fragmentation=0.0,
    )
    return plan_memory(facts, settings).train.num_bytes


@pytest.mark.parametrize(
    ("repository", "layers", "precision", "lora", "checkpointing", "micro"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 2, "bf16", False, False, 2),
        ("Qwen/Qwen2.5-0.5B-Instruct", 2, "fp32", False, False, 1),
        pytest.param("Qwen/Qwen2.5-1.5B-Instruct", 3, "bf16", False, True, 2, marks=pytest.mark.slow),
        ("Qwen/Qwen2.5-7B-Instruct", 1, "bf16", False, False, 2),
        ("Qwen/Qwen2.5-7B-Instruct", 2, "bf16", True, True, 1),
        ("Qwen/Qwen2.5-7B-Instruct", 3, "bf16", True, False, 1),
        ("Qwen/Qwen3-0.6B", 4, "fp32", True, False, 1),
        pytest.param("Qwen/Qwen3-0.6B", 4, "bf16", False, False, 2, marks=pytest.mark.slow),
        ("meta-llama/Llama-3.2-1B-Instruct", 2, "bf16", True, False, 1),
        ("HuggingFaceTB/SmolLM3-3B", 3, "bf16", False, False, 1),
    ],
)
def test_planned_peak_is_the_real_one(
    repository: str, layers: int, precision: str, lora: bool, checkpointing: bool, micro: int
) -> None:
    published = published_config(repository)
    assert published is not None
    config = published | {"num_hidden_layers": layers}
    tensors = decoder_tensors(config)
    facts = facts_of(config=config, tensors=tensors, path="", where="")
    added = sum(RANK * sum(t.shape) for name, t in tensors.items() if len(t.shape) == 2 and "_proj" in name)
    how: dict[str, Any] = {"precision": precision, "lora": lora, "checkpointing": checkpointing, "micro": micro}
    planned, measured = planned_peak(facts, added, **how), measured_peak(config, **how)
    told = f"planned {planned / GIB:.3f} GiB, torch had {measured / GIB:.3f} GiB"
    assert 0.95 < planned / measured < 1.05, told


def test_a_gpu_has_its_own_copy_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16; here the loss of many positions is the worst moment, so that the copy counts."""
    monkeypatch.setattr(sft, "head_for", lambda dtype, weight: weight.to(dtype))
    config = published_config("Qwen/Qwen2.5-0.5B-Instruct")
    assert config is not None
    config |= {"num_hidden_layers": 1}
    facts = facts_of(config=config, tensors=decoder_tensors(config), path="", where="")
    how: dict[str, Any] = {"precision": "bf16", "lora": False, "checkpointing": False, "micro": 1}
    measured = measured_peak(config, **how)
    planned, without = (planned_peak(facts, 0, on_gpu=on_gpu, **how) for on_gpu in (True, False))
    assert 0.95 < planned / measured < 1.05
    assert planned - without == 2 * facts.vocab_size * facts.hidden_size


def test_the_measurement_sees_an_allocation() -> None:
    """It counts what is alive together, views once, and what was freed no more."""
    storages = Storages()
    with storages:
        first = torch.empty(1000)
        view = first.view(10, 100)
        assert storages.now == 4000
        second = first + 1
        assert storages.now == 8000
        del first, view
        assert storages.now == 4000
        third = replace(make_batch(), labels=second)
        assert (
            storages.peak
            == 8000
            + sum(t.nbytes for t in (third.input_ids, third.position_ids, third.target_positions, third.targets))
            + 8 * ROWS * LENGTH
            - 4000
        )
