"""The tables of the service's database, as numbered migrations."""

from __future__ import annotations

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
