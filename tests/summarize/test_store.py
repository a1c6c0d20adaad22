"""The store keeps every text that was paid for, whatever happens to the disk, the file or the process."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from helpers import full_disk, read_only, temporary_folder, totals

from trsr.errors import OutputError, StoreError
from trsr.summarize import store as store_module
from trsr.summarize.store import MIGRATIONS, StoredCall, SummaryStore


def call(key: str, text: str | None = "Likes lamps.", error: str | None = None) -> StoredCall:
    return StoredCall(key, text, error, "fake@1", "hash", ("i1", "i2"), 10, 5, 0.5)


def failed(key: str, error: str = "timed out") -> StoredCall:
    return call(key, None, error)


def rows(file: Path, columns: str) -> list[tuple[object, ...]]:
    db = sqlite3.connect(file)
    try:
        return db.execute(f"SELECT {columns} FROM summaries ORDER BY key").fetchall()
    finally:
        db.close()


def test_a_text_is_found_again_after_closing(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "summaries.sqlite"
    with SummaryStore(file) as store:
        store.put(call("a"))
        assert store.texts(["a", "b"]) == {"a": "Likes lamps."}
    with SummaryStore(file) as store:
        assert store.texts(["a", "b"]) == {"a": "Likes lamps."}


def test_a_row_says_what_made_it(tmp_path: Path) -> None:
    file = tmp_path / "s.sqlite"
    with SummaryStore(file) as store:
        store.put(call("a"))
    columns = "key, text, error, model, template_hash, item_ids, n_prompt_tokens, n_generated_tokens, seconds"
    assert rows(file, columns) == [("a", "Likes lamps.", None, "fake@1", "hash", '["i1", "i2"]', 10, 5, 0.5)]
    (created,) = rows(file, "created_at")[0]
    assert isinstance(created, float)


def test_any_number_of_keys_can_be_asked_for_at_once() -> None:
    with SummaryStore(":memory:") as store:
        for number in range(1200):
            store.put(call(str(number), f"text {number}"))
        found = store.texts([str(number) for number in range(3000)])
    assert found == {str(number): f"text {number}" for number in range(1200)}


def test_a_failed_call_is_a_row_but_never_a_text(tmp_path: Path) -> None:
    file = tmp_path / "s.sqlite"
    with SummaryStore(file) as store:
        store.put(failed("a"))
        assert store.texts(["a"]) == {}
        assert totals(store)["failed"] == 1
    assert rows(file, "text, error, n_attempts") == [(None, "timed out", 1)]


def test_a_retried_call_takes_the_place_of_the_failed_one_and_attempts_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "s.sqlite"
    with SummaryStore(file) as store:
        store.put(failed("a"))
        store.put(failed("a", "cut off"))
        store.put(call("a", "Likes lamps."))
        assert store.texts(["a"]) == {"a": "Likes lamps."}
    assert rows(file, "text, error, n_attempts") == [("Likes lamps.", None, 3)]


@pytest.mark.parametrize("later", [call("a", "another"), failed("a")])
def test_a_text_is_never_replaced(later: StoredCall) -> None:
    with SummaryStore(":memory:") as store:
        store.put(call("a"))
        store.put(later)
        assert store.texts(["a"]) == {"a": "Likes lamps."}
        assert totals(store)["attempts"] == 1


def test_two_openers_see_each_others_texts(tmp_path: Path) -> None:
    with SummaryStore(tmp_path / "s.sqlite") as one, SummaryStore(tmp_path / "s.sqlite") as other:
        one.put(call("a"))
        other.put(call("b"))
        assert set(one.texts(["a", "b"])) == set(other.texts(["a", "b"])) == {"a", "b"}


def test_a_store_that_another_process_keeps_busy_is_one_sentence(tmp_path: Path) -> None:
    with SummaryStore(tmp_path / "s.sqlite") as one, SummaryStore(tmp_path / "s.sqlite") as other:
        one._db.execute("BEGIN IMMEDIATE")
        other._db.execute("PRAGMA busy_timeout = 10")
        with pytest.raises(OutputError, match=r"in use by another process \(.*locked\); wait for it, then"):
            other.put(call("a"))
        one._db.execute("ROLLBACK")
        other.put(call("a"))
        assert other.texts(["a"])


def test_closing_twice_is_harmless() -> None:
    store = SummaryStore(":memory:")
    store.close()
    store.close()


def test_an_older_store_is_brought_up_to_date_and_keeps_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "s.sqlite"
    with SummaryStore(file) as store:
        store.put(call("a"))
    newer = (*MIGRATIONS, "ALTER TABLE summaries ADD COLUMN note TEXT NOT NULL DEFAULT 'none'")
    monkeypatch.setattr(store_module, "MIGRATIONS", newer)
    with SummaryStore(file) as store:
        assert store.texts(["a"]) == {"a": "Likes lamps."}
    assert rows(file, "note") == [("none",)]
    monkeypatch.undo()
    with pytest.raises(
        StoreError, match=f"version {len(newer)}, this trsr knows {len(MIGRATIONS)}; update trsr"
    ):
        SummaryStore(file)
    assert rows(file, "key, note") == [("a", "none")]


def test_a_migration_that_fails_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "s.sqlite"
    with SummaryStore(file) as store:
        store.put(call("a"))
    broken = (
        *MIGRATIONS,
        "ALTER TABLE summaries ADD COLUMN note TEXT",
        "ALTER TABLE nothing ADD COLUMN x TEXT",
    )
    monkeypatch.setattr(store_module, "MIGRATIONS", broken)
    with pytest.raises(OutputError):
        SummaryStore(file)
    monkeypatch.undo()
    with SummaryStore(file) as store:
        assert store.texts(["a"]) == {"a": "Likes lamps."}


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Dear diary, " * 100)
    with pytest.raises(StoreError, match=r"notes\.txt is not a summary store .*; name another file"):
        SummaryStore(file)
    assert file.read_text() == "Dear diary, " * 100


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "other.sqlite"
    db = sqlite3.connect(file)
    db.execute("CREATE TABLE accounts (name TEXT)")
    db.commit()
    db.close()
    before = file.read_bytes()
    with pytest.raises(StoreError, match="is a database of another program; name another file"):
        SummaryStore(file)
    assert file.read_bytes() == before


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.sqlite"
    with SummaryStore(file) as store:
        for number in range(200):
            store.put(call(str(number), "x" * 100))
    damaged = bytearray(file.read_bytes())
    damaged[4096:] = b"\xff" * len(damaged[4096:])
    file.write_bytes(damaged)
    with SummaryStore(file) as store, pytest.raises(StoreError, match=r"summary store .* is damaged"):
        store.texts(["1", "150"])


def test_a_new_store_in_a_read_only_folder_is_one_sentence() -> None:
    with (
        temporary_folder() as folder,
        read_only(folder),
        pytest.raises(OutputError, match=r"cannot be written \(.*\); .*writable folder"),
    ):
        SummaryStore(folder / "s.sqlite")


def test_a_new_folder_in_a_read_only_folder_is_one_sentence() -> None:
    said = r"The folder .*new cannot be written \(Permission denied\)"
    with temporary_folder() as folder, read_only(folder), pytest.raises(OutputError, match=said):
        SummaryStore(folder / "new" / "s.sqlite")


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        SummaryStore(tmp_path / "file" / "s.sqlite")


def test_a_store_that_turned_read_only_loses_nothing() -> None:
    with temporary_folder() as folder:
        file = folder / "s.sqlite"
        with SummaryStore(file) as store:
            store.put(call("a"))
        with read_only(folder), pytest.raises(OutputError), SummaryStore(file) as store:
            store.put(call("b"))
        with SummaryStore(file) as store:
            assert store.texts(["a", "b"]) == {"a": "Likes lamps."}


def test_a_full_disk_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    file = tmp_path / "s.sqlite"
    kept = []
    with SummaryStore(file) as store:

        def fill() -> None:
            for number in range(1000):
                store.put(call(str(number), "x" * 1000))
                kept.append(str(number))

        with full_disk(300_000), pytest.raises(OutputError, match="free space"):
            fill()
        assert len(store.texts(kept)) == len(kept)
        store.put(call("after", "there is space again"))
    assert 5 < len(kept) < 1000
    with SummaryStore(file) as store:
        assert set(store.texts([str(number) for number in range(1000)])) == set(kept)
        assert store.texts(["after"])


def test_a_new_store_on_a_full_disk_is_one_sentence_and_can_be_tried_again(tmp_path: Path) -> None:
    with full_disk(0), pytest.raises(OutputError, match="free space"):
        SummaryStore(tmp_path / "s.sqlite")
    with SummaryStore(tmp_path / "s.sqlite") as store:
        store.put(call("a"))
