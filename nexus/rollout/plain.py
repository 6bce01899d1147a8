"""The next token of a decoder of the Llama family, computed without its modules.

While a model is small, a token through transformers' modules takes about twice as long (`make bench-rl`). Here it costs
four matrix products a layer (query, key and value are one, gate and up another, an adapter is added to its weight), or
as many as the model has where joined copies would take memory that training needs. Heads that share keys are handed to
the attention as several queries, so keys are not repeated.

Signatures:
    plain_decoder(model) -> PlainDecoder | None
    PlainDecoder.begin(cache, mask, places) -> PlainSteps
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from nexus.models.embedding import IndexedEmbedding
from nexus.rollout.cache import ROOM, longer

#: Classes of transformers whose layers are exactly what `_Layer` computes.
_FAMILY = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
#: Rotary positions whose angles do not depend on the length of a row.
_STEADY_ROPES = frozenset({"default", "linear", "yarn", "llama3"})
#: Weights of up to so many bytes in all are copied in order to join them.
_JOINED_BYTES = 128 << 20


@dataclass
class _Product:
    """A linear layer with its adapters; parts that share their input may be joined.

    Attributes:
        weight: [out, in].
        bias: [out], or None.
        adapters: (A [r, in], B [out, r], scaling) of each active one.
    """

    weight: Tensor
    bias: Tensor | None
    adapters: Sequence[tuple[Tensor, Tensor, float]] = ()

    def __call__(self, x: Tensor) -> Tensor:
        out = linear(x, self.weight, self.bias)
        for a, b, scaling in self.adapters:
            out = out + (linear(linear(x.to(a.dtype), a), b) * scaling).to(out.dtype)
        return out

    def merged(self, dtype: torch.dtype | None) -> _Product:
        """The same without adapters, in a number format (None: its own); a copy of the weight where that changes it."""
        weight = self.weight
        for a, b, scaling in self.adapters:
            weight = weight + (b @ a * scaling).to(weight.dtype)
        dtype = dtype or weight.dtype
        return _Product(weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


class _Parts:
    """Several products of one input, side by side."""

    def __init__(self, parts: Sequence[_Product]) -> None:
        self.parts = parts

    def __call__(self, x: Tensor) -> Tensor:
        return self.parts[0](x) if len(self.parts) == 1 else torch.cat([part(x) for part in self.parts], -1)

    def joined(self, dtype: torch.dtype | None) -> _Parts:
        """One product with the rows of all, in a number format (None: their own)."""
        parts = [part.merged(dtype) for part in self.parts]
        if len(parts) == 1:
            return _Parts(parts)
        biases = [part.bias for part in parts if part.bias is not None]
        return _Parts([_Product(torch.cat([part.weight for part in parts]), torch.cat(biases) if biases else None)])


@dataclass
class _Layer:
    """One layer; norms are (weight, epsilon)."""

    norm: tuple[Tensor, float]
    qkv: _Parts
    query_norm: tuple[Tensor, float] | None
    key_norm: tuple[Tensor, float] | None
    out: _Parts
    norm_2: tuple[Tensor, float]
    gate_up: _Parts
    down: _Parts


class _NotPlain(Exception):
    """The model has something that is not computed here."""


def _product(module: nn.Module) -> _Product:
    """A linear layer, or PEFT's LoRA around one; `_NotPlain` for any other module, quantized weights and DoRA too."""
    base: Any = getattr(module, "base_layer", module)
    if type(base) is not nn.Linear:
        raise _NotPlain
    if base is module:
        return _Product(base.weight, base.bias)
    lora: Any = module
    if type(lora).__module__ != "peft.tuners.lora.layer" or type(lora).__name__ != "Linear":
        raise _NotPlain
    names = [] if lora.disable_adapters else [name for name in lora.active_adapters if name in lora.lora_A]
    if lora.merged or any(name in lora.lora_variant or lora.lora_B[name].bias is not None for name in names):
        raise _NotPlain
    adapters = [(lora.lora_A[name].weight, lora.lora_B[name].weight, lora.scaling[name]) for name in names]
    return _Product(base.weight, base.bias, adapters)


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight, float(module.variance_epsilon)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    window = getattr(attention, "sliding_window", None) or getattr(attention.config, "sliding_window", None)
    if window is not None and getattr(attention, "layer_type", "sliding_attention") != "full_attention":
        raise _NotPlain
    if attention.scaling != attention.head_dim**-0.5 or attention.config.hidden_act != "silu":
        raise _NotPlain
    return _Layer(
        norm=_norm(layer.input_layernorm),
        qkv=_Parts([_product(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj")]),
        query_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        out=_Parts([_product(attention.o_proj)]),
        norm_2=_norm(layer.post_attention_layernorm),
        gate_up=_Parts([_product(mlp.gate_proj), _product(mlp.up_proj)]),
        down=_Parts([_product(mlp.down_proj)]),
    )


def plain_decoder(model: Any) -> PlainDecoder | None:
    """What computes the next tokens of a model, with its weights as they are now.

    Args:
        model: a `PreTrainedModel`, or a `PeftModel` around one.

    Returns:
        None for a model that has more than is computed here; its own forward must do it.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    kind = type(base)
    if kind.__name__ not in _FAMILY or not kind.__module__.startswith("transformers.models."):
        return None
    body = base.model
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if type(embedding) not in (nn.Embedding, IndexedEmbedding) or type(head) is not nn.Linear:
        return None
    if body.rotary_emb.rope_type not in _STEADY_ROPES:
        return None
    try:
        layers = [_layer(layer) for layer in body.layers]
    except _NotPlain:
        return None
    # that of the products, so that autocast does not convert every weight for every token
    device = embedding.weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if _num_bytes(body.layers) <= _JOINED_BYTES:
        for one in layers:
            one.qkv, one.gate_up = one.qkv.joined(dtype), one.gate_up.joined(dtype)
            one.out, one.down = one.out.joined(dtype), one.down.joined(dtype)
    config = base.config
    return PlainDecoder(
        layers=layers,
        embedding=embedding.weight,
        norm=_norm(body.norm),
        head=_product(head).merged(dtype) if _num_bytes(head) <= _JOINED_BYTES else _product(head),
        rotary=body.rotary_emb,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
    )


def _num_bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


@dataclass
class PlainDecoder:
    """Weights of a model as its next tokens need them; valid until they change.

    Attributes:
        layers: from the first to the last.
        embedding: [V, D].
        norm: of what the last layer gives.
        head: to the logits.
        rotary: gives cosines and sines of positions.
        heads: query heads.
        kv_heads: key and value heads.
    """

    layers: list[_Layer]
    embedding: Tensor
    norm: tuple[Tensor, float]
    head: _Product
    rotary: nn.Module
    heads: int
    kv_heads: int

    def begin(self, cache: Any, mask: Tensor, places: Tensor, *, most: int) -> PlainSteps:
        """Go on behind prompts.

        Args:
            cache: transformers' cache after them, one layer each.
            mask: [R, S] of the positions in it, 0 for padding.
            places: [R, 1] position of the token that comes.
            most: tokens that will come at most.

        Returns:
            The batch on its way.
        """
        return PlainSteps(self, cache, mask, places, most)


class PlainSteps:
    """A batch on its way.

    Args:
        decoder: the weights.
        cache: as in `PlainDecoder.begin`.
        mask: as there.
        places: as there.
        most: as there.
    """

    def __init__(self, decoder: PlainDecoder, cache: Any, mask: Tensor, places: Tensor, most: int) -> None:
        self.decoder = decoder
        self.places = places[:, 0]
        self.length = mask.shape[1]
        self.stores = [torch.stack((layer.keys, layer.values)) for layer in cache.layers]
        self.mask = None if bool(mask.all()) else mask.bool()
        positions = torch.arange(int(self.places.max()) + most, device=mask.device)[None]
        cos, sin = decoder.rotary(decoder.embedding[:1, None], positions)
        self.cos, self.sin = cos[0], sin[0]

    def select(self, index: Tensor) -> None:
        """Keep these rows."""
        self.stores = [store.index_select(1, index) for store in self.stores]
        self.places = self.places[index]
        self.mask = None if self.mask is None else self.mask[index]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits behind the next token of each row.

        Args:
            tokens: [R].

        Returns:
            [R, V].
        """
        decoder, end = self.decoder, self.length + 1
        if self.stores[0].shape[-2] < end:
            self.stores = [longer(store, end + ROOM) for store in self.stores]
        if self.mask is not None:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(tokens), 1)), 1)
        hidden = decoder.embedding[tokens]
        cos, sin = self.cos[self.places][:, None], self.sin[self.places][:, None]
        for layer, store in zip(decoder.layers, self.stores, strict=True):
            hidden = hidden + self._attend(layer, store, hidden, cos, sin, end)
            gate, up = layer.gate_up(_normed(hidden, layer.norm_2)).chunk(2, -1)
            hidden = hidden + layer.down(silu(gate) * up)
        self.length, self.places = end, self.places + 1
        logits: Tensor = decoder.head(_normed(hidden, decoder.norm))
        return logits

    def _attend(self, layer: _Layer, store: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, end: int) -> Tensor:
        """[R, D] from [R, D]; keys and values go to the end of the store [2, R, KV, S, Dh]."""
        heads, kv, rows = self.decoder.heads, self.decoder.kv_heads, len(hidden)
        made = layer.qkv(_normed(hidden, layer.norm)).view(rows, heads + 2 * kv, -1)
        turned, values = made[:, : heads + kv], made[:, heads + kv :]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = turned[:, :heads], turned[:, heads:]
            turned = torch.cat((_normed(query, layer.query_norm), _normed(key, layer.key_norm)), 1)
        first, second = turned.chunk(2, -1)
        turned = turned * cos + torch.cat((-second, first), -1) * sin
        store[0, :, :, end - 1], store[1, :, :, end - 1] = turned[:, heads:], values
        attended = scaled_dot_product_attention(
            turned[:, :heads].reshape(rows, kv, heads // kv, -1).to(store.dtype),
            store[0, :, :, :end],
            store[1, :, :, :end],
            attn_mask=None if self.mask is None else self.mask[:, None, None],
        )
        return layer.out(attended.reshape(rows, -1))


def _normed(x: Tensor, norm: tuple[Tensor, float]) -> Tensor:
    weight, epsilon = norm
    return rms_norm(x, weight.shape, weight, epsilon)
