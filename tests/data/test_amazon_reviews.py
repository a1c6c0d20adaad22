from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import pytest
from importing import import_amazon_reviews

from trsr.errors import DataError

META_2018 = [
    {
        "asin": "A1",
        "title": "Pen",
        "category": ["Office", "Pens &amp; Ink"],
        "description": ["Blue.", "Fine."],
        "brand": "Acme",
        "price": "$1",
    },
    {
        "asin": "A1",
        "title": "Pen",
        "category": ["Office", "Pens &amp; Ink"],
        "description": ["Blue.", "Fine."],
        "brand": "Acme",
        "price": "$1",
    },
    {"asin": "A2", "title": "", "category": [], "description": []},
]
REVIEWS_2018 = [
    {"reviewerID": "U", "asin": "A2", "overall": 5.0, "unixReviewTime": 1400000200, "reviewText": "fine"},
    {"reviewerID": "U", "asin": "A1", "overall": 2.0, "unixReviewTime": 1400000100},
    {"reviewerID": "V", "asin": "A9", "overall": 5.0, "unixReviewTime": 1400000100},
]
META_2023 = [
    {
        "parent_asin": "P1",
        "title": "Pen",
        "store": "Acme",
        "categories": ["Office"],
        "features": ["thin", "light"],
        "details": {"x": "y"},
        "price": 1.5,
    },
]
REVIEWS_2023 = [
    {"user_id": "U", "asin": "A1", "parent_asin": "P1", "rating": 4.0, "timestamp": 1573560001000}
]


