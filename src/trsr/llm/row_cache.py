"""Keeps the keys and values of a batch of texts that are being written, in memory reserved once.

The rows end in the same column, so that each new token is one column for all of them; a text that is finished
gives its row up. What a library cache does by copying everything at each token costs here what is new.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer


def has_plain_attention(config: Any) -> bool:
    """Return whether a model remembers keys and values by position and nothing else.

    States that pass from token to token, and layers that use the keys of others, cannot be laid out here.
    """
    layers = DynamicCache(config=config).layers
    return all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers)


class RowCache(Cache):
    """Room for `n_rows` texts of up to `n_read` tokens that were read and `n_new` more.

    Every layer keeps all positions; sliding windows are the mask's work.
    """

    def __init__(self, config: Any, *, n_rows: int, n_read: int, n_new: int) -> None:
        n_layers = config.get_text_config(decoder=True).num_hidden_layers
        super().__init__(layers=[_RowLayer(n_rows, n_read, n_new) for _ in range(n_layers)])

    def put(self, row: int, read: Cache, read_row: int, length: int) -> None:
        """Copy the first `length` positions of row `read_row` of another cache; they end in column `n_read`."""
        for layer, source in zip(self.layers, read.layers, strict=True):
            layer.put(row, source.keys[read_row, :, :length], source.values[read_row, :, :length])


class _RowLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of a `RowCache`; `keys` and `values` are views of what is filled, (rows, heads, columns, D)."""

    def __init__(self, n_rows: int, n_read: int, n_new: int) -> None:
        super().__init__()
        self._n_rows, self._n_read, self._n_columns = n_rows, n_read, n_read + n_new
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def put(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy (heads, T, D) into a row, ending in column `n_read`."""
        for room, new in zip(self._rooms(keys[None], values[None]), (keys, values), strict=True):
            room[row, :, self._n_read - new.shape[1] : self._n_read] = new

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add columns to all rows; return all keys and all values."""
        rooms = self._rooms(key_states, value_states)
        start, end = self.get_seq_length(), self.get_seq_length() + key_states.shape[2]
        for room, new in zip(rooms, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`, in this order; rows that stay in place are not copied."""
        if self._room is None:
            return
        moved = indices != torch.arange(len(indices), device=indices.device)
        for room in self._room:
            room[: len(indices)][moved] = room[indices[moved]]
        self._room = (self._room[0][: len(indices)], self._room[1][: len(indices)])
        self._show(self.get_seq_length())

    def _rooms(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reserved memory for keys and for values, shaped like the first ones seen."""
        if self._room is None:
            self.lazy_initialization(keys, values)
            keys_room, values_room = (
                new.new_zeros(self._n_rows, new.shape[1], self._n_columns, new.shape[3])
                for new in (keys, values)
            )
            self._room = (keys_room, values_room)
            self._show(self._n_read)
        return self._room

    def _show(self, n_columns: int) -> None:
        assert self._room is not None
        self.keys, self.values = (room[:, :, :n_columns] for room in self._room)
