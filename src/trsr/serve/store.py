"""Users, events, notes, profiles, summaries, pending updates and items, in the service's database.

Commits of users' data wait for the disk (`synchronous = FULL`) and survive a power cut; commits of generated
data, such as summaries, do not wait.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from trsr.errors import RunMismatchError
from trsr.serve.database import Database, drop_unowned, find_user
from trsr.serve.schemas import EventIn, HistoryEntry, NotesOut, ProfileOut
from trsr.summarize.store import StoredCall, SummaryTable
from trsr.types import History, Item

MAX_BACK_OFF = 300.0
"""Longest wait in seconds before an update is retried."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UPDATES = "SELECT user_id, n_events, n_attempts, uid FROM pending JOIN users USING (uid)"
_PROFILES = (
    "SELECT version, text, n_items, key, created_at FROM profiles JOIN users USING (uid) "
    "WHERE user_id = ? ORDER BY version"
)

StoredSummaries = Callable[[Sequence[str]], Mapping[str, StoredCall]]
"""Returns calls by key from another store, such as the served run's."""


class StoredProfile(ProfileOut):
    """A version of a profile; `key` is the store's key of its last call, None without calls."""

    key: str | None


class PendingUpdate(NamedTuple):
    """A pending profile update of a user whose history had `n_items` when this was read.

    `user_generation` is unique: a user who is deleted and created again gets another.
    """

    user_id: str
    n_items: int
    n_attempts: int
    user_generation: int


class UserSummary(NamedTuple):
    """The text of one summary call behind a user's profile, and its items."""

    key: str
    text: str
    item_ids: tuple[str, ...]


