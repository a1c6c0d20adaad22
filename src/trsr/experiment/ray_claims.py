"""Who asks what: two workers whose users share a block ask its question once.

A piece of work claims the calls it is about to make. What another piece has claimed is left to it, and its
text is found in the store when it is there. A piece that is done again after its worker died keeps its
claims, so that nobody waits for the dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

PATIENCE = 900.0
"""Seconds of silence after which a piece's claims no longer count: nobody may ever do it again."""


class ClaimTable:
    """The claims of all pieces, by key.

    Args:
        patience: Seconds for which the claims of a piece hold after it was heard.
        clock: Tells the time in seconds.
    """

    def __init__(self, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._owners: dict[str, str] = {}
        self._keys: dict[str, set[str]] = {}
        self._heard: dict[str, float] = {}

    def claim(self, owner: str, keys: Sequence[str]) -> list[str]:
        """Give keys to `owner`, and return those that another one has, which stay its own."""
        now = self._heard[owner] = self._clock()
        left = []
        for key in keys:
            other = self._owners.get(key, owner)
            if other != owner and now - self._heard[other] < self._patience:
                left.append(key)
                continue
            self._keys.get(other, set()).discard(key)
            self._keys.setdefault(owner, set()).add(key)
            self._owners[key] = owner
        return left

    def release(self, owner: str, keys: Sequence[str] | None = None) -> None:
        """Free some claims of an owner, or all when it has asked all it will."""
        held = self._keys.get(owner, set())
        for key in held.copy() if keys is None else held.intersection(keys):
            held.discard(key)
            del self._owners[key]


class RemoteClaims:
    """The claims of one piece in a `ClaimTable` that is a Ray actor; see `summarize.claims`."""

    def __init__(self, table: Any, owner: str) -> None:
        self._table = table
        self._owner = owner
        self._told = time.monotonic()

    def claim(self, keys: Sequence[str]) -> set[str]:
        """Take these calls; return those that are left to another piece."""
        import ray

        if not keys:
            return set()
        self._told = time.monotonic()
        return set(ray.get(self._table.claim.remote(self._owner, list(keys))))

    def keep(self) -> None:
        """Tell now and then that the piece is being worked on, so that its claims hold."""
        if time.monotonic() - self._told > PATIENCE / 10:
            self._told = time.monotonic()
            self._table.claim.remote(self._owner, [])

    def release(self, keys: Sequence[str] | None = None) -> None:
        """Give claims back: those of calls that failed, or all."""
        import ray

        ray.get(self._table.release.remote(self._owner, keys))
