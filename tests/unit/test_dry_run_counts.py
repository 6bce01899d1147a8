"""What `dry_run` counts from headers equals PEFT's count, and a plan that does not fit is refused. No torch in it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nexus.errors import NexusError
from nexus.hardware.memory_plan import MemoryPlan
from nexus.models.facts import read_facts, read_tensors
from nexus.stages.planning import (
    count_parameters,
    insist_on_fit,
    largest_micro_batch,
    lora_parameters,
    memory_limit,
    memory_plan_of,
)
from nexus.stages.row_lengths import RowLengths
from nexus.types import ModelFacts
from tests import small
from tests.conftest import REPOSITORY

COMMON = small.SIZES | {"vocab_size": 96}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "llama": {"model_type": "llama", "tie_word_embeddings": False, "attention_bias": True},
    "gemma3": {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, "sliding_window": 8},
    "phi3": {"model_type": "phi3", "tie_word_embeddings": False},  # query, key and value in one matrix
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("targets", ["all-linear", ["o_proj", "down_proj"]], ids=["all", "listed"])
def test_adapter_counts_from_headers_equal_peft(name: str, targets: Any, kind: str, tmp_path: Path) -> None:
    from nexus.models.adapters import apply_adapter, parameter_counts
    from nexus.models.loader import load_model

    model = load_model(
        path=None,
        architecture=COMMON | ARCHITECTURES[name],
        revision=None,
        trust_remote_code=False,
        seed=0,
        dtype="float32",
    )
    model.save_pretrained(tmp_path)
    facts = read_facts(tmp_path)
    headers = read_tensors(tmp_path)
    full = count_parameters(facts, {"name": "none"}, headers)
    assert full.total == full.trainable == parameter_counts(model).total
    adapter = {**(small.DORA if kind == "dora" else small.LORA), "target_modules": targets}
    counts = count_parameters(facts, adapter, headers)
    adapted = apply_adapter(model, adapter, seed=0)
    assert adapted.get_nb_trainable_parameters() == (counts.trainable, counts.total + counts.adapter)
    added = lora_parameters(headers, r=4, target_modules=targets, magnitudes=kind == "dora")
    assert counts.adapter == counts.trainable == added > 0


#: conf/adapter
ADAPTERS = {
    "none": {"name": "none"},
    "lora": {"name": "lora", "r": 16, "target_modules": "all-linear"},
    "qlora": {"name": "qlora", "r": 64, "target_modules": "all-linear"},
}

# A model that is too large for a test's disk: the file is as long as its header says, but sparse.

LAYERS, WIDE, INNER, VOCAB = 36, 4096, 12288, 151936


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """Folder of an 8 B parameter Qwen3: config and headers, and no block of weights on the disk."""
    config = {
        "model_type": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": WIDE,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, WIDE),
        "lm_head.weight": (VOCAB, WIDE),
        "model.norm.weight": (WIDE,),
    }
    for layer in range(LAYERS):
        start = f"model.layers.{layer}"
        shapes |= {f"{start}.self_attn.{x}_proj.weight": (4096 if x == "q" else 1024, WIDE) for x in "qkv"}
        shapes[f"{start}.self_attn.o_proj.weight"] = (WIDE, 4096)
        shapes |= {f"{start}.mlp.{x}_proj.weight": (INNER, WIDE) for x in ("gate", "up")}
        shapes[f"{start}.mlp.down_proj.weight"] = (WIDE, INNER)
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    assert (tmp_path / "model.safetensors").stat().st_blocks * 512 < 2**20
    return tmp_path


def composed(cfg: Any, *overrides: str) -> dict[str, Any]:
    config = cfg(
        "+capability=tools", "hardware=rtx5080_16gb", "base_model=custom", "base_model.path=no/where", *overrides
    )
    container: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return container


def plan_of(config: dict[str, Any], facts: ModelFacts, headers: Any, lengths: RowLengths) -> MemoryPlan:
    return memory_plan_of(config, facts, count_parameters(facts, config["adapter"], headers), lengths)


def refusal(config: dict[str, Any], facts: ModelFacts, headers: Any, lengths: RowLengths) -> NexusError:
    with pytest.raises(NexusError) as caught:
        insist_on_fit(config, plan_of(config, facts, headers, lengths), headers, limit_bytes=memory_limit(config))
    return caught.value


def test_a_model_too_large_for_16_gb_is_refused(cfg: Any, huge: Path) -> None:
    facts, headers = read_facts(huge), read_tensors(huge)
    assert 8.1e9 < facts.num_parameters < 8.3e9
    for adapter in ("none", "lora"):
        config = composed(cfg, f"adapter={adapter}")
        error = refusal(config, facts, headers, RowLengths.at_most(512))
        assert (error.code, error.status, error.where) == ("E-MEM-01", 64, "hardware.memory_gib")
        assert "14.00 GiB" in error.message
    # under an adapter the weights alone take 8.2e9 * 2 / 2**30 = 15.26 GiB
    plan = plan_of(composed(cfg, "adapter=lora"), facts, headers, RowLengths.at_most(512))
    assert plan.train.items[0].name == "base weights"
    assert plan.rows()[0][2] == "15.26 GiB"


def test_four_bits_fit_where_sixteen_do_not(cfg: Any, huge: Path) -> None:
    facts, headers, rows = read_facts(huge), read_tensors(huge), RowLengths.at_most(512)
    words = ("hardware.micro_batch_tokens=1024", "hardware.gradient_checkpointing=true", "evaluation.batch_size=16")
    refusal(composed(cfg, "adapter=lora", *words), facts, headers, rows)
    tables = 2 * VOCAB * WIDE  # embedding and head stay in 16 bits
    matrices = LAYERS * WIDE * (2 * 4096 + 2 * 1024 + 3 * INNER)
    for double_quant, bits in ((True, 4 + 8 / 64 + 32 / (64 * 256)), (False, 4 + 32 / 64)):
        config = composed(cfg, "adapter=qlora", f"adapter.double_quant={double_quant}", *words)
        plan = plan_of(config, facts, headers, rows)
        insist_on_fit(config, plan, headers, limit_bytes=memory_limit(config))
        assert plan.train.items[0].num_bytes == pytest.approx(tables * 2 + matrices * bits / 8, rel=1e-4)


@pytest.mark.parametrize("double_quant", [True, False])
def test_planned_bits_are_those_that_bitsandbytes_stores(cfg: Any, tmp_path: Path, double_quant: bool) -> None:
    from nexus.models.loader import load_model

    wide = small.ARCHITECTURE | {"vocab_size": 64, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    load_model(**small.settings() | {"architecture": wide}, seed=0).save_pretrained(tmp_path)
    quantization = small.QUANTIZATION | {"double_quant": double_quant}
    model = load_model(**small.settings(str(tmp_path), quantization=quantization), seed=0)
    stored = 0
    for p in model.parameters():
        stored += p.numel() * p.element_size()
        if hasattr(p, "quant_state"):
            state = p.quant_state
            stored += sum(part.absmax.numel() * part.absmax.element_size() for part in (state, state.state2) if part)
    config = composed(cfg, "adapter=qlora", "hardware=cpu", f"adapter.double_quant={double_quant}")
    plan = plan_of(config, read_facts(tmp_path), read_tensors(tmp_path), RowLengths.at_most(30))
    assert plan.train.items[0].num_bytes == pytest.approx(stored, rel=0.01)  # norms are planned as if in 4 bits


def test_small_moments_and_checkpointing_are_planned(cfg: Any, huge: Path) -> None:
    facts, headers, rows = read_facts(huge), read_tensors(huge), RowLengths.at_most(512)

    def sizes(*words: str) -> dict[str, int]:
        plan = plan_of(composed(cfg, "adapter=lora", *words), facts, headers, rows)
        return {item.name: item.num_bytes for item in plan.train.items}

    plain = sizes()
    eighths = sizes("optimizer=paged_adamw_8bit")["optimizer"]
    assert eighths == pytest.approx(plain["optimizer"] * (1 + 4 / 256) / 4, abs=1)
    assert sizes("optimizer=paged_adamw")["optimizer"] == plain["optimizer"]
    assert sizes("hardware.gradient_checkpointing=true")["activations"] < plain["activations"] / 5


def test_the_remedies_of_a_refusal_fit(cfg: Any, huge: Path) -> None:
    """Every suggestion, typed as overrides of the real configuration, makes a plan that fits."""
    config = json.loads((huge / "config.json").read_text()) | {"num_hidden_layers": 16}
    (huge / "config.json").write_text(json.dumps(config))
    headers = {n: t for n, t in read_tensors(huge).items() if ".layers." not in n or int(n.split(".")[2]) < 16}
    facts = replace(read_facts(huge), num_parameters=sum(t.count for t in headers.values()))
    lengths = RowLengths(mean=600.0, spread=200.0, longest=1000, learned=0.6)
    error = refusal(composed(cfg), facts, headers, lengths)
    suggestions = error.remedy.split("; or ")
    assert suggestions
    for words in suggestions:
        assert "adapter=" in words, "full training of 4 B weights cannot fit"
        config = composed(cfg, *words.split())
        shorter = replace(lengths, longest=min(lengths.longest, config["data"]["max_seq_len"]))
        plan = plan_of(config, facts, headers, shorter)
        assert plan.total_bytes <= 14 * 2**30, words
        insist_on_fit(config, plan, headers, limit_bytes=memory_limit(config))


def test_the_planned_micro_batch() -> None:
    """Rows of the micro-batch and three deviations of their sum; at most the limit, at least the longest row."""
    lengths = RowLengths(mean=100.0, spread=20.0, longest=180, learned=0.5)
    common: dict[str, Any] = {"rows": 9, "global_batch_size": 9, "packing": True}
    assert largest_micro_batch(lengths, tokens=None, **common) == (900 + 3 * 20 * 3, False)
    assert largest_micro_batch(lengths, tokens=950, **common) == (950, False)
    assert largest_micro_batch(lengths, tokens=500, **common) == (500, True)
    assert largest_micro_batch(lengths, tokens=100, **common) == (180, True)
    assert largest_micro_batch(lengths, tokens=None, **common | {"global_batch_size": 4}) == (400 + 3 * 20 * 2, False)
    assert largest_micro_batch(lengths, tokens=None, **common | {"global_batch_size": 18}) == (1080, True)
    assert largest_micro_batch(lengths, tokens=None, **common | {"packing": False}) == (9 * 180, False)
    few = common | {"global_batch_size": 18, "num_rows": 3}
    assert largest_micro_batch(lengths, tokens=None, **few) == (300 + 104, False)  # 3 * 20 * sqrt(3) = 103.9
    assert largest_micro_batch(lengths, tokens=None, **few | {"num_rows": 12}) == (1080, True)
    alike = RowLengths(mean=100.0, spread=90.0, longest=100, learned=1.0)
    assert largest_micro_batch(alike, tokens=None, **common) == (900, False)


DRY = """
import sys
sys.argv = ["train", "+capability=tools", "dry_run=true", *sys.argv[1:]]
from nexus.train import main
status = main()
loaded = {"torch", "lightning", "peft"} & set(sys.modules)
print("loaded:", sorted(loaded))
raise SystemExit(status)
"""


def test_fewer_rows_than_a_step_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three rows, a batch of 16: what is planned is what the run takes."""
    from nexus.train import main

    rows = [{"prompt": f"Say {i}.", "completion": f"It is {i}."} for i in range(3)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    words = ["data.train=own.jsonl", "data.validation_fraction=0", "dry_run=true", "method.epochs=2", "adapter=none"]
    monkeypatch.setattr(sys, "argv", ["train", *words])
    assert main() == 0
    shown = capsys.readouterr().out
    corpus = small.make_corpus(small.make_tokenizer(), sources={}, train=str(tmp_path / "own.jsonl"))
    tokens = int(corpus.flat.lengths.sum())
    assert f"3 rows of {tokens / 3:.0f} tokens, 2 steps of 3 rows" in shown
    assert f" seconds for {2 * tokens} tokens (" in shown
    package = shown[shown.index("package") :]
    assert "adapter folded in" not in package
    assert "merged" not in package


@pytest.mark.parametrize("adapter", ["none", "lora", "qlora"])
def test_the_dry_run_imports_no_torch_and_writes_nothing(tmp_path: Path, adapter: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRY, f"adapter={adapter}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "160"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout
    assert "dry run: nothing was written" in done.stdout
    facts = read_facts(REPOSITORY / "nexus" / "assets" / "nexus_tiny")
    headers = read_tensors(REPOSITORY / "nexus" / "assets" / "nexus_tiny")
    counts = count_parameters(facts, ADAPTERS[adapter], headers)
    assert f"parameters: {counts.total:,}, trainable {counts.trainable:,}" in done.stdout
    assert list(tmp_path.iterdir()) == []
