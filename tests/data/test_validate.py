from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from trsr.data import validate
from trsr.data.dataset import write_dataset
from trsr.data.schema import EVENTS, IMPRESSIONS
from trsr.data.validate import validate_dataset
from trsr.errors import DataError

DAY = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
ROWS = [("u", "a", 0, DAY[0]), ("u", "b", 1, DAY[1]), ("v", "a", 0, None)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shown = [("1", "u", DAY[2], ["a"], ["a", "x"], [True, False])]
    return write_dataset(
        tmp_path / "d",
        name="shop",
        domain="products",
        text_fields=["title"],
        category_fields=["title"],
        items=pl.DataFrame({"item_id": ["a", "b"], "title": ["Lamp", None]}),
        events=pl.DataFrame(ROWS, schema=EVENTS, orient="row"),
        impressions=pl.DataFrame(shown, schema=IMPRESSIONS, orient="row"),
        source="a test",
    ).path


def problems(folder: Path) -> list[str]:
    """All but the two that any change brings: another sha256, another number of rows."""
    found = map(str, validate_dataset(folder))
    return [line for line in found if "sha256" not in line and "rows, dataset.json" not in line]


def test_a_whole_dataset_has_no_problem(folder: Path) -> None:
    assert list(validate_dataset(folder)) == []


def test_a_changed_file_is_noticed(folder: Path) -> None:
    file = folder / "events.parquet"
    pl.read_parquet(file).head(2).write_parquet(file)
    assert [str(problem) for problem in validate_dataset(folder)] == [
        "events.parquet: dataset.json has another sha256 for it: it was changed after the import",
        "events.parquet: it has 2 rows, dataset.json says 3",
    ]


@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
def test_each_wrong_event_is_named_with_its_row(
    folder: Path, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "_ROWS", rows_at_once)
    rows: list[tuple[object, ...]] = [("u", "a", 0, DAY[1])]
    rows += [("u", "z", 1, DAY[0]), ("u", "b", 3, DAY[2]), ("w", "a", 0, DAY[2])]
    rows += [("w", "a", 1, None), ("w", "a", 2, DAY[0]), ("v", None, 0, None), ("", "a", 0, None)]
    pl.DataFrame(rows, schema=EVENTS, orient="row").write_parquet(folder / "events.parquet")
    assert sorted(problems(folder)) == [
        "events.parquet, row 2: the item is not in items.parquet",
        "events.parquet, row 2: the time is earlier than the previous event's",
        "events.parquet, row 3: the position does not follow the one before (0, 1, 2, ... per user)",
        "events.parquet, row 7: the item is not in items.parquet",
        "events.parquet, row 7: the users are not in order",
        "events.parquet, row 8: the user id is empty",
        "events.parquet, row 8: the users are not in order",
    ]


def test_wrong_items_and_impressions_are_named_with_their_row(folder: Path) -> None:
    items = pl.DataFrame({"item_id": ["a", "b", "a", ""], "title": ["x"] * 4})
    items.write_parquet(folder / "items.parquet")
    shown: list[tuple[object, ...]] = [
        ("1", "u", None, [], ["a"], [True, False]),
        ("1", "", None, [], [], []),
        (None, "u", None, [], ["a"], [True]),
        ("4", "u", None, [], ["a", None], [True, False]),
        ("5", "u", None, [], ["a"], [None]),
    ]
    table = pl.DataFrame(shown, schema=IMPRESSIONS, orient="row")
    table.write_parquet(folder / "impressions.parquet")
    assert problems(folder) == [
        "items.parquet, row 4: the item id is empty",
        "items.parquet, row 3: the item id was seen before",
        "impressions.parquet, row 3: the impression id is empty",
        "impressions.parquet, row 2: the user id is empty",
        "impressions.parquet, row 2: there are no candidates",
        "impressions.parquet, row 4: a candidate or its click is empty",
        "impressions.parquet, row 5: a candidate or its click is empty",
        "impressions.parquet, row 1: there are not as many clicks as candidates",
        "impressions.parquet, row 2: the impression id was seen before",
    ]


def test_files_that_cannot_be_used_are_named(folder: Path) -> None:
    pl.DataFrame({"item_id": [1]}).write_parquet(folder / "items.parquet")
    (folder / "events.parquet").write_bytes(b"no parquet")
    (folder / "impressions.parquet").unlink()
    found = problems(folder)
    assert found[:2] == [
        "items.parquet: cannot be used: item_id has the type Int64, expected String",
        "items.parquet: cannot be used: it lacks the column title",
    ]
    assert found[2].startswith("events.parquet: cannot be used: it is no parquet file")
    assert found[3:] == ["impressions.parquet: cannot be used: the file is missing"]


def test_a_wrong_description_is_a_problem_and_a_missing_folder_an_error(folder: Path, tmp_path: Path) -> None:
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(info | {"category_fields": ["brand"]}))
    assert problems(folder) == ["dataset.json: the category field 'brand' is not among the text fields"]
    (folder / "dataset.json").write_text("{")
    assert len(problems(folder)) == 1
    with pytest.raises(DataError, match="There is no dataset folder"):
        problems(tmp_path / "nowhere")


def test_a_file_that_may_not_be_read_is_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_file: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(validate, "file_sha256", refuse)
    assert "events.parquet: cannot be used: Permission denied" in problems(folder)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert problems(folder) == [
        f"dataset.json: {folder}/dataset.json cannot be read: Permission denied; check who may read it."
    ]