class ServeStore(Database):
    """The service's data; a write is durable when its method returns. Thread-safe.

    It is also the summarizer's store of texts, with user generations as `StoredCall.user_ids`: a text belongs
    to the users it was generated for and is deleted with the last of them.

    Args:
        path: The file; it and its folder are created if needed.
        written: Finds summaries in another store. A text is copied when a profile uses it; from then on it
            belongs to the user and is deleted with them.
    """

    def __init__(self, path: str | Path, written: StoredSummaries = lambda _: {}) -> None:
        self._written = written
        self._work = threading.Event()
        super().__init__(path)

    # Events and histories

    def add_events(self, user_id: str, events: Sequence[EventIn]) -> list[bool]:
        """Append events in the given order, creating the user if needed; return for each whether it is new.

        An event whose id the user already has is ignored, even if it names another item. Late events are
        appended whatever their timestamps, so summarized blocks do not change. Events and the pending update
        are committed together.
        """
        rows = ((event.event_id, event.item_id, event.timestamp) for event in events)
        with self._writing() as db:
            uid, new = _append(db, user_id, rows)
            if any(new):
                _enqueue(db, uid)
        self._work.set()
        return new

    def import_histories(self, histories: Iterable[History], source: str) -> int:
        """Append the histories of a dataset, all or none; return the number of new events.

        A `source` is imported once: later calls do nothing, so deleted users stay deleted when the service
        restarts. A user's profile is generated after their next event.

        Raises:
            RunMismatchError: another source was imported.
        """
        n_new = 0
        with self._writing() as db:
            if before := db.execute("SELECT source FROM imports").fetchall():
                if (source,) in before:
                    return 0
                raise RunMismatchError(
                    f"{self.path} has the histories of another dataset, or of this one before its events "
                    "changed; give the dataset that it was started with, or a new file with --db."
                )
            db.execute("INSERT INTO imports (source, imported_at) VALUES (?, ?)", (source, time.time()))
            for history in histories:
                times = history.timestamps or (None,) * len(history)
                ids = (f"{source}:{position}" for position in range(len(history)))
                _, new = _append(db, history.user_id, zip(ids, history.item_ids, times, strict=True))
                n_new += sum(new)
        return n_new

    def history(self, user_id: str) -> tuple[str, ...]:
        """Return a user's item ids, oldest first; empty for an unknown user."""
        rows = self._select(
            "SELECT item_id FROM events JOIN users USING (uid) WHERE user_id = ? ORDER BY position",
            (user_id,),
        )
        return tuple(item_id for (item_id,) in rows)

    def events(self, user_id: str) -> list[HistoryEntry]:
        """Return a user's events, oldest first; empty for an unknown user."""
        rows = self._select(
            "SELECT position, event_id, item_id, timestamp FROM events JOIN users USING (uid) "
            "WHERE user_id = ? ORDER BY position",
            (user_id,),
        )
        return [
            HistoryEntry(
                position=position,
                event_id=event_id,
                item_id=item_id,
                timestamp=None if micros is None else _EPOCH + micros * _MICROSECOND,
            )
            for position, event_id, item_id, micros in rows
        ]

    def users(self, query: str = "", limit: int = 50, prefix: str = "", after: str = "") -> list[str]:
        """Return the first `limit` ids after `after` that contain `query` and begin with `prefix`."""
        rows = self._select(
            "SELECT user_id FROM users WHERE instr(user_id, ?) > 0 AND substr(user_id, 1, ?) = ? "
            "AND user_id > ? ORDER BY user_id LIMIT ?",
            (query, len(prefix), prefix, after, limit),
        )
        return [user_id for (user_id,) in rows]

    # Notes and profiles

    def notes(self, user_id: str) -> NotesOut | None:
        """Return a user's notes; None if there are none."""
        rows = self._select(
            "SELECT text, updated_at FROM notes JOIN users USING (uid) WHERE user_id = ?", (user_id,)
        )
        return _notes(*rows[0]) if rows else None

    def put_notes(self, user_id: str, text: str) -> NotesOut | None:
        """Replace a user's notes; an empty text removes them. Return None for an unknown user."""
        now = time.time()
        with self._writing() as db:
            if (user := find_user(db, user_id)) is None:
                return None
            db.execute("DELETE FROM notes WHERE uid = ?", user[:1])
            if text:
                db.execute("INSERT INTO notes (uid, text, updated_at) VALUES (?, ?, ?)", (user[0], text, now))
        return _notes(text, now)

    def profiles(self, user_id: str) -> list[StoredProfile]:
        """Return all versions of a user's profile, oldest first."""
        return [_profile(*row) for row in self._select(_PROFILES, (user_id,))]

    def latest_profile(self, user_id: str) -> StoredProfile | None:
        """Return the newest version of a user's profile; None if there is none."""
        rows = self._select(f"{_PROFILES} DESC LIMIT 1", (user_id,))
        return _profile(*rows[0]) if rows else None

    def add_profile(
        self,
        update: PendingUpdate,
        text: str,
        n_items: int,
        key: str | None,
        calls: Sequence[tuple[str, Sequence[str]]],
        expected_version: int,
    ) -> bool:
        """Add a new version of the profile; end the update unless the history has grown.

        Args:
            update: The update that generated it.
            text: The profile.
            n_items: Number of the oldest items that it covers.
            key: The key of its last call, if any.
            calls: The keys of all its calls in the order of the plan, each with its items. They replace the
                calls of the previous version; texts that no user has any more are deleted.
            expected_version: The newest version in the store must be this; 0 for none.

        Returns:
            False, without a change, if the user was deleted or has another version or fewer items, or if the
            text of one of the calls was deleted with the last user who had it.
        """
        with self._writing(durable=False) as db:
            user = find_user(db, update.user_id)
            if user is None or user[0] != update.user_generation or n_items > user[1]:
                return False
            uid, n_events = user
            (version,) = db.execute(
                "SELECT coalesce(max(version), 0) FROM profiles WHERE uid = ?", (uid,)
            ).fetchone()
            if version != expected_version or not self._has_all(db, {key for key, _ in calls}):
                return False
            db.execute(
                "INSERT INTO profiles (uid, version, text, n_items, key, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (uid, version + 1, text, n_items, key, time.time()),
            )
            _own_plan(db, uid, calls)
            _dequeue(db, uid, n_events > n_items)
        self._work.set()
        return True

    def user_summaries(self, user_id: str) -> list[UserSummary]:
        """Return the summaries behind the newest profile, in the order of its plan."""
        rows = self._select(
            "SELECT plans.key, summaries.text, plans.item_ids FROM users JOIN plans USING (uid) "
            "JOIN summaries USING (key) WHERE user_id = ? AND text IS NOT NULL ORDER BY place",
            (user_id,),
        )
        return [UserSummary(key, text, tuple(json.loads(item_ids))) for key, text, item_ids in rows]

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the summaries among `keys` in this or the other store, without failed calls."""
        with self._reading() as db:
            known = SummaryTable(db).texts(keys)
        return known | {key: str(call.text) for key, call in self._elsewhere(keys, known).items()}

    def _elsewhere(self, keys: Iterable[str], known: Mapping[str, str]) -> dict[str, StoredCall]:
        missing = [key for key in keys if key not in known]
        found = self._written(missing) if missing else {}
        return {key: call for key, call in found.items() if call.text is not None}

    def _has_all(self, db: sqlite3.Connection, keys: set[str]) -> bool:
        """Copy missing summaries from the other store; return whether all are here."""
        table = SummaryTable(db)
        known = table.texts(list(keys))
        copies = self._elsewhere(keys, known)
        if len(known) + len(copies) < len(keys):
            return False
        for call in copies.values():
            table.put(call._replace(item_ids=()))  # see the schema on `plans`
        return True

    def put(self, call: StoredCall) -> None:
        """Commit one result, unless all the users it was generated for have been deleted."""
        with self._writing(durable=False) as db:
            known = "SELECT 1 FROM users WHERE uid = ?"
            uids = [uid for uid in map(int, call.user_ids) if db.execute(known, (uid,)).fetchone()]
            if uids:
                SummaryTable(db).put(call._replace(item_ids=()))  # see the schema on `plans`
                db.executemany(
                    "INSERT INTO drafts (uid, key) VALUES (?, ?) ON CONFLICT DO NOTHING",
                    [(uid, call.key) for uid in uids],
                )

    # The queue of updates

    def request_update(self, user_id: str) -> bool:
        """Queue an update, due now even after failures; return whether the user exists."""
        with self._writing() as db:
            user = find_user(db, user_id)
            if user is not None:
                _enqueue(db, user[0], at_once=True)
        self._work.set()
        return user is not None

    def update_of(self, user_id: str) -> PendingUpdate | None:
        """Return a user's update in the queue, due or not; None if there is none."""
        rows = self._select(f"{_UPDATES} WHERE user_id = ?", (user_id,))
        return PendingUpdate(*rows[0]) if rows else None

    def pending(self, limit: int) -> list[PendingUpdate]:
        """Return up to `limit` updates that are due, longest due first.

        They stay in the queue until `add_profile` or `finish`, so they survive a killed process.
        """
        now = time.time()
        rows = self._select(
            # Due later than the longest back-off: the clock was set back.
            f"{_UPDATES} WHERE due <= ? OR due > ? ORDER BY due, uid LIMIT ?",
            (now, now + MAX_BACK_OFF, limit),
        )
        return [PendingUpdate(*row) for row in rows]

    def finish(self, update: PendingUpdate) -> None:
        """End an update without a new profile, unless newer events came or the user was deleted."""
        with self._writing(durable=False) as db:
            user = find_user(db, update.user_id)
            if user is not None and user[0] == update.user_generation:
                _dequeue(db, user[0], user[1] > update.n_items)

    def fail(self, update: PendingUpdate, error: str) -> None:
        """Record a failed attempt; retries are due after 1 second, then twice as long each, up to 5 minutes.

        `error` is stored until the update succeeds or the user is deleted.
        """
        with self._writing(durable=False) as db:
            uid = update.user_generation
            row = db.execute("SELECT n_attempts FROM pending WHERE uid = ?", (uid,)).fetchone()
            if row is not None:
                due = time.time() + min(2.0 ** min(row[0], 30), MAX_BACK_OFF)
                db.execute(
                    "UPDATE pending SET n_attempts = n_attempts + 1, due = ?, error = ? WHERE uid = ?",
                    (due, error, uid),
                )

    def put_back(self, update: PendingUpdate) -> None:
        """Move an update behind all others that are due."""
        with self._writing(durable=False) as db:
            db.execute("UPDATE pending SET due = ? WHERE uid = ?", (time.time(), update.user_generation))

    def wait(self, seconds: float) -> None:
        """Wait until an update may be pending, at most `seconds`."""
        self._work.wait(seconds)
        self._work.clear()

    def wake(self) -> None:
        """End a `wait` at once."""
        self._work.set()

    # The catalogue

    def changed_items(self) -> tuple[list[Item], list[str]]:
        """Return the added or changed items, and the ids of deleted ones."""
        found = self._select("SELECT item_id, fields FROM items ORDER BY item_id")
        rows = [(name, json.loads(fields)) for name, fields in found]
        put = [Item(name, fields) for name, fields in rows if fields is not None]
        return put, [name for name, fields in rows if fields is None]

    def put_items(self, items: Sequence[Item]) -> None:
        """Add items, or replace the fields of known ones."""
        self._put_items([(item.item_id, json.dumps(dict(item.fields), ensure_ascii=False)) for item in items])

    def delete_item(self, item_id: str) -> None:
        """Delete an item, also one of the dataset; histories keep its id."""
        self._put_items([(item_id, "null")])

    def _put_items(self, rows: Sequence[tuple[str, str]]) -> None:
        with self._writing() as db:
            db.executemany("REPLACE INTO items (item_id, fields) VALUES (?, ?)", rows)

    def facts(self) -> dict[str, float]:
        """Return counts for metrics; `items_behind`: events not yet in the profiles of pending users."""
        with self._reading() as db:
            users, events = db.execute("SELECT count(*), coalesce(sum(n_events), 0) FROM users").fetchone()
            pending, failing, since = db.execute(
                "SELECT count(*), coalesce(sum(n_attempts > 0), 0), min(since) FROM pending"
            ).fetchone()
            (behind,) = db.execute(
                "SELECT coalesce(sum(n_events - coalesce((SELECT n_items FROM profiles "
                "WHERE profiles.uid = users.uid ORDER BY version DESC LIMIT 1), 0)), 0) "
                "FROM pending JOIN users USING (uid)"
            ).fetchone()
            (items,) = db.execute("SELECT count(*) FROM items WHERE fields <> 'null'").fetchone()
            (profiles,) = db.execute("SELECT count(*) FROM profiles").fetchone()
            (notes,) = db.execute("SELECT count(*) FROM notes").fetchone()
        return {
            "users": users,
            "events": events,
            "items": items,
            "profiles": profiles,
            "notes": notes,
            "pending": pending,
            "failing": failing,
            "oldest_pending_seconds": 0.0 if since is None else max(0.0, time.time() - since),
            "items_behind": behind,
        }


