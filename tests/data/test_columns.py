from __future__ import annotations

import pytest

from trsr.data import columns
from trsr.errors import DataError


def test_columns_are_found_by_usual_names_in_any_case_and_in_order_of_preference() -> None:
    assert columns.find_column(["ID", "Asin"], columns.ITEM_ID) == "Asin"
    assert columns.find_column(["x"], columns.ITEM_ID) is None
    assert columns.find_column(["id", "x"], columns.ITEM_ID, "x") == "x"
    assert columns.find_column(["id"], columns.ITEM_ID, "x") is None


def test_missing_column_names_the_usual_and_the_found_columns() -> None:
    with pytest.raises(
        DataError,
        match=r"news.csv has no column for the user id \(looked for user_id.*found a, b\); check that",
    ):
        columns.require_columns("news.csv", ["\x1frow", "a", "b"], columns.Sought("user id", columns.USER_ID))
    with pytest.raises(DataError, match=r"looked for 'who'; found user_id\); name one with --user-id\.$"):
        columns.require_columns(
            "news.csv", ["user_id"], columns.Sought("user id", columns.USER_ID, "who", "--user-id")
        )


def test_text_fields_are_all_but_ids_and_addresses() -> None:
    found = ["item_id", "title", "tmdb_id", "url", "imageURL", "movieId", "title_entities", "idea", "brand"]
    found += ["\x1frow", "Unnamed: 0", "column_3"]
    assert columns.guess_text_fields(found, "item_id") == ["title", "idea", "brand"]
    assert columns.guess_category_fields(["title", "brand", "Genres"]) == ["brand", "Genres"]


def test_a_name_in_several_cases_is_refused_unless_one_is_exact() -> None:
    assert columns.find_column(["USER_ID", "user_id"], columns.USER_ID) == "user_id"
    with pytest.raises(DataError, match="'USER_ID' and 'User_Id' differ in case only"):
        columns.find_column(["USER_ID", "User_Id"], columns.USER_ID)


def test_all_missing_columns_are_named_at_once() -> None:
    sought = [
        columns.Sought("user id", ("user_id",), option="--user-id"),
        columns.Sought("item id", ("item_id",), "sku", "--item-id"),
        columns.Sought("title", ("title",)),
    ]
    with pytest.raises(
        DataError,
        match=r"no column for the user id \(looked for user_id\) and none for the item id "
        r"\(looked for 'sku'\); found title, extra; name them with --user-id and --item-id\.",
    ):
        columns.require_columns("e.csv", ["title"], *sought, unread=["title", "extra"])


def test_column_names_are_made_harmless() -> None:
    names = ["", "*", "^a.*$", "\ufeffid", "\x1frow", " title ", "__hash__"]
    assert columns.plain_names(names) == ["column_1", "column_2", "a.*", "id", "row", "title", "__hash__"]
