"""Stores keep one contract, in a file and in a database; rows move between them and Parquet unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from trsr.errors import DataError, OutputError
from trsr.summarize.store import PAGE, Row
from trsr.summarize.stores import SCHEMA, open_store, read_rows, write_rows
from trsr.testing.contracts import StoreContract, call, failed, row


class TestSqlite(StoreContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        return tmp_path / "deep" / "s.sqlite"


class TestPostgres(StoreContract):
    @pytest.fixture
    def place(self, postgres_url: str) -> str:
        return postgres_url


def test_rows_move_to_postgres_and_back_unchanged(postgres_url: str, tmp_path: Path) -> None:
    with open_store(tmp_path / "a.sqlite") as first, open_store(postgres_url) as shared:
        first.put(call("a", "Likes “lamps”."))
        first.put(failed("b"))
        first.add(row(f"{n:05}", seconds=n / 3, created_at=n / 7) for n in range(2 * PAGE))
        rows = list(first.rows())
        assert shared.add(first.rows()) == len(rows)
        with open_store(tmp_path / "b.sqlite") as second:
            assert second.add(shared.rows()) == len(rows)
            assert list(second.rows()) == list(shared.rows()) == rows


def test_an_exported_file_has_item_ids_as_lists(tmp_path: Path) -> None:
    write_rows(tmp_path / "s.parquet", [row("a", item_ids='["i1", "ü"]')])
    table = pl.read_parquet(tmp_path / "s.parquet")
    assert table.schema == SCHEMA
    assert table["item_ids"].to_list() == [["i1", "ü"]]
    assert [path.name for path in tmp_path.iterdir()] == ["s.parquet"]


def test_an_empty_store_is_an_empty_file_with_its_columns(tmp_path: Path) -> None:
    assert write_rows(tmp_path / "s.parquet", []) == 0
    assert pl.read_parquet_schema(tmp_path / "s.parquet") == dict(SCHEMA)
    assert list(read_rows(tmp_path / "s.parquet")) == []


def test_a_file_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"has the columns x, expected those of an exported store \(key, "):
        list(read_rows(tmp_path / "x.parquet"))
    (tmp_path / "y.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"y\.parquet cannot be read as Parquet \(.*\); name another file"):
        list(read_rows(tmp_path / "y.parquet"))
    with pytest.raises(DataError, match=r"z\.parquet cannot be read"):
        list(read_rows(tmp_path / "z.parquet"))


def test_a_row_with_neither_text_nor_error_is_refused(tmp_path: Path) -> None:
    values = row("a")._replace(text=None, item_ids=json.loads('["i"]'))
    pl.DataFrame([values], schema=SCHEMA, orient="row").write_parquet(tmp_path / "s.parquet")
    with pytest.raises(DataError, match="key a: expected a text or an error"):
        list(read_rows(tmp_path / "s.parquet"))


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_rows(tmp_path / "file" / "s.parquet", [row("a")])


def test_a_broken_off_export_leaves_the_old_file(tmp_path: Path) -> None:
    def broken() -> object:
        yield row("b")
        raise OutputError("gone")

    write_rows(tmp_path / "s.parquet", [row("a")])
    with pytest.raises(OutputError, match="gone"):
        write_rows(tmp_path / "s.parquet", broken())  # type: ignore[arg-type]
    assert list(read_rows(tmp_path / "s.parquet")) == [row("a")]
    assert len(list(tmp_path.iterdir())) == 1


def test_removed_rows_give_their_space_back(tmp_path: Path) -> None:
    from trsr.summarize.store import Choice

    with open_store(tmp_path / "s.sqlite") as store:
        store.add(row(f"{n:05}", "x" * 500) for n in range(2000))
        before = store.n_bytes()
        store.remove(Choice(model="fake@1"))
        assert store.n_bytes() < before / 10
    assert (tmp_path / "s.sqlite").stat().st_size < before / 10


def test_columns_are_the_same_everywhere() -> None:
    from trsr.summarize.postgres_tables import SUMMARIES

    assert tuple(SCHEMA) == Row._fields == tuple(SUMMARIES.c.keys())
