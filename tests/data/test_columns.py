from __future__ import annotations

import polars as pl
import pytest

from trsr.data import columns
from trsr.errors import DataError


def test_columns_are_found_by_usual_names_in_any_case_and_in_order_of_preference() -> None:
    assert columns.find_column(["ID", "Asin"], columns.ITEM_ID) == "Asin"
    assert columns.find_column(["x"], columns.ITEM_ID) is None
    assert columns.find_column(["id", "x"], columns.ITEM_ID, "x") == "x"
    assert columns.find_column(["id"], columns.ITEM_ID, "x") is None


def test_a_missing_column_says_what_was_sought_and_what_is_there() -> None:
    with pytest.raises(
        DataError,
        match=r"news.csv has no column for the user id \(looked for user_id.*found a, b\); check that",
    ):
        columns.require_column("news.csv", ["__row__", "a", "b"], "user id", columns.USER_ID)
    with pytest.raises(DataError, match=r"looked for 'who'; found user_id\); name one with --user-id\.$"):
        columns.require_column("news.csv", ["user_id"], "user id", columns.USER_ID, "who", "--user-id")


def test_text_fields_are_all_but_ids_and_addresses() -> None:
    found = [
        "item_id",
        "title",
        "tmdb_id",
        "url",
        "imageURL",
        "movieId",
        "title_entities",
        "idea",
        "brand",
        "__row__",
    ]
    assert columns.guess_text_fields(found, ["item_id"]) == ["title", "idea", "brand"]
    assert columns.guess_category_fields(["title", "brand", "Genres"]) == ["brand", "Genres"]


def test_empty_texts_and_nan_are_null_and_lists_are_joined() -> None:
    frame = pl.DataFrame(
        {
            "title": [" a b ", "", "  ", "nan", "NaN", None, "Nan"],
            "categories": [["x", " y, z "], [""], [], None, [None, "x"], ["nan"], ["a", "b"]],
            "description": [["x", "y"], [], None, ["", " "], [None], ["z"], ["z"]],
        }
    )
    clean = frame.select(columns.clean_texts(frame, ["title", "categories", "description", "missing"]))
    assert clean["title"].to_list() == ["a b", None, None, None, None, None, "Nan"]
    assert clean["categories"].to_list() == ["x|y, z", None, None, None, "x", None, "a|b"]
    assert clean["description"].to_list() == ["x y", None, None, None, None, "z", "z"]
    assert clean["missing"].to_list() == [None] * 7


def test_lists_written_as_text_are_taken_apart() -> None:
    frame = pl.DataFrame({"l": ["['A' 'B'\n 'C']", "[1, 2]", "N1 N2", "a|b", "", None]})
    assert frame.select(columns.split_list("l", pl.String())).to_series().to_list() == [
        ["A", "B", "C"],
        ["1", "2"],
        ["N1", "N2"],
        ["a", "b"],
        [],
        None,
    ]
    times = pl.DataFrame({"t": ["[2019-11-12 12:00, 1573560001]"]})
    assert times.select(columns.split_times("t", pl.String())).item().to_list() == [
        "2019-11-12 12:00",
        "1573560001",
    ]
