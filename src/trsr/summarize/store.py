"""Keeps every text a model wrote, by the content of the question: the same question is never paid twice.

SQLite in WAL mode, one writer. A row is committed when its result arrives, so a killed process loses only the
calls in flight. A commit does not wait for the disk (`synchronous = NORMAL`): a power cut may take back the
last ones, which are then made again, and harms nothing else. Failed calls are rows too; the next run tries
them again.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from trsr.storage import as_one_sentence, open_sqlite

APPLICATION_ID = 0x74727372  # "trsr"
WHAT = "summary store"
CACHE_KIB = 64 * 1024
"""Pages kept in memory: keys are hashes, so rows come in no order, and each touches another page."""
WAL_PAGES = 8192
"""Pages written ahead before they are put in their place: the more, the more of them are touched twice."""

SUMMARIES = """
    CREATE TABLE summaries (
        key TEXT PRIMARY KEY,
        text TEXT,
        error TEXT,
        model TEXT NOT NULL,
        template_hash TEXT NOT NULL,
        item_ids TEXT NOT NULL,
        n_prompt_tokens INTEGER NOT NULL,
        n_generated_tokens INTEGER NOT NULL,
        seconds REAL NOT NULL,
        n_attempts INTEGER NOT NULL DEFAULT 1,
        created_at REAL NOT NULL,
        CHECK ((text IS NULL) <> (error IS NULL))
    ) WITHOUT ROWID
    """
# See `open_sqlite`. Only ever append.
MIGRATIONS = (SUMMARIES,)


@dataclass(frozen=True, slots=True)
class StoredCall:
    """One finished or failed call: exactly one of `text` and `error` is set.

    `user_ids` are the users whose profiles waited for it when it arrived. It is no part of what the call is;
    a store that can forget users needs it.
    """

    key: str
    text: str | None
    error: str | None
    model: str
    template_hash: str
    item_ids: tuple[str, ...]
    n_prompt_tokens: int
    n_generated_tokens: int
    seconds: float
    user_ids: tuple[str, ...] = ()


CALL = (
    "key",
    "text",
    "error",
    "model",
    "template_hash",
    "item_ids",
    "n_prompt_tokens",
    "n_generated_tokens",
    "seconds",
)
"""The columns that every store has of a call; `item_ids` is a JSON list."""


def stored_call(row: Sequence[Any]) -> StoredCall:
    """Return the call of a row that holds the columns `CALL`."""
    values = dict(zip(CALL, row, strict=True))
    return StoredCall(**values | {"item_ids": tuple(json.loads(values["item_ids"]))})


class TextStore(Protocol):
    """What `summarize.run` needs of a store: to find texts by their keys, and to keep new ones."""

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the known texts among `keys`; failed calls are not known."""
        ...

    def put(self, call: StoredCall) -> None:
        """Commit one result. A failed call is replaced and its attempts counted; a text is never."""
        ...


@runtime_checkable
class GroupStore(TextStore, Protocol):
    """A store that can also keep results together, which costs it less than one by one."""

    def put_all(self, calls: Sequence[StoredCall]) -> None:
        """Commit results that arrived together: all of them or none; else as `put`."""
        ...


class SummaryTable:
    """Reads and writes the table `summaries` of an open database; transactions are the caller's."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the known texts among `keys`."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            rows = self._db.execute(
                f"SELECT key, text FROM summaries WHERE text IS NOT NULL AND key IN ({marks})",
                part,
            )
            found.update(rows.fetchall())
        return found

    def put(self, call: StoredCall) -> None:
        """Insert one result, or let it take the place of a failed one."""
        self._db.execute(_PUT, _values(call))

    def put_all(self, calls: Sequence[StoredCall]) -> None:
        """Do so with each of some results, in one transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(_PUT, map(_values, calls))
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


_PUT = """
    INSERT INTO summaries (key, text, error, model, template_hash, item_ids,
                           n_prompt_tokens, n_generated_tokens, seconds, created_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET
        text = excluded.text, error = excluded.error, seconds = excluded.seconds,
        n_prompt_tokens = excluded.n_prompt_tokens,
        n_generated_tokens = excluded.n_generated_tokens,
        created_at = excluded.created_at, n_attempts = n_attempts + 1
    WHERE summaries.text IS NULL
    """


def _values(call: StoredCall) -> tuple[Any, ...]:
    """Return the values that `_PUT` takes."""
    return (
        call.key,
        call.text,
        call.error,
        call.model,
        call.template_hash,
        json.dumps(call.item_ids),
        call.n_prompt_tokens,
        call.n_generated_tokens,
        call.seconds,
        time.time(),
    )


class SummaryStore:
    """A content-addressed store of generated texts in one SQLite file.

    Raises:
        StoreError: the file is no summary store, or a newer version of `trsr` made it.
        OutputError: the file cannot be written, or another process keeps it busy.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._db = open_sqlite(self.path, WHAT, APPLICATION_ID, MIGRATIONS)
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        self._table = SummaryTable(self._db)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._db.close()

    def _as_one_sentence(self) -> AbstractContextManager[None]:
        return as_one_sentence(self.path, WHAT)

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the known texts among `keys`; failed calls are not known."""
        with self._as_one_sentence():
            return self._table.texts(keys)

    def calls(self, keys: Sequence[str]) -> dict[str, StoredCall]:
        """Return what is known of the calls among `keys`, failed ones included."""
        found: dict[str, StoredCall] = {}
        with self._as_one_sentence():
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                rows = self._db.execute(
                    f"SELECT {', '.join(CALL)} FROM summaries WHERE key IN ({','.join('?' * len(part))})",
                    part,
                )
                found.update((row[0], stored_call(row)) for row in rows)
        return found

    def put(self, call: StoredCall) -> None:
        """Commit one result. A failed call is replaced and its attempts counted; a text is never."""
        with self._as_one_sentence():
            self._table.put(call)

    def put_all(self, calls: Sequence[StoredCall]) -> None:
        """Commit results that arrived together; see `GroupStore`."""
        with self._as_one_sentence():
            self._table.put_all(calls)
