"""Keeps what a model has read of prefixes, so that a user's next request reads candidates only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from trsr.llm.packing import PrefixKV


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
