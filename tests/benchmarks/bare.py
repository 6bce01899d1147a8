"""The bare loop: what one writes by hand in PyTorch who knows every lever, and so the limit of a framework.

Rows lie one after the other without padding, a prompt is computed once for all its answers, attention runs segment by
segment, and only positions that predict an answer's token reach the head. Nothing of Nexus is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "bare"
Group = tuple[list[int], Sequence[list[int]]]
"""A prompt and its answers."""


@dataclass
class Layout:
    """A flat batch.

    Attributes:
        ids: [1, T] tokens.
        positions: [1, T] of each token in its row.
        predicting: [N] positions whose next token is learned.
        targets: [N] those tokens.
        rows: [N] answer that each belongs to; empty where rows have no answers apart.
        groups: for each prompt its end and the ends of its answers.
        num_answers: of all prompts.
    """

    ids: Tensor
    positions: Tensor
    predicting: Tensor
    targets: Tensor
    rows: Tensor
    groups: list[tuple[int, list[int]]]
    num_answers: int


def lay_out(groups: Sequence[Group], device: str) -> Layout:
    """Prompt, answers, prompt, answers, and so on, in one line."""
    ids: list[int] = []
    positions: list[int] = []
    predicting: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    ends = []
    answered = 0
    for prompt, answers in groups:
        ids += prompt
        positions += range(len(prompt))
        prompt_end, answer_ends = len(ids), []
        for answer in answers:
            predicting += [prompt_end - 1, *range(len(ids), len(ids) + len(answer) - 1)]
            targets += answer
            rows += [answered] * len(answer)
            answered += 1
            ids += answer
            positions += range(len(prompt), len(prompt) + len(answer))
            answer_ends.append(len(ids))
        ends.append((prompt_end, answer_ends))
    made = [torch.tensor(part, device=device) for part in (ids, positions, predicting, targets, rows)]
    return Layout(made[0][None], made[1][None], *made[2:], groups=ends, num_answers=answered)


def lay_out_rows(rows: Sequence[tuple[list[int], Sequence[bool]]], device: str) -> Layout:
    """Row, row, and so on, in one line; of each its tokens and which of them are learned."""
    layout = lay_out([(ids, ()) for ids, _ in rows], device)
    learned = torch.tensor([learned for _, mask in rows for learned in mask], device=device)
    # nothing precedes a row's first token
    places = (learned & (layout.positions[0] > 0)).nonzero()[:, 0]
    return replace(layout, predicting=places - 1, targets=layout.ids[0, places])


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *, layout: Layout, **rest: Any
) -> tuple[Tensor, None]:
    """Called by transformers in every layer; [1, H, T, D] in, [1, T, H, D] out."""
    parts, start = [], 0
    sizes = []
    for prompt_end, answer_ends in layout.groups:
        for end in (prompt_end, *answer_ends):
            sizes.append(end - start)
            start = end
    pieces = iter(zip(*(tensor.split(sizes, 2) for tensor in (query, key, value)), strict=True))
    for _, answer_ends in layout.groups:
        q, k, v = next(pieces)
        parts.append(scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
        for _ in answer_ends:
            own_q, own_k, own_v = next(pieces)
            length, before = own_q.shape[2], k.shape[2]
            mask = torch.ones(length, before + length, dtype=torch.bool, device=q.device).tril(before)
            parts.append(
                scaled_dot_product_attention(
                    own_q, torch.cat((k, own_k), 2), torch.cat((v, own_v), 2), attn_mask=mask, enable_gqa=True
                )
            )
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


@contextmanager
def bare_attention(network: Any) -> Iterator[None]:
    """Within it a model of transformers attends by segment."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, lambda **kwargs: None)
    before = network.config._attn_implementation
    network.set_attn_implementation(NAME)
    yield
    network.set_attn_implementation(before)


def answer_logits(network: Any, layout: Layout) -> Tensor:
    """Logits [N, V] of the positions whose next token is learned."""
    base = network.get_base_model() if hasattr(network, "peft_config") else network
    hidden = base.model(
        input_ids=layout.ids, position_ids=layout.positions, use_cache=False, layout=layout
    ).last_hidden_state[0]
    logits: Tensor = base.lm_head(hidden[layout.predicting])
    return logits


def answer_sums(network: Any, layout: Layout) -> Tensor:
    """Log-probability [R] of every answer."""
    logits = answer_logits(network, layout).float()
    each = -torch.nn.functional.cross_entropy(logits, layout.targets, reduction="none")
    return each.new_zeros(layout.num_answers).index_add(0, layout.rows, each)
