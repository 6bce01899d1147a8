"""Published configs: totals as published, tensors as transformers makes them, plans without network, two real steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2Model

from nexus.config.folders import conf_dir
from nexus.errors import NexusError
from nexus.models.facts import StoredTensor
from nexus.models.published import (
    decoder_config,
    decoder_tensors,
    model_tensors,
    published_config,
    published_facts,
    quantization,
)
from nexus.stages import planning
from nexus.stages.prepare import base_facts, base_tensors, refuse_unloadable
from nexus.stages.row_lengths import RowLengths
from tests import small

#: base_model, repository, parameters of the published weights (tied heads once; of the omni model its text decoder).
MODELS = [
    ("qwen2_5_0_5b", "Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
    ("qwen2_5_1_5b", "Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
    ("qwen2_5_7b", "Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
    ("qwen3_0_6b", "Qwen/Qwen3-0.6B", 596_049_920),
    ("llama3_2_1b", "meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
    ("gemma3_1b", "google/gemma-3-1b-it", 999_885_952),
    ("smollm3_3b", "HuggingFaceTB/SmolLM3-3B", 3_075_098_624),
    ("qwen2_5_omni_7b_gptq_int4", "Qwen/Qwen2.5-Omni-7B-GPTQ-Int4", 7_615_616_512),
]
OMNI = MODELS[-1][1]
every_model = pytest.mark.parametrize(("name", "repository", "total"), MODELS, ids=[name for name, *_ in MODELS])


def test_every_file_of_the_table_is_used() -> None:
    table = json.loads((conf_dir().parent / "nexus" / "models" / "published.json").read_text())
    assert set(table) == {repository for _, repository, _ in MODELS}


def as_loaded(config: dict[str, Any]) -> dict[str, Any]:
    """Architecture that transformers has a causal class for: the omni model's text part is a Qwen2 decoder."""
    if config["model_type"] == "qwen2_5_omni_text":
        return {key: value for key, value in config.items() if key != "rope_scaling"} | {"model_type": "qwen2"}
    return dict(config)


def test_a_changed_copy_changes_no_other() -> None:
    config = published_config("Qwen/Qwen2.5-0.5B-Instruct")
    assert config is not None
    config["num_hidden_layers"] = 1
    again = published_config("Qwen/Qwen2.5-0.5B-Instruct")
    assert again is not None
    assert again["num_hidden_layers"] == 24