def _notes(text: str, updated_at: float) -> NotesOut:
    return NotesOut(text=text, updated_at=datetime.fromtimestamp(updated_at, UTC))


def _profile(version: int, text: str, n_items: int, key: str | None, created_at: float) -> StoredProfile:
    moment = datetime.fromtimestamp(created_at, UTC)
    return StoredProfile(version=version, text=text, n_items=n_items, key=key, created_at=moment)


def _append(
    db: sqlite3.Connection, user_id: str, events: Iterable[tuple[str, str, datetime | None]]
) -> tuple[int, list[bool]]:
    """Append new events (event id, item id, time); return the user's number and which were new."""
    db.execute("INSERT INTO users (user_id) VALUES (?) ON CONFLICT (user_id) DO NOTHING", (user_id,))
    (uid, n_events) = db.execute("SELECT uid, n_events FROM users WHERE user_id = ?", (user_id,)).fetchone()
    new = []
    for event_id, item_id, moment in events:
        micros = None if moment is None else (moment - _EPOCH) // _MICROSECOND
        added = db.execute(
            "INSERT INTO events (uid, position, event_id, item_id, timestamp) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (uid, event_id) DO NOTHING",
            (uid, n_events, event_id, item_id, micros),
        )
        new.append(added.rowcount == 1)
        n_events += new[-1]
    db.execute("UPDATE users SET n_events = ? WHERE uid = ?", (n_events, uid))
    return uid, new


