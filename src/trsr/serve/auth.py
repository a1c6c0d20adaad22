"""API keys: random, shown once, kept only as their sha256.

A key has 256 random bits, so a plain hash is enough: there is nothing to guess, and no salt is needed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence

_HASH = re.compile(r"[0-9a-f]{64}")


def new_key() -> str:
    """Return a new random key."""
    return f"trsr_{secrets.token_urlsafe(32)}"


def key_hash(key: str) -> str:
    """Return what is kept of a key: its sha256 in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def is_hash(text: str) -> bool:
    """Say whether a text has the form of a kept key."""
    return _HASH.fullmatch(text) is not None


class Keys:
    """The keys that a server takes, by their hashes."""

    def __init__(self, hashes: Sequence[str]) -> None:
        self._hashes = tuple(hashes)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def caller(self, authorization: str) -> str | None:
        """Return a short name of the key in an `Authorization` header, or None if it is not one of ours.

        Every hash is compared, each in constant time, so that answers take equally long for any wrong key.
        """
        scheme, _, key = authorization.partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1", "replace")).hexdigest()
        found = None
        for known in self._hashes:
            if hmac.compare_digest(given, known):
                found = known
        return f"key-{found[:8]}" if found and scheme.lower() == "bearer" else None
