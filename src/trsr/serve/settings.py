"""What can be set of a server, by flags of `trsr serve` or by variables `TRSR_...`."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from trsr.errors import ConfigError
from trsr.serve.auth import is_hash


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
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("api_keys")
    @classmethod
    def _are_hashes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(is_hash(entry) for entry in value):
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
        if not self.loopback and not keys:
            raise ConfigError(
                f"Host {self.host!r} can be reached from other machines and there is no key; make one with "
                "`trsr keys add`, or listen at 127.0.0.1."
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


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
