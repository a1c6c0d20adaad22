from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import pytest
from importing import import_amazon_m2, import_amazon_reviews

from trsr.data.dataset import Dataset
from trsr.errors import DataError

PRODUCTS = '''id,locale,title,price,brand,color,size,model,material,author,desc
B1,UK,"Lamp, small",9.99,Acme,red,,,,,"A lamp
for ""you"""
B1,DE,Lampe,9.99,Acme,rot,,,,,
B2,UK,,0.0,,,,,,,
B3,DE,Tisch,1.0,,,,,,,
'''
SESSIONS = """prev_items,next_item,locale
"['B1' 'B2'
 'B1']",B2,UK
"['B1' 'B3']",B2,UK
['B3'],B3,DE
[],B1,UK
['B1'],,UK
"""


def fields(data: Dataset) -> dict[str, dict[str, str]]:
    return {item_id: dict(item.fields) for item_id, item in data.catalogue().items()}


@pytest.fixture
def m2(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "products_train.csv").write_text(PRODUCTS)
    (folder / "sessions_train.csv").write_text(SESSIONS)
    return folder


def test_a_session_is_a_user_and_ends_with_the_next_item(tmp_path: Path, m2: Path) -> None:
    data = import_amazon_m2(m2, tmp_path / "out", locale="UK", max_rejects=0.5)
    assert [(h.user_id, h.item_ids) for h in data.histories()] == [
        ("session-2", ("B1", "B2", "B1", "B2")),
        ("session-4", ("B1", "B2")),
    ]
    texts = {"title": "Lamp, small", "price": "9.99", "brand": "Acme", "color": "red"}
    assert fields(data)["B1"] == {**texts, "desc": 'A lamp\nfor "you"'}
    assert data.rejects().collect().select("row", "reason", "raw").rows() == [
        (6, "no earlier items", "[],B1,UK"),
        (7, "no next item", "['B1'],,UK"),
        (4, "unknown item", "B3"),
    ]
    assert data.info.counts["rows_of_other_locales"] == 3


def test_another_locale_is_another_dataset(tmp_path: Path, m2: Path) -> None:
    data = import_amazon_m2(m2, tmp_path / "out", locale="DE")
    assert fields(data)["B1"]["title"] == "Lampe"
    assert [h.item_ids for h in data.histories()] == [("B3", "B3")]


def test_a_wrong_locale_and_a_missing_column_are_one_sentence(tmp_path: Path, m2: Path) -> None:
    with pytest.raises(DataError, match="no product of the locale 'JP'"):
        import_amazon_m2(m2, tmp_path / "out", locale="JP")
    (m2 / "sessions_train.csv").write_text("prev_items,locale\n['B1'],UK\n")
    with pytest.raises(DataError, match=r"sessions_train.csv has no column for the next item"):
        import_amazon_m2(m2, tmp_path / "out")


def test_lists_are_read_whole_and_the_marker_of_no_price_is_null(tmp_path: Path, m2: Path) -> None:
    products = "B1,UK,Lamp,40000000.07\nB2,UK,NA,1.5\nB 3,UK,Rug,2\n"
    sessions = "\"['B1' 'B 3']\",B2,UK\n\"['B1' ... 'B2']\",B2,UK\n['B1'],NULL,UK\n"
    (m2 / "products_train.csv").write_text(f"id,locale,title,price\n{products}")
    (m2 / "sessions_train.csv").write_text(f"prev_items,next_item,locale\n{sessions}")
    data = import_amazon_m2(m2, tmp_path / "out", max_rejects=1)
    assert [h.item_ids for h in data.histories()] == [("B1", "B 3", "B2")]
    assert (fields(data)["B1"], fields(data)["B2"]) == ({"title": "Lamp"}, {"price": "1.5"})
    assert data.info.counts["prices_that_say_missing"] == data.info.counts["texts_that_say_missing"] == 1
    assert data.rejects().collect().select("row", "reason").rows() == [
        (3, "the list of items cannot be read"),
        (4, "no next item"),
    ]


PEN = {
    **{"asin": "A1", "title": "Pen", "category": ["Office", "Pens &amp; Ink"], "brand": "Acme"},
    **{"description": ["Blue.", "Fine."], "price": "$1"},
}
META_2018 = [PEN, PEN, {"asin": "A2", "title": "", "category": [], "description": []}]
REVIEWS_2018 = [
    {"reviewerID": "U", "asin": "A2", "overall": 5.0, "unixReviewTime": 1400000200, "reviewText": "fine"},
    {"reviewerID": "U", "asin": "A1", "overall": 2.0, "unixReviewTime": 1400000100},
    {"reviewerID": "V", "asin": "A9", "overall": 5.0, "unixReviewTime": 1400000100},
]
META_2023 = [
    {
        **{"parent_asin": "P1", "title": "Pen", "store": "Acme", "categories": ["Office"], "price": 1.5},
        **{"features": ["thin", "light"], "details": {"x": "y"}},
    }
]
REVIEWS_2023 = [
    {"user_id": "U", "asin": "A1", "parent_asin": "P1", "rating": 4.0, "timestamp": 1573560001000}
]


