"""Settings of a server (flags of `trsr serve`, environment variables `TRSR_...`), API keys and sessions."""

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
    """Return the stored form of a key: its sha256 in hex."""
    return hashlib.sha256(key.encode("latin-1", "replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, stored as its sha256 in hex.

    It is valid for its `scopes` (a subset of `SCOPES`) and for users whose ids begin with `user_prefix`,
    until `expires` (seconds since 1970; None: never).
    """

    name: str
    hash: str
    scopes: frozenset[str]
    user_prefix: str = ""
    expires: float | None = None

    def missing(self, scopes: Iterable[str]) -> list[str]:
        """Return the scopes among `scopes` that the key lacks."""
        return [] if ADMIN in self.scopes else sorted(set(scopes) - self.scopes)

    @property
    def expiry(self) -> str:
        """The time of expiry, or `never`."""
        return f"{datetime.fromtimestamp(self.expires, UTC):%Y-%m-%d %H:%M} UTC" if self.expires else "never"

    @property
    def expired(self) -> bool:
        """Whether the key has expired."""
        return self.expires is not None and time.time() >= self.expires


NO_KEY = Key("", "", frozenset({ADMIN}))
"""The rights of every caller if the server has no keys."""


class Keys:
    """The keys that a server accepts, and the page's sessions.

    Args:
        hashes: Hashes of keys with the scope `admin`.
        read: Returns the other keys; called at most once per second.
        clock: Returns monotonic seconds.
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
        """Return whether a key is needed; stays true after the last key is removed."""
        self._reload()
        return self._needed

    def bearer(self, authorization: str) -> Key | None:
        """Return the key in an `Authorization` header, expired or not; None if it is unknown."""
        scheme, _, key = authorization.partition(" ")
        found = self.find(key)
        return found if scheme.lower() == "bearer" else None

    def find(self, key: str) -> Key | None:
        """Return the stored key for a secret, expired or not; None if it is unknown."""
        return self._kept(key_hash(key.strip()))

    def log_in(self, key: Key) -> str:
        """Open a session; return its random token."""
        now, token = self._clock(), secrets.token_urlsafe(32)
        open_ones = [(name, session) for name, session in self._sessions.items() if session[1] > now]
        self._sessions = dict(open_ones[1 - _MAX_SESSIONS :])
        self._sessions[key_hash(token)] = (key.hash, now + SESSION_SECONDS)
        return token

    def session(self, token: str) -> Key | None:
        """Return the key of a session, expired or not; None if the session or the key no longer exists."""
        kept, ends = self._sessions.get(key_hash(token), ("", -math.inf))
        return self._kept(kept) if self._clock() < ends else None

    def log_out(self, token: str) -> None:
        """End a session."""
        self._sessions.pop(key_hash(token), None)

    def _kept(self, given: str) -> Key | None:
        """Compare with all hashes in constant time: no timing depends on the key."""
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
    """Address, access and limits of a server."""

    model_config = SettingsConfigDict(env_prefix="TRSR_", frozen=True, hide_input_in_errors=True)

    host: str = "127.0.0.1"
    """The address to listen on; other than loopback only with a key."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 for any free port."""
    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    """The sha256 in hex of keys with the scope `admin`, separated by commas."""
    forwarded_allow_ips: str = "127.0.0.1,::1"
    """Addresses or networks of trusted proxies (`X-Forwarded-...` headers), separated by commas."""
    requests_per_minute: int = Field(default=6000, ge=1)
    """Per key, or per address if there are no keys."""
    max_body_bytes: int = Field(default=2 * 2**20, ge=1024)
    """Per request."""
    max_candidates: int = Field(default=200, ge=1)
    """Candidates or documents per request."""
    max_waiting: int = Field(default=64, ge=1)
    """Requests that may wait for the model; more are answered 503."""
    request_seconds: float = Field(default=30.0, gt=0)
    """Time limit of a request, after which it is answered 503."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens that the model reads per request; by default those of `request_seconds`, at least 16,384."""
    n_ranked: int | None = Field(default=None, ge=1)
    """Retrieved items that the model ranks if a request has no candidates; by default as many as it ranks in
    about two seconds, from 10 to 50."""
    max_connections: int = Field(default=800, ge=1)
    """Open connections; more are closed. Stay below the process's limit of open files, often 1,024."""
    stop_seconds: int = Field(default=10, ge=0)
    """Time for open requests when the server stops."""
    log_texts: bool = False
    """Log addresses with user ids, and error messages, which may contain users' texts."""

    @field_validator("api_keys", mode="before")
    @classmethod
    def _are_hashes(cls, value: str | Sequence[str]) -> Sequence[str]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not all(re.fullmatch("[0-9a-f]{64}", entry) for entry in value):
            raise ValueError(
                "found a value that is not a sha256 in hex; give hashes (`printf %s KEY | sha256sum`), "
                "or create keys with `trsr keys add`"
            )
        return value

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for part in filter(None, "" if value == "*" else value.split(",")):
            ipaddress.ip_network(part.strip())
        return value

    def check_closed(self, keys: bool) -> None:
        """Check that a server without keys listens on loopback only.

        Raises:
            ConfigError: `keys` is false, and other machines can reach the host.
        """
        try:
            loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            loopback = self.host == "localhost"
        if not loopback and not keys:
            raise ConfigError(
                f"Host {self.host!r} can be reached from other machines and there is no key; create one with "
                "`trsr keys add`, or listen on 127.0.0.1."
            )


def load_settings(**given: Any) -> Settings:
    """Return the settings of the environment, overridden by the given ones that are not None.

    Raises:
        ConfigError: lists all invalid settings.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = []
        for entry in error.errors():
            where = ".".join(str(part) for part in entry["loc"])
            problems.append(f"{where}: {str(entry['msg']).removeprefix('Value error, ')}.")
        raise ConfigError(problems) from error
