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
from trsr.llm.prefix_attention import finite, fits, is_enabled, label_head, packed_margins, separate_margins
from trsr.llm.prefix_packing import Part, PrefixKV, pack

Tokens = tuple[int, ...]
Margins = npt.NDArray[np.float32]


class PrefixCache:
    """Keys and values by prefix tokens; the least recently used leave when memory is short.

    Args:
        max_bytes: Most memory held; a prefix larger than this is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._kept: OrderedDict[Tokens, PrefixKV] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, prefix: Tokens) -> bool:
        """Whether a prefix is kept; asking is no use of it."""
        return prefix in self._kept

    def get(self, prefix: Tokens) -> PrefixKV | None:
        """Return what is kept of a prefix, and note that it was used."""
        if prefix in self._kept:
            self._kept.move_to_end(prefix)
        return self._kept.get(prefix)

    def put(self, prefix: Tokens, kept: PrefixKV) -> None:
        """Keep a prefix, and drop older ones until all fit."""
        old = self._kept.pop(prefix, None)
        self.n_bytes -= old.n_bytes if old else 0
        if kept.n_bytes > self.max_bytes:
            return
        self._kept[prefix] = kept
        self.n_bytes += kept.n_bytes
        while self.n_bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.n_bytes -= dropped.n_bytes


class SharedPrefixScorer:
    """A `LabelScorer` over a Hugging Face causal language model, with or without an adapter.

    Args:
        model: The model; prefixes are shared where `prefix_attention.enable` allows it.
        max_batch_tokens: Most tokens of a forward pass; bounds the memory.
        cache: Where prefixes are kept between calls; None to forget them.
    """

    def __init__(self, model: Any, *, max_batch_tokens: int = 4096, cache: PrefixCache | None = None) -> None:
        self.model = model
        self.max_batch_tokens = max_batch_tokens
        self.cache = cache
        self.shares_prefixes = is_enabled(model)

    def knows(self, prefix: Tokens) -> bool:
        """Say whether a prefix would not be read again."""
        return self.shares_prefixes and self.cache is not None and prefix in self.cache

    def score(self, groups: Sequence[ScoringGroup], labels: LabelTokens) -> Iterator[tuple[int, Margins]]:
        """Yield (group index, margins (n_suffixes,)) as groups are finished.

        Raises:
            CandidateTooLongError: a candidate does not fit a pass together with its prefix.
            EngineError: a margin is no number.
        """
        for index, group in enumerate(groups):
            for number, suffix in enumerate(group.suffixes):
                n_tokens = len(group.prefix) + len(suffix)
                if n_tokens > self.max_batch_tokens:
                    raise CandidateTooLongError(index, number, n_tokens, self.max_batch_tokens)
        shared = {i: g for i, g in enumerate(groups) if self.shares_prefixes and fits(self.model, g)}
        for index, margins in self._packed(shared, labels):
            yield index, finite(margins, self.model)
        for index, group in enumerate(groups):
            if index in shared:
                continue
            with torch.inference_mode(), label_head(self.model, labels) as columns:
                found = separate_margins(self.model, group, columns, self.max_batch_tokens)
            yield index, finite(found.cpu().numpy(), self.model)

    def _packed(self, groups: dict[int, ScoringGroup], labels: LabelTokens) -> Iterator[tuple[int, Margins]]:
        found: dict[int, list[Margins]] = {}
        for batch in self._passes(groups):
            packed = pack([piece.part for piece in batch]).to(self.model.device)
            with torch.inference_mode(), label_head(self.model, labels) as columns:
                margins = packed_margins(self.model, packed, columns)
            for piece, some in zip(batch, margins.cpu().split(packed.counts), strict=True):
                found.setdefault(piece.index, []).append(some.numpy())
                if self.cache is not None and piece.part.keep is not None:
                    self.cache.put(piece.part.prefix, piece.part.keep)
                if piece.is_last:
                    yield piece.index, np.concatenate(found.pop(piece.index))

    def _passes(self, groups: dict[int, ScoringGroup]) -> Iterator[list[_Piece]]:
        """Yield what each pass reads: whole groups while they fit, and large ones in pieces."""
        batch: list[_Piece] = []
        free = self.max_batch_tokens
        for index, group in groups.items():
            known = keep = None
            if self.cache is not None:
                known = self.cache.get(group.prefix)
                keep = None if known else PrefixKV()
            for piece in _pieces(
                index, Part(group.prefix, group.suffixes, known, keep), self.max_batch_tokens
            ):
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