def lines(records: Sequence[Mapping[str, object]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "meta_Office.json.gz").write_bytes(gzip.compress(lines(META_2018)))
    (folder / "Office_5.json.gz").write_bytes(gzip.compress(lines(REVIEWS_2018)))
    return folder


def test_the_files_of_2018_are_read(tmp_path: Path, reviews: Path) -> None:
    data = import_amazon_reviews(reviews, tmp_path / "out")
    assert [(h.user_id, h.item_ids) for h in data.histories()] == [("U", ("A1", "A2"))]
    texts = {"title": "Pen", "brand": "Acme", "categories": "Office|Pens &amp; Ink", "price": "$1"}
    assert fields(data)["A1"] == {**texts, "description": "Blue. Fine."}
    assert data.rejects_by_reason() == {"Office_5.json.gz: unknown item": 1}
    assert (data.info.counts["repeated_items"], data.info.counts["items_without_text"]) == (1, 1)


def test_the_files_of_2023_are_read(tmp_path: Path) -> None:
    (tmp_path / "meta_Office.jsonl").write_bytes(lines(META_2023))
    (tmp_path / "Office.jsonl").write_bytes(lines(REVIEWS_2023))
    data = import_amazon_reviews(tmp_path, tmp_path / "out")
    texts = {"title": "Pen", "brand": "Acme", "categories": "Office", "price": "1.5"}
    assert fields(data)["P1"] == {**texts, "features": "thin light"}
    assert data.events().collect()["timestamp"][0].year == 2019


def test_lower_ratings_are_left_out_and_counted(tmp_path: Path, reviews: Path) -> None:
    data = import_amazon_reviews(reviews, tmp_path / "out", min_rating=3)
    assert [h.item_ids for h in data.histories()] == [("A2",)]
    assert data.info.counts["ratings_below_threshold"] == 1


def test_a_missing_key_and_a_choice_of_files_are_one_sentence(tmp_path: Path, reviews: Path) -> None:
    (reviews / "Extra.jsonl").write_bytes(lines([{"reviewerID": "U", "asin": "A1"}]))
    with pytest.raises(DataError, match=r"one reviews file .found Extra.jsonl, Office_5.json.gz"):
        import_amazon_reviews(reviews, tmp_path / "out")
    with pytest.raises(DataError, match=r"Extra.jsonl has no column for the time"):
        import_amazon_reviews(reviews, tmp_path / "out", reviews="Extra.jsonl")
    with pytest.raises(DataError, match="There is no folder"):
        import_amazon_reviews(tmp_path / "nowhere", tmp_path / "out")


def test_keys_are_found_in_any_case_and_all_of_them_are_named(tmp_path: Path, reviews: Path) -> None:
    row = {"ReviewerId": "U", "ASIN": "A1", "Sort_Timestamp": 1_573_560_001_000}
    (reviews / "R.jsonl").write_bytes(lines([row]))
    data = import_amazon_reviews(reviews, tmp_path / "out", reviews="R.jsonl")
    assert [(h.user_id, h.item_ids) for h in data.histories()] == [("U", ("A1",))]
    (reviews / "S.jsonl").write_bytes(lines([{"who": "U", "asin": "A1", "when": 1}]))
    words = r"no column for the user id \(.*\) and none for the time \(.*; found asin, who, when"
    with pytest.raises(DataError, match=words):
        import_amazon_reviews(reviews, tmp_path / "none", reviews="S.jsonl")


def test_markers_of_missing_values_are_null(tmp_path: Path, reviews: Path) -> None:
    script = "var aPageStart = (new Date()).getTime(); var ue_t0=+new Date();"
    meta: list[dict[str, object]] = [
        {"parent_asin": "P1", "title": "Lamp", "price": "None", "store": "None", "features": ["None", "NA"]},
        {"parent_asin": "P2", "title": script, "price": 3.5},
        {"parent_asin": "None", "title": "x"},
    ]
    (reviews / "raw_meta_X.jsonl").write_bytes(lines(meta))
    (reviews / "X.jsonl").write_bytes(lines(REVIEWS_2023))
    files = {"metadata": "raw_meta_X.jsonl", "reviews": "X.jsonl"}
    data = import_amazon_reviews(reviews, tmp_path / "out", max_rejects=1, **files)
    assert fields(data) == {"P1": {"title": "Lamp"}, "P2": {"price": "3.5"}}
    assert data.info.counts["texts_that_say_missing"] == 2
    assert data.info.counts["titles_that_were_scripts"] == 1
    assert data.rejects_by_reason() == {"raw_meta_X.jsonl: no item id": 1}


def test_ratings_that_are_no_number_are_refused(tmp_path: Path, reviews: Path) -> None:
    ratings: list[object] = [5, "3,5", "2 stars", True, [5, 1], None, {"stars": 5}]
    rows: list[dict[str, object]] = [
        {"reviewerID": f"U{n}", "asin": "A1", "overall": r, "unixReviewTime": 1_573_560_001}
        for n, r in enumerate(ratings)
    ]
    (reviews / "R.jsonl").write_bytes(lines(rows))
    data = import_amazon_reviews(reviews, tmp_path / "out", reviews="R.jsonl", min_rating=4, max_rejects=1)
    assert [h.user_id for h in data.histories()] == ["U0", "U5"]
    assert data.rejects_by_reason() == {"R.jsonl: rating cannot be read": 4}


def test_the_python_lines_of_2014_and_the_tables_of_2023_are_read(tmp_path: Path) -> None:
    meta = "{'asin': 'A1', 'title': \"Pen's\", 'categories': [['Office', 'Pens']]}\n"
    (tmp_path / "meta_X.json").write_text(meta)
    (tmp_path / "X.json").write_bytes(lines(REVIEWS_2018[1:2]))
    data = import_amazon_reviews(tmp_path, tmp_path / "o1")
    assert fields(data)["A1"] == {"title": "Pen's", "categories": "Office|Pens"}
    new = tmp_path / "new"
    new.mkdir()
    pl.DataFrame(META_2023).write_parquet(new / "meta_X.parquet")
    (new / "X.csv").write_text("user_id,parent_asin,rating,timestamp\nU,P1,5.0,1573560001000\n")
    data = import_amazon_reviews(new, tmp_path / "o2", min_rating=4)
    assert [h.item_ids for h in data.histories()] == [("P1",)]
