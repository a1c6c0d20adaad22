"""Scores candidates with one reading of what they share, in passes of a bounded number of tokens.

Small groups are packed together. A group larger than a pass is split: its prefix is read in the first pass,
and the others see the keys and values kept from it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trsr.errors import CandidateTooLongError
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.margins import finite, label_head, packed_margins, separate_margins
from trsr.llm.prefix_attention import fits, is_enabled
from trsr.llm.prefix_packing import Part, PrefixKV, pack


class PrefixCache:
    """Keys and values by prefix tokens and adapter; the least recently used leave when memory is short.

    Args:
        max_bytes: Most memory held; a prefix larger than this is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.n_hits = 0
        self.n_misses = 0
        self._kept: OrderedDict[tuple[str, tuple[int, ...]], PrefixKV] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def holds(self, adapter: str, prefix: Sequence[int]) -> bool:
        """Say whether a prefix is known, without counting that as a use."""
        return (adapter, tuple(prefix)) in self._kept

    def get(self, adapter: str, prefix: Sequence[int]) -> PrefixKV | None:
        """Return what is known of a prefix, and note that it was used."""
        key = (adapter, tuple(prefix))
        known = self._kept.get(key)
        if known is None:
            self.n_misses += 1
            return None
        self.n_hits += 1
        self._kept.move_to_end(key)
        return known

    def put(self, adapter: str, prefix: Sequence[int], known: PrefixKV) -> None:
        """Keep a prefix, and let older ones go until all fit."""
        key = (adapter, tuple(prefix))
        old = self._kept.pop(key, None)
        self.n_bytes -= old.n_bytes if old else 0
        if known.n_bytes > self.max_bytes:
            return
        self._kept[key] = known
        self.n_bytes += known.n_bytes
        while self.n_bytes > self.max_bytes:
            _, gone = self._kept.popitem(last=False)
            self.n_bytes -= gone.n_bytes


MAX_BATCH_TOKENS = 4096


class SharedPrefixScorer:
    """A `LabelScorer` over a Hugging Face causal language model, with or without an adapter.

    Args:
        model: The model; `shared_attention.enable` decides whether prefixes are shared or every candidate is
            read by itself.
        max_batch_tokens: Most tokens of a forward pass; bounds the memory.
        cache: Where prefixes are kept between calls; None to forget them.
        adapter: Names the weights in `cache`.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        cache: PrefixCache | None = None,
        adapter: str = "",
    ) -> None:
        self.model = model
        self.max_batch_tokens = max_batch_tokens
        self.cache = cache
        self.adapter = adapter
        self.shares_prefixes = is_enabled(model)

    def knows(self, prefix: tuple[int, ...]) -> bool:
        """Say whether a prefix would not be read again."""
        return self.shares_prefixes and self.cache is not None and self.cache.holds(self.adapter, prefix)

    def score(
        self, groups: Sequence[ScoringGroup], labels: LabelTokens
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield (group index, margins (n_suffixes,)) as groups are finished.

        Raises:
            CandidateTooLongError: a candidate does not fit a pass together with its prefix.
            EngineError: a margin is no number.
        """
        for index, group in enumerate(groups):
            self._check(index, group)
        shared = {i for i, group in enumerate(groups) if self.shares_prefixes and fits(self.model, group)}
        places = sorted(shared)
        for place, margins in self._together([groups[index] for index in places], labels):
            yield places[place], finite(margins, self.model)
        for index, group in enumerate(groups):
            if index in shared:
                continue
            with torch.inference_mode(), label_head(self.model, labels) as columns:
                alone = separate_margins(self.model, group, columns, self.max_batch_tokens)
            yield index, finite(alone.cpu().numpy(), self.model)

    def _check(self, index: int, group: ScoringGroup) -> None:
        for number, suffix in enumerate(group.suffixes):
            needed = len(group.prefix) + len(suffix)
            if needed > self.max_batch_tokens:
                raise CandidateTooLongError(index, number, needed, self.max_batch_tokens)

    def _together(
        self, groups: Sequence[ScoringGroup], labels: LabelTokens
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        found: dict[int, list[npt.NDArray[np.float32]]] = {}
        for batch in self._passes(groups):
            packed = pack([piece.part for piece in batch]).to(self.model.device)
            with torch.inference_mode(), label_head(self.model, labels) as columns:
                margins = packed_margins(self.model, packed, columns)
            for piece, some in zip(batch, margins.cpu().split(packed.counts), strict=True):
                found.setdefault(piece.index, []).append(some.numpy())
                if self.cache is not None and piece.part.keep is not None:
                    self.cache.put(self.adapter, piece.part.prefix, piece.part.keep)
                if piece.is_last:
                    yield piece.index, np.concatenate(found.pop(piece.index))

    def _passes(self, groups: Sequence[ScoringGroup]) -> Iterator[list[_Piece]]:
        """Yield what each pass reads: whole groups while they fit, and large ones in pieces."""
        batch: list[_Piece] = []
        free = self.max_batch_tokens
        for index, group in enumerate(groups):
            known = self.cache.get(self.adapter, group.prefix) if self.cache is not None else None
            whole = _whole(group, known, keep=self.cache is not None)
            for piece in _pieces(index, whole, self.max_batch_tokens):
                if piece.part.n_tokens > free:
                    yield batch
                    batch, free = [], self.max_batch_tokens
                batch.append(piece)
                free -= piece.part.n_tokens
        if batch:
            yield batch


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of group `index`; the last one completes its margins."""

    index: int
    part: Part
    is_last: bool


def _whole(group: ScoringGroup, known: PrefixKV | None, *, keep: bool = False) -> Part:
    return Part(group.prefix, group.suffixes, known, PrefixKV() if keep and known is None else None)


def _pieces(index: int, whole: Part, max_tokens: int) -> list[_Piece]:
    """Cut a group into parts of at most `max_tokens` tokens, in the order of its suffixes."""
    if whole.n_tokens <= max_tokens:
        return [_Piece(index, whole, is_last=True)]
    known = whole.known or whole.keep or PrefixKV()
    first = replace(whole, suffixes=(), keep=None if whole.known else known)
    later = replace(whole, suffixes=(), known=known, keep=None)
    pieces: list[_Piece] = []
    taken, room = 0, max_tokens - first.n_tokens
    for number, suffix in enumerate(whole.suffixes):
        if len(suffix) > room:
            part = replace(later if pieces else first, suffixes=whole.suffixes[taken:number])
            pieces.append(_Piece(index, part, is_last=False))
            taken, room = number, max_tokens
        room -= len(suffix)
    pieces.append(_Piece(index, replace(later, suffixes=whole.suffixes[taken:]), is_last=True))
    return pieces
