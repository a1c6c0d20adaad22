from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from trsr.data.amazon_reviews import import_amazon_reviews
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
