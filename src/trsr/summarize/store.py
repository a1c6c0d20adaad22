"""Keep every generated text by the content of its prompt, so the same call is never paid twice.

One set of SQL statements serves SQLite files and PostgreSQL databases. A row is committed when its result
arrives, so a killed process loses only the calls in flight. A text is never replaced. A failed call is
also a row; the next run replaces it and counts the attempts.

SQLite runs in WAL mode with one writer and does not wait for the disk (`synchronous = NORMAL`): a power cut
may lose the last rows, which are then made again, and nothing else. PostgreSQL allows any number
of writers on many machines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from math import inf
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from trsr.errors import MissingExtraError, OutputError, StoreError
from trsr.storage import open_sqlite, translate_errors
from trsr.summarize.store_url import check_store_url, hide_password, is_database_url

PAGE = 1000
"""Rows read or written at once."""
WHAT = "summary store"
APPLICATION_ID = 0x74727372  # "trsr"
CONNECT_SECONDS = 10

_COLUMNS = """
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
"""
SUMMARIES = f"CREATE TABLE summaries ({_COLUMNS}) WITHOUT ROWID"
# PostgreSQL's REAL has half the digits. Keys are compared byte by byte, as SQLite does.
_POSTGRES_COLUMNS = _COLUMNS.replace("REAL", "DOUBLE PRECISION").replace("key TEXT", 'key TEXT COLLATE "C"')

# Numbered from 1; a store remembers the last one applied. Only ever append.
MIGRATIONS = (SUMMARIES,)
POSTGRES_MIGRATIONS = (f"CREATE TABLE trsr_summaries ({_POSTGRES_COLUMNS})",)


class StoredCall(NamedTuple):
    """One finished or failed call: exactly one of `text` and `error` is set.

    `put` sets `n_attempts` and `created_at` (seconds since 1970) itself. `user_ids` are the users whose
    profiles waited for the call when it arrived; only stores that can delete users keep them.
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
    n_attempts: int = 1
    created_at: float = 0.0
    user_ids: tuple[str, ...] = ()


class StoreStats(NamedTuple):
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


class RowFilter(NamedTuple):
    """Select the rows for which all of this is true.

    Attributes:
        failed: Only failed calls.
        model: The whole model id; None for any.
        template_hash: Beginning of the template's hash.
        before: Rows made before this time, in seconds since 1970.
    """

    failed: bool = False
    model: str | None = None
    template_hash: str = ""
    before: float = inf


class TextStore(Protocol):
    """The store interface of the summarizer: find texts by key, and keep new ones."""

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the known texts among `keys`; failed calls are not known."""
        ...

    def put(self, call: StoredCall) -> None:
        """Commit one result. A failed call is replaced and its attempts counted; a text never is."""
        ...


@runtime_checkable
class GroupStore(TextStore, Protocol):
    """A store that can also commit results together, which is cheaper than one by one."""

    def put_all(self, calls: Sequence[StoredCall]) -> None:
        """Commit results that arrived together, all of them or none; else as `put`."""
        ...


COLUMNS = StoredCall._fields[:-1]
# Statements are written for SQLite; see `_postgres`.
_NAMES = ", ".join(COLUMNS)
_NEW = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name not in {"key", "n_attempts"})
_AMONG = "key IN (SELECT value FROM json_each(?))"
_TEXTS = f"SELECT key, text FROM summaries WHERE text IS NOT NULL AND {_AMONG}"
_CALLS = f"SELECT {_NAMES} FROM summaries WHERE {_AMONG}"
_PUT = f"""
    INSERT INTO summaries ({_NAMES}) VALUES ({", ".join("?" * len(COLUMNS))})
    ON CONFLICT (key) DO UPDATE SET {_NEW}, n_attempts = summaries.n_attempts + excluded.n_attempts
    WHERE summaries.text IS NULL
"""
_ADD = f"{_PUT} AND excluded.text IS NOT NULL"
_ROWS = f"SELECT {_NAMES} FROM summaries WHERE key > ? ORDER BY key LIMIT {PAGE}"
_STATS = """
    SELECT model, template_hash, count(text), count(error), sum(n_attempts), sum(n_prompt_tokens),
           sum(n_generated_tokens), sum(seconds), min(created_at), max(created_at)
    FROM summaries GROUP BY model, template_hash
"""
_FILTER = """
    (error IS NOT NULL OR NOT ?) AND model = coalesce(?, model)
    AND substr(template_hash, 1, length(?)) = ? AND created_at < ?
