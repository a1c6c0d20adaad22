"""The tables of a summary store in PostgreSQL, and how an older database is brought up to date.

Columns and their meaning are those of the SQLite store, so that rows can move between the two as they are.
"""

from __future__ import annotations

from sqlalchemy import Column, Connection, Double, Integer, MetaData, Table, Text, text

APPLICATION_ID = 0x74727372  # "trsr"

# Numbered from 1; `trsr_schema` remembers the last one applied. Only ever append. Keys are compared byte by
# byte, as SQLite does, so that both stores have one order.
MIGRATIONS = (
    """
    CREATE TABLE trsr_summaries (
        key TEXT COLLATE "C" PRIMARY KEY,
        text TEXT,
        error TEXT,
        model TEXT NOT NULL,
        template_hash TEXT NOT NULL,
        item_ids TEXT NOT NULL,
        n_prompt_tokens INTEGER NOT NULL,
        n_generated_tokens INTEGER NOT NULL,
        seconds DOUBLE PRECISION NOT NULL,
        n_attempts INTEGER NOT NULL DEFAULT 1,
        created_at DOUBLE PRECISION NOT NULL,
        CHECK ((text IS NULL) <> (error IS NULL))
    )
    """,
)

# Not `to_regclass`: within a transaction it may remember that there was no table before it waited for a lock.
_IS_THERE = """
    SELECT count(*) FROM pg_class WHERE relname = 'trsr_schema' AND relkind = 'r' AND pg_table_is_visible(oid)
"""

SUMMARIES = Table(
    "trsr_summaries",
    MetaData(),
    Column("key", Text, primary_key=True),
    Column("text", Text),
    Column("error", Text),
    Column("model", Text, nullable=False),
    Column("template_hash", Text, nullable=False),
    Column("item_ids", Text, nullable=False),
    Column("n_prompt_tokens", Integer, nullable=False),
    Column("n_generated_tokens", Integer, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("n_attempts", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
)


def version(connection: Connection) -> int:
    """Return the number of the last migration applied; 0 for a database without a store."""
    if not connection.execute(text(_IS_THERE)).scalar_one():
        return 0
    return int(connection.execute(text("SELECT version FROM trsr_schema")).scalar_one())


def migrate(connection: Connection) -> None:
    """Apply the missing migrations in the connection's transaction: all of them or none.

    Writers that start at the same time wait for the first one: an advisory lock is held until the
    transaction ends, and what the first one did is looked up again under it.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": APPLICATION_ID})
    found = version(connection)
    if found == 0:
        connection.execute(text("CREATE TABLE trsr_schema (version INTEGER NOT NULL)"))
        connection.execute(text("INSERT INTO trsr_schema VALUES (0)"))
    for migration in MIGRATIONS[found:]:
        connection.execute(text(migration))
    connection.execute(
        text("UPDATE trsr_schema SET version = greatest(version, :version)"), {"version": len(MIGRATIONS)}
    )
