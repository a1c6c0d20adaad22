"""A store in a file keeps every text that was paid for, whatever happens to the disk or the file."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from helpers import full_disk, read_only, stored_call, temporary_folder

from trsr import storage
from trsr.errors import OutputError, StoreError
from trsr.summarize import store as store_module
from trsr.summarize.store import MIGRATIONS, RowFilter, SqliteStore, open_store

FIRST_LAYOUT = """
    CREATE TABLE summaries (
        key TEXT PRIMARY KEY, text TEXT, error TEXT, model TEXT NOT NULL, template_hash TEXT NOT NULL,
        item_ids TEXT NOT NULL, n_prompt_tokens INTEGER NOT NULL, n_generated_tokens INTEGER NOT NULL,
        seconds REAL NOT NULL, n_attempts INTEGER NOT NULL DEFAULT 1, created_at REAL NOT NULL,
        CHECK ((text IS NULL) <> (error IS NULL))
    ) WITHOUT ROWID;
    PRAGMA application_id = 1953657714;
    PRAGMA user_version = 1;
    INSERT INTO summaries VALUES
        ('a', 'Likes lamps.', NULL, 'fake@1', 'hash', '["i1"]', 10, 5, 0.25, 1, 1.7e9)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store with one text."""
    with open_store(tmp_path / "s.sqlite") as store:
        store.put(stored_call("a"))
    return tmp_path / "s.sqlite"


def columns(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as db:
        return [name for _, name, *_ in db.execute("PRAGMA table_info(summaries)")]


def test_a_store_of_the_first_layout_keeps_its_rows(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "s.sqlite")) as db:
        db.executescript(FIRST_LAYOUT)
    with open_store(tmp_path / "s.sqlite") as store:
        store.put(stored_call("b"))
        first, second = store.rows()
    assert first == stored_call("a", item_ids=("i1",), created_at=1.7e9)
    assert second.key == "b"


def test_a_store_that_another_process_keeps_busy_is_one_sentence(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.01)
    with open_store(file) as store, closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutputError, match=r"in use by another process \(.*locked\); wait for it, then"):
            store.put(stored_call("b"))
        other.execute("ROLLBACK")
        store.put(stored_call("b"))
        assert store.texts(["b"])


def test_an_older_store_is_brought_up_to_date_and_a_newer_one_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = (*MIGRATIONS, "ALTER TABLE summaries ADD COLUMN note TEXT NOT NULL DEFAULT 'none'")
    monkeypatch.setattr(store_module, "MIGRATIONS", newer)
    with open_store(file) as store:
        assert store.texts(["a"]) == {"a": "Likes lamps."}
    monkeypatch.undo()
    with pytest.raises(StoreError, match="version 2, this trsr knows 1; update trsr"):
        open_store(file)
    assert columns(file)[-1] == "note"


def test_a_migration_that_fails_leaves_the_store_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [f"ALTER TABLE {name} ADD COLUMN note TEXT" for name in ("summaries", "nothing")]
    monkeypatch.setattr(store_module, "MIGRATIONS", (*MIGRATIONS, *steps))
    with pytest.raises(OutputError):
        open_store(file)
    monkeypatch.undo()
    assert "note" not in columns(file)
    with open_store(file) as store:
        assert store.texts(["a"])


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    notes, other = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    notes.write_text("Dear diary, " * 100)
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE accounts (name TEXT)")
    for file, message in [
        (notes, r"notes\.txt is not a summary store .*; name another file"),
        (other, "is a database of another program; name another file"),
    ]:
        before = file.read_bytes()
        with pytest.raises(StoreError, match=message):
            open_store(file)
        assert file.read_bytes() == before


def test_a_damaged_store_is_refused(file: Path) -> None:
    with open_store(file) as store:
        store.put_all([stored_call(str(number), "x" * 100) for number in range(200)])
    damaged = bytearray(file.read_bytes())
    damaged[4096:] = b"\xff" * len(damaged[4096:])
    file.write_bytes(damaged)
    with open_store(file) as store, pytest.raises(StoreError, match=r"summary store .* is damaged"):
        store.texts(["1", "150"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s.sqlite", r"cannot be written \(.*\); .*writable folder"),
        ("new/s.sqlite", r"The folder .*new cannot be written \(Permission denied\)"),
    ],
)
def test_a_new_store_in_a_read_only_folder_is_one_sentence(name: str, message: str) -> None:
    with temporary_folder() as folder, read_only(folder), pytest.raises(OutputError, match=message):
        open_store(folder / name)


def test_a_file_in_the_place_of_the_folder_is_one_sentence(file: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        open_store(file / "s.sqlite")


def test_a_store_that_turned_read_only_loses_nothing() -> None:
    with temporary_folder() as folder:
        file = folder / "s.sqlite"
        with open_store(file) as store:
            store.put(stored_call("a"))
        with read_only(folder), pytest.raises(OutputError), open_store(file) as store:
            store.put(stored_call("b"))
        with open_store(file) as store:
            assert store.texts(["a", "b"]) == {"a": "Likes lamps."}


@pytest.mark.parametrize("n_together", [1, 7])
def test_a_full_disk_loses_nothing_that_was_kept(tmp_path: Path, n_together: int) -> None:
    file = tmp_path / "s.sqlite"
    kept = []
    with open_store(file) as store:

        def fill() -> None:
            for start in range(0, 1001, n_together):
                keys = [str(number) for number in range(start, start + n_together)]
                if n_together == 1:
                    store.put(stored_call(keys[0], "x" * 1000))
                else:
                    store.put_all([stored_call(key, "x" * 1000) for key in keys])
                kept.extend(keys)

        with full_disk(300_000), pytest.raises(OutputError, match="free space"):
            fill()
        assert len(store.texts(kept)) == len(kept)
        store.put(stored_call("after", "there is space again"))
    assert 5 < len(kept) < 1000
    with open_store(file) as store:
        assert set(store.texts([str(number) for number in range(1001)])) == set(kept)
        assert store.texts(["after"])


def test_a_new_store_on_a_full_disk_is_one_sentence_and_can_be_tried_again(tmp_path: Path) -> None:
    with full_disk(0), pytest.raises(OutputError, match="free space"):
        open_store(tmp_path / "s.sqlite")
    with open_store(tmp_path / "s.sqlite") as store:
        store.put(stored_call("a"))


def test_removed_rows_give_their_space_back(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "s.sqlite") as store:
        store.add(stored_call(f"{n:05}", "x" * 500) for n in range(2000))
        before = store.n_bytes()
        store.remove(RowFilter(model="fake@1"))
        assert store.n_bytes() < before / 10
    assert store.path.stat().st_size < before / 10