"""


class SummaryTable:
    """Texts by key in the table `summaries` of an open database; transactions and errors are the caller's."""

    def __init__(self, db: Any) -> None:
        self._db = db

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        yield self._db

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the known texts among `keys`; failed calls are not known."""
        with self._connection() as db:
            return dict(db.execute(_TEXTS, (json.dumps(keys),)).fetchall())

    def put(self, call: StoredCall) -> None:
        """Keep one result. A failed call is replaced and its attempts counted; a text never is."""
        with self._connection() as db:
            db.execute(_PUT, _new_row(call))


def _new_row(call: StoredCall) -> tuple[Any, ...]:
    return _row(call._replace(n_attempts=1, created_at=time.time()))


def _row(call: StoredCall) -> tuple[Any, ...]:
    """Return the values of `COLUMNS`; item ids are a JSON list."""
    return (*call[:5], json.dumps(call.item_ids), *call[6:-1])


def _call(row: Sequence[Any]) -> StoredCall:
    return StoredCall._make((*row[:5], tuple(json.loads(row[5])), *row[6:], ()))


class Store(SummaryTable):
    """A content-addressed store of generated texts, which can be copied, counted and cleaned."""

    _begin = "BEGIN IMMEDIATE"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close files and connections; safe to call twice."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._connection() as db:
            db.execute(self._begin)
            try:
                yield db
            except BaseException:
                with suppress(Exception):  # a full disk or a lost server has rolled back already
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def put_all(self, calls: Sequence[StoredCall]) -> None:
        """Commit results that arrived together, all of them or none; else as `put`."""
        self._write(_PUT, map(_new_row, calls))

    def _write(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> int:
        """Write rows in one transaction; return how many were accepted."""
        with self._transaction() as db:
            # Sorted by key: two writers never wait for each other's rows.
            return int(db.executemany(statement, sorted(rows, key=itemgetter(0))).rowcount)

    def calls(self, keys: Sequence[str]) -> dict[str, StoredCall]:
        """Return the known calls among `keys`, failed ones included."""
        with self._connection() as db:
            return {row[0]: _call(row) for row in db.execute(_CALLS, (json.dumps(keys),))}

    def rows(self) -> Iterator[StoredCall]:
        """Yield every call in the order of the keys; memory stays flat."""
        last = ""
        while True:
            with self._connection() as db:
                page = db.execute(_ROWS, (last,)).fetchall()
            if not page:
                return
            yield from map(_call, page)
            last = page[-1][0]

    def add(self, rows: Iterable[StoredCall]) -> int:
        """Copy rows unchanged, a page per transaction, and return how many were new.

        A text is never replaced. A text takes the place of a failed call, and attempts add up; a failed call
        is taken only where its key is unknown. So adding the same rows again changes nothing.
        """
        waiting, added = iter(rows), 0
        while page := list(islice(waiting, PAGE)):
            added += self._write(_ADD, map(_row, page))
        return added

    def stats(self) -> list[StoreStats]:
        """Count the rows of each model and template, in the order of their names."""
        with self._connection() as db:
            return sorted(map(StoreStats._make, db.execute(_STATS).fetchall()))

    def count(self, rows: RowFilter) -> int:
        """Return how many rows are selected."""
        return int(self._filtered("SELECT count(*)", rows).fetchone()[0])

    def remove(self, rows: RowFilter) -> int:
        """Remove the selected rows, and return how many there were."""
        return int(self._filtered("DELETE", rows).rowcount)

    def _filtered(self, what: str, rows: RowFilter) -> Any:
        values = (rows.failed, rows.model, rows.template_hash, rows.template_hash, rows.before)
        with self._connection() as db:
            return db.execute(f"{what} FROM summaries WHERE {_FILTER}", values)

    def n_bytes(self) -> int:
        """Return the space taken on disk."""
        raise NotImplementedError


class SqliteStore(Store):
    """A store in one SQLite file, which is made if it does not exist; `:memory:` is gone when it is closed.

    Raises:
        StoreError: the file is no summary store, or a newer version of `trsr` made it.
        OutputError: the file cannot be written, or another process keeps it busy.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # Threads take turns: an export reads in a thread of polars.
        super().__init__(open_sqlite(self.path, WHAT, APPLICATION_ID, MIGRATIONS, many_threads=True))
        self._db.execute("PRAGMA synchronous = NORMAL")
        # KiB and pages: keys are hashes, so each row touches another page, which many rows share in time.
        self._db.execute("PRAGMA cache_size = -65536")
        self._db.execute("PRAGMA wal_autocheckpoint = 8192")

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        with translate_errors(self.path, WHAT):
            yield self._db

    def remove(self, rows: RowFilter) -> int:
        """Remove the selected rows, free their disk space, and return how many there were."""
        removed = super().remove(rows)
        with self._connection() as db:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def n_bytes(self) -> int:
        """Return the space taken by the database's pages."""
        with self._connection() as db:
            (pages,), (size,) = (db.execute(f"PRAGMA page_{name}").fetchone() for name in ("count", "size"))
        return int(pages) * int(size)