@every_model
def test_totals_and_tensors(name: str, repository: str, total: int) -> None:
    facts = published_facts(repository)
    assert facts.num_parameters == total
    config = published_config(repository)
    assert config is not None
    text = decoder_config(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**as_loaded(text)))
    expected = {tensor: tuple(p.shape) for tensor, p in model.named_parameters()}
    assert {tensor: stored.shape for tensor, stored in decoder_tensors(text).items()} == expected
    assert sum(p.numel() for p in model.parameters()) == total
    made = model.config
    assert (facts.num_layers, facts.hidden_size, facts.intermediate_size, facts.num_heads, facts.num_kv_heads) == (
        made.num_hidden_layers, made.hidden_size, made.intermediate_size, made.num_attention_heads,
        made.num_key_value_heads,
    )  # fmt: skip
    assert (facts.vocab_size, facts.tied) == (made.vocab_size, made.tie_word_embeddings)
    assert facts.head_dim == (getattr(made, "head_dim", None) or made.hidden_size // made.num_attention_heads)
    assert facts.max_position_embeddings == made.max_position_embeddings
    assert facts.sliding_window == (made.sliding_window if "gemma" in name else None)


@every_model
def test_base_models_plan_without_network(name: str, repository: str, total: int, cfg: Any, monkeypatch: Any) -> None:
    def refuse(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("a plan needs no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    composed = cfg("+capability=tools", f"base_model={name}", "hardware=h200", "adapter=lora")
    config: Any = OmegaConf.to_container(composed, resolve=True)
    assert config["base_model"]["path"] == repository
    facts = base_facts(config["base_model"])
    tensors = base_tensors(config["base_model"], facts)
    counts = planning.count_parameters(facts, config["adapter"], tensors)
    assert counts.total == total
    assert 0 < counts.adapter < total / 20
    planning.refuse_hopeless(config, facts, tensors)
    plan = planning.memory_plan_of(config, facts, counts, RowLengths.at_most(1024))
    weights = plan.train.items[0].num_bytes / total
    assert weights == pytest.approx(2.0) if repository != OMNI else 0.5 < weights < 1.0
    assert plan.total_bytes < 136 * 2**30


def reduced(config: dict[str, Any]) -> dict[str, Any]:
    """A few thousand weights with every other option as published."""
    heads = 4
    sizes = {
        "vocab_size": small.ARCHITECTURE["vocab_size"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads * config["num_key_value_heads"] // config["num_attention_heads"]),
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if "head_dim" in config:
        sizes["head_dim"] = 24  # not hidden / heads, as in these models
    if config["model_type"] == "llama":
        sizes["head_dim"] = 16
        sizes["rope_scaling"] = config["rope_scaling"] | {"original_max_position_embeddings": 64}
    if config["model_type"] == "gemma3_text":
        sizes |= {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 24}
    if config["model_type"] == "smollm3":
        sizes["no_rope_layer_interval"] = 2
    return as_loaded(config | sizes)


@every_model
def test_a_small_model_of_the_same_class_trains_two_steps(
    name: str, repository: str, total: int, tmp_path: Path
) -> None:
    config = published_config(repository)
    assert config is not None
    architecture = reduced(decoder_config(config))
    base_model = small.settings() | {"architecture": architecture}
    method = small.make_method(base_model=base_model, total_steps=2)
    method.configure_model()
    before = small.weights(method)
    steps = [small.make_step(small.make_rows(6, seed=seed)) for seed in (1, 2)]
    small.fit_steps(method, steps, tmp_path)
    assert method.tokens_seen == sum(batch.num_tokens for step in steps for batch in step)
    assert 0 < float(method.step_metrics["train/loss"]) < 20
    moved = [key for key, value in small.weights(method).items() if not torch.equal(value, before[key])]
    assert len(moved) == len(before), "every tensor of this class learns"


def test_the_omni_models_text_part_is_a_qwen2_decoder() -> None:
    """Same weights, same text, same hidden states: its three position streams are equal for text."""
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTextConfig
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerTextModel

    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                             "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e6}
    torch.manual_seed(0)
    omni = Qwen2_5OmniThinkerTextModel(
        Qwen2_5OmniTextConfig(**sizes, rope_parameters=rope | {"mrope_section": [2, 3, 3]})
    ).eval()
    plain = Qwen2Model(Qwen2Config(**sizes, rope_parameters=rope)).eval()
    plain.load_state_dict(omni.state_dict())
    ids = torch.arange(20)[None]
    with torch.no_grad():
        difference = (omni(input_ids=ids)[0] - plain(input_ids=ids)[0]).abs().max()
    assert float(difference) < 1e-5


def test_quantized_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nexus.models.loader import load_config

    base_model = {"path": OMNI, "architecture": None}
    assert quantization(OMNI) == "gptq"
    assert quantization("Qwen/Qwen3-0.6B") is None
    assert quantization("asset:nexus_tiny") is None
    for adapter, told in (
        ({"name": "none"}, "trained themselves"),
        ({"name": "qlora", "init": "default"}, "quantized again"),
        ({"name": "lora", "init": "pissa"}, "taken apart"),
    ):
        with pytest.raises(NexusError, match=told) as caught:
            refuse_unloadable(base_model, adapter)
        assert (caught.value.code, caught.value.where) == ("E-MOD-16", "base_model.path")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen2", "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    assert quantization(str(tmp_path)) == "gptq"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NexusError) as caught:
        refuse_unloadable(base_model, {"name": "lora", "init": "default"})
    assert (caught.value.code, caught.value.status) == ("E-DEP-03", 69)
    assert "optimum" in caught.value.message
    assert "gptqmodel" in caught.value.remedy
    with pytest.raises(NexusError) as caught:
        load_config(path=str(tmp_path), architecture=None, revision=None, trust_remote_code=False)
    assert caught.value.code == "E-DEP-03"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    refuse_unloadable(base_model, {"name": "lora", "init": "default"})


def test_a_folder_of_that_name_is_read_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert published_config("Qwen/Qwen3-0.6B") is None
    with pytest.raises(NexusError):
        model_tensors("Qwen/Qwen3-0.6B")


def test_an_architecture_has_tensors_too() -> None:
    rope = {"type": None, "factor": 1.0, "original_max_position_embeddings": None}
    base_model = {"path": None, "architecture": small.ARCHITECTURE, "rope": rope}
    facts = base_facts(base_model)
    tensors = base_tensors(base_model, facts)
    assert all(isinstance(tensor, StoredTensor) for tensor in tensors.values())
    assert sum(tensor.count for tensor in tensors.values()) == facts.num_parameters
    assert {k: t.shape for k, t in tensors.items()} == {
        k: t.shape for k, t in decoder_tensors(small.ARCHITECTURE).items()
    }
