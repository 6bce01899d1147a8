"""Facts of the hub models that `conf/base_model` names, from their published `config.json`: a plan without a network.

`published.json` holds, by repository, the keys of the published file that decide about shape and attention; the names
and shapes of the tensors follow from them. Tests compare the counts with the published totals, and every name and shape
with those of transformers' own classes.

Signatures:
    published_config(path) -> dict | None
    published_facts(path) -> ModelFacts
    model_tensors(path) -> dict[str, StoredTensor]
    quantization(path) -> str | None
    refuse_missing_reader(method, *, where) -> None
    decoder_config(config) -> dict
    decoder_tensors(config) -> dict[str, StoredTensor]
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from nexus.errors import NexusError
from nexus.models.facts import StoredTensor, facts_of, read_config, read_tensors, resolve_model
from nexus.types import ModelFacts

#: What a decoder of each type has besides four attention matrices, three of the feed-forward part and two norms.
_QUERY_KEY_NORM = ("qwen3", "gemma3_text")
_FOUR_NORMS = ("gemma3_text",)
#: Packages that transformers needs to read weights of a `quant_method`.
_READERS = {"gptq": ("optimum", "gptqmodel")}
_BIAS = ("qwen2", "qwen2_5_omni_text")


@cache
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))
    return table


def published_config(path: str | None) -> dict[str, Any] | None:
    """The shipped copy of a hub model's `config.json`.

    Args:
        path: setting `base_model.path`.

    Returns:
        Its keys about shape and attention, the caller's own; None for every other path, also for a folder of that name.
    """
    return None if path is None or Path(path).is_dir() else deepcopy(_table().get(path))


def published_facts(path: str) -> ModelFacts:
    """Facts of a hub model as it is published, in 16 bits.

    Args:
        path: a repository of `published.json`.

    Returns:
        The facts, of the text decoder if the model has other parts.
    """
    config = _table()[path]
    text = decoder_config(config)
    return facts_of(config=text, tensors=decoder_tensors(text), path=path, where=f"published config.json of {path}")


def model_tensors(path: str) -> dict[str, StoredTensor]:
    """Names and shapes of a model's tensors: from the published config, else from the headers of its folder.

    Args:
        path: as in `ModelFacts`.

    Returns:
        Tensors by name.

    Raises:
        NexusError: as `read_tensors`.
    """
    config = published_config(path)
    return read_tensors(resolve_model(path, None)) if config is None else decoder_tensors(decoder_config(config))


def quantization(path: str | None) -> str | None:
    """How stored weights are quantized.

    Args:
        path: setting `base_model.path`.

    Returns:
        `quant_method` of the config, for example `gptq`; None for plain weights, and for a hub model that is neither
        shipped here nor on this machine.
    """
    config = published_config(path)
    if config is None and path is not None and (Path(path).is_dir() or path.startswith("asset:")):
        config = read_config(resolve_model(path, None))
    method = (config or {}).get("quantization_config", {}).get("quant_method")
    return None if method is None else str(method)


def refuse_missing_reader(method: str | None, *, where: str) -> None:
    """Refuse quantized weights that no installed package reads.

    Args:
        method: `quant_method` of the config; None for plain weights.
        where: place of the config, for the message.

    Raises:
        NexusError: `E-DEP-03` with what must be installed.
    """
    needed = _READERS.get(method or "", ())
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise NexusError(
            "E-DEP-03",
            f"the weights are quantized by {str(method).upper()}, and {' and '.join(missing)} to read them "
            f"{'is' if len(missing) == 1 else 'are'} not installed",
            where=where,
            remedy=f"pip install {' '.join(missing)}, or choose the model's 16-bit version; dry_run=true plans without",
        )


def decoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text decoder's part of a config: of an omni model the thinker's, of other models with parts `text_config`."""
    return dict(config.get("thinker_config", config).get("text_config", config))


def decoder_tensors(config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Names and shapes that a decoder of one of the published types has.

    Args:
        config: with a `model_type` that stands in `published.json`.

    Returns:
        Tensors by name, in 16 bits; a tied head is left out.
    """
    kind, hidden, inner = config["model_type"], config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = head_dim * config["num_attention_heads"], head_dim * config["num_key_value_heads"]
    projections = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
    layer: dict[str, tuple[int, ...]] = {
        f"self_attn.{name}_proj.weight": shape for name, shape in projections.items()
    } | {"mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden)}
    layer |= {"mlp.down_proj.weight": (hidden, inner)}
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norms += ("pre_feedforward_layernorm", "post_feedforward_layernorm") if kind in _FOUR_NORMS else ()
    layer |= {f"{name}.weight": (hidden,) for name in norms}
    if kind in _QUERY_KEY_NORM:
        layer |= {f"self_attn.{name}_norm.weight": (head_dim,) for name in "qk"}
    if kind in _BIAS:
        layer |= {f"self_attn.{name}_proj.bias": (projections[name][0],) for name in "qkv"}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return {name: StoredTensor("BF16", shape, "published") for name, shape in shapes.items()}
