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
"""Seconds after which a claim no longer counts: its owner may have gone for good."""


class ClaimTable:
    """The claims of all pieces, by key.

    Args:
        patience: Seconds that a claim holds.
        clock: Tells the time in seconds.
    """

    def __init__(self, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._owners: dict[str, tuple[str, float]] = {}
        self._keys: dict[str, set[str]] = {}

    def claim(self, owner: str, keys: Sequence[str]) -> list[str]:
        """Return those of the keys that are `owner`'s to ask, which it had before or has from now on."""
        now, granted = self._clock(), []
        for key in keys:
            other, since = self._owners.get(key, (owner, now))
            if other != owner and now - since < self._patience:
                continue
            if other != owner:
                self._keys[other].discard(key)
            self._owners[key] = owner, now
            self._keys.setdefault(owner, set()).add(key)
            granted.append(key)
        return granted

    def release(self, owner: str) -> None:
        """Forget the claims of an owner, who has asked all it will."""
        for key in self._keys.pop(owner, ()):
            del self._owners[key]


class RemoteClaims:
    """The claims of one piece in a `ClaimTable` that is a Ray actor."""

    def __init__(self, table: Any, owner: str) -> None:
        self._table = table
        self._owner = owner

    def claim(self, keys: Sequence[str]) -> set[str]:
        """Return those of the keys that are this piece's to ask."""
        import ray

        return set(ray.get(self._table.claim.remote(self._owner, list(keys)))) if keys else set()

    def release(self) -> None:
        """Give all claims back."""
        import ray

        ray.get(self._table.release.remote(self._owner))
