"""Every damaged or unsuitable model folder has its own code, place and remedy; none loads silently."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from nexus.errors import NexusError
from nexus.models.facts import read_facts, resolve_model
from nexus.models.loader import load_model, model_facts
from nexus.models.tokenizer import load_tokenizer
from tests import small

ARCHITECTURE = small.SIZES | {"model_type": "qwen3", "max_position_embeddings": 96, "tie_word_embeddings": True}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def fresh(**change):
    return load_model(
        path=None,
        architecture={**ARCHITECTURE, **change},
        revision=None,
        trust_remote_code=False,
        seed=1,
        dtype="fp32",
    )


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    fresh().save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w1")),
        eos_token="w2",
        pad_token="w0",
        chat_template=TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    copy = tmp_path / "tiny"
    shutil.copytree(saved, copy)
    return copy


def open_model(path, **change):
    settings = {"path": path and str(path), "architecture": None, "revision": None, "trust_remote_code": False}
    return load_model(**{**settings, "seed": 0, "dtype": "fp32", **change})


def open_tokenizer(path, **change):
    settings = {
        "path": str(path),
        "revision": None,
        "chat_template": None,
        "trust_remote_code": False,
        "vocab_rows": 64,
        "needs_chat_template": True,
    }
    return load_tokenizer(**{**settings, **change})


def edit_json(file, **change):
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, **change}))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop(file):
    file.unlink()


def cut(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


def shard(folder, present):
    (folder / "model.safetensors").rename(folder / present)
    index = {"weight_map": {"a": present, "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n"
WEIGHTS = "model.safetensors"
NORM = "model.layers.1.input_layernorm.weight"
DAMAGE = {
    "config malformed": (
        lambda f: (f / "config.json").write_text('{"a": 1,\n "b" 2}'),
        "E-MOD-02",
        65,
        "config.json:2:6",
    ),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "E-MOD-02", 65, "config.json"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "E-MOD-02", 65, "config.json"),
    "config absent": (lambda f: drop(f / "config.json"), "E-MOD-03", 66, "tiny"),
    "config an LFS pointer": (lambda f: (f / "config.json").write_text(LFS), "E-MOD-09", 65, "config.json"),
    "unknown type": (lambda f: edit_json(f / "config.json", model_type="qwen33"), "E-MOD-04", 65, "config.json"),
    "no type": (lambda f: edit_json(f / "config.json", model_type=None), "E-MOD-04", 65, "config.json"),
    "other width": (lambda f: edit_json(f / "config.json", intermediate_size=40), "E-MOD-05", 65, "tiny"),
    "more layers than stored": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3),
        "E-MOD-06",
        65,
        "tiny",
    ),
    "one tensor missing": (lambda f: edit_weights(f, lambda t: t.pop(NORM)), "E-MOD-06", 65, "tiny"),
    "NaN": (lambda f: edit_weights(f, lambda t: t[NORM][3:5].fill_(torch.nan)), "E-MOD-07", 65, "tiny"),
    "infinity": (lambda f: edit_weights(f, lambda t: t[NORM][3:4].fill_(torch.inf)), "E-MOD-07", 65, "tiny"),
    "truncated": (lambda f: cut(f / WEIGHTS, -5), "E-MOD-08", 65, WEIGHTS),
    "header cut": (lambda f: cut(f / WEIGHTS, 100), "E-MOD-08", 65, WEIGHTS),
    "zero bytes": (lambda f: cut(f / WEIGHTS, 0), "E-MOD-08", 65, WEIGHTS),
    "absurd header": (
        lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 2**60) + b"{}"),
        "E-MOD-08",
        65,
        WEIGHTS,
    ),
    "header not JSON": (
        lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 2) + b"{]"),
        "E-MOD-08",
        65,
        WEIGHTS,
    ),
    "LFS pointer": (lambda f: (f / WEIGHTS).write_text(LFS), "E-MOD-09", 65, WEIGHTS),
    "shard missing": (lambda f: shard(f, "model-00001-of-00002.safetensors"), "E-MOD-10", 66, "index.json"),
    "no weights": (lambda f: drop(f / WEIGHTS), "E-MOD-13", 66, "tiny"),
    "only pickle": (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "E-SEC-01", 77, "tiny"),
    "remote code": (
        lambda f: edit_json(f / "config.json", auto_map={"AutoModel": "evil.Model"}),
        "E-SEC-02",
        77,
        "config.json",
    ),
    "nested trust": (
        lambda f: edit_json(f / "config.json", vision_config={"trust_remote_code": True}),
        "E-SEC-02",
        77,
        "config.json",
    ),
}


def test_the_undamaged_folder_loads_and_equals_what_was_saved(saved):
    reopened, original = open_model(saved), fresh()
    for (name, value), (other, expected) in zip(reopened.named_parameters(), original.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(value, expected)
    assert not reopened.training


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_has_a_code_a_place_and_a_remedy(folder, name):
    damage, code, status, where = DAMAGE[name]
    damage(folder)
    with pytest.raises(NexusError) as caught:
        open_model(folder)
    error = caught.value
    assert (error.code, error.status) == (code, status)
    assert where in error.where
    assert error.remedy


def test_messages_name_what_is_wrong(folder):
    edit_weights(folder, lambda t: t[NORM][3:5].fill_(torch.nan))
    with pytest.raises(NexusError, match=f"{NORM} holds 2 values"):
        open_model(folder)
    edit_weights(folder, lambda t: t.pop(NORM))
    with pytest.raises(NexusError, match=f"1 tensors are missing: {NORM}"):
        open_model(folder)
    edit_json(folder / "config.json", model_type="qwen33")
    with pytest.raises(NexusError) as caught:
        open_model(folder)
    assert "qwen3" in caught.value.remedy


def test_missing_folder_suggests_the_nearest(folder):
    with pytest.raises(NexusError) as caught:
        resolve_model(str(folder.parent / "tinny"), None)
    assert (caught.value.code, caught.value.status) == ("E-MOD-01", 66)
    assert caught.value.remedy == f"did you mean {folder}?"
    for wrong in ("asset:no_such_asset", "asset:../models", str(folder / "config.json"), "nowhere"):
        with pytest.raises(NexusError) as caught:
            resolve_model(wrong, None)
        assert caught.value.code == "E-MOD-01"


def test_path_and_architecture_exclude_each_other(folder):
    for path, architecture in ((None, None), (folder, ARCHITECTURE)):
        with pytest.raises(NexusError) as caught:
            open_model(path, architecture=architecture)
        assert caught.value.code == "E-CFG-20"
    for architecture in ({"vocab_size": 5}, {"model_type": "quen3"}):
        with pytest.raises(NexusError) as caught:
            open_model(None, architecture=architecture)
        assert caught.value.code == "E-MOD-04"


def test_facts_come_from_headers_and_equal_the_loaded_model(folder):
    facts, model = read_facts(folder), open_model(folder)
    count = sum(p.numel() for p in model.parameters())
    assert (facts.num_parameters, facts.num_bytes, facts.parameters_by_dtype) == (count, 4 * count, {"F32": count})
    assert (facts.num_layers, facts.hidden_size, facts.vocab_size, facts.head_dim) == (2, 32, 64, 8)
    assert (facts.num_heads, facts.num_kv_heads, facts.intermediate_size, facts.tied) == (4, 2, 48, True)
    assert (facts.max_position_embeddings, facts.sliding_window, facts.model_type) == (96, None, "qwen3")
    from_architecture = model_facts(path=None, architecture=ARCHITECTURE, revision=None)
    assert {**from_architecture.__dict__, "path": facts.path} == facts.__dict__


def test_facts_of_an_untied_sharded_model(tmp_path):
    model = fresh(tie_word_embeddings=False)
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    facts = read_facts(tmp_path)
    count = sum(p.numel() for p in model.parameters())
    assert (facts.num_parameters, facts.num_bytes, facts.tied) == (count, 2 * count, False)
    assert facts.parameters_by_dtype == {"BF16": count}
    assert torch.equal(open_model(tmp_path, dtype="bf16").lm_head.weight, model.lm_head.weight)


def test_seed_decides_random_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again = fresh(), fresh()
    other = load_model(
        path=None, architecture=ARCHITECTURE, revision=None, trust_remote_code=False, seed=2, dtype="fp32"
    )
    assert torch.equal(torch.get_rng_state(), before)
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


def test_weights_that_make_no_numbers_are_not_taken_for_an_unknown_kind_of_model(tmp_path):
    model = fresh()
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
        model.get_output_embeddings().weight.fill_(3.0)
    model.save_pretrained(tmp_path)
    with pytest.raises(NexusError, match="not finite") as caught:
        load_model(path=str(tmp_path), architecture=None, revision=None, trust_remote_code=False, seed=0, dtype="fp32")
    assert caught.value.code == "E-NUM-05"


def test_a_model_without_a_body_of_its_own_is_refused():
    architecture = {**small.SIZES, "model_type": "llama4_text", "intermediate_size_mlp": 32, "num_local_experts": 2}
    with pytest.raises(NexusError, match="which part of it comes before its head") as caught:
        load_model(path=None, architecture=architecture, revision=None, trust_remote_code=False, seed=0, dtype="fp32")
    assert caught.value.code == "E-MOD-12"


def test_saved_config_does_not_name_our_attention(tmp_path):
    fresh().save_pretrained(tmp_path)
    assert "segment" not in (tmp_path / "config.json").read_text()


def without_template(f):
    (f / "chat_template.jinja").unlink()


TOKENIZER_DAMAGE = {
    "absent": (lambda f: drop(f / "tokenizer.json"), {}, "E-TOK-01", 66),
    "malformed": (lambda f: (f / "tokenizer.json").write_text("{"), {}, "E-TOK-01", 65),
    "not a tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), {}, "E-TOK-01", 65),
    "pointer": (lambda f: (f / "tokenizer.json").write_text(LFS), {}, "E-MOD-09", 65),
    "too large": (lambda f: None, {"vocab_rows": 63}, "E-TOK-02", 65),
    "no end of sequence": (lambda f: edit_json(f / "tokenizer_config.json", eos_token=None), {}, "E-TOK-04", 65),
    "no template": (without_template, {}, "E-TOK-05", 65),
    "template file missing": (lambda f: None, {"chat_template": "no/such/file.jinja"}, "E-TOK-05", 65),
    "remote code": (
        lambda f: edit_json(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
        {},
        "E-SEC-02",
        77,
    ),
}


@pytest.mark.parametrize("name", TOKENIZER_DAMAGE)
def test_tokenizer_mistakes_have_codes(folder, name):
    damage, change, code, status = TOKENIZER_DAMAGE[name]
    damage(folder)
    with pytest.raises(NexusError) as caught:
        open_tokenizer(folder, **change)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert caught.value.remedy


def test_tokenizer_template_override_pad_and_raw_text(folder, tmp_path, caplog):
    assert open_tokenizer(folder).chat_template == TEMPLATE
    assert open_tokenizer(folder, chat_template="{{ 1 }}").chat_template == "{{ 1 }}"
    (tmp_path / "t.jinja").write_text("{{ 2 }}")
    assert open_tokenizer(folder, chat_template=str(tmp_path / "t.jinja")).chat_template == "{{ 2 }}"
    without_template(folder)
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    tokenizer = open_tokenizer(folder, needs_chat_template=False)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert "W-TOK-03" in caplog.text


def test_tokenizer_and_facts_do_not_import_torch(folder):
    code = (
        "import sys\n"
        "from nexus.models.facts import read_facts\n"
        "from nexus.models.tokenizer import load_tokenizer\n"
        f"from pathlib import Path; read_facts(Path({str(folder)!r}))\n"
        "assert 'transformers' not in sys.modules\n"
        f"load_tokenizer(path={str(folder)!r}, revision=None, chat_template=None, trust_remote_code=False, "
        "vocab_rows=64, needs_chat_template=True)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
