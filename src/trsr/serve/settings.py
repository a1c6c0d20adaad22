"""Settings of a server, by flags of `trsr serve` or variables `TRSR_...`; its API keys and sessions."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from trsr.errors import ConfigError

ADMIN, EVENTS, RANK = "admin", "events", "rank"
SCOPES = {
    RANK: "rerank and recommend",
    EVENTS: "post events, read, edit and delete users",
    ADMIN: "items, metrics, and everything else",
}
SESSION_SECONDS = 12 * 3600
_MAX_SESSIONS = 10_000
_RELOAD_SECONDS = 1.0


def new_key() -> str:
    """Return a new random key."""
    return f"trsr_{secrets.token_urlsafe(32)}"


def key_hash(key: str) -> str:
    """Return what is kept of a key: its sha256 in hex."""
    return hashlib.sha256(key.encode("latin-1", "replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is kept: by its sha256 in hex.

    It may do what its `scopes` (some of `SCOPES`) say, for users whose ids begin with `user_prefix`, until
    `expires` (seconds since 1970; None for ever).
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
        """Return whether a key is needed: once there was one, removing the last one opens nothing."""
        self._reload()
        return self._needed

    def bearer(self, authorization: str) -> Key | None:
        """Return the key in an `Authorization` header, expired or not; None for an unknown one."""
        scheme, _, key = authorization.partition(" ")
        found = self.find(key)
        return found if scheme.lower() == "bearer" else None

    def find(self, key: str) -> Key | None:
        """Return what is kept of a key, expired or not; None for an unknown one."""
        return self._kept(key_hash(key.strip()))

    def log_in(self, key: Key) -> str:
        """Return the random token of a new session."""
        now, token = self._clock(), secrets.token_urlsafe(32)
        open_ones = [(name, session) for name, session in self._sessions.items() if session[1] > now]
        self._sessions = dict(open_ones[1 - _MAX_SESSIONS :])
        self._sessions[key_hash(token)] = (key.hash, now + SESSION_SECONDS)
        return token

    def session(self, token: str) -> Key | None:
        """Return the key of a session, expired or not; None when the session or the key is gone."""
        kept, ends = self._sessions.get(key_hash(token), ("", -math.inf))
        return self._kept(kept) if self._clock() < ends else None

    def log_out(self, token: str) -> None:
        """End a session."""
        self._sessions.pop(key_hash(token), None)

    def _kept(self, given: str) -> Key | None:
        """Compare every hash in constant time, so that any wrong key takes equally long."""
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


class Settings(BaseSettings):
    """Where the server listens, whom it lets in, and how much it takes."""

    model_config = SettingsConfigDict(env_prefix="TRSR_", frozen=True, hide_input_in_errors=True)

    host: str = "127.0.0.1"
    """The address to listen at; other than loopback only with a key."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 for any free one."""
    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    """The sha256 of each key, in hex, with commas between them, of keys that may do everything."""
    forwarded_allow_ips: str = "127.0.0.1,::1"
    """Addresses or networks of proxies, with commas between them, whose `X-Forwarded-...` headers count."""
    requests_per_minute: int = Field(default=6000, ge=1)
    """Of one key, or of one address where there are no keys."""
    max_body_bytes: int = Field(default=2 * 2**20, ge=1024)
    """Of one request."""
    max_candidates: int = Field(default=200, ge=1)
    """Candidates or documents of one request."""
    max_waiting: int = Field(default=64, ge=1)
    """Requests that may wait for the model; a further one is answered 503."""
    request_seconds: float = Field(default=30.0, gt=0)
    """A request that cannot be answered within this time is answered 503."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens that the model reads for one request; by default those of `request_seconds`, 16,384 at least."""
    n_ranked: int | None = Field(default=None, ge=1)
    """Of the items found where no candidates are given, those that the model ranks; by default as many as it
    ranks in about two seconds, from 10 to 50."""
    max_connections: int = Field(default=800, ge=1)
    """Open ones; a further one is closed. Below the files that a process may open, often 1,024."""
    stop_seconds: int = Field(default=10, ge=0)
    """At the end, how long open requests may still take."""
    log_texts: bool = False
    """Log addresses with user ids, and what errors say; they may hold texts of people."""

    @field_validator("api_keys", mode="before")
    @classmethod
    def _are_hashes(cls, value: str | Sequence[str]) -> Sequence[str]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not all(re.fullmatch("[0-9a-f]{64}", entry) for entry in value):
            raise ValueError(
                "found something that is no sha256 in hex; give hashes (`printf %s KEY | sha256sum`), "
                "or make keys with `trsr keys add`"
            )
        return value

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for part in filter(None, "" if value == "*" else value.split(",")):
            ipaddress.ip_network(part.strip())
        return value

    def check_closed(self, keys: bool) -> None:
        """Refuse to listen to other machines without keys.

        Raises:
            ConfigError: `keys` is false, and other machines can reach the host.
        """
        try:
            loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            loopback = self.host == "localhost"
        if not loopback and not keys:
            raise ConfigError(
                f"Host {self.host!r} can be reached from other machines and there is no key; make one with "
                "`trsr keys add`, or listen at 127.0.0.1."
            )


def load_settings(**given: Any) -> Settings:
    """Return the settings of the environment, changed by those that are given and not None.

    Raises:
        ConfigError: lists everything that is wrong.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = []
        for entry in error.errors():
            where = ".".join(str(part) for part in entry["loc"])
            problems.append(f"{where}: {str(entry['msg']).removeprefix('Value error, ')}.")
        raise ConfigError(problems) from error
