"""Opens SQLite files of our own: numbered migrations, and errors that say in one sentence what to do."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trsr.errors import OutputError, StoreError

PATIENCE = 30.0
"""Seconds to wait for a database that another process is writing."""


@contextmanager
def as_one_sentence(path: Path, what: str) -> Iterator[None]:
    """Turn what SQLite and the file system say into one sentence with advice.

    Args:
        path: The database.
        what: What it is, such as `summary store`.

    Raises:
        StoreError: it is not what it should be.
        OutputError: it cannot be written, or another process keeps it busy.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise OutputError(
                f"The {what} {path} is in use by another process ({error}); wait for it, "
                "then run the same command again."
            ) from error
        if isinstance(error, sqlite3.OperationalError):
            raise OutputError(
                f"The {what} {path} cannot be written ({error}); "
                "free space or choose a writable folder, then run the same command again."
            ) from error
        if "malformed" in str(error):
            raise StoreError(
                f"The {what} {path} is damaged ({error}); put a backup in its place, or name another file."
            ) from error
        raise StoreError(f"{path} is not a {what} ({error}); name another file.") from error
    except OSError as error:
        raise OutputError(
            f"The folder {path.parent} cannot be written ({error.strerror}); choose another."
        ) from error


def open_sqlite(
    path: Path, what: str, application_id: int, migrations: Sequence[str], *, many_threads: bool = False
) -> sqlite3.Connection:
    """Open a database in WAL mode and bring it up to date; folders are made as needed.

    Args:
        path: The file, or `:memory:`.
        what: What it is, for errors.
        application_id: Marks files of this kind (`PRAGMA application_id`).
        migrations: One statement each, numbered from 1; the file remembers the last one applied in
            `PRAGMA user_version`. Either all that are missing are applied, or none.
        many_threads: Whether threads other than this one may use the connection; they take turns themselves.

    Raises:
        StoreError: the file is something else, or a newer version of `trsr` made it.
        OutputError: it cannot be written, or another process keeps it busy.
    """
    with as_one_sentence(path, what):
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        db = sqlite3.connect(path, isolation_level=None, timeout=PATIENCE, check_same_thread=not many_threads)
        try:
            db.execute("PRAGMA secure_delete = ON")  # before migrations, which may delete too
            while not _migrated(db, path, what, application_id, migrations, deadline=started + PATIENCE):
                time.sleep(0.01)
        except BaseException:
            db.close()
            raise
    return db


def _migrated(
    db: sqlite3.Connection,
    path: Path,
    what: str,
    application_id: int,
    migrations: Sequence[str],
    *,
    deadline: float,
) -> bool:
    """Bring a database up to date; False when another process does so and there is time to wait."""
    try:
        _migrate(db, path, what, application_id, migrations)
    except sqlite3.OperationalError as error:
        # SQLite does not wait where two processes switch a new file to WAL at once: it refuses one of them.
        if "locked" not in str(error) or time.monotonic() > deadline:
            raise
        if db.in_transaction:
            db.execute("ROLLBACK")
        return False
    return True


def _migrate(
    db: sqlite3.Connection, path: Path, what: str, application_id: int, migrations: Sequence[str]
) -> None:
    # One transaction: else another process could make the tables between two of the questions.
    db.execute("BEGIN")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (n_tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    db.execute("COMMIT")
    if n_tables and application != application_id:
        raise StoreError(f"{path} is a database of another program; name another file.")
    if version > len(migrations):
        raise StoreError(
            f"{path} is a {what} of version {version}, this trsr knows {len(migrations)}; "
            "update trsr or name another file."
        )
    if version == len(migrations):
        return
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN IMMEDIATE")
    # Another process may have been faster.
    (version,) = db.execute("PRAGMA user_version").fetchone()
    for statement in migrations[version:]:
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {application_id}")
    db.execute(f"PRAGMA user_version = {len(migrations)}")
    db.execute("COMMIT")
