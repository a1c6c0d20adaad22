"""Reads prompts into memory that texts are then written into.

What prompts of one kind begin with is read once; the rest is read in groups of similar length, each prompt
beginning at its own first position, so that padding stands behind it, where nothing sees it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from trsr.llm.architecture import TOLERANCE, distance, length_limit, unknown_terms


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


# Tokens read in one pass: enough for full speed, and few enough that temporaries stay small.
PASS_TOKENS = 4096
GPU_PASS_TOKENS = 32768


_PROBES = ([3, 7, 11, 5, 13, 2, 17, 9, 4], [3, 7, 11, 8], [3, 7, 11, 6, 12, 4])
# Why a model's texts cannot be written together; empty where they can.
_OBSTACLES: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

_log = logging.getLogger(__name__)


def _obstacle(model: Any) -> str:
    """Say what is known to stand against writing a model's texts together; empty for nothing."""
    if not takes_cache(model) or not has_plain_attention(model.config):
        return "it remembers more than the keys and values of each position"
    unknown = unknown_terms(model.config)
    return f"what {unknown} does to attention is not known here" if unknown else ""


@dataclass(frozen=True)
class Pass:
    """Prompts that were read together: their places in the order given, and what was read of each."""

    places: tuple[int, ...]
    rows: Rows


class PromptReader:
    """Reads prompts with one model; beginnings are remembered as long as it lives.

    Args:
        model: A causal language model of transformers.
        longest: Most tokens of a prompt and what is written to it; None for any number.

    Attributes:
        in_batches: Whether several texts share a cache, exactly; else each is read and written by itself,
            and `read` is not asked. One log line a model says why.
    """

    def __init__(self, model: Any, longest: int | None = None) -> None:
        self._model = model
        self._beginnings: dict[Hashable, tuple[int, ...]] = {}
        self._read_beginnings: dict[tuple[int, ...], Cache] = {}
        self._pass_tokens = PASS_TOKENS if model.device.type == "cpu" else GPU_PASS_TOKENS
        if model not in _OBSTACLES:
            _OBSTACLES[model] = _obstacle(model) or self._mistake()
            if _OBSTACLES[model]:
                _log.warning(
                    "%s writes one text at a time (%s), which is slower.",
                    type(model).__name__,
                    _OBSTACLES[model],
                )
        limit = length_limit(model.config)
        self.in_batches = not _OBSTACLES[model] and (
            limit is None or (longest is not None and longest <= limit)
        )

    @torch.inference_mode()
    def _mistake(self) -> str:
        """Write to two short prompts together, and say whether that differs from reading each alone."""
        device = self._model.device
        try:
            plain = [
                self._model(torch.tensor([prompt], device=device)).logits[0, -1].float() for prompt in _PROBES
            ]
            passes = self.read(_PROBES, ["probe"] * len(_PROBES))
            cache = joined([done.rows for done in passes], self._model.config, 1)
            order = [place for done in passes for place in done.places]
            found = self._next(cache, [_PROBES[place] for place in order])
            error = distance(found, torch.stack([plain[place] for place in order]))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as problem:
            return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        finally:
            self._beginnings.clear()
            self._read_beginnings.clear()
        return "" if error <= TOLERANCE[self._model.dtype] else f"answers together differ by {error:.1g}"

    def _next(self, cache: Cache, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the logits after the last token of each prompt, the others being read."""
        device, width = self._model.device, max(map(len, prompts))
        tokens = torch.tensor([prompt[-1:] for prompt in prompts], device=device)
        positions = torch.tensor([[len(prompt) - 1] for prompt in prompts], device=device)
        mask = (torch.arange(width, device=device) >= width - 1 - positions).long()
        return next_logits(self._model, cache, tokens, mask, positions)

    def read(self, prompts: Sequence[list[int]], kinds: Sequence[Hashable]) -> list[Pass]:
        """Read all tokens but the last of each prompt; writing starts with the last one.

        Args:
            prompts: Token ids of each, at least one.
            kinds: Equal for prompts that are likely to begin alike.
        """
        bodies = [prompt[:-1] for prompt in prompts]
        groups: dict[tuple[int, ...], list[int]] = {}
        for kind in dict.fromkeys(kinds):
            places = [place for place, its_kind in enumerate(kinds) if its_kind == kind]
            beginning = self._beginning(kind, [prompts[place] for place in places])
            groups.setdefault(beginning, []).extend(places)
        return [
            self._read_pass(beginning, places, bodies)
            for beginning, members in groups.items()
            for places in _passes(members, bodies, len(beginning), self._pass_tokens)
        ]

    def _beginning(self, kind: Hashable, prompts: Sequence[list[int]]) -> tuple[int, ...]:
        """Return what these and all earlier prompts of a kind begin with; nothing for the very first one."""
        known = self._beginnings.get(kind)
        if known is None and len(prompts) == 1:
            return ()
        group = [*prompts, [*known, -1]] if known is not None else prompts
        self._beginnings[kind] = tuple(prompts[0][: common_prefix(group)])
        return self._beginnings[kind]

    def _read_pass(self, beginning: tuple[int, ...], places: list[int], bodies: list[list[int]]) -> Pass:
        """Read prompts that share a beginning, one a row."""
        cache = DynamicCache()
        if beginning:
            for index, layer in enumerate(self._read_beginning(beginning)):
                keys, values = (x.expand(len(places), -1, -1, -1) for x in (layer.keys, layer.values))
                cache.update(keys, values, index)
        rests = [bodies[place][len(beginning) :] for place in places]
        if any(rests):
            self._forward(cache, rests, len(beginning))
        return Pass(tuple(places), Rows(cache, tuple((0, len(bodies[place])) for place in places)))

    def _read_beginning(self, beginning: tuple[int, ...]) -> list[Any]:
        """Return the layers of a cache that holds a beginning."""
        if beginning not in self._read_beginnings:
            self._read_beginnings[beginning] = DynamicCache()
            self._forward(self._read_beginnings[beginning], [list(beginning)], 0)
        return list(self._read_beginnings[beginning].layers)

    def _forward(self, cache: Cache, rows: list[list[int]], n_before: int) -> None:
        """Add rows of tokens, padded on the right, to a cache of `n_before` positions."""
        width, device = max(map(len, rows)), self._model.device
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        positions = torch.arange(n_before, n_before + width, device=device).expand(len(rows), -1)
        mask = torch.ones(len(rows), n_before + width, dtype=torch.long, device=device)
        self._model(
            tokens,
            attention_mask=mask,
            position_ids=positions,
            logits_to_keep=1,
            **as_argument(self._model, cache),
        )


def _passes(members: list[int], bodies: list[list[int]], n_shared: int, n_tokens: int) -> Iterator[list[int]]:
    """Cut prompts that share a beginning into passes of similar length, of about `n_tokens` each."""
    members = sorted(members, key=lambda place: -len(bodies[place]))
    start = 0
    while start < len(members):
        n_rows = max(1, n_tokens // max(1, len(bodies[members[start]]) - n_shared))
        yield members[start : start + n_rows]
        start += n_rows


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """Return how many first tokens all prompts share; at least one token of each is left over."""
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    n = 0
    while n < limit and first[n] == last[n]:
        n += 1
    return n if len(prompts) > 1 else 0
