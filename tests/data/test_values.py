from __future__ import annotations

import polars as pl
import pytest

from trsr.data import values


def test_empty_texts_and_nan_are_null_and_lists_are_joined() -> None:
    frame = pl.DataFrame(
        {
            "title": [" a b ", "", "  ", "nan", "NaN", None, "Nan"],
            "categories": [["x", " y, z "], [""], [], None, [None, "x"], ["nan"], ["a", "b"]],
            "description": [["x", "y"], [], None, ["", " "], [None], ["z"], ["z"]],
        }
    )
    clean = frame.select(values.clean_texts(frame, ["title", "categories", "description", "missing"]))
    assert clean["title"].to_list() == ["a b", None, None, None, None, None, "Nan"]
    assert clean["categories"].to_list() == ["x|y, z", None, None, None, "x", None, "a|b"]
    assert clean["description"].to_list() == ["x y", None, None, None, None, "z", "z"]
    assert clean["missing"].to_list() == [None] * 7


@pytest.mark.parametrize("marker", values.MISSING)
def test_a_marker_alone_is_missing_in_ids_and_texts(marker: str) -> None:
    frame = pl.DataFrame({"id": [f" {marker} ", "NAT", f"x{marker}"], "parts": [[marker, "a"], [], ["b"]]})
    assert values.clean_ids(frame, "id")[0]["id"].to_list() == [None, "NAT", f"x{marker}"]
    texts = frame.select(values.clean_texts(frame, ["id", "parts"]))
    assert texts["id"].to_list() == [None, "NAT", f"x{marker}"]
    assert texts["parts"].to_list() == ["a", None, "b"]


def test_ids_written_as_floats_are_whole_numbers_and_counted() -> None:
    ids = ["862.0", "862", "007", "007.0", "-3.00", "1.50", "v1.0", "10", "\ufeffN1 ", "0.0"]
    frame, n_floats = values.clean_ids(pl.DataFrame({"id": ids}), "id")
    assert frame["id"].to_list() == ["862", "862", "007", "007.0", "-3", "1.50", "v1.0", "10", "N1", "0"]
    assert n_floats == 3


def test_ratings_are_finite_numbers_with_a_point_or_a_comma() -> None:
    ratings = {"3,5": 3.5, "4": 4.0, "4.50": 4.5, "-1": -1.0, "1e1": 10.0}
    wrong = ["2 stars", "True", "inf", "nan", "1,2,3", "4/5"]
    frame = pl.DataFrame({"r": [*ratings, *wrong]}).select(values.parse_rating(pl.col("r")))
    assert frame.to_series().to_list() == [*ratings.values(), *[None] * len(wrong)]


@pytest.mark.parametrize(
    ("cell", "parts"),
    [
        ("['A' 'B'\n 'C']", ["A", "B", "C"]),
        ("[1, 2]", ["1", "2"]),
        ("[1 2]", ["1", "2"]),
        ('["red shoe", "shoe"]', ["red shoe", "shoe"]),
        ("""["it's", 'b']""", ["it's", "b"]),
        (r"""["a \"b\"", "c"]""", ['a "b"', "c"]),
        ("('a',)", ["a"]),
        ('{x,"y z"}', ["x", "y z"]),
        ("'a', 'b c'", ["a", "b c"]),
        ("[[1, 2], [3]]", ["1", "2", "3"]),
        ("['a', None]", ["a", "None"]),
        ("[]", []),
        ("null", []),
        (None, []),
        ("N1 N2", ["N1", "N2"]),
        ("[red shoe, shoe]", None),
        ("['a''b']", None),
        ("['a' 'b' ... 'y' 'z']", None),
        ("['a', 'b'", None),
        ("[a]]", None),
        ('[{"a": 1}]', None),
        ("[", None),
    ],
)
def test_a_list_cell_is_read_whole_or_refused(cell: str | None, parts: list[str] | None) -> None:
    assert values.read_lists(pl.Series([cell], dtype=pl.String)).to_list() == [parts]


def test_lists_without_brackets_are_divided_by_the_sign_of_their_column() -> None:
    column = pl.Series(["a b|c", "d", "e, f", ""])
    assert values.separator_of(column) == "|"
    assert values.read_lists(column, "|").to_list() == [["a b", "c"], ["d"], ["e, f"], []]
    assert values.separator_of(pl.Series(["a, b", "['x|y']"])) == ","
    assert values.separator_of(pl.Series(["a b"])) is None
    numbers = pl.Series(["1573560001 1573560002", ""])
    assert values.separator_of(numbers, times=True) is None
    assert values.separator_of(pl.Series(["2019-11-12 12:00"]), times=True) == ","
    numpy = "[1573560001 1573560002\n 1.5e9]"
    assert values.parse_list(numpy, times=True) == ["1573560001", "1573560002", "1.5e9"]
    assert values.parse_list("[1573560001 ... 1573560002]", times=True) is None
    times = pl.Series(["[2019-11-12 12:00, 1573560001]"])
    assert values.read_lists(times, ",", times=True).to_list() == [["2019-11-12 12:00", "1573560001"]]


def test_texts_that_are_lists_are_joined_and_counted() -> None:
    frame = pl.DataFrame(
        {"genres": ["['Drama', 'War']", "[REC]", "[]", None], "title": ["a", "b ['x']", "['c' 'd']", "[1]"]}
    )
    joined, n_lists = values.join_written_lists(frame, ["genres", "title", "absent"])
    assert joined["genres"].to_list() == ["Drama|War", "[REC]", "", None]
    assert joined["title"].to_list() == ["a", "b ['x']", "c d", "[1]"]
    assert n_lists == 3


GOOD_IDS = ("ann", "team/ann smith@x.org", "Zoë\u00a0ü 李", "u" * values.MAX_ID)
BAD_IDS = (
    *("", "u" * (values.MAX_ID + 1), " ann", "ann\u00a0", "\ufeffann", ".", "..", "a\tb", "a\x00b", "a\x85b"),
    *("a\u2028b", "a\u202eb", "a\u200fb", "a\ufffdb"),
)


@pytest.mark.parametrize("text", [*GOOD_IDS, *BAD_IDS])
def test_single_ids_and_columns_follow_one_rule(text: str) -> None:
    allowed = text in GOOD_IDS
    assert (values.id_fault(text) is None) == allowed
    assert pl.DataFrame({"id": [text]}).select(values.is_id("id")).item() == allowed


def test_half_of_a_surrogate_pair_is_no_id() -> None:
    assert "U+D800" in str(values.id_fault("a\ud800"))
