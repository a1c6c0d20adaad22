"""Contract tests for stores of summaries: subclass, say where a new store is to be, and pytest runs the rest.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def place(self) -> str:
            return "postgresql://me@127.0.0.1/empty"

Each test says one thing that callers of `trsr.summarize.rows` rely on.
"""

# ruff: noqa: D102 - a test is named by the sentence it checks

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from trsr.summarize.rows import PAGE, Choice, Row, Store
from trsr.summarize.store import GroupStore, StoredCall
from trsr.summarize.stores import open_store, read_rows, write_rows


def call(key: str, text: str | None = "Likes lamps.", error: str | None = None) -> StoredCall:
    """Return a finished call."""
    return StoredCall(key, text, error, "fake@1", "hash", ("i1", "i 2", "ü"), 10, 5, 0.5)


def failed(key: str, error: str = "timed out") -> StoredCall:
    """Return a failed call."""
    return call(key, None, error)


def row(key: str, text: str | None = "Likes lamps.", **changes: object) -> Row:
    """Return a row of a store."""
    error = None if text is not None else "timed out"
    whole = Row(key, text, error, "fake@1", "hash", '["i1"]', 10, 5, 0.25, 1, 1_700_000_000.5)
    return Row(**{**whole._asdict(), **changes})


class StoreContract:
    """What every `Store` must do; each test has a store of its own, which is empty at first."""

    @pytest.fixture
    def place(self) -> str | Path:
        """Where a new store is to be: a file that does not exist, or the URL of an empty database."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, place: str | Path) -> Iterator[Store]:
        with open_store(place) as store:
            yield store

    def test_a_text_is_found_again_after_closing(self, place: str | Path) -> None:
        with open_store(place) as store:
            store.put(call("a", "Likes “lamps”, naïvely."))
        with open_store(place) as store:
            assert store.texts(["a", "b"]) == {"a": "Likes “lamps”, naïvely."}

    def test_a_row_says_what_made_it_and_when(self, store: Store) -> None:
        before = time.time()
        store.put(call("a"))
        (found,) = store.rows()
        assert found[:10] == (
            *("a", "Likes lamps.", None, "fake@1", "hash"),
            *(json.dumps(["i1", "i 2", "ü"]), 10, 5, 0.5, 1),
        )
        assert before <= found.created_at <= time.time()

    def test_any_number_of_keys_can_be_asked_for_at_once(self, store: Store) -> None:
        store.add(row(f"{n:05}", f"text {n}") for n in range(2 * PAGE + 1))
        found = store.texts([f"{n:05}" for n in range(3 * PAGE)])
        assert found == {f"{n:05}": f"text {n}" for n in range(2 * PAGE + 1)}
        assert store.texts([]) == {}

    def test_a_failed_call_is_a_row_but_never_a_text(self, store: Store) -> None:
        store.put(failed("a"))
        assert store.texts(["a"]) == {}
        assert [(r.text, r.error, r.n_attempts) for r in store.rows()] == [(None, "timed out", 1)]

    def test_a_retried_call_takes_the_place_of_the_failed_one_and_attempts_are_counted(
        self, store: Store
    ) -> None:
        store.put(failed("a"))
        store.put(failed("a", "cut off"))
        store.put(replace(call("a"), n_generated_tokens=9, seconds=2.0))
        (found,) = store.rows()
        assert (found.text, found.error, found.n_attempts) == ("Likes lamps.", None, 3)
        assert (found.n_generated_tokens, found.seconds) == (9, 2.0)

    @pytest.mark.parametrize("later", [call("a", "another"), failed("a")])
    def test_a_text_is_never_replaced(self, store: Store, later: StoredCall) -> None:
        store.put(call("a"))
        (before,) = store.rows()
        store.put(later)
        assert list(store.rows()) == [before]

    def test_results_kept_together_are_what_they_would_be_one_by_one(self, store: Store) -> None:
        assert isinstance(store, GroupStore)
        store.put_all([call("c"), failed("b"), failed("a")])
        store.put_all([call("a"), failed("c"), call("b", "another")])
        assert store.texts(["a", "b", "c"]) == {"a": "Likes lamps.", "b": "another", "c": "Likes lamps."}
        assert [found.n_attempts for found in store.rows()] == [2, 2, 1]

    def test_two_openers_see_each_others_texts_at_once(self, place: str | Path) -> None:
        with open_store(place) as one, open_store(place) as other:
            one.put(call("a"))
            other.put(call("b"))
            assert set(one.texts(["a", "b"])) == set(other.texts(["a", "b"])) == {"a", "b"}

    def test_writers_that_start_at_once_make_one_store_and_lose_nothing(self, place: str | Path) -> None:
        together = threading.Barrier(6)
        problems: list[Exception] = []

        def write(number: int) -> None:
            try:
                together.wait(30)
                with open_store(place) as store:
                    for n in range(20):
                        store.put(call(f"{n:03}", f"of {number}"))  # asked by all
                        store.put(failed("failed"))
                        store.put(call(f"{number}-{n:03}"))
            except Exception as error:
                problems.append(error)

        writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        if problems:
            raise problems[0]
        with open_store(place) as store:
            rows = {found.key: found for found in store.rows()}
        assert len(rows) == 20 + 1 + 6 * 20
        assert rows["failed"].n_attempts == 6 * 20

    def test_rows_come_in_the_order_of_their_keys(self, store: Store) -> None:
        rows = [row(key) for key in ("b", "B", "a-b", "a", "ab", "ä", "0")]
        assert store.add(rows) == len(rows)
        assert list(store.rows()) == sorted(rows, key=lambda r: r.key.encode())

    def test_adding_twice_changes_nothing(self, store: Store) -> None:
        rows = [row("a"), row("b", None, n_attempts=4)]
        assert store.add(rows) == 2
        assert store.add(rows) == 0
        assert list(store.rows()) == rows

    def test_adding_keeps_texts_and_replaces_failed_calls_by_texts_only(self, store: Store) -> None:
        store.add([row("a", "kept"), row("b", None, n_attempts=2), row("c", None, error="first")])
        more = [row("a", "not taken"), row("b", "taken", n_attempts=3), row("c", None, error="second")]
        assert store.add(more) == 1
        kept = [(r.text, r.error, r.n_attempts) for r in store.rows()]
        assert kept == [("kept", None, 1), ("taken", None, 5), (None, "first", 1)]

    def test_an_added_row_that_is_wrong_leaves_its_page_out_and_the_store_usable(self, store: Store) -> None:
        with pytest.raises(Exception, match=r"cannot be used|cannot be written|is not a summary store"):
            store.add([row("a"), row("b", error="a text and an error")])
        assert list(store.rows()) == []
        assert store.add([row("a")]) == 1

    def test_counts_are_by_model_and_template(self, store: Store) -> None:
        assert store.parts() == []
        old = row("c", None, model="other@2", created_at=5.0, seconds=1.5)
        store.add([row("a"), row("b", n_attempts=2, created_at=9.0), old, row("d", template_hash="new")])
        first, second, third = store.parts()
        assert first == ("fake@1", "hash", 2, 0, 3, 20, 10, 0.5, 9.0, 1_700_000_000.5)
        assert (second.model, second.template_hash, second.n_texts) == ("fake@1", "new", 1)
        assert third == ("other@2", "hash", 0, 1, 1, 10, 5, 1.5, 5.0, 5.0)
        assert store.n_bytes() > 0

    @pytest.mark.parametrize(
        ("choice", "meant"),
        [
            (Choice(failed=True), {"b", "e"}),
            (Choice(model="other@2"), {"c"}),
            (Choice(template_hash="ha"), {"a", "b", "c", "e"}),
            (Choice(before=10.0), {"d", "e"}),
            (Choice(failed=True, before=10.0), {"e"}),
            (Choice(), {"a", "b", "c", "d", "e"}),
            (Choice(model="no%"), set()),
        ],
    )
    def test_only_the_rows_that_are_meant_are_removed(
        self, store: Store, choice: Choice, meant: set[str]
    ) -> None:
        store.add([row("a"), row("b", None), row("c", model="other@2")])
        store.add([row("d", template_hash="new", created_at=9.0), row("e", None, created_at=9.0)])
        assert store.count(choice) == len(meant)
        assert store.remove(choice) == len(meant)
        assert {r.key for r in store.rows()} == set("abcde") - meant

    def test_a_parquet_file_holds_every_row(self, store: Store, tmp_path: Path) -> None:
        store.put(call("a"))
        store.put(failed("b"))
        store.add(row(f"{n:05}") for n in range(PAGE + 5))
        rows = list(store.rows())
        assert write_rows(tmp_path / "s.parquet", store.rows()) == len(rows)
        assert list(read_rows(tmp_path / "s.parquet")) == rows

    def test_closing_twice_is_harmless(self, place: str | Path) -> None:
        store = open_store(place)
        store.close()
        store.close()
