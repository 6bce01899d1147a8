"""The cache with room against transformers' own, which joins tensors for every token."""

from __future__ import annotations

import torch
from transformers import DynamicCache, Qwen2Config
from transformers.cache_utils import DynamicLayer

from nexus.rollout.cache import RoomyLayer, roomy_cache


def test_holds_what_the_dynamic_cache_holds_while_rows_are_repeated_and_dropped() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = RoomyLayer(), DynamicLayer()
    rows = 2

    def append(length: int) -> None:
        keys = torch.randn(rows, 3, length, 4, generator=generator)
        values = torch.randn(rows, 3, length, 6, generator=generator)
        found, expected = ours.update(keys, values), theirs.update(keys, values)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert ours.get_seq_length() == theirs.get_seq_length()

    append(5)  # the prompts
    for index in ([0, 0, 0, 1, 1, 1], None, [0, 2, 3, 5], [3, 0], None):
        if index is not None:
            for layer in (ours, theirs):
                layer.reorder_cache(torch.tensor(index))
            rows = len(index)
        for _ in range(90):  # in all more than the room that is made at one time
            append(1)
    append(7)


def test_a_token_is_written_in_place() -> None:
    layer = RoomyLayer()
    layer.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))
    first, _ = layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    second, _ = layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert second.data_ptr() == first.data_ptr()
    assert (first.shape[2], second.shape[2]) == (4, 5)


def test_only_plain_attention_layers_are_replaced() -> None:
    config = Qwen2Config(
        num_hidden_layers=4, layer_types=["full_attention", "sliding_attention"] * 2, use_sliding_window=True,
        sliding_window=8,
    )  # fmt: skip
    kinds = [type(layer) for layer in roomy_cache(config).layers]
    assert kinds[0] is kinds[2] is RoomyLayer
    assert kinds[1::2] == [type(layer) for layer in DynamicCache(config=config).layers][1::2]
