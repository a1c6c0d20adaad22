"""A store in a file and one in a database behave alike; rows move between them and Parquet unchanged."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from helpers import bind_summarizer, stored_call

from trsr.errors import DataError, OutputError, StoreError
from trsr.llm.fake import FakeGenerator
from trsr.summarize.executor import summarize
from trsr.summarize.export import SCHEMA, read_rows, write_rows
from trsr.summarize.store import COLUMNS, PAGE, GroupStore, RowFilter, Store, StoredCall, open_store
from trsr.types import History


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store can be made."""
    if request.param == "sqlite":
        return str(tmp_path / "deep" / "s.sqlite")
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    with open_store(place) as opened:
        yield opened


def test_a_text_is_seen_by_others_at_once_and_after_closing(place: str) -> None:
    with open_store(place) as one, open_store(place) as other:
        one.put(stored_call("a", "Likes “lamps”, naïvely."))
        other.put(stored_call("b"))
        assert set(one.texts(["a", "b"])) == set(other.texts(["a", "b"])) == {"a", "b"}
        one.close()
    with open_store(place) as store:
        assert store.texts(["a", "c"]) == {"a": "Likes “lamps”, naïvely."}


def test_a_row_says_what_made_it_and_when(store: Store) -> None:
    before = time.time()
    store.put(stored_call("a"))
    (found,) = store.rows()
    assert found == stored_call("a", created_at=found.created_at)
    assert before <= found.created_at <= time.time()


def test_any_number_of_keys_can_be_looked_up_at_once(store: Store) -> None:
    store.add(stored_call(f"{n:05}", f"text {n}") for n in range(2 * PAGE + 1))
    keys = [f"{n:05}" for n in range(3 * PAGE)]
    assert store.texts(keys) == {f"{n:05}": f"text {n}" for n in range(2 * PAGE + 1)}
    assert len(store.calls(keys)) == 2 * PAGE + 1
    assert (store.texts([]), store.calls([])) == ({}, {})


def test_a_failed_call_is_a_row_but_never_a_text(store: Store) -> None:
    store.put(stored_call("a", None))
    assert store.texts(["a"]) == {}
    calls = store.calls(["a", "b"])
    assert calls == {"a": stored_call("a", None, created_at=calls["a"].created_at)}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("calls", "kept"),
    [
        ([stored_call("a", None), stored_call("a", None, error="cut off")], (None, "cut off", 2, 5)),
        (
            [stored_call("a", None), stored_call("a", None), stored_call("a", n_generated_tokens=9)],
            ("Likes lamps.", None, 3, 9),
        ),
        ([stored_call("a"), stored_call("a", "another")], ("Likes lamps.", None, 1, 5)),
        ([stored_call("a"), stored_call("a", None)], ("Likes lamps.", None, 1, 5)),
    ],
    ids=["failed twice", "retried", "another text", "failed later"],
)
def test_a_failed_call_is_replaced_and_a_text_never_is(
    store: Store, calls: list[StoredCall], kept: tuple[object, ...], together: bool
) -> None:
    for number, call in enumerate(calls):
        if together:
            assert isinstance(store, GroupStore)
            store.put_all([call, stored_call(f"other {number}")])
        else:
            store.put(call)
    row = next(store.rows())
    assert (row.text, row.error, row.n_attempts, row.n_generated_tokens) == kept


def test_writers_that_start_at_once_make_one_store_and_lose_nothing(place: str) -> None:
    together = threading.Barrier(6)

    def write(number: int) -> None:
        together.wait(30)
        with open_store(place) as store:
            for n in range(20):
                store.put(stored_call(f"{n:03}", f"of {number}"))  # by all
                store.put(stored_call("failed", None))
                store.put_all([stored_call(f"{number}-{n:03}"), stored_call(f"shared-{n % 3}")])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    with open_store(place) as store:
        rows = {found.key: found for found in store.rows()}
    assert len(rows) == 20 + 1 + 6 * 20 + 3
    assert rows["failed"].n_attempts == 6 * 20


def test_rows_come_in_the_order_of_their_keys(store: Store) -> None:
    rows = [stored_call(key) for key in ("b", "B", "a-b", "a", "ab", "ä", "0")]
    assert store.add(rows) == len(rows)
    assert list(store.rows()) == sorted(rows, key=lambda row: row.key.encode())


def test_adding_keeps_texts_replaces_failed_calls_and_can_be_repeated(store: Store) -> None:
    row = stored_call
    store.add([row("a", "kept"), row("b", None, n_attempts=2), row("c", None, error="first")])
    more = [row("a", "not taken"), row("b", "taken", n_attempts=3), row("c", None, error="second")]
    assert [store.add(more), store.add(more)] == [1, 0]
    kept = [(found.text, found.error, found.n_attempts) for found in store.rows()]
    assert kept == [("kept", None, 1), ("taken", None, 5), (None, "first", 1)]


def test_an_added_row_that_is_wrong_leaves_its_page_out_and_the_store_usable(store: Store) -> None:
    with pytest.raises((OutputError, StoreError), match=r"cannot be used|is not a summary store"):
        store.add([stored_call("a"), stored_call("b", error="a text and an error")])
    assert list(store.rows()) == []
    assert store.add([stored_call("a")]) == 1


