"""Keeps every text a model wrote, by the content of the question: the same question is never paid twice.

SQLite in WAL mode, one writer. A row is committed when its result arrives, so a killed process loses only the
calls in flight. Failed calls are rows too; the next run tries them again.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from trsr.errors import OutputError, StoreError

APPLICATION_ID = 0x74727372  # "trsr"

# Numbered from 1; a store remembers the last one applied in `PRAGMA user_version`. Only ever append.
MIGRATIONS = (
    """
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
    """,
)


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


class TextStore(Protocol):
    """What `summarize.run` needs of a store: to find texts by their keys, and to keep new ones."""

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the known texts among `keys`; failed calls are not known."""
        ...

    def put(self, call: StoredCall) -> None:
        """Commit one result. A failed call is replaced and its attempts counted; a text is never."""
        ...


class SummaryStore:
    """A content-addressed store of generated texts in one SQLite file.

    Raises:
        StoreError: the file is no summary store, or a newer version of `trsr` made it.
        OutputError: the file cannot be written, or another process keeps it busy.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._as_one_sentence():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=30.0)
            try:
                self._migrate()
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._db.close()

    @contextmanager
    def _as_one_sentence(self) -> Iterator[None]:
        """Turn what SQLite and the file system say into one sentence with advice."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise OutputError(
                    f"The summary store {self.path} is in use by another process ({error}); wait for it, "
                    "then run the same command again."
                ) from error
            if isinstance(error, sqlite3.OperationalError):
                raise OutputError(
                    f"The summary store {self.path} cannot be written ({error}); "
                    "free space or choose a writable folder, then run the same command again."
                ) from error
            raise StoreError(f"{self.path} is not a summary store ({error}); name another file.") from error
        except OSError as error:
            raise OutputError(
                f"The folder {self.path.parent} cannot be written ({error.strerror}); choose another."
            ) from error

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (n_tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if n_tables and application != APPLICATION_ID:
            raise StoreError(f"{self.path} is a database of another program; name another file.")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path} is a summary store of version {version}, this trsr knows {len(MIGRATIONS)}; "
                "update trsr or name another file."
            )
        if version == len(MIGRATIONS):
            return
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("BEGIN IMMEDIATE")
        # Another process may have been faster.
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        for number in range(version, len(MIGRATIONS)):
            self._db.execute(MIGRATIONS[number])
        self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        self._db.execute("COMMIT")

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the known texts among `keys`; failed calls are not known."""
        found: dict[str, str] = {}
        with self._as_one_sentence():
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
        """Commit one result. A failed call is replaced and its attempts counted; a text is never."""
        with self._as_one_sentence():
            self._db.execute(
                """
                INSERT INTO summaries (key, text, error, model, template_hash, item_ids,
                                       n_prompt_tokens, n_generated_tokens, seconds, created_at)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (key) DO UPDATE SET
                    text = excluded.text, error = excluded.error, seconds = excluded.seconds,
                    n_prompt_tokens = excluded.n_prompt_tokens,
                    n_generated_tokens = excluded.n_generated_tokens,
                    created_at = excluded.created_at, n_attempts = n_attempts + 1
                WHERE summaries.text IS NULL
                """,
                (
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
                ),
            )