class PostgresStore(Store):
    """A store in a PostgreSQL database; its table is made if it does not exist.

    Args:
        url: `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`; see `store_url`.

    Raises:
        StoreError: the URL is wrong, or a newer version of `trsr` made the store.
        OutputError: the server is away or refuses the user.
        MissingExtraError: the packages of the extra `postgres` are not installed.
    """

    _begin = "BEGIN ISOLATION LEVEL READ COMMITTED"

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtraError(error.name or "psycopg", "postgres") from error
        self._psycopg = psycopg
        self.place = hide_password(url)
        try:
            address = f"postgresql://{check_store_url(url).partition('://')[2]}"
            given = psycopg.conninfo.conninfo_to_dict(address)
        except (ValueError, psycopg.ProgrammingError) as error:
            raise StoreError(
                f"{self.place} is not the URL of a database; check how it is written."
            ) from error
        self._address: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, **given, "autocommit": True}
        with self._sentences():
            super().__init__(psycopg.connect(**self._address))
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _connection(self) -> Iterator[_Postgres]:
        with self._sentences():
            if self._db.closed:  # by the server, which may be back by now
                self._db = self._psycopg.connect(**self._address)
            yield _Postgres(self._db)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turn errors of the server or its client into one sentence, without statements and values."""
        try:
            yield
        except self._psycopg.Error as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(". ")
            advice = "check the rights of its user, or name another database"
            if isinstance(error, self._psycopg.OperationalError):
                advice = "start the server or check address and password, then run the same command again"
            raise OutputError(f"The {WHAT} {self.place} cannot be used ({reason}); {advice}.") from error

    def _migrate(self) -> None:
        """Apply the missing migrations in one transaction."""
        latest = len(POSTGRES_MIGRATIONS)
        with self._connection() as db:
            found = db.version()
        if found > latest:
            raise StoreError(
                f"{self.place} holds a {WHAT} of version {found}, this trsr knows {latest}; "
                "update trsr or name another database."
            )
        if found == latest:
            return
        with self._transaction() as db:
            # Writers that start at the same time wait here for the first one, which may leave nothing to do.
            db.execute("SELECT pg_advisory_xact_lock(?)", (APPLICATION_ID,))
            found = db.version()
            if found == 0:
                db.execute("CREATE TABLE trsr_schema (version INTEGER NOT NULL)")
                db.execute("INSERT INTO trsr_schema VALUES (0)")
            for migration in POSTGRES_MIGRATIONS[found:]:
                db.execute(migration)
            db.execute("UPDATE trsr_schema SET version = greatest(version, ?)", (latest,))

    def n_bytes(self) -> int:
        """Return the space taken by the table and its index."""
        with self._connection() as db:
            return int(db.execute("SELECT pg_total_relation_size('trsr_summaries')").fetchone()[0])


class _Postgres:
    """A `psycopg` connection that accepts the statements of SQLite."""

    def __init__(self, db: Any) -> None:
        self._db = db

    def execute(self, statement: str, values: Sequence[object] = ()) -> Any:
        return self._db.execute(_postgres(statement), _storable(values))

    def executemany(self, statement: str, rows: Iterable[Sequence[object]]) -> Any:
        cursor = self._db.cursor()
        cursor.executemany(_postgres(statement), map(_storable, rows))
        return cursor

    def version(self) -> int:
        """Return the number of the last migration applied; 0 for a database without a store."""
        # Not `to_regclass`: within a transaction it may remember that there was no table before a lock.
        table = "relname = 'trsr_schema' AND relkind = 'r' AND pg_table_is_visible(oid)"
        if self.execute(f"SELECT 1 FROM pg_class WHERE {table}").fetchone() is None:
            return 0
        return int(self.execute("SELECT version FROM trsr_schema").fetchone()[0])


@cache
def _postgres(statement: str) -> str:
    """Translate a statement from SQLite to PostgreSQL."""
    among = _AMONG.replace("json_each(?)", "json_array_elements_text(?::json) AS value")
    statement = statement.replace(_AMONG, among).replace(" summaries", " trsr_summaries")
    return statement.replace("?", "%s")


def _storable(values: Sequence[object]) -> list[object]:
    """Replace NUL, which PostgreSQL does not accept and no summary has."""
    return [
        value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value
        for value in values
    ]


def open_store(place: str | Path) -> Store:
    """Open the store in a file or a database (see `store_url`); a new one is made.

    Raises:
        StoreError: there is something else in that place, or the store is of a newer version.
        OutputError: it cannot be written or reached.
        MissingExtraError: it is a database, and the extra `postgres` is not installed.
    """
    return PostgresStore(str(place)) if is_database_url(place) else SqliteStore(place)