def _enqueue(db: sqlite3.Connection, uid: int, *, at_once: bool = False) -> None:
    """Queue an update; `at_once` makes one that waits after a failure due now."""
    now = time.time()
    db.execute(
        "INSERT INTO pending (uid, since, due) VALUES (?, ?, ?) "
        "ON CONFLICT (uid) DO UPDATE SET due = min(due, ?)",
        (uid, now, now, now if at_once else 1e18),
    )


def _dequeue(db: sqlite3.Connection, uid: int, has_newer_events: bool) -> None:
    """Remove an update from the queue, or queue it again if there are newer events."""
    db.execute("DELETE FROM pending WHERE uid = ?", (uid,))
    if has_newer_events:
        _enqueue(db, uid)


def _own_plan(db: sqlite3.Connection, uid: int, calls: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Set a user's calls to those of a plan; write changed rows only."""
    rows = db.execute("SELECT place, key, item_ids FROM plans WHERE uid = ?", (uid,))
    before = {place: (key, item_ids) for place, key, item_ids in rows}
    now = {place: (key, json.dumps(list(item_ids))) for place, (key, item_ids) in enumerate(calls)}
    gone = [(uid, place) for place, call in before.items() if now.get(place) != call]
    db.executemany("DELETE FROM plans WHERE uid = ? AND place = ?", gone)
    added = [(uid, place, *call) for place, call in now.items() if before.get(place) != call]
    db.executemany("INSERT INTO plans (uid, place, key, item_ids) VALUES (?, ?, ?, ?)", added)
    drafts = db.execute("SELECT key FROM drafts WHERE uid = ?", (uid,)).fetchall()
    db.execute("DELETE FROM drafts WHERE uid = ?", (uid,))
    drop_unowned(db, {key for key, _ in before.values()} | {key for (key,) in drafts})
