"""The file of the service's database: private, of one server at a time, without traces of deleted rows."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from trsr.errors import ConfigError, OutputError
from trsr.serve.database_steps import APPLICATION_ID, MIGRATIONS
from trsr.serve.settings import Key
from trsr.storage import as_one_sentence, open_sqlite

RESERVE_BYTES = 8 * 2**20
"""Kept so that users can be deleted on a full disk: for a checkpoint of the `-wal`, and for the deletion."""
_HEADERS = {2: 12, 5: 12, 10: 8, 13: 8}
"""Bytes of the header of a b-tree page, by its kind (https://sqlite.org/fileformat2.html#b_tree_pages)."""
_AUTO_VACUUM = 52
"""Where four bytes of the file's header say whether it has pointer-map pages, which look like others."""
_MOST_PAGES = 0x2000000
"""Of more pages, the pointer at the start of an overflow page could look like the kind of a b-tree page."""


def make_private(path: Path) -> None:
    """Let only the owner read a database and what SQLite keeps with it."""
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").chmod(0o600)


class DatabaseFile:
    """The file of a database that this process alone serves; others may still open and write it.

    Open it before the first connection and close it after the last one: POSIX locks, SQLite's too, belong to
    the process, and closing any handle of the file gives all of them up.

    Raises:
        OutputError: another server has the database, or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reserve = path.with_name(f"{path.name}-reserve")
        self._lock = FileLock(f"{path}-lock", mode=0o600, thread_local=False)  # closed by any thread
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
            path.touch(mode=0o600)
            self._file = os.open(path, os.O_RDWR)
            if any(os.pread(self._file, 4, _AUTO_VACUUM)):
                raise OutputError(
                    f"The database {path} was made with auto_vacuum, which deletions do not know; name "
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

    def keep_room(self) -> None:
        """Reserve `RESERVE_BYTES`, or on a small disk a quarter of what is free."""
        here = self._reserve.stat().st_size if self._reserve.exists() else 0
        wanted = min(RESERVE_BYTES, (shutil.disk_usage(self.path.parent).free + here) // 4)
        if here < wanted:
            try:
                self._reserve.write_bytes(bytes(wanted))
            except OSError:  # full again; the next deletion tries to keep room too
                self._reserve.unlink(missing_ok=True)

    def give_room(self) -> bool:
        """Free what is reserved; return whether there was something."""
        found = self._reserve.exists()
        self._reserve.unlink(missing_ok=True)
        return found

    def zero_unused(self) -> None:
        """Overwrite the unused middle of every b-tree page, where SQLite leaves copies of rows that it moved.

        `secure_delete` does not reach these. The `-wal` must be empty and the write lock held; caches of
        writing connections must be dropped, else they write the copies back.
        """
        (page_bytes,) = struct.unpack(">H", os.pread(self._file, 2, 16))
        page_bytes = 65536 if page_bytes == 1 else page_bytes
        n_pages = os.fstat(self._file).st_size // page_bytes
        if n_pages > _MOST_PAGES:
            raise OutputError(f"The database {self.path} is too large to delete from; split its users.")
        for number in range(n_pages):
            page = os.pread(self._file, page_bytes, number * page_bytes)
            header = 0 if number else 100  # the first page begins with the header of the file
            if page[header] not in _HEADERS:
                continue
            n_cells, end = struct.unpack_from(">HH", page, header + 3)
            start = header + _HEADERS[page[header]] + 2 * n_cells
            if page.count(0, start, end) < end - start:
                os.pwrite(self._file, bytes(end - start), number * page_bytes + start)
        os.fsync(self._file)

    def close(self) -> None:
        """Give up the lock and the room; safe to call twice."""
        if self._lock.is_locked:
            os.close(self._file)
            self._reserve.unlink(missing_ok=True)
            self._lock.release()


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
