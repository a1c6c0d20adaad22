"""The service database: schema, locks, transactions, secure deletion, and API keys."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trsr.errors import ConfigError, NotErasedError, OutputError, StoreError
from trsr.serve.settings import Key
from trsr.storage import PATIENCE, open_sqlite, translate_errors
from trsr.summarize.store import SUMMARIES

APPLICATION_ID = 0x74727376  # "trsv"
WHAT = "service database"

# See `trsr.storage.open_sqlite`. Only ever append. Times are seconds since 1970, UTC; those of events are
# whole microseconds.
MIGRATIONS = (
    # AUTOINCREMENT: the number of a deleted user is never reused.
    """
    CREATE TABLE users (
        uid INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL UNIQUE,
        n_events INTEGER NOT NULL DEFAULT 0
    )
    """,
    """
    CREATE TABLE events (
        uid INTEGER NOT NULL, position INTEGER NOT NULL, event_id TEXT NOT NULL, item_id TEXT NOT NULL,
        timestamp INTEGER, PRIMARY KEY (uid, position), UNIQUE (uid, event_id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE profiles (
        uid INTEGER NOT NULL, version INTEGER NOT NULL, text TEXT NOT NULL,
        author TEXT NOT NULL CHECK (author IN ('model', 'person')),
        n_items INTEGER NOT NULL, key TEXT, created_at REAL NOT NULL, PRIMARY KEY (uid, version)
    )
    """,
    "CREATE INDEX edits ON profiles (uid, version) WHERE author = 'person'",
    """
    CREATE TABLE pending (
        uid INTEGER PRIMARY KEY, since REAL NOT NULL, due REAL NOT NULL,
        n_attempts INTEGER NOT NULL DEFAULT 0, error TEXT
    )
    """,
    "CREATE INDEX pending_by_age ON pending (since)",
    SUMMARIES,
    # Ownership of texts: `plans` holds the calls behind profiles (`start`: the items before the plan's first
    # block), `drafts` the calls of unfinished profiles. Two users may share a text with different items, so
    # the items are stored here and not with the text.
    """
    CREATE TABLE plans (
        uid INTEGER NOT NULL, start INTEGER NOT NULL, place INTEGER NOT NULL, key TEXT NOT NULL,
        item_ids TEXT NOT NULL, PRIMARY KEY (uid, start, place)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX plans_by_key ON plans (key)",
    "CREATE TABLE drafts (uid INTEGER NOT NULL, key TEXT NOT NULL, PRIMARY KEY (uid, key)) WITHOUT ROWID",
    "CREATE INDEX drafts_by_key ON drafts (key)",
    "CREATE TABLE items (item_id TEXT PRIMARY KEY, fields TEXT NOT NULL)",
    "CREATE TABLE imports (source TEXT PRIMARY KEY, imported_at REAL NOT NULL)",
    """
    CREATE TABLE keys (
        name TEXT PRIMARY KEY, hash TEXT NOT NULL UNIQUE, scopes TEXT NOT NULL, user_prefix TEXT NOT NULL,
        expires REAL
    )
    """,
    # Deleted users, some of whose bytes may still be on disk.
    "CREATE TABLE deleted (uid INTEGER PRIMARY KEY)",
    "CREATE INDEX pending_by_due ON pending (due)",
    # Edits by users were once versions of the profile, from which later plans began (at `start`). The newest
    # edit becomes the notes, and the profile is regenerated from the whole history.
    "CREATE TABLE notes (uid INTEGER PRIMARY KEY, text TEXT NOT NULL, updated_at REAL NOT NULL)",
    """
    INSERT INTO notes SELECT uid, text, created_at FROM profiles WHERE author = 'person' AND version =
        (SELECT max(version) FROM profiles edits WHERE edits.uid = profiles.uid AND author = 'person')
    """,
    """
    INSERT INTO pending (uid, since, due) SELECT uid, updated_at, 0 FROM notes WHERE true
    ON CONFLICT DO NOTHING
    """,
    "DELETE FROM notes WHERE trim(text, char(9, 10, 13, 32)) = ''",
    "DELETE FROM profiles WHERE author = 'person'",
    "DROP INDEX edits",
    "ALTER TABLE profiles DROP COLUMN author",
    "INSERT INTO drafts SELECT DISTINCT uid, key FROM plans WHERE start > 0 ON CONFLICT DO NOTHING",
    "ALTER TABLE plans RENAME TO plans_after_edits",
    """
    CREATE TABLE plans (
        uid INTEGER NOT NULL, place INTEGER NOT NULL, key TEXT NOT NULL, item_ids TEXT NOT NULL,
        PRIMARY KEY (uid, place)
    ) WITHOUT ROWID
    """,
    "INSERT INTO plans SELECT uid, place, key, item_ids FROM plans_after_edits WHERE start = 0",
    "DROP TABLE plans_after_edits",
    "CREATE INDEX plans_by_key ON plans (key)",
)

LEAST_ROOM = 256 * 1024
"""Free bytes below which the disk counts as full, although a small write may still succeed."""
ERASE_SECONDS = 5.0
"""Longest wait of a deletion for other processes."""
CHECK_SECONDS = 2.0
"""Longest wait of the health check's write."""
RESERVE_BYTES = 8 * 2**20
"""Disk space reserved for deletions on a full disk, which checkpoint the `-wal` and write a transaction."""
# https://sqlite.org/fileformat2.html#b_tree_pages
_HEADERS = {2: 12, 5: 12, 10: 8, 13: 8}
"""Header bytes of a b-tree page, by page type."""
_AUTO_VACUUM = 52
"""Offset of four bytes that are not 0 if the file has pointer-map pages, which look like b-tree pages."""
_MAX_PAGES = 0x2000000
"""With more pages, the pointer that begins an overflow page could look like a b-tree page type."""


class DatabaseFile:
    """Locks a database file for one server; other commands may still open and write it.

    Open it before the first connection and close it after the last one: POSIX locks, SQLite's included,
    belong to the process, and closing any handle of the file releases all of them.

    Raises:
        OutputError: another server uses the database, or the folder is not writable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reserve = path.with_name(f"{path.name}-reserve")
        self._lock = FileLock(f"{path}-lock", mode=0o600, thread_local=False)  # any thread may close it
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
            path.touch(mode=0o600)
            self._file = os.open(path, os.O_RDWR)
            if any(os.pread(self._file, 4, _AUTO_VACUUM)):
                raise OutputError(
                    f"The database {path} was made with auto_vacuum, which deletions do not support; name "
                    "another file with --db."
                )
        except Timeout as error:
            raise OutputError(
                f"Another server uses the database {path}; stop it, or name another file with --db."
            ) from error
        except OSError as error:
            self._lock.release()
            raise OutputError(
                f"The database {path} cannot be written ({error.strerror}); name another file with --db."
            ) from error

    def reserve_room(self) -> None:
        """Reserve `RESERVE_BYTES`, at most a quarter of the free space."""
        here = self._reserve.stat().st_size if self._reserve.exists() else 0
        wanted = min(RESERVE_BYTES, (shutil.disk_usage(self.path.parent).free + here) // 4)
        if here < wanted:
            try:
                self._reserve.write_bytes(bytes(wanted))
            except OSError:  # full again; the next deletion retries
                self._reserve.unlink(missing_ok=True)

    def release_room(self) -> bool:
        """Free the reserved space; return whether there was any."""
        found = self._reserve.exists()
        self._reserve.unlink(missing_ok=True)
        return found

    def zero_unused(self) -> None:
        """Overwrite the unused middle of every b-tree page, where SQLite leaves copies of moved rows.

        `secure_delete` does not clear these. The `-wal` must be empty and the write lock held; caches of
        writing connections must be dropped, or they write the copies back.
        """
        (page_bytes,) = struct.unpack(">H", os.pread(self._file, 2, 16))
        page_bytes = 65536 if page_bytes == 1 else page_bytes
        n_pages = os.fstat(self._file).st_size // page_bytes
        if n_pages > _MAX_PAGES:
            raise OutputError(f"The database {self.path} is too large to delete from; split its users.")
        for number in range(n_pages):
            page = os.pread(self._file, page_bytes, number * page_bytes)
            header = 0 if number else 100  # page 1 begins with the file header
            if page[header] not in _HEADERS:
                continue
            n_cells, end = struct.unpack_from(">HH", page, header + 3)
            start = header + _HEADERS[page[header]] + 2 * n_cells
            if page.count(0, start, end) < end - start:
                os.pwrite(self._file, bytes(end - start), number * page_bytes + start)
        os.fsync(self._file)

    def close(self) -> None:
        """Release the lock and the reserved space; safe to call twice."""
        if self._lock.is_locked:
            os.close(self._file)
            self._reserve.unlink(missing_ok=True)
            self._lock.release()


class Database:
    """One writing and one reading connection, and secure deletion of users.

    Each connection has a lock: a SQLite transaction belongs to the connection, not to the thread, so two
    threads on one connection would write into the same transaction. Readers never wait for writers.

    Raises:
        StoreError: the file is damaged, is no service database, or was made by a newer `trsr`.
        OutputError: (any method) the file is not writable, or another process keeps it locked.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()  # one lock per file, also for links to it
        self._damage: StoreError | None = None
        self._write_lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._clean_lock = threading.Lock()
        with ExitStack() as opened:
            self._file = opened.enter_context(closing(DatabaseFile(self.path)))
            self._db = open_sqlite(self.path, WHAT, APPLICATION_ID, MIGRATIONS, many_threads=True)
            opened.enter_context(closing(self._db))
            self._reader = sqlite3.connect(
                self.path, isolation_level=None, timeout=PATIENCE, check_same_thread=False
            )
            opened.enter_context(closing(self._reader))
            self._reader.execute("PRAGMA query_only = ON")
            make_private(self.path)
            with self._sentences():
                (found,) = self._reader.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    raise sqlite3.DatabaseError(f"malformed: {' '.join(found.split())}")
            self._erase()
            self._opened = opened.pop_all()

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            with translate_errors(self.path, WHAT):
                yield
        except StoreError as error:
            self._damage = error
            raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the reading connection for SELECTs, which see all earlier commits."""
        with self._read_lock, self._sentences():
            yield self._reader

    def _select(self, query: str, parameters: Sequence[object] = ()) -> list[Any]:
        with self._reading() as db:
            return db.execute(query, parameters).fetchall()

    @contextmanager
    def _writing(self, *, durable: bool = True, seconds: float = PATIENCE) -> Iterator[sqlite3.Connection]:
        """Yield the writing connection in a transaction: committed (on disk if `durable`), or rolled back.

        Waits up to `seconds` for other threads, then up to `seconds` for other processes.
        """
        if not self._write_lock.acquire(timeout=seconds):
            raise OutputError(f"The {WHAT} has been locked for {seconds:g} seconds; try again.")
        with ExitStack() as locked, self._sentences():
            locked.callback(self._write_lock.release)
            db = self._db
            db.execute(f"PRAGMA busy_timeout = {1000 * seconds:.0f}")
            db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite may have rolled back itself, as on a full disk
                    db.execute("ROLLBACK")
                raise

    def delete_user(self, user_id: str) -> bool:
        """Delete a user: events, notes, profiles, updates, and the summaries that no other user has.

        Returns whether the user existed, once none of their bytes is left on disk, in logs or journals.
        If the process is killed, the next one finishes the deletion when it opens the database.

        Raises:
            NotErasedError: the user is deleted, but another process holds the bytes; `clean` retries.
        """

        def forget() -> bool:
            with self._writing() as db:
                user = find_user(db, user_id)
                if user is not None:
                    db.execute("INSERT INTO deleted (uid) VALUES (?)", user[:1])
                    for table in ("notes", "pending", "users"):
                        db.execute(f"DELETE FROM {table} WHERE uid = ?", user[:1])
                return user is not None

        found = self._with_room(forget)
        self._erase()
        return found

    def _with_room(self, do: Callable[[], bool]) -> bool:
        """Call `do`; on a full disk release the reserved space and call it again."""
        try:
            done = do()
        except OutputError as error:
            if "locked" in str(error.__cause__) or not self._file.release_room():
                raise
            self._checkpoint()
            done = do()
        self._file.reserve_room()
        return done

    def _erase(self) -> None:
        """Erase the deleted users' bytes; wait up to `ERASE_SECONDS` for processes that hold them."""
        ends = time.monotonic() + ERASE_SECONDS
        while not self.clean():
            if time.monotonic() > ends:
                raise NotErasedError(
                    f"Texts of deleted users are still in {self.path.name}, which another process reads; end "
                    "that process, and the server erases them."
                )
            time.sleep(0.05)

    def clean(self) -> bool:
        """Erase deleted users' bytes; return False if another process holds them."""
        return self._with_room(self._clean)

    def _clean(self) -> bool:
        with self._clean_lock:  # of concurrent calls, the first does the work
            uids = [uid for (uid,) in self._select("SELECT uid FROM deleted")]
            for uid in uids:
                n_left = 1
                while n_left:  # in parts: other writes come between, and the `-wal` stays small
                    with self._writing(durable=False) as db:
                        n_left = delete_rows(db, uid)
            return not uids or self._zeroed(uids)

    def _zeroed(self, uids: Sequence[int]) -> bool:
        """Erase the bytes of these users' deleted rows; False if another process reads or writes."""
        with self._write_lock:
            if not self._checkpoint():
                return False
            with self._writing() as db:
                wal = Path(f"{self.path}-wal")
                if wal.exists() and wal.stat().st_size:
                    return False
                db.execute("PRAGMA shrink_memory")  # the cached pages have the copies too
                self._file.zero_unused()
                db.executemany("DELETE FROM deleted WHERE uid = ?", [(uid,) for uid in uids])
        return True

    def _checkpoint(self) -> bool:
        """Copy the `-wal` into the file and empty it; False if another process is using it."""
        with self._write_lock, self._read_lock, self._sentences():
            self._db.execute("PRAGMA busy_timeout = 0")  # rankings wait for it
            (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def check(self) -> None:
        """Check that the database can be written and read, and that the disk has space.

        Raises:
            OutputError, StoreError: it cannot, or it was found damaged before.
        """
        if self._damage is not None:
            raise self._damage
        free = shutil.disk_usage(self.path.parent).free
        if free < LEAST_ROOM:
            raise OutputError(f"The disk of the {WHAT} has {free // 1024} KiB free; free space.")
        with self._writing(durable=False, seconds=CHECK_SECONDS) as db:
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")  # unchanged value: a write without effect
        self._select("PRAGMA user_version")

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with self._write_lock, self._read_lock:
            self._opened.close()


def find_user(db: sqlite3.Connection, user_id: str) -> tuple[int, int] | None:
    """Return a user's number and history length; None for an unknown user."""
    row: tuple[int, int] | None = db.execute(
        "SELECT uid, n_events FROM users WHERE user_id = ?", (user_id,)
    ).fetchone()
    return row


def drop_unowned(db: sqlite3.Connection, keys: Iterable[str]) -> None:
    """Delete the summaries among `keys` that no user has."""
    db.executemany(
        "DELETE FROM summaries WHERE key = ? "
        "AND NOT EXISTS (SELECT 1 FROM plans WHERE plans.key = summaries.key) "
        "AND NOT EXISTS (SELECT 1 FROM drafts WHERE drafts.key = summaries.key)",
        [(key,) for key in keys],
    )


def delete_rows(db: sqlite3.Connection, uid: int, most: int = 100) -> int:
    """Delete up to `most` rows of each table of a deleted user, and the summaries that no other user has.

    Returns the number of deleted rows: 0 when nothing is left.
    """
    rows = db.execute(
        "SELECT key FROM plans WHERE uid = ? UNION SELECT key FROM drafts WHERE uid = ? LIMIT ?",
        (uid, uid, most),
    )
    keys = [key for (key,) in rows]
    for table in ("plans", "drafts"):
        db.executemany(f"DELETE FROM {table} WHERE uid = ? AND key = ?", [(uid, key) for key in keys])
    drop_unowned(db, keys)
    n_deleted = len(keys)
    for table, row in (("events", "position"), ("profiles", "version")):
        n_deleted += db.execute(
            f"DELETE FROM {table} WHERE uid = ? AND {row} IN "
            f"(SELECT {row} FROM {table} WHERE uid = ? LIMIT ?)",
            (uid, uid, most),
        ).rowcount
    return n_deleted


def make_private(path: Path) -> None:
    """Make a database and the other files of SQLite readable by the owner only."""
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").chmod(0o600)


def read_keys(path: Path) -> list[Key]:
    """Return all keys, sorted by name; none if the file does not exist."""
    if not path.is_file():
        return []
    with _open(path) as db:
        rows = db.execute("SELECT * FROM keys ORDER BY name").fetchall()
    return [Key(name, hash_, frozenset(scopes.split(",")), *more) for name, hash_, scopes, *more in rows]


def add_key(path: Path, key: Key) -> None:
    """Add a key; create the file if needed.

    Raises:
        ConfigError: a key of this name exists.
    """
    row = (key.name, key.hash, ",".join(sorted(key.scopes)), key.user_prefix, key.expires)
    with _open(path) as db:
        added = db.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING", row)
        if not added.rowcount:
            raise ConfigError(
                f"The key {key.name!r} exists already; choose another name, or remove it first."
            )


def remove_key(path: Path, name: str) -> bool:
    """Delete a key; return whether it existed."""
    with _open(path) as db:
        return db.execute("DELETE FROM keys WHERE name = ?", (name,)).rowcount > 0


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    db = open_sqlite(path, WHAT, APPLICATION_ID, MIGRATIONS)
    try:
        with translate_errors(path, WHAT):
            make_private(path)
            yield db
    finally:
        db.close()
