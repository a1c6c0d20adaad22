"""Where a store of summaries is: a SQLite file, or the URL of a PostgreSQL database."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from trsr.errors import ConfigError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_POSTGRES = re.compile(r"postgres(ql)?(\+psycopg)?://")
_EXPECTED = "a file or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_SECRETS = frozenset({"password", "sslpassword"})


def is_database_url(place: str | Path) -> bool:
    """Return whether a place is a URL rather than a file."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def hide_password(text: str) -> str:
    """Return a text without the password of the URL in it, which may begin anywhere and ends with the text.

    The rest is still a valid URL: the client then takes the password from `PGPASSWORD` or its password
    file. From a malformed URL, rather too much is removed than too little.
    """
    found = _SCHEME.search(text)
    if found is None:
        return text
    before, rest = text[: found.end()], text[found.end() :]
    user, at, address = rest.rpartition("@")
    address, mark, query = address.partition("?")
    kept = [(name, value) for name, value in parse_qsl(query) if name.lower() not in _SECRETS]
    shown = f"{mark}{query}" if len(kept) == len(parse_qsl(query)) else f"?{urlencode(kept)}" if kept else ""
    return f"{before}{user.partition(':')[0]}{at}{address}{shown}"


def check_store_url(place: str) -> str:
    """Check the form of a place: a path, or the URL of a PostgreSQL database.

    Raises:
        ValueError: it is another or a malformed URL; the message shows no password.
    """
    if not place.strip():
        raise ValueError(f"expected {_EXPECTED}")
    if not is_database_url(place):
        return place
    if not _POSTGRES.match(place):
        raise ValueError(f"expected {_EXPECTED}")
    try:
        parts = urlsplit(place)
        whole = parts.port is None or parts.port > 0
        database = parts.path.strip("/")
    except ValueError:
        whole, database = False, ""
    if place.count("@") > 1 or not whole or not database or "/" in database:
        raise ValueError(f"expected {_EXPECTED}, and @ : / in the password as %40 %3A %2F")
    return place


def resolve_store_url(place: str) -> str:
    """Return a place with `$NAME` replaced by the environment variable, checked.

    Raises:
        ConfigError: a variable is not set, or the place is wrong.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ConfigError(f"The store names the environment variable {name}, which is not set; set it.")
        return os.environ[name]

    place = _VARIABLE.sub(value, place)
    try:
        return check_store_url(place)
    except ValueError as error:
        raise ConfigError(f"store: found {hide_password(place)!r}, {error}.") from error
