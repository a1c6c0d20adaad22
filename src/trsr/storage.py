"""Atomic writes of files and folders, and SQLite databases with numbered migrations."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from trsr.errors import DataError, OutputError, StoreError, first_line


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file next to `path`, then move it there; folders are made as needed.

    Raises:
        OutputError: the folder is read-only, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except (OSError, pl.exceptions.PolarsError) as error:  # polars wraps a full disk in an error of its own
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{path} cannot be written ({reason}); free space or choose another folder, "
            "then run the same command again."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def read_json(file: Path) -> Any:
    """Return the content of a JSON file made by `trsr`.

    Raises:
        DataError: it is damaged.
    """
    with _damage(file):
        return json.loads(file.read_text(encoding="utf-8"))


def read_table(file: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Return a Parquet file made by `trsr`, or some of its columns.

    Raises:
        DataError: it is damaged.
    """
    with _damage(file):
        return pl.read_parquet(file, columns=columns, glob=False)


@contextlib.contextmanager
def _damage(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{file} is damaged ({first_line(error)}); remove it, then run the same command again to make it."
        ) from error


def replace_folder(path: Path, new: Path, old: Path, *, made: Collection[str]) -> None:
    """Replace `path` by the folder `new`, which gets every entry of `path` that is not in `made`.

    If the system can exchange two names, `path` always exists. Otherwise it is missing for a moment, and a
    process killed then leaves the old folder at `old`.

    Raises:
        OSError: something could not be linked, copied or moved.
    """
    _carry_over(path, new, made)
    if _exchange(new, path):
        new.rename(old)
    else:
        path.rename(old)
        new.rename(path)
    _carry_over(old, path, made)  # files that other processes have written there
    remove_folder(old)


def left_by_the_dead(path: Path, what: str) -> list[Path]:
    """Return the folders `.NAME.WHAT-PID-...` next to `path` whose process has ended."""
    found = []
    for folder in path.parent.glob(f".{glob.escape(path.name)}.{what}-*-*"):
        try:
            os.kill(int(folder.name.rsplit("-", 2)[1]), 0)
        except ProcessLookupError:
            found.append(folder)
        except (ValueError, OSError):
            continue  # another user's process, or an unrelated folder
    return found


def remove_folder(path: Path) -> None:
    """Remove a folder or a link to one; ignore errors."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _carry_over(source: Path, target: Path, made: Collection[str]) -> None:
    """Link or copy entries that are not in `made` and missing in `target`."""
    for entry in source.iterdir():
        to = target / entry.name
        if entry.name in made or os.path.lexists(to):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, to, symlinks=True, copy_function=_link)
        else:
            _link(str(entry), str(to))


def _link(source: str, target: str) -> None:
    """Hard-link a file, which keeps an open database intact; copy it if that is impossible."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically (renameat2 of Linux); return whether that was possible."""
    at_cwd, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0)


def file_sha256(file: Path) -> str:
    """Return the sha256 of a file in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


PATIENCE = 30.0
"""Seconds to wait for a database locked by another process."""


@contextlib.contextmanager
def translate_errors(path: Path, what: str) -> Iterator[None]:
    """Translate errors of SQLite and the file system into one sentence with advice.

    Args:
        path: The database.
        what: Its kind, such as `summary store`.

    Raises:
        StoreError: it is damaged, or another kind of file.
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
    """Open a database in WAL mode and apply missing migrations; folders are made as needed.

    Args:
        path: The file, or `:memory:`.
        what: Its kind, for errors.
        application_id: Marks files of this kind (`PRAGMA application_id`).
        migrations: One statement each, numbered from 1; `PRAGMA user_version` is the last one applied.
        many_threads: Whether other threads may use the connection; the caller serializes them.

    Raises:
        StoreError: the file is another kind, or made by a newer version of `trsr`.
        OutputError: it cannot be written, or another process keeps it busy.
    """
    with translate_errors(path, what):
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + PATIENCE
        db = sqlite3.connect(path, isolation_level=None, timeout=PATIENCE, check_same_thread=not many_threads)
        try:
            db.execute("PRAGMA secure_delete = ON")  # before migrations, which may delete too
            while True:
                try:
                    _migrate(db, path, what, application_id, migrations)
                    return db
                except sqlite3.OperationalError as error:
                    # SQLite does not wait when two processes switch a new file to WAL at once.
                    if "locked" not in str(error) or time.monotonic() > deadline:
                        raise
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    time.sleep(0.01)
        except BaseException:
            db.close()
            raise


def _migrate(
    db: sqlite3.Connection, path: Path, what: str, application_id: int, migrations: Sequence[str]
) -> None:
    # In one transaction: another process could create the tables between two queries.
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
