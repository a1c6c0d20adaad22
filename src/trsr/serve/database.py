"""The service's store in one SQLite file: users, events, profiles, summaries, the queue and the catalogue.

Two connections, one that writes and one that reads, each with a lock. SQLite writes one transaction at a time
anyway, and its transactions belong to the connection, not to the thread: without the lock two threads would
write into one another's. A commit that was acknowledged to somebody waits for the disk (`synchronous = FULL`:
it survives a power cut too); what can be made again, such as summaries, does not. Readers wait for neither.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from trsr.errors import NotErasedError, OutputError, StoreError
from trsr.serve import database_steps as steps
from trsr.serve.database_file import WHAT, DatabaseFile, make_private, read_keys
from trsr.serve.database_steps import APPLICATION_ID, MIGRATIONS
from trsr.serve.settings import Key
from trsr.serve.store import Event, Notes, PendingUpdate, Profile, StoredEvent, UserSummary
from trsr.storage import PATIENCE, as_one_sentence, open_sqlite
from trsr.summarize.store import StoredCall, SummaryTable
from trsr.types import History, Item

LEAST_ROOM = 256 * 1024
"""Bytes on the disk below which the database counts as full: a small write may still work then."""
ERASE_SECONDS = 5.0
"""A deletion waits so long for other processes."""
CHECK_SECONDS = 2.0
"""A write that waits longer means that the database does not work."""
_UPDATES = "SELECT user_id, n_events, since, n_attempts, uid FROM pending JOIN users USING (uid)"

Written = Callable[[Sequence[str]], Mapping[str, StoredCall]]


def _nothing(_: Sequence[str]) -> Mapping[str, StoredCall]:
    return {}


class SqliteServeStore:
    """A `ServeStore` in one SQLite file; see there what the methods promise.

    Args:
        path: The file; it and its folder are made as needed.
        written: Gives, of the calls of these keys, those that were written elsewhere, as by the run that is
            served. A text is copied when a profile is made of it; then it is the user's and goes with them.

    Raises:
        StoreError: the file is damaged or something else, or a newer version of `trsr` made it.
        OutputError: the file cannot be written, or another process keeps it busy.
    """

    def __init__(self, path: str | Path, written: Written = _nothing) -> None:
        self.path = Path(path).resolve()  # by a link, too, it is one file with one lock
        self._written = written
        self._damage: StoreError | None = None
        self._write_lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._clean_lock = threading.Lock()
        self._work = threading.Event()
        with ExitStack() as opened:
            self._file = opened.enter_context(closing(DatabaseFile(self.path)))
            self._db = opened.enter_context(
                closing(open_sqlite(self.path, WHAT, APPLICATION_ID, MIGRATIONS, many_threads=True))
            )
            self._reader = opened.enter_context(
                closing(
                    sqlite3.connect(
                        self.path, isolation_level=None, timeout=PATIENCE, check_same_thread=False
                    )
                )
            )
            self._reader.execute("PRAGMA query_only = ON")
            make_private(self.path)
            with self._sentences():
                (said,) = self._reader.execute("PRAGMA quick_check(1)").fetchone()
                if said != "ok":
                    raise sqlite3.DatabaseError(f"malformed: {' '.join(said.split())}")
            self._erase()
            self._opened = opened.pop_all()

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            with as_one_sentence(self.path, WHAT):
                yield
        except StoreError as error:
            self._damage = error
            raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for one SELECT after another; all see what was committed before."""
        with self._read_lock, self._sentences():
            yield self._reader

    @contextmanager
    def _writing(self, *, durable: bool = True, seconds: float = PATIENCE) -> Iterator[sqlite3.Connection]:
        """Commit at the end, on disk if it is to be durable, or leave everything as it was.

        Waits up to `seconds` for other threads, then as long for other processes.
        """
        if not self._write_lock.acquire(timeout=seconds):
            raise OutputError(f"Others have been writing the {WHAT} for {seconds:g} seconds; try again.")
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
                if db.in_transaction:  # SQLite may have given it up by itself, as on a full disk
                    db.execute("ROLLBACK")
                raise

    # Events and histories

    def add_events(self, user_id: str, events: Sequence[Event]) -> list[bool]:
        """Append events; return for each whether it was new."""
        if not events:
            return []
        with self._writing() as db:
            uid, new = steps.append_events(db, user_id, events)
            if any(new):
                steps.enqueue(db, uid)
        self._work.set()
        return new

    def import_histories(
        self, histories: Iterable[History], source: str = "data", follow: bool = False
    ) -> int:
        """Append whole histories unless their source was imported before; return how many events were new."""
        n_new = 0
        with self._writing() as db:
            first = db.execute(
                "INSERT INTO imports (source, imported_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (source, time.time()),
            )
            if first.rowcount == 0:
                return 0
            for history in histories:
                times = history.timestamps or (None,) * len(history)
                events = [
                    Event(f"{source}:{position}", item_id, moment)
                    for position, (item_id, moment) in enumerate(zip(history.item_ids, times, strict=True))
                ]
                uid, new = steps.append_events(db, history.user_id, events)
                n_new += sum(new)
                if follow and any(new):
                    steps.enqueue(db, uid)
        self._work.set()
        return n_new

    def sources(self) -> list[str]:
        """Return the names of what `import_histories` has taken, the first one first."""
        with self._reading() as db:
            return [name for (name,) in db.execute("SELECT source FROM imports ORDER BY imported_at")]

    def history(self, user_id: str) -> History | None:
        """Return a user's items, oldest first; None for nobody of that id."""
        with self._reading() as db:
            if steps.find_user(db, user_id) is None:
                return None
            events = steps.read_events(db, user_id)
        times = tuple(event.timestamp for event in events if event.timestamp is not None)
        known = times if events and len(times) == len(events) else None
        return History(user_id, tuple(event.item_id for event in events), known)

    def events(self, user_id: str) -> list[StoredEvent]:
        """Return a user's events, oldest first."""
        with self._reading() as db:
            return steps.read_events(db, user_id)

    def users(self, query: str = "", limit: int = 50, prefix: str = "", after: str = "") -> list[str]:
        """Return the first user ids behind `after` that contain `query` and begin with `prefix`, sorted."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT user_id FROM users WHERE instr(user_id, ?) > 0 AND substr(user_id, 1, ?) = ? "
                "AND user_id > ? ORDER BY user_id LIMIT ?",
                (query, len(prefix), prefix, after, limit),
            ).fetchall()
        return [user_id for (user_id,) in rows]

    # Notes and profiles

    def notes(self, user_id: str) -> Notes | None:
        """Return what a user wrote about themselves."""
        with self._reading() as db:
            row = db.execute(
                "SELECT text, updated_at FROM notes JOIN users USING (uid) WHERE user_id = ?", (user_id,)
            ).fetchone()
        return None if row is None else Notes(row[0], datetime.fromtimestamp(row[1], UTC))

    def put_notes(self, user_id: str, text: str) -> Notes | None:
        """Replace a user's notes, or remove them by an empty text; return None for nobody of that id."""
        now = time.time()
        with self._writing() as db:
            user = steps.find_user(db, user_id)
            if user is None:
                return None
            if text:
                db.execute(
                    "REPLACE INTO notes (uid, text, updated_at) VALUES (?, ?, ?)", (user.uid, text, now)
                )
            else:
                db.execute("DELETE FROM notes WHERE uid = ?", (user.uid,))
        return Notes(text, datetime.fromtimestamp(now, UTC))

    def profiles(self, user_id: str) -> list[Profile]:
        """Return all versions of a user's profile, oldest first."""
        with self._reading() as db:
            return steps.read_profiles(db, user_id)

    def latest_profile(self, user_id: str) -> Profile | None:
        """Return the newest version."""
        with self._reading() as db:
            return steps.newest_profile(db, user_id)

    def add_profile(
        self,
        user_id: str,
        text: str,
        n_items: int,
        key: str | None = None,
        calls: Sequence[tuple[str, Sequence[str]]] = (),
        expected_version: int | None = None,
        ticket: int | None = None,
    ) -> Profile | None:
        """Add a version of a user's profile, or return None where it no longer fits."""
        with self._writing(durable=False) as db:
            user = steps.find_user(db, user_id)
            if user is None or ticket not in (None, user.uid) or n_items > user.n_events:
                return None
            version = steps.newest_version(db, user.uid)
            if expected_version not in (None, version):
                return None
            # A text that only others had may have gone with them since it was read.
            if not self._has_all(db, {key for key, _ in calls}):
                return None
            db.execute(
                "INSERT INTO profiles (uid, version, text, n_items, key, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (user.uid, version + 1, text, n_items, key, time.time()),
            )
            steps.own_plan(db, user.uid, calls)
            steps.dequeue(db, user, n_items)
            added = steps.newest_profile(db, user_id)
        self._work.set()
        return added

    def user_summaries(self, user_id: str) -> list[UserSummary]:
        """Return the summaries behind the newest profile, in the order of its plan."""
        with self._reading() as db:
            return steps.read_summaries(db, user_id)

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the known summaries among `keys`, here or written elsewhere; failed calls are not known."""
        with self._reading() as db:
            known = SummaryTable(db).texts(keys)
        return known | {key: str(call.text) for key, call in self._elsewhere(keys, known).items()}

    def _elsewhere(self, keys: Iterable[str], known: Mapping[str, str]) -> dict[str, StoredCall]:
        """Return the calls that were written elsewhere among those that are not known."""
        missing = [key for key in keys if key not in known]
        found = self._written(missing) if missing else {}
        return {key: call for key, call in found.items() if call.text is not None}

    def _has_all(self, db: sqlite3.Connection, keys: set[str]) -> bool:
        """Return whether these summaries are all here, those copied that were written elsewhere."""
        table = SummaryTable(db)
        known = table.texts(list(keys))
        copies = self._elsewhere(keys, known)
        if len(known) + len(copies) < len(keys):
            return False
        for call in copies.values():
            table.put(replace(call, item_ids=()))  # see the schema on `plans`
        return True

    def put(self, call: StoredCall) -> None:
        """Commit one result, unless none of the users it was written for is still there."""
        with self._writing(durable=False) as db:
            tickets = [int(ticket) for ticket in call.user_ids]
            uids = [
                uid for uid in tickets if db.execute("SELECT 1 FROM users WHERE uid = ?", (uid,)).fetchone()
            ]
            if uids:
                SummaryTable(db).put(replace(call, item_ids=()))  # see the schema on `plans`
                steps.own_drafts(db, uids, call.key)

    # The queue of updates

    def request_update(self, user_id: str) -> bool:
        """Mark an update pending; return whether there is such a user."""
        with self._writing() as db:
            user = steps.find_user(db, user_id)
            if user is not None:
                steps.enqueue(db, user.uid, at_once=True)
        self._work.set()
        return user is not None

    def update_of(self, user_id: str) -> PendingUpdate | None:
        """Return a user's update in the queue, due or put off; None if there is none."""
        with self._reading() as db:
            row = db.execute(f"{_UPDATES} WHERE user_id = ?", (user_id,)).fetchone()
        return _update(row) if row else None

    def pending(self, limit: int) -> list[PendingUpdate]:
        """Return up to `limit` updates whose time has come, those that are due longest first."""
        now = time.time()
        with self._reading() as db:
            rows = db.execute(
                # No update is put off for so long that the clock did not step back meanwhile.
                f"{_UPDATES} WHERE due <= ? OR due > ? ORDER BY due, uid LIMIT ?",
                (now, now + steps.MAX_BACK_OFF, limit),
            ).fetchall()
        return [_update(row) for row in rows]

    def finish(self, update: PendingUpdate) -> None:
        """Take an update that has nothing to add out of the queue, unless there are newer events."""
        with self._writing(durable=False) as db:
            user = steps.find_user(db, update.user_id)
            if user is not None and user.uid == update.ticket:
                steps.dequeue(db, user, update.n_items)

    def fail(self, update: PendingUpdate, error: str) -> None:
        """Count a failed attempt and put the next one off."""
        with self._writing(durable=False) as db:
            steps.put_off(db, update.ticket, error)

    def put_back(self, update: PendingUpdate) -> None:
        """Let all updates that are due now go before this one."""
        with self._writing(durable=False) as db:
            db.execute("UPDATE pending SET due = ? WHERE uid = ?", (time.time(), update.ticket))

    def wait(self, seconds: float) -> None:
        """Return when an update may have become pending, or after some seconds."""
        self._work.wait(seconds)
        self._work.clear()

    def wake(self) -> None:
        """Let a thread in `wait` return now."""
        self._work.set()

    # The catalogue

    def items(self) -> Iterator[Item]:
        """Yield all items, sorted by id."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT item_id, fields FROM items WHERE fields <> 'null' ORDER BY item_id"
            ).fetchall()
        for item_id, fields in rows:
            yield Item(item_id, json.loads(fields))

    def item(self, item_id: str) -> Item | None:
        """Return an item, or None if it is unknown."""
        with self._reading() as db:
            row = db.execute(
                "SELECT fields FROM items WHERE item_id = ? AND fields <> 'null'", (item_id,)
            ).fetchone()
        return None if row is None else Item(item_id, json.loads(row[0]))

    def deleted_items(self) -> list[str]:
        """Return the ids of the items that were deleted and not put again."""
        with self._reading() as db:
            return [name for (name,) in db.execute("SELECT item_id FROM items WHERE fields = 'null'")]

    def put_items(self, items: Sequence[Item]) -> None:
        """Add items; those whose ids are known take the new fields."""
        self._put_items([(item.item_id, json.dumps(dict(item.fields), ensure_ascii=False)) for item in items])

    def delete_item(self, item_id: str) -> None:
        """Delete an item, also one of the data set; histories keep its id."""
        self._put_items([(item_id, "null")])

    def _put_items(self, rows: Sequence[tuple[str, str]]) -> None:
        with self._writing() as db:
            db.executemany(
                "INSERT INTO items (item_id, fields) VALUES (?, ?) "
                "ON CONFLICT (item_id) DO UPDATE SET fields = excluded.fields",
                rows,
            )

    # All of it

    def keys(self) -> list[Key]:
        """Return the API keys, sorted by name."""
        return read_keys(self.path)

    def delete_user(self, user_id: str) -> bool:
        """Forget a user; return whether there was one."""

        def forget() -> bool:
            with self._writing() as db:
                user = steps.find_user(db, user_id)
                if user is not None:
                    steps.mark_deleted(db, user.uid)
                return user is not None

        found = self._with_room(forget)
        self._erase()
        return found

    def _with_room(self, do: Callable[[], bool]) -> bool:
        """Do something that must also work on a full disk: there, again with the room that is reserved."""
        try:
            done = do()
        except OutputError as error:
            if "locked" in str(error.__cause__) or not self._file.give_room():
                raise
            self._checkpoint()
            done = do()
        self._file.keep_room()
        return done

    def _erase(self) -> None:
        """Take the deleted users' bytes from the disk, and wait a little for those who hold them there."""
        ends = time.monotonic() + ERASE_SECONDS
        while not self.clean():
            if time.monotonic() > ends:
                raise NotErasedError(
                    f"Texts of deleted users are still in {self.path.name}, which another process reads; end "
                    "that process, and the server takes them away."
                )
            time.sleep(0.05)

    def clean(self) -> bool:
        """Take deleted users' bytes from the disk, or return False where another process holds them there."""
        return self._with_room(self._clean)

    def _clean(self) -> bool:
        with self._clean_lock:  # of several calls at once, one works for all
            with self._reading() as db:
                uids = [uid for (uid,) in db.execute("SELECT uid FROM deleted")]
            for uid in uids:
                n_left = 1
                while n_left:  # in parts, so that others write in between and the `-wal` stays small
                    with self._writing(durable=False) as db:
                        n_left = steps.delete_rows_of(db, uid)
            return not uids or self._zeroed(uids)

    def _zeroed(self, uids: Sequence[int]) -> bool:
        """Leave no byte of these users' deleted rows; False where another process reads or writes."""
        with self._write_lock:
            if not self._checkpoint():
                return False
            with self._writing() as db:
                wal = Path(f"{self.path}-wal")
                if wal.exists() and wal.stat().st_size:
                    return False
                db.execute("PRAGMA shrink_memory")  # pages in its cache have the copies too
                self._file.zero_unused()
                db.executemany("DELETE FROM deleted WHERE uid = ?", [(uid,) for uid in uids])
        return True

    def _checkpoint(self) -> bool:
        """Put what is in the `-wal` into the file, and leave nothing in it, unless others use it just now."""
        with self._write_lock, self._read_lock, self._sentences():
            self._db.execute("PRAGMA busy_timeout = 0")  # rankings wait meanwhile
            (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def check(self) -> None:
        """Write and read something, and look whether there is room for more."""
        if self._damage is not None:
            raise self._damage
        free = shutil.disk_usage(self.path.parent).free
        if free < LEAST_ROOM:
            raise OutputError(f"The disk of the {WHAT} has {free // 1024} KiB free; free space.")
        with self._writing(durable=False, seconds=CHECK_SECONDS) as db:
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")  # its value, written once more
        with self._reading() as db:
            db.execute("PRAGMA user_version").fetchone()

    def facts(self) -> dict[str, float]:
        """Return counts for metrics."""
        with self._reading() as db:
            return steps.count_all(db)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with self._write_lock, self._read_lock:
            self._opened.close()


def _update(row: tuple[str, int, float, int, int]) -> PendingUpdate:
    """Read a row of `_UPDATES`."""
    user_id, n_events, since, n_attempts, uid = row
    return PendingUpdate(user_id, n_events, datetime.fromtimestamp(since, UTC), n_attempts, uid)
