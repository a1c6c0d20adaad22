"""Keeps the keys and values of texts that are written together, in memory reserved once.

The rows end in the same column, so that each new token is one column for all of them; a text that is finished
gives its row up. What a library cache does by copying everything at each token costs here what is new.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer


def as_argument(model: Any, cache: Cache) -> dict[str, Cache]:
    """Return a cache as the argument that a model takes it by: its name changes in transformers 5.24."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: cache}


def takes_cache(model: Any) -> bool:
    """Return whether a model can be handed a cache."""
    return not {"cache", "past_key_values"}.isdisjoint(inspect.signature(model.forward).parameters)


def has_plain_attention(config: Any) -> bool:
    """Return whether a model remembers keys and values by position and nothing else.

    States that pass from token to token, and layers that use the keys of others, cannot be laid out here.
    """
    layers = DynamicCache(config=config).layers
    return all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers)


def next_logits(
    model: Any, cache: Cache, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Read one token more of each row of a cache; return the logits after it, shape (B, V), float32.

    Args:
        model: The model that filled the cache.
        cache: Of B rows that end in the same column.
        tokens: Shape (B, 1).
        mask: Shape (B, columns + 1), 1 where a row holds a token.
        positions: Shape (B, 1), of the tokens within their texts.
    """
    read = model(
        tokens, attention_mask=mask, position_ids=positions, logits_to_keep=1, **as_argument(model, cache)
    )
    logits: torch.Tensor = read.logits[:, -1].float()
    return logits


@dataclass(frozen=True)
class Rows:
    """Rows of a cache: row i holds a text at its columns `spans[i]`, (first, one behind the last)."""

    cache: Any
    spans: tuple[tuple[int, int], ...]


def joined(parts: Sequence[Rows], config: Any, n_new: int) -> Cache:
    """Return a cache of all rows of all parts, in their order, with room for `n_new` more columns.

    Every layer keeps all positions; sliding windows are the mask's work. The parts are used up: their memory
    is given back layer by layer, so that nothing is held twice.
    """
    n_rows = sum(len(part.spans) for part in parts)
    n_read = max(end - start for part in parts for start, end in part.spans)
    layers = [
        _RowLayer(n_rows, n_read, n_new)
        for _ in range(config.get_text_config(decoder=True).num_hidden_layers)
    ]
    for number, layer in enumerate(layers):
        row = 0
        for part in parts:
            for source_row, (start, end) in enumerate(part.spans):
                if end > start:
                    source = part.cache.layers[number]
                    layer.put(
                        row, source.keys[source_row, :, start:end], source.values[source_row, :, start:end]
                    )
                row += 1
            if any(end > start for start, end in part.spans):
                part.cache.layers[number] = None
    return Cache(layers=list(layers))


def keep_rows(cache: Cache, order: Sequence[int]) -> None:
    """Keep the rows `order` of a cache that `joined` made, in this order."""
    moved = [slot for slot, source in enumerate(order) if slot != source]
    layers = [layer for layer in cache.layers if isinstance(layer, _RowLayer)]
    device = layers[0].device
    # Copied to the device once for all layers, which then need not wait for it.
    targets = torch.tensor(moved, dtype=torch.long, device=device)
    sources = torch.tensor([order[slot] for slot in moved], dtype=torch.long, device=device)
    for layer in layers:
        layer.keep(len(order), targets, sources)


class _RowLayer(DynamicLayer):
    """One layer; `keys` and `values` are views of what is filled, (rows, heads, columns, D)."""

    def __init__(self, n_rows: int, n_read: int, n_new: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._n_rows, self._n_read, self._n_columns = n_rows, n_read, n_read + n_new
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    def put(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy (heads, T, D) into a row, ending in the last column that is read."""
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
        return self._show(end)

    def keep(self, n_rows: int, targets: torch.Tensor, sources: torch.Tensor) -> None:
        """Keep `n_rows` rows, those in `targets` with what `sources` held; the others are not copied."""
        assert self._room is not None
        for room in self._room:
            room[targets] = room[sources]
        self._room = (self._room[0][:n_rows], self._room[1][:n_rows])
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

    def _show(self, n_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._room is not None
        keys, values = (room[:, :, :n_columns] for room in self._room)
        self.keys, self.values = keys, values
        return keys, values
