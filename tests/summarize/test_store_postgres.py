"""What is special about a store in a database: its migrations, its server, and its password."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from helpers import stored_call
from postgres_server import PASSWORD, Server

from trsr.errors import OutputError, StoreError
from trsr.summarize import store as store_module
from trsr.summarize.store import POSTGRES_MIGRATIONS, PostgresStore, open_store

Query = Callable[[str], list[tuple[object, ...]]]
NOTE = "ALTER TABLE trsr_summaries ADD COLUMN note TEXT"
FIRST_LAYOUT = """
    CREATE TABLE trsr_summaries (
        key TEXT COLLATE "C" PRIMARY KEY, text TEXT, error TEXT, model TEXT NOT NULL,
        template_hash TEXT NOT NULL, item_ids TEXT NOT NULL, n_prompt_tokens INTEGER NOT NULL,
        n_generated_tokens INTEGER NOT NULL, seconds DOUBLE PRECISION NOT NULL,
        n_attempts INTEGER NOT NULL DEFAULT 1, created_at DOUBLE PRECISION NOT NULL,
        CHECK ((text IS NULL) <> (error IS NULL))
    );
    CREATE TABLE trsr_schema (version INTEGER NOT NULL);
    INSERT INTO trsr_schema VALUES (1);
    INSERT INTO trsr_summaries VALUES
        ('a', 'Likes lamps.', NULL, 'fake@1', 'hash', '["i1"]', 10, 5, 0.25, 1, 1.7e9);
    SELECT 1
"""


@pytest.fixture
def query(postgres_url: str) -> Query:
    """Asks the database of `postgres_url` something."""

    def ask(statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(postgres_url, autocommit=True) as db:
            cursor = db.execute(statement.encode())
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    return ask


@pytest.fixture
def kept(postgres_url: str) -> str:
    """The URL of a store with one text."""
    with open_store(postgres_url) as store:
        store.put(stored_call("a"))
    return postgres_url


def add_migrations(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    monkeypatch.setattr(store_module, "POSTGRES_MIGRATIONS", (*POSTGRES_MIGRATIONS, *more))


def test_a_store_of_the_first_layout_keeps_its_rows(postgres_url: str, query: Query) -> None:
    query(FIRST_LAYOUT)
    with open_store(postgres_url) as store:
        store.put(stored_call("b"))
        first, second = store.rows()
    assert first == stored_call("a", item_ids=("i1",), created_at=1.7e9)
    assert second.key == "b"


def test_an_older_store_is_brought_up_to_date_and_a_newer_one_refused(
    kept: str, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_migrations(monkeypatch, NOTE)
    with open_store(kept) as store:
        assert store.texts(["a"])
    assert query("SELECT version FROM trsr_schema") == [(2,)]
    assert query("SELECT note FROM trsr_summaries") == [(None,)]
    monkeypatch.undo()
    with pytest.raises(StoreError, match="a summary store of version 2, this trsr knows 1; update trsr"):
        open_store(kept)


def test_a_migration_that_fails_leaves_the_store_as_it_was(
    kept: str, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_migrations(monkeypatch, NOTE, "ALTER TABLE nothing ADD COLUMN x TEXT")
    with pytest.raises(OutputError, match='relation "nothing" does not exist'):
        open_store(kept)
    assert query("SELECT version FROM trsr_schema") == [(1,)]
    monkeypatch.undo()
    with open_store(kept) as store:
        assert store.texts(["a"])


def test_writers_that_start_at_once_apply_each_migration_once(
    postgres_url: str, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Slow, so that all find the old version, and not to be done twice.
    add_migrations(monkeypatch, "SELECT pg_sleep(0.3)", NOTE)
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: open_store(postgres_url).close(), range(5)))
    assert query("SELECT version FROM trsr_schema") == [(3,)]


def test_a_server_that_cannot_be_used_is_one_sentence_without_the_password(postgres: Server) -> None:
    away = postgres.url("postgres").replace(str(postgres.port), "1")
    for url, reason, advice in [
        (away, "Connection refused", "start the server or check address and password"),
        (postgres.url("postgres", "wr0ng"), 'authentication failed for user "trsr"', "check address"),
        (postgres.url("nothing"), 'database "nothing" does not exist', "start the server"),
    ]:
        with pytest.raises(OutputError) as caught:
            open_store(url)
        message = str(caught.value)
        assert message.startswith("The summary store postgresql://trsr@127.0.0.1:")
        assert reason in message
        assert advice in message
        assert message.endswith(", then run the same command again.")
        assert not any(secret in message for secret in ("\n", PASSWORD, "wr0ng"))


def test_a_user_without_rights_reads_and_an_error_shows_no_text(kept: str, query: Query) -> None:
    schema = query("SELECT current_schema()")[0][0]
    query(
        f"CREATE ROLE reader LOGIN PASSWORD 'r'; GRANT USAGE ON SCHEMA {schema} TO reader; "
        "GRANT SELECT ON trsr_schema, trsr_summaries TO reader"
    )
    with open_store(f"postgresql://reader:r@{kept.rpartition('@')[2]}") as reader:
        assert reader.texts(["a"])
        denied = "permission denied for table trsr_summaries.*; check the rights of its user"
        with pytest.raises(OutputError, match=denied) as caught:
            reader.put(stored_call("b", "A secret taste."))
    assert "secret taste" not in str(caught.value)


def test_a_server_that_goes_and_comes_back_loses_nothing(postgres: Server, kept: str) -> None:
    with open_store(kept) as store:
        postgres.stop()
        try:
            with pytest.raises(OutputError, match="cannot be used"):
                store.put_all([stored_call("b")])
            with pytest.raises(OutputError, match="cannot be used"):
                store.texts(["a"])
        finally:
            postgres.start()
        store.put(stored_call("b"))
        assert set(store.texts(["a", "b"])) == {"a", "b"}


def test_a_character_that_postgres_cannot_keep_is_replaced_and_not_lost(postgres_url: str) -> None:
    with open_store(postgres_url) as store:
        store.put(stored_call("a", None, error="bad byte \0 in the answer"))
        (row,) = store.rows()
    assert row.error == "bad byte � in the answer"


@pytest.mark.parametrize("url", ["postgresql://me:secret@host:port/db", "postgresql://me:se%zzcret@host/db"])
def test_a_malformed_url_is_one_sentence_without_its_password(url: str) -> None:
    with pytest.raises(StoreError, match="is not the URL of a database") as caught:
        PostgresStore(url)
    assert "cret" not in str(caught.value)