def test_stats_count_by_model_and_template(store: Store) -> None:
    assert store.stats() == []
    row = stored_call
    old = row("c", None, model="other@2", created_at=5.0, seconds=1.5)
    store.add([row("a"), row("b", n_attempts=2, created_at=9.0), old, row("d", template_hash="new")])
    first, second, third = store.stats()
    assert first == ("fake@1", "hash", 2, 0, 3, 20, 10, 0.5, 9.0, 1_700_000_000.5)
    assert (second.model, second.template_hash, second.n_texts) == ("fake@1", "new", 1)
    assert third == ("other@2", "hash", 0, 1, 1, 10, 5, 1.5, 5.0, 5.0)
    assert store.n_bytes() > 0


@pytest.mark.parametrize(
    ("chosen", "keys"),
    [
        (RowFilter(failed=True), "be"),
        (RowFilter(model="other@2"), "c"),
        (RowFilter(template_hash="ha"), "abce"),
        (RowFilter(before=10.0), "de"),
        (RowFilter(failed=True, before=10.0), "e"),
        (RowFilter(), "abcde"),
        (RowFilter(model="no%"), ""),
    ],
)
def test_only_the_selected_rows_are_removed(store: Store, chosen: RowFilter, keys: str) -> None:
    row = stored_call
    store.add([row("a"), row("b", None), row("c", model="other@2")])
    store.add([row("d", template_hash="new", created_at=9.0), row("e", None, created_at=9.0)])
    assert store.count(chosen) == store.remove(chosen) == len(keys)
    assert {found.key for found in store.rows()} == set("abcde") - set(keys)


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_a_second_run_makes_no_call_and_every_kind_of_store_keeps_the_same_rows(
    place: str, method: str
) -> None:
    users = [History(f"u{n}", tuple(f"i{i}" for i in range(n, n + 14))) for n in range(5)]
    summarizer, kept = bind_summarizer(method), []
    for store in (open_store(place), open_store(":memory:")):
        with store:
            folds = summarize(users, summarizer, FakeGenerator(), store)
            again = FakeGenerator()
            summarize(users, summarizer, again, store)
            assert again.n_calls == 0
            kept.append(([f.texts for f in folds], [row._replace(created_at=0) for row in store.rows()]))
    assert kept[0] == kept[1]


def test_rows_move_through_a_parquet_file_to_another_store_unchanged(store: Store, tmp_path: Path) -> None:
    store.put(stored_call("a", "Likes “lamps”."))
    store.put(stored_call("b", None))
    store.add(stored_call(f"{n:05}", seconds=n / 3, created_at=n / 7) for n in range(2 * PAGE + 5))
    rows, file = list(store.rows()), tmp_path / "s.parquet"
    assert write_rows(file, store.rows()) == len(rows)
    assert list(read_rows(file)) == rows
    with open_store(tmp_path / "b.sqlite") as second:
        assert second.add(store.rows()) == len(rows)
        assert second.add(read_rows(file)) == 0
        assert list(second.rows()) == rows
    table = pl.read_parquet(file)
    assert table.schema == SCHEMA
    assert table["item_ids"][-2:].to_list() == [["i1", "i 2", "ü"], ["i1", "i 2", "ü"]]


def test_an_empty_store_is_an_empty_file_with_its_columns(tmp_path: Path) -> None:
    assert write_rows(tmp_path / "s.parquet", []) == 0
    assert pl.read_parquet_schema(tmp_path / "s.parquet") == dict(SCHEMA)
    assert tuple(SCHEMA) == COLUMNS
    assert list(read_rows(tmp_path / "s.parquet")) == []


def test_an_import_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_text("no parquet")
    values = stored_call("a", text=None, error=None)[:-1]
    pl.DataFrame([values], schema=SCHEMA, orient="row").write_parquet(tmp_path / "row.parquet")
    for name, message in [
        ("x", r"has the columns x, expected those of an exported store \(key, "),
        ("y", r"y\.parquet cannot be read as Parquet \(.*\); export it again, or name another file"),
        ("z", r"z\.parquet cannot be read"),
        ("row", "key a: expected a text or an error"),
    ]:
        with pytest.raises(DataError, match=message):
            list(read_rows(tmp_path / f"{name}.parquet"))


def test_an_export_that_fails_is_one_sentence_and_leaves_the_old_file(tmp_path: Path) -> None:
    def broken() -> Iterator[StoredCall]:
        yield stored_call("b")
        raise OutputError("gone")

    write_rows(tmp_path / "s.parquet", [stored_call("a")])
    with pytest.raises(OutputError, match="gone"):
        write_rows(tmp_path / "s.parquet", broken())
    with pytest.raises(OutputError, match="cannot be written"):
        write_rows(tmp_path / "s.parquet" / "t.parquet", [stored_call("a")])
    assert list(read_rows(tmp_path / "s.parquet")) == [stored_call("a")]
    assert len(list(tmp_path.iterdir())) == 1
