"""Opens a store of summaries wherever it is; moves rows between stores and Parquet files."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import polars as pl

from trsr.data.writer import Spool
from trsr.errors import ConfigError, DataError
from trsr.storage import write_whole
from trsr.summarize.store import Row, SqliteStore, Store

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_POSTGRES = re.compile(r"postgres(ql)?(\+psycopg)?://")
_EXPECTED = "a file or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_SECRETS = frozenset({"password", "sslpassword"})


def is_database(place: str | Path) -> bool:
    """Return whether a place is a URL rather than a file."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def redacted(text: str) -> str:
    """Return a text without the password of the URL in it, which may begin anywhere and goes to its end.

    What is left is still a good URL: the database's client then takes the password from `PGPASSWORD` or its
    password file. Rather too much is taken from a URL that is written wrongly than too little.
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


def checked(place: str) -> str:
    """Return a place whose form is right: a path, or the URL of a PostgreSQL database.

    Raises:
        ValueError: it is a URL of another kind, or one that cannot be read; the message shows no password.
    """
    if not place.strip():
        raise ValueError(f"expected {_EXPECTED}")
    if not is_database(place):
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


def resolved(place: str) -> str:
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
        return checked(place)
    except ValueError as error:
        raise ConfigError(f"store: found {redacted(place)!r}, {error}.") from error


SCHEMA = pl.Schema(
    {
        "key": pl.String(),
        "text": pl.String(),
        "error": pl.String(),
        "model": pl.String(),
        "template_hash": pl.String(),
        "item_ids": pl.List(pl.String),
        "n_prompt_tokens": pl.Int64(),
        "n_generated_tokens": pl.Int64(),
        "seconds": pl.Float64(),
        "n_attempts": pl.Int64(),
        "created_at": pl.Float64(),
    }
)
"""The columns of a store as a Parquet file: those of a row, with the item ids as a list."""
ROWS_AT_ONCE = 20_000


def open_store(place: str | Path) -> Store:
    """Open the store in a file or a database; a new one is made.

    Raises:
        StoreError: there is something else in that place, or the store is of a newer version.
        OutputError: it cannot be written or reached.
        MissingExtraError: it is a database, and the extra `postgres` is not installed.
    """
    if not is_database(place):
        return SqliteStore(place)
    from trsr.summarize.postgres import PostgresStore

    return PostgresStore(str(place))


def write_rows(file: Path, rows: Iterable[Row]) -> int:
    """Write rows as a Parquet file in one move, and return how many; memory stays flat.

    Raises:
        OutputError: the file cannot be written.
    """
    n_rows = 0

    def write(partial: Path) -> None:
        nonlocal n_rows
        with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
            spool, waiting = Spool(Path(folder)), iter(rows)
            while page := list(islice(waiting, ROWS_AT_ONCE)):
                values = [row._replace(item_ids=json.loads(row.item_ids)) for row in page]
                spool.append(pl.DataFrame(values, schema=SCHEMA, orient="row"))
            n_rows = spool.rows
            spool.scan(SCHEMA).sink_parquet(partial)

    write_whole(file, write)
    return n_rows


def read_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file that `write_rows` made; memory stays flat.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        table = pl.scan_parquet(file, glob=False)
        found = table.collect_schema()
    except (OSError, pl.exceptions.PolarsError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{file} cannot be read as Parquet ({said}); name another file.") from error
    if dict(found) != dict(SCHEMA):
        raise DataError(
            f"{file} has the columns {', '.join(found)}, expected those of an exported store "
            f"({', '.join(SCHEMA)}); make it with `trsr store export`."
        )
    table, offset = table.select(SCHEMA.names()), 0
    while True:
        try:
            page = table.slice(offset, ROWS_AT_ONCE).collect()
        except pl.exceptions.PolarsError as error:
            said = str(error).splitlines()[0].rstrip(".")
            raise DataError(f"{file} is damaged ({said}); export it anew.") from error
        if page.is_empty():
            return
        for values in page.iter_rows(named=True):
            if (values["text"] is None) == (values["error"] is None):
                raise DataError(
                    f"{file}, key {values['key']}: expected a text or an error; name an exported store."
                )
            yield Row(**{**values, "item_ids": json.dumps(values["item_ids"])})
        offset += len(page)
