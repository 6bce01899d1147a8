"""A key-value cache with room for more, so that a token costs a write and not a copy of all before it.

transformers' `DynamicCache` joins old and new in every layer for every token. Its `StaticCache` does not, but attends
to its whole length and holds every row from the start, repeated prompts included.

Signature:
    roomy_cache(config) -> DynamicCache
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 128  # positions that are made at a time: a copy of everything once in so many tokens


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values as views of longer tensors, which are made when the first token comes behind the prompt."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._stores: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append.

        Args:
            key_states: [R, KV, T, D].
            value_states: [R, KV, T, Dv].
            *args: of other cache kinds.
            **kwargs: of other cache kinds.

        Returns:
            All keys [R, KV, S, D] and values [R, KV, S, Dv] so far.
        """
        begin = self.get_seq_length()
        if begin == 0:  # the prompt; its rows may be repeated before the first token comes
            joined: tuple[Tensor, Tensor] = super().update(key_states, value_states)
            return joined
        end = begin + key_states.shape[-2]
        stores = self._stores
        # rows that were dropped or repeated since are no views any more
        if stores is None or stores[0].data_ptr() != self.keys.data_ptr() or stores[0].shape[-2] < end:
            stores = self._stores = (longer(self.keys, end + ROOM), longer(self.values, end + ROOM))
        for store, new in zip(stores, (key_states, value_states), strict=True):
            store[:, :, begin:end] = new
        self.keys, self.values = stores[0][:, :, :end], stores[1][:, :, :end]
        return self.keys, self.values


def longer(part: Tensor, length: int) -> Tensor:
    """A copy with room behind it.

    Args:
        part: [..., S, D].
        length: positions of the copy.

    Returns:
        [..., length, D], not set behind S.
    """
    store = part.new_empty(*part.shape[:-2], length, part.shape[-1])
    store[..., : part.shape[-2], :] = part
    return store


def roomy_cache(config: Any) -> DynamicCache:
    """A cache for one batch; layers that are not plain attention (windows, recurrent states) stay as they are.

    Args:
        config: of the model.

    Returns:
        The cache, empty.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