def lines(records: Sequence[Mapping[str, object]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "meta_Office.json.gz").write_bytes(gzip.compress(lines(META_2018)))
    (folder / "Office_5.json.gz").write_bytes(gzip.compress(lines(REVIEWS_2018)))
    return folder


def test_the_files_of_2018_are_read(tmp_path: Path, source: Path) -> None:
    data = import_amazon_reviews(source, tmp_path / "out")
    assert [(h.user_id, h.item_ids) for h in data.histories()] == [("U", ("A1", "A2"))]
    assert dict(data.catalogue()["A1"].fields) == {
        "title": "Pen",
        "brand": "Acme",
        "categories": "Office|Pens &amp; Ink",
        "price": "$1",
        "description": "Blue. Fine.",
    }
    assert data.rejects_by_reason() == {"Office_5.json.gz: unknown item": 1}
    assert (data.info.counts["repeated_items"], data.info.counts["items_without_text"]) == (1, 1)


def test_the_files_of_2023_are_read(tmp_path: Path) -> None:
    (tmp_path / "meta_Office.jsonl").write_bytes(lines(META_2023))
    (tmp_path / "Office.jsonl").write_bytes(lines(REVIEWS_2023))
    data = import_amazon_reviews(tmp_path, tmp_path / "out")
    assert dict(data.catalogue()["P1"].fields) == {
        "title": "Pen",
        "brand": "Acme",
        "categories": "Office",
        "price": "1.5",
        "features": "thin light",
    }
    (history,) = data.histories()
    assert history.timestamps is not None
    assert history.timestamps[0].year == 2019


def test_lower_ratings_are_left_out_and_counted(tmp_path: Path, source: Path) -> None:
    data = import_amazon_reviews(source, tmp_path / "out", min_rating=3)
    assert [h.item_ids for h in data.histories()] == [("A2",)]
    assert data.info.counts["ratings_below_threshold"] == 1


def test_a_missing_key_and_a_choice_of_files_are_one_sentence(tmp_path: Path, source: Path) -> None:
    (source / "Extra.jsonl").write_bytes(lines([{"reviewerID": "U", "asin": "A1"}]))
    with pytest.raises(DataError, match=r"one reviews file .found Extra.jsonl, Office_5.json.gz"):
        import_amazon_reviews(source, tmp_path / "out")
    with pytest.raises(DataError, match=r"Extra.jsonl has no column for the time"):
        import_amazon_reviews(source, tmp_path / "out", reviews="Extra.jsonl")
    with pytest.raises(DataError, match="There is no folder"):
        import_amazon_reviews(tmp_path / "nowhere", tmp_path / "out")


def test_keys_are_found_in_any_case_and_all_of_them_are_named(tmp_path: Path, source: Path) -> None:
    (source / "R.jsonl").write_bytes(
        lines([{"ReviewerId": "U", "ASIN": "A1", "Sort_Timestamp": 1_573_560_001_000}])
    )
    data = import_amazon_reviews(source, tmp_path / "out", reviews="R.jsonl")
    assert [(h.user_id, h.item_ids) for h in data.histories()] == [("U", ("A1",))]
    (source / "S.jsonl").write_bytes(lines([{"who": "U", "asin": "A1", "when": 1}]))
    with pytest.raises(
        DataError, match=r"no column for the user id \(.*\) and none for the time \(.*; found asin, who, when"
    ):
        import_amazon_reviews(source, tmp_path / "none", reviews="S.jsonl")


def test_what_the_files_say_for_missing_is_missing(tmp_path: Path) -> None:
    source = tmp_path / "raw"
    source.mkdir()
    script = "var aPageStart = (new Date()).getTime(); var ue_t0=+new Date();"
    meta: list[dict[str, object]] = [
        {"parent_asin": "P1", "title": "Lamp", "price": "None", "store": "None", "features": ["None", "NA"]},
        {"parent_asin": "P2", "title": script, "price": 3.5},
        {"parent_asin": "None", "title": "x"},
    ]
    (source / "raw_meta_Office.jsonl").write_bytes(lines(meta))
    (source / "Office.jsonl").write_bytes(lines(REVIEWS_2023))
    data = import_amazon_reviews(source, tmp_path / "out", max_rejects=1)
    assert {i: dict(item.fields) for i, item in data.catalogue().items()} == {
        "P1": {"title": "Lamp"},
        "P2": {"price": "3.5"},
    }
    assert data.info.counts["texts_that_say_missing"] == 2
    assert data.info.counts["titles_that_were_scripts"] == 1
    assert data.rejects_by_reason() == {"raw_meta_Office.jsonl: no item id": 1}


def test_ratings_that_are_no_number_are_refused(tmp_path: Path, source: Path) -> None:
    ratings: list[object] = [5, "3,5", "2 stars", True, [5, 1], None, {"stars": 5}]
    rows: list[dict[str, object]] = [
        {"reviewerID": f"U{n}", "asin": "A1", "overall": r, "unixReviewTime": 1_573_560_001}
        for n, r in enumerate(ratings)
    ]
    (source / "R.jsonl").write_bytes(lines(rows))
    data = import_amazon_reviews(source, tmp_path / "out", reviews="R.jsonl", min_rating=4, max_rejects=1)
    assert [h.user_id for h in data.histories()] == ["U0", "U5"]
    assert data.rejects_by_reason() == {"R.jsonl: rating cannot be read": 4}


def test_the_python_lines_of_2014_and_the_tables_of_2023_are_read(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "meta_X.json").write_text(
        "{'asin': 'A1', 'title': \"Pen's\", 'categories': [['Office', 'Pens']]}\n"
    )
    (old / "X.json").write_bytes(lines(REVIEWS_2018[1:2]))
    data = import_amazon_reviews(old, tmp_path / "o1")
    assert dict(data.catalogue()["A1"].fields) == {"title": "Pen's", "categories": "Office|Pens"}
    new.mkdir()
    pl.DataFrame(META_2023).write_parquet(new / "meta_X.parquet")
    (new / "X.csv").write_text("user_id,parent_asin,rating,timestamp\nU,P1,5.0,1573560001000\n")
    data = import_amazon_reviews(new, tmp_path / "o2", min_rating=4)
    assert [h.item_ids for h in data.histories()] == [("P1",)]
