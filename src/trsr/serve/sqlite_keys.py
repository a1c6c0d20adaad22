"""The keys in the service's database. Each call opens the file, so that it waits for no other work on it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trsr.errors import ConfigError
from trsr.serve.database_file import make_private
from trsr.serve.settings import Key
from trsr.serve.sqlite_schema import APPLICATION_ID, MIGRATIONS
from trsr.storage import as_one_sentence, open_sqlite

WHAT = "service database"


def read_keys(path: Path) -> list[Key]:
    """Return all keys, sorted by name; none where there is no file."""
    if not path.is_file():
        return []
    with _open(path) as db:
        rows = db.execute(
            "SELECT name, hash, scopes, user_prefix, expires FROM keys ORDER BY name"
        ).fetchall()
    return [
        Key(name, kept, frozenset(scopes.split(",")), prefix, end) for name, kept, scopes, prefix, end in rows
    ]


def add_key(path: Path, key: Key) -> None:
    """Keep a key; the file is made as needed.

    Raises:
        ConfigError: there is one of this name.
    """
    row = (key.name, key.hash, ",".join(sorted(key.scopes)), key.user_prefix, key.expires)
    with _open(path) as db:
        added = db.execute(
            "INSERT INTO keys (name, hash, scopes, user_prefix, expires) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO NOTHING",
            row,
        )
        if added.rowcount == 0:
            raise ConfigError(
                f"There is a key {key.name!r} already; choose another name, or remove it first."
            )


def remove_key(path: Path, name: str) -> bool:
    """Forget a key; return whether there was one."""
    with _open(path) as db:
        return db.execute("DELETE FROM keys WHERE name = ?", (name,)).rowcount > 0


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    db = open_sqlite(path, WHAT, APPLICATION_ID, MIGRATIONS)
    try:
        with as_one_sentence(path, WHAT):
            make_private(path)
            yield db
    finally:
        db.close()
