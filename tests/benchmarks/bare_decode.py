"""The bare loop for sampling: a Qwen2 decoder by hand, and so the limit of a rollout.

The prompt of a group is computed once. Then every token costs four matrix products a layer (query, key and value are
one, gate and up another), a write into a cache of fixed size, and a draw that inverts the cumulative distribution in
two levels. Rows that have ended leave. Nothing of Nexus is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

BLOCK = 128


class Decoder:
    """One batch of groups.

    Args:
        network: `Qwen2ForCausalLM` without an adapter.
        prompts: token ids of equal or unequal length.
        each: answers to a prompt.
        room: most tokens of an answer.
    """

    def __init__(self, network: Any, prompts: Sequence[Sequence[int]], each: int, room: int) -> None:
        body, config = network.model, network.config
        self.device = body.embed_tokens.weight.device
        self.embedding, self.norm, self.eps = body.embed_tokens.weight, body.norm.weight, config.rms_norm_eps
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.layers = [
            (
                layer.input_layernorm.weight,
                *_merged(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                layer.self_attn.o_proj.weight,
                layer.post_attention_layernorm.weight,
                _merged(layer.mlp.gate_proj, layer.mlp.up_proj)[0],
                layer.mlp.down_proj.weight,
            )
            for layer in body.layers
        ]
        self.width = max(map(len, prompts))
        positions = torch.arange(self.width + room, device=self.device)[None]
        self.cos, self.sin = (part[0] for part in body.rotary_emb(self.embedding[:1, None], positions))
        padded = [[0] * (self.width - len(prompt)) + list(prompt) for prompt in prompts]
        self.mask = torch.zeros(len(prompts), self.width + room, dtype=torch.bool, device=self.device)
        for row, prompt in enumerate(prompts):
            self.mask[row, self.width - len(prompt) :] = True
        self.places = torch.tensor([len(prompt) for prompt in prompts], device=self.device).repeat_interleave(each)
        self._prefill(network, torch.tensor(padded, device=self.device), each, room)
        self.mask = self.mask.repeat_interleave(each, 0)

    def _prefill(self, network: Any, ids: Tensor, each: int, room: int) -> None:
        mask = self.mask[:, : self.width].long()
        made = network(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits = made.logits[:, -1].repeat_interleave(each, 0)
        self.cache = []
        for layer in made.past_key_values.layers:
            rows, heads, width, size = layer.keys.shape
            kept = layer.keys.new_empty(2, rows * each, heads, width + room, size)
            kept[0, :, :, :width] = layer.keys.repeat_interleave(each, 0)
            kept[1, :, :, :width] = layer.values.repeat_interleave(each, 0)
            self.cache.append(kept)

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self.cache = [kept[:, rows] for kept in self.cache]
        self.mask, self.places = self.mask[rows], self.places[rows]

    def step(self, tokens: Tensor, at: int) -> Tensor:
        """Logits [R, V] behind the tokens [R], each the one of index `at` in its answer."""
        end = self.width + at + 1
        rows = tokens.shape[0]
        cos, sin = self.cos[self.places][:, None], self.sin[self.places][:, None]
        self.mask[:, end - 1] = True
        mask = self.mask[:, None, None, :end]
        hidden = self.embedding[tokens]
        for (norm, qkv, bias, out, norm_2, gate_up, down), kept in zip(self.layers, self.cache, strict=True):
            made = linear(rms_norm(hidden, norm.shape, norm, self.eps), qkv, bias).view(
                rows, self.heads + 2 * self.kv, -1
            )
            turned, values = made[:, : self.heads + self.kv], made[:, self.heads + self.kv :]
            first, second = turned.chunk(2, -1)
            turned = turned * cos + torch.cat((-second, first), -1) * sin
            kept[0, :, :, end - 1] = turned[:, self.heads :]
            kept[1, :, :, end - 1] = values
            attended = scaled_dot_product_attention(
                turned[:, : self.heads, None],
                kept[0, :, :, :end],
                kept[1, :, :, :end],
                attn_mask=mask,
                enable_gqa=True,
            )
            hidden = hidden + linear(attended.reshape(rows, -1), out)
            gate, up = linear(rms_norm(hidden, norm_2.shape, norm_2, self.eps), gate_up).chunk(2, -1)
            hidden = hidden + linear(silu(gate) * up, down)
        self.places = self.places + 1
        return linear(rms_norm(hidden, self.norm.shape, self.norm, self.eps), self.embedding)


def _merged(*layers: Any) -> tuple[Tensor, Tensor | None]:
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return torch.cat([layer.weight for layer in layers]), bias


def draw(logits: Tensor) -> Tensor:
    """A token [R] of each row's distribution [R, V]."""
    weights = torch.softmax(logits.float(), -1)
    weights = torch.nn.functional.pad(weights, (0, -weights.shape[1] % BLOCK)).view(len(weights), -1, BLOCK)
    sums = weights.sum(-1).cumsum(-1)
    target = torch.rand(len(weights), 1, device=weights.device) * sums[:, -1:]
    block = torch.searchsorted(sums, target, right=True).clamp(max=sums.shape[1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    inner = weights[torch.arange(len(weights), device=weights.device), block[:, 0]].cumsum(-1)
    place = torch.searchsorted(inner, target - before, right=True).clamp(max=BLOCK - 1)
    return (block * BLOCK + place)[:, 0]


@torch.no_grad()
def sample(
    network: Any, prompts: Sequence[Sequence[int]], each: int, limits: Sequence[int], temperature: float = 1.0
) -> list[list[int]]:
    """Answers of given lengths.

    Args:
        network: `Qwen2ForCausalLM`.
        prompts: token ids.
        each: answers to a prompt.
        limits: tokens of each answer.
        temperature: 0 takes the most likely token.

    Returns:
        Token ids, prompt after prompt.
    """
    decoder = Decoder(network, prompts, each, max(limits))
    answers: list[list[int]] = [[] for _ in limits]
    rows = list(range(len(limits)))
    logits = decoder.logits
    for at in range(max(limits)):
        tokens = logits.argmax(-1) if temperature == 0 else draw(logits)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if at < limits[row]:
                answers[row].append(token)
        going = [index for index, row in enumerate(rows) if limits[row] > at + 1]
        if not going:
            break
        if len(rows) - len(going) >= len(rows) / 8:
            index = torch.tensor(going, device=decoder.device)
            decoder.keep(index)
            tokens, rows = tokens[index], [rows[i] for i in going]
        logits = decoder.step(tokens, at)
    return answers
