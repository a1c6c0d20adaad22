"""Reads prompts into memory that texts are then written into.

What prompts of one kind begin with is read once; the rest is read in groups of similar length, each prompt
beginning at its own first position, so that padding stands behind it, where nothing sees it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from trsr.llm.row_cache import Rows, as_argument, has_plain_attention

# Tokens read in one pass: enough for full speed, and few enough that temporaries stay small.
PASS_TOKENS = 4096
GPU_PASS_TOKENS = 32768


@dataclass(frozen=True)
class Pass:
    """Prompts that were read together: their places in the order given, and what was read of each."""

    places: tuple[int, ...]
    rows: Rows


class PromptReader:
    """Reads prompts with one model; beginnings are remembered as long as it lives.

    Attributes:
        in_batches: Whether several texts can share a cache; else read and write them one at a time.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._beginnings: dict[Hashable, tuple[int, ...]] = {}
        self._read_beginnings: dict[tuple[int, ...], Cache] = {}
        self._pass_tokens = PASS_TOKENS if model.device.type == "cpu" else GPU_PASS_TOKENS
        self.in_batches = has_plain_attention(model.config)

    def read(self, prompts: Sequence[list[int]], kinds: Sequence[Hashable]) -> list[Pass]:
        """Read all tokens but the last of each prompt; writing starts with the last one.

        Args:
            prompts: Token ids of each, at least one.
            kinds: Equal for prompts that are likely to begin alike.
        """
        bodies = [prompt[:-1] for prompt in prompts]
        if not self.in_batches:
            return [self._read_alone(place, body) for place, body in enumerate(bodies)]
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

    def _read_alone(self, place: int, body: list[int]) -> Pass:
        cache = DynamicCache(config=self._model.config)
        if body:
            self._forward(cache, [body], 0)
        return Pass((place,), Rows(cache, ((0, len(body)),)))

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
