"""Steps of the SQLite store's transactions: who is who, what is pending, and whom a summary belongs to."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from trsr.serve.store import Event, Profile, StoredEvent, UserSummary
from trsr.summarize.store import SUMMARIES

APPLICATION_ID = 0x74727376  # "trsv"

# See `trsr.storage.open_sqlite`. Only ever append. Times are seconds since 1970, UTC; those of
# events are whole microseconds.
MIGRATIONS = (
    # AUTOINCREMENT: the number of a deleted user is never given again, so it is the user's ticket.
    """
    CREATE TABLE users (
        uid INTEGER PRIMARY KEY AUTOINCREMENT,
        user_id TEXT NOT NULL UNIQUE,
        n_events INTEGER NOT NULL DEFAULT 0
    )
    """,
    """
    CREATE TABLE events (
        uid INTEGER NOT NULL,
        position INTEGER NOT NULL,
        event_id TEXT NOT NULL,
        item_id TEXT NOT NULL,
        timestamp INTEGER,
        PRIMARY KEY (uid, position),
        UNIQUE (uid, event_id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE profiles (
        uid INTEGER NOT NULL,
        version INTEGER NOT NULL,
        text TEXT NOT NULL,
        author TEXT NOT NULL CHECK (author IN ('model', 'person')),
        n_items INTEGER NOT NULL,
        key TEXT,
        created_at REAL NOT NULL,
        PRIMARY KEY (uid, version)
    )
    """,
    "CREATE INDEX edits ON profiles (uid, version) WHERE author = 'person'",
    """
    CREATE TABLE pending (
        uid INTEGER PRIMARY KEY,
        since REAL NOT NULL,
        due REAL NOT NULL,
        n_attempts INTEGER NOT NULL DEFAULT 0,
        error TEXT
    )
    """,
    "CREATE INDEX pending_by_age ON pending (since)",
    SUMMARIES,
    # Who has a text: `plans` holds the calls behind profiles (`start`: the items before the plan's first
    # block), `drafts` those of profiles that are not finished. Two users may share a text that they came to
    # by different items, so the items stand here, and not with the text.
    """
    CREATE TABLE plans (
        uid INTEGER NOT NULL,
        start INTEGER NOT NULL,
        place INTEGER NOT NULL,
        key TEXT NOT NULL,
        item_ids TEXT NOT NULL,
        PRIMARY KEY (uid, start, place)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX plans_by_key ON plans (key)",
    "CREATE TABLE drafts (uid INTEGER NOT NULL, key TEXT NOT NULL, PRIMARY KEY (uid, key)) WITHOUT ROWID",
    "CREATE INDEX drafts_by_key ON drafts (key)",
    "CREATE TABLE items (item_id TEXT PRIMARY KEY, fields TEXT NOT NULL)",
    "CREATE TABLE imports (source TEXT PRIMARY KEY, imported_at REAL NOT NULL)",
    """
    CREATE TABLE keys (
        name TEXT PRIMARY KEY,
        hash TEXT NOT NULL UNIQUE,
        scopes TEXT NOT NULL,
        user_prefix TEXT NOT NULL,
        expires REAL
    )
    """,
    # Users who are gone for everybody, some of whose bytes may still be on disk.
    "CREATE TABLE deleted (uid INTEGER PRIMARY KEY)",
    "CREATE INDEX pending_by_due ON pending (due)",
    # A person's words were a version of the profile before, which later plans began with (at `start`). The
    # newest become the notes, and the profile is written anew from the whole history.
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
        uid INTEGER NOT NULL,
        place INTEGER NOT NULL,
        key TEXT NOT NULL,
        item_ids TEXT NOT NULL,
        PRIMARY KEY (uid, place)
    ) WITHOUT ROWID
    """,
    "INSERT INTO plans SELECT uid, place, key, item_ids FROM plans_after_edits WHERE start = 0",
    "DROP TABLE plans_after_edits",
    "CREATE INDEX plans_by_key ON plans (key)",
)


MAX_BACK_OFF = 300.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class UserRow(NamedTuple):
    """A user's number and the length of their history."""

    uid: int
    n_events: int


def to_micros(moment: datetime | None) -> int | None:
    """Return whole microseconds since 1970.

    Raises:
        ValueError: the moment has no time zone.
    """
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise ValueError(f"The time {moment} of an event has no time zone; give it one.")
    return (moment - _EPOCH) // _MICROSECOND


def find_user(db: sqlite3.Connection, user_id: str) -> UserRow | None:
    """Return the user of this id, or None."""
    row = db.execute("SELECT uid, n_events FROM users WHERE user_id = ?", (user_id,)).fetchone()
    return None if row is None else UserRow(*row)


def append_events(db: sqlite3.Connection, user_id: str, events: Sequence[Event]) -> tuple[int, list[bool]]:
    """Append the new ones among these events; return the user's number and which were new."""
    rows = [(event.event_id, event.item_id, to_micros(event.timestamp)) for event in events]
    db.execute("INSERT INTO users (user_id) VALUES (?) ON CONFLICT (user_id) DO NOTHING", (user_id,))
    (uid, n_events) = db.execute("SELECT uid, n_events FROM users WHERE user_id = ?", (user_id,)).fetchone()
    new = []
    for row in rows:
        added = db.execute(
            "INSERT INTO events (uid, position, event_id, item_id, timestamp) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (uid, event_id) DO NOTHING",
            (uid, n_events, *row),
        )
        new.append(added.rowcount == 1)
        n_events += new[-1]
    db.execute("UPDATE users SET n_events = ? WHERE uid = ?", (n_events, uid))
    return uid, new


def read_events(db: sqlite3.Connection, user_id: str) -> list[StoredEvent]:
    """Return a user's events, oldest first."""
    rows = db.execute(
        "SELECT event_id, item_id, position, timestamp FROM events JOIN users USING (uid) "
        "WHERE user_id = ? ORDER BY position",
        (user_id,),
    )
    return [
        StoredEvent(event_id, item_id, position, None if micros is None else _EPOCH + micros * _MICROSECOND)
        for event_id, item_id, position, micros in rows
    ]


def enqueue(db: sqlite3.Connection, uid: int, *, at_once: bool = False) -> None:
    """Mark an update pending; with `at_once` one that was put off after a failure is tried now."""
    now = time.time()
    db.execute(
        "INSERT INTO pending (uid, since, due) VALUES (?, ?, ?) "
        "ON CONFLICT (uid) DO UPDATE SET due = min(due, ?)",
        (uid, now, now, now if at_once else 1e18),
    )


def dequeue(db: sqlite3.Connection, user: UserRow, n_items: int) -> None:
    """Take an update out of the queue, or begin it anew where the history is longer than `n_items`."""
    db.execute("DELETE FROM pending WHERE uid = ?", (user.uid,))
    if user.n_events > n_items:
        enqueue(db, user.uid)


def put_off(db: sqlite3.Connection, uid: int, error: str) -> None:
    """Count a failed attempt; the next one waits 1 second, then twice as long each, up to `MAX_BACK_OFF`."""
    row = db.execute("SELECT n_attempts FROM pending WHERE uid = ?", (uid,)).fetchone()
    if row is not None:
        due = time.time() + min(2.0 ** min(row[0], 30), MAX_BACK_OFF)
        db.execute(
            "UPDATE pending SET n_attempts = n_attempts + 1, due = ?, error = ? WHERE uid = ?",
            (due, error, uid),
        )


_PROFILE = "SELECT user_id, version, text, n_items, key, created_at FROM profiles JOIN users USING (uid)"


def read_profiles(db: sqlite3.Connection, user_id: str) -> list[Profile]:
    """Return all versions, oldest first."""
    rows = db.execute(f"{_PROFILE} WHERE user_id = ? ORDER BY version", (user_id,))
    return [_profile(row) for row in rows]


def newest_profile(db: sqlite3.Connection, user_id: str) -> Profile | None:
    """Return the newest version."""
    row = db.execute(f"{_PROFILE} WHERE user_id = ? ORDER BY version DESC LIMIT 1", (user_id,)).fetchone()
    return None if row is None else _profile(row)


def _profile(row: tuple[str, int, str, int, str | None, float]) -> Profile:
    user_id, version, text, n_items, key, created_at = row
    return Profile(user_id, version, text, n_items, key, datetime.fromtimestamp(created_at, UTC))


def newest_version(db: sqlite3.Connection, uid: int) -> int:
    """Return the number of a user's newest profile, 0 for none."""
    (version,) = db.execute("SELECT max(version) FROM profiles WHERE uid = ?", (uid,)).fetchone()
    return version or 0


def read_summaries(db: sqlite3.Connection, user_id: str) -> list[UserSummary]:
    """Return the summaries of a user's plan, in its order."""
    rows = db.execute(
        "SELECT plans.key, summaries.text, plans.item_ids FROM users JOIN plans USING (uid) "
        "JOIN summaries USING (key) WHERE user_id = ? AND text IS NOT NULL ORDER BY place",
        (user_id,),
    )
    return [UserSummary(key, text, tuple(json.loads(item_ids))) for key, text, item_ids in rows]


def own_drafts(db: sqlite3.Connection, uids: Iterable[int], key: str) -> None:
    """Note that these users wait for a text."""
    rows = [(uid, key) for uid in uids]
    db.executemany("INSERT INTO drafts (uid, key) VALUES (?, ?) ON CONFLICT DO NOTHING", rows)


def own_plan(db: sqlite3.Connection, uid: int, calls: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Let a user have the calls of a plan, and none of an older one.

    `calls` are keys with the items below them; rows that stay as they are, as most do, are not written.
    """
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


def drop_unowned(db: sqlite3.Connection, keys: Iterable[str]) -> None:
    """Delete those of these summaries that no user has."""
    db.executemany(
        """
        DELETE FROM summaries WHERE key = ?
        AND NOT EXISTS (SELECT 1 FROM plans WHERE plans.key = summaries.key)
        AND NOT EXISTS (SELECT 1 FROM drafts WHERE drafts.key = summaries.key)
        """,
        [(key,) for key in keys],
    )


def mark_deleted(db: sqlite3.Connection, uid: int) -> None:
    """Let nobody find a user any more; `delete_rows_of` does the rest."""
    db.execute("INSERT INTO deleted (uid) VALUES (?)", (uid,))
    for table in ("notes", "pending", "users"):
        db.execute(f"DELETE FROM {table} WHERE uid = ?", (uid,))


def delete_rows_of(db: sqlite3.Connection, uid: int, most: int = 100) -> int:
    """Delete up to `most` rows of each table of a deleted user, and the summaries nobody else has.

    Returns how many rows it deleted: 0 when nothing is left.
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


def count_all(db: sqlite3.Connection) -> dict[str, float]:
    """Return counts for metrics."""
    users, events = db.execute("SELECT count(*), coalesce(sum(n_events), 0) FROM users").fetchone()
    pending, failing, since = db.execute(
        "SELECT count(*), coalesce(sum(n_attempts > 0), 0), min(since) FROM pending"
    ).fetchone()
    (behind,) = db.execute(
        "SELECT coalesce(sum(n_events - coalesce((SELECT n_items FROM profiles "
        "WHERE profiles.uid = users.uid ORDER BY version DESC LIMIT 1), 0)), 0) "
        "FROM pending JOIN users USING (uid)"
    ).fetchone()
    counts = {
        name: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for name, table in (
            ("items", "items WHERE fields <> 'null'"),
            ("profiles", "profiles"),
            ("notes", "notes"),
        )
    }
    waited = 0.0 if since is None else max(0.0, time.time() - since)
    return {
        "users": users,
        "events": events,
        **counts,
        "pending": pending,
        "failing": failing,
        "oldest_pending_seconds": waited,
        "items_behind": behind,
    }
