"""API keys and the page's sessions: random, shown once, kept only as their sha256.

A key has 256 random bits, so a plain hash is enough: there is nothing to guess, and no salt is needed.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

ADMIN, EVENTS, RANK = "admin", "events", "rank"
SCOPES = {
    RANK: "rerank and recommend",
    EVENTS: "post events, read, edit and delete users",
    ADMIN: "items, metrics, and everything else",
}
SESSION_SECONDS = 12 * 3600
_MAX_SESSIONS = 10_000
_RELOAD_SECONDS = 1.0
_HASH = re.compile(r"[0-9a-f]{64}")


def new_key() -> str:
    """Return a new random key."""
    return f"trsr_{secrets.token_urlsafe(32)}"


def key_hash(key: str) -> str:
    """Return what is kept of a key: its sha256 in hex."""
    return hashlib.sha256(key.encode("latin-1", "replace")).hexdigest()


def is_hash(text: str) -> bool:
    """Say whether a text has the form of a kept key."""
    return _HASH.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is kept.

    Attributes:
        name: Its name in lists and in the log.
        hash: The sha256 of the key, in hex.
        scopes: What it may do, some of `SCOPES`.
        user_prefix: It reaches only users whose ids begin so.
        expires: Seconds since 1970; None for never.
    """

    name: str
    hash: str
    scopes: frozenset[str]
    user_prefix: str = ""
    expires: float | None = None

    def missing(self, scopes: Iterable[str]) -> list[str]:
        """Return those of `scopes` that the key does not have."""
        return [] if ADMIN in self.scopes else sorted(set(scopes) - self.scopes)

    @property
    def expiry(self) -> str:
        """The day and time at which it expires, or `never`."""
        return f"{datetime.fromtimestamp(self.expires, UTC):%Y-%m-%d %H:%M} UTC" if self.expires else "never"

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and time.time() >= self.expires


NO_KEY = Key("", "", frozenset({ADMIN}))
"""What a caller may do where the server has no keys."""


class Keys:
    """The keys that a server takes, and the sessions that the page opened with them.

    Args:
        hashes: Of keys that may do everything.
        read: Returns the other keys; called again after a second, so that changes are seen.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        hashes: Sequence[str],
        read: Callable[[], Sequence[Key]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed = tuple(Key(f"key-{known[:8]}", known, frozenset({ADMIN})) for known in hashes)
        self._read, self._clock = read, clock
        self._known: tuple[Key, ...] = ()
        self._read_at = -math.inf
        self._needed = False
        self._sessions: dict[str, tuple[str, float]] = {}

    def __bool__(self) -> bool:
        """Say whether a key is needed: once there was one, removing the last one opens nothing."""
        self._reload()
        return self._needed

    def bearer(self, authorization: str) -> Key | None:
        """Return the key in an `Authorization` header, expired or not, or None if it is not one of ours."""
        scheme, _, key = authorization.partition(" ")
        found = self.find(key)
        return found if scheme.lower() == "bearer" else None

    def find(self, key: str) -> Key | None:
        """Return what is kept of a key, expired or not, or None if it is not one of ours."""
        return self._kept(key_hash(key.strip()))

    def log_in(self, key: Key) -> str:
        """Return the random token of a new session."""
        now, token = self._clock(), secrets.token_urlsafe(32)
        going_on = [(name, session) for name, session in self._sessions.items() if session[1] > now]
        self._sessions = dict(going_on[1 - _MAX_SESSIONS :])
        self._sessions[key_hash(token)] = (key.hash, now + SESSION_SECONDS)
        return token

    def session(self, token: str) -> Key | None:
        """Return the key of a session, expired or not; None if the session or the key has gone."""
        kept, ends = self._sessions.get(key_hash(token), ("", -math.inf))
        return self._kept(kept) if self._clock() < ends else None

    def log_out(self, token: str) -> None:
        """End a session."""
        self._sessions.pop(key_hash(token), None)

    def _kept(self, given: str) -> Key | None:
        """Compare every hash, each in constant time, so that answers take equally long for any wrong key."""
        self._reload()
        found = None
        for known in self._known:
            if hmac.compare_digest(given, known.hash):
                found = known
        return found

    def _reload(self) -> None:
        now = self._clock()
        if now - self._read_at >= _RELOAD_SECONDS:
            self._known, self._read_at = (*self._fixed, *self._read()), now
            self._needed = self._needed or bool(self._known)
