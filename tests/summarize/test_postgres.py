"""What is special about the store in a database: its migrations, its server, and its password."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import sqlalchemy
from helpers import make_summariser
from postgres_server import PASSWORD, Server

from trsr.errors import OutputError, StoreError
from trsr.llm.fake import FakeGenerator
from trsr.summarize import postgres as postgres_module
from trsr.summarize import postgres_tables
from trsr.summarize.executor import summarize
from trsr.summarize.postgres import PostgresStore
from trsr.summarize.postgres_tables import MIGRATIONS
from trsr.summarize.store import SqliteStore
from trsr.testing.contracts import call
from trsr.types import History

MORE = (*MIGRATIONS, "ALTER TABLE trsr_summaries ADD COLUMN note TEXT")


@pytest.fixture
def engine(postgres_url: str) -> Iterator[sqlalchemy.Engine]:
    made = sqlalchemy.create_engine(postgres_url.replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT")
    yield made
    made.dispose()


def ask(engine: sqlalchemy.Engine, query: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sqlalchemy.text(query))]


def versions(engine: sqlalchemy.Engine) -> list[tuple[object, ...]]:
    return ask(engine, "SELECT version FROM trsr_schema")


def migrations(monkeypatch: pytest.MonkeyPatch, known: tuple[str, ...]) -> None:
    monkeypatch.setattr(postgres_tables, "MIGRATIONS", known)
    monkeypatch.setattr(postgres_module, "MIGRATIONS", known)


def test_a_store_of_an_older_version_is_brought_up_to_date(
    postgres_url: str, engine: sqlalchemy.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PostgresStore(postgres_url) as store:
        store.put(call("a"))
    migrations(monkeypatch, MORE)
    with PostgresStore(postgres_url) as store:
        assert store.texts(["a"])
    assert versions(engine) == [(2,)]
    assert ask(engine, "SELECT note FROM trsr_summaries") == [(None,)]


def test_a_store_of_a_newer_version_is_refused(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrations(monkeypatch, MORE)
    PostgresStore(postgres_url).close()
    monkeypatch.undo()
    with pytest.raises(StoreError, match="a summary store of version 2, this trsr knows 1; update trsr"):
        PostgresStore(postgres_url)


def test_a_broken_migration_leaves_the_store_as_it_was(
    postgres_url: str, engine: sqlalchemy.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PostgresStore(postgres_url) as store:
        store.put(call("a"))
    migrations(monkeypatch, (*MORE, "ALTER TABLE nothing ADD COLUMN x TEXT"))
    with pytest.raises(OutputError, match='relation "nothing" does not exist'):
        PostgresStore(postgres_url)
    assert versions(engine) == [(1,)]
    monkeypatch.undo()
    with PostgresStore(postgres_url) as store:
        assert store.texts(["a"])


def test_writers_that_start_at_once_apply_each_migration_once(
    postgres_url: str, engine: sqlalchemy.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Slow, so that all find the old version, and not to be done twice.
    slow = "SELECT pg_sleep(0.3)"
    migrations(monkeypatch, (*MIGRATIONS, slow, *MORE[1:]))
    problems: list[Exception] = []

    def start() -> None:
        try:
            PostgresStore(postgres_url).close()
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=start) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    assert versions(engine) == [(3,)]


WRITER = """
import sys
from trsr.summarize.stores import open_store
from trsr.testing.contracts import call
with open_store(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(50):
        store.put(call(f"{n:03}", sys.argv[2]))
"""


def test_writers_in_several_processes_share_the_texts(postgres_url: str) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, postgres_url, f"writer {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    assert [writer.communicate("go\n") and writer.returncode for writer in writers] == [0, 0]
    with PostgresStore(postgres_url) as store:
        rows = list(store.rows())
    assert [row.key for row in rows] == [f"{n:03}" for n in range(50)]
    assert {row.n_attempts for row in rows} == {1}


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_summaries_are_those_of_the_file_store(postgres_url: str, method: str) -> None:
    users = [History(f"u{n}", tuple(f"i{i}" for i in range(n, n + 14))) for n in range(5)]
    summariser = make_summariser(method)
    kept = []
    for store in (PostgresStore(postgres_url), SqliteStore(":memory:")):
        with store:
            folds = summarize(users, summariser, FakeGenerator(), store)
            again = FakeGenerator()
            summarize(users, summariser, again, store)
            assert again.n_calls == 0
            kept.append(([f.texts for f in folds], [row._replace(created_at=0) for row in store.rows()]))
    assert kept[0] == kept[1]


def test_a_server_that_is_away_is_one_sentence_without_the_password(postgres: Server) -> None:
    url = postgres.url("postgres").replace(str(postgres.port), "1")
    with pytest.raises(OutputError) as caught:
        PostgresStore(url)
    said = str(caught.value)
    assert said.startswith("The summary store postgresql://trsr@127.0.0.1:1/postgres cannot be used (")
    assert said.endswith("; start the server or check address and password, then run the same command again.")
    assert "\n" not in said
    assert PASSWORD not in said


def test_a_wrong_password_and_a_missing_database_are_one_sentence(postgres: Server) -> None:
    with pytest.raises(OutputError, match=r"password authentication failed for user \"trsr\"") as caught:
        PostgresStore(postgres.url("postgres", "wr0ng"))
    assert "wr0ng" not in str(caught.value)
    with pytest.raises(OutputError, match='database "nothing" does not exist'):
        PostgresStore(postgres.url("nothing"))


def test_a_user_without_rights_is_one_sentence_that_tells_of_no_text(
    postgres_url: str, engine: sqlalchemy.Engine
) -> None:
    with PostgresStore(postgres_url) as store:
        store.put(call("a"))
    schema = ask(engine, "SELECT current_schema()")[0][0]
    rights = (
        f"GRANT USAGE ON SCHEMA {schema} TO reader; GRANT SELECT ON trsr_schema, trsr_summaries TO reader"
    )
    with engine.connect() as connection:
        for statement in ("CREATE ROLE reader LOGIN PASSWORD 'r'", rights):
            connection.execute(sqlalchemy.text(statement))
    with PostgresStore(f"postgresql://reader:r@{postgres_url.rpartition('@')[2]}") as reader:
        assert reader.texts(["a"])
        denied = "permission denied for table trsr_summaries.*; check the rights of its user"
        with pytest.raises(OutputError, match=denied) as caught:
            reader.put(call("b", "A secret taste."))
    assert "secret taste" not in str(caught.value)


def test_a_server_that_goes_and_comes_back_loses_nothing(postgres: Server, postgres_url: str) -> None:
    with PostgresStore(postgres_url) as store:
        store.put(call("a"))
        postgres.stop()
        try:
            with pytest.raises(OutputError, match="cannot be used"):
                store.put(call("b"))
            with pytest.raises(OutputError, match="cannot be used"):
                store.texts(["a"])
        finally:
            postgres.start()
        store.put(call("b"))
        assert set(store.texts(["a", "b"])) == {"a", "b"}


def test_a_character_that_postgres_cannot_keep_is_replaced_and_not_lost(postgres_url: str) -> None:
    with PostgresStore(postgres_url) as store:
        store.put(call("a", None, "bad byte \0 in the answer"))
        (row,) = store.rows()
    assert row.error == "bad byte � in the answer"


def test_a_url_that_cannot_be_read_is_one_sentence() -> None:
    with pytest.raises(StoreError, match="is not the URL of a database"):
        PostgresStore("postgresql://me:secret@host:port/db")
