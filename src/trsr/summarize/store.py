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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from trsr.storage import as_one_sentence, open_sqlite


class Claims(Protocol):
    """The calls that one process has taken; implemented by `trsr.experiment.ray_workers`."""

    def claim(self, keys: Sequence[str]) -> set[str]:
        """Take these calls; return those that are left to another process, which took them before."""
        ...

    def release(self, keys: Sequence[str]) -> None:
        """Let go of calls that failed, so that others need not wait for their texts."""
        ...


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


PAGE = 1000
"""Rows read or written at once."""


class Row(NamedTuple):
    """One row, with the columns of all stores: `item_ids` is a JSON list, `created_at` seconds since 1970."""

    key: str
    text: str | None
    error: str | None
    model: str
    template_hash: str
    item_ids: str
    n_prompt_tokens: int
    n_generated_tokens: int
    seconds: float
    n_attempts: int
    created_at: float


class Part(NamedTuple):
    """Counts over all rows of one model and one template; `first` and `last` are of `created_at`."""

    model: str
    template_hash: str
    n_texts: int
    n_failed: int
    n_attempts: int
    n_prompt_tokens: int
    n_generated_tokens: int
    seconds: float
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows are meant: those for which all that is given is true.

    Attributes:
        failed: Failed calls only.
        model: The model id, whole.
        template_hash: Beginning of the template's hash.
        before: Rows made before this time, in seconds since 1970.
    """

    failed: bool = False
    model: str | None = None
    template_hash: str | None = None
    before: float | None = None


class Store(TextStore, Protocol):
    """A store that can be copied, counted and cleaned."""

    def __enter__(self) -> Self:
        """Return the store; leaving the block closes it."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        ...

    def close(self) -> None:
        """Give back files and connections; safe to call twice."""
        ...

    def calls(self, keys: Sequence[str]) -> dict[str, StoredCall]:
        """Return what is known of the calls among `keys`, failed ones included."""
        ...

    def rows(self) -> Iterator[Row]:
        """Yield every row in the order of the keys; memory stays flat."""
        ...

    def add(self, rows: Iterable[Row]) -> int:
        """Take over rows as they are, and return how many were new.

        A text is never replaced. A text takes the place of a failed call, and attempts add up; a failed call
        is taken only where its key is unknown. So adding the same rows again changes nothing.
        """
        ...

    def parts(self) -> list[Part]:
        """Count the rows of each model and template, in the order of their names."""
        ...

    def count(self, choice: Choice) -> int:
        """Return how many rows are meant."""
        ...

    def remove(self, choice: Choice) -> int:
        """Remove the rows that are meant, and return how many there were."""
        ...

    def n_bytes(self) -> int:
        """Return the space taken on disk."""
        ...


_COLUMNS = ", ".join(Row._fields)
_PARTS = """
    SELECT model, template_hash, count(text), count(error), sum(n_attempts), sum(n_prompt_tokens),
           sum(n_generated_tokens), sum(seconds), min(created_at), max(created_at)
    FROM summaries GROUP BY model, template_hash ORDER BY model, template_hash
"""
_ADD = f"""
    INSERT INTO summaries ({_COLUMNS}) VALUES ({", ".join("?" * len(Row._fields))})
    ON CONFLICT (key) DO UPDATE SET
        text = excluded.text, error = NULL, model = excluded.model, template_hash = excluded.template_hash,
        item_ids = excluded.item_ids, n_prompt_tokens = excluded.n_prompt_tokens,
        n_generated_tokens = excluded.n_generated_tokens, seconds = excluded.seconds,
        created_at = excluded.created_at, n_attempts = summaries.n_attempts + excluded.n_attempts
    WHERE summaries.text IS NULL AND excluded.text IS NOT NULL
"""


class SqliteStore(SummaryStore):
    """A summary store in a file, with what looking after it takes."""

    def rows(self) -> Iterator[Row]:
        """Yield every row in the order of the keys; see `rows.Store`."""
        query = f"SELECT {_COLUMNS} FROM summaries WHERE key > ? ORDER BY key LIMIT {PAGE}"
        last = ""
        while True:
            with self._as_one_sentence():
                page = self._db.execute(query, (last,)).fetchall()
            if not page:
                return
            yield from map(Row._make, page)
            last = page[-1][0]

    def add(self, rows: Iterable[Row]) -> int:
        """Take over rows as they are, a page a transaction; see `rows.Store`."""
        waiting, added = iter(rows), 0
        while page := list(islice(waiting, PAGE)):
            with self._as_one_sentence():
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    added += self._db.executemany(_ADD, page).rowcount
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
        return added

    def parts(self) -> list[Part]:
        """Count the rows of each model and template; see `rows.Store`."""
        with self._as_one_sentence():
            return [Part._make(row) for row in self._db.execute(_PARTS)]

    def count(self, choice: Choice) -> int:
        """Return how many rows are meant."""
        where, values = _where(choice)
        with self._as_one_sentence():
            (n,) = self._db.execute(f"SELECT count(*) FROM summaries WHERE {where}", values).fetchone()
        return int(n)

    def remove(self, choice: Choice) -> int:
        """Remove the rows that are meant, and give their space back to the disk."""
        where, values = _where(choice)
        with self._as_one_sentence():
            removed = self._db.execute(f"DELETE FROM summaries WHERE {where}", values).rowcount
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def n_bytes(self) -> int:
        """Return the space taken by the database's pages."""
        with self._as_one_sentence():
            (pages,) = self._db.execute("PRAGMA page_count").fetchone()
            (size,) = self._db.execute("PRAGMA page_size").fetchone()
        return int(pages) * int(size)


def _where(choice: Choice) -> tuple[str, list[str | float]]:
    """Return a condition and its values."""
    tests, values = ["1"], list[str | float]()
    if choice.failed:
        tests.append("error IS NOT NULL")
    if choice.model is not None:
        tests.append("model = ?")
        values.append(choice.model)
    if choice.template_hash is not None:
        tests.append("substr(template_hash, 1, length(?)) = ?")
        values += [choice.template_hash] * 2
    if choice.before is not None:
        tests.append("created_at < ?")
        values.append(choice.before)
    return " AND ".join(tests), values
