from __future__ import annotations

from pathlib import Path

import pytest
from importing import import_amazon_m2

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


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "products_train.csv").write_text(PRODUCTS)
    (folder / "sessions_train.csv").write_text(SESSIONS)
    return folder


def test_a_session_is_a_user_and_ends_with_the_next_item(tmp_path: Path, source: Path) -> None:
    data = import_amazon_m2(source, tmp_path / "out", locale="UK", max_rejects=0.5)
    assert [(h.user_id, h.item_ids) for h in data.histories()] == [
        ("session-2", ("B1", "B2", "B1", "B2")),
        ("session-4", ("B1", "B2")),
    ]
    assert dict(data.catalogue()["B1"].fields) == {
        "title": "Lamp, small",
        "price": "9.99",
        "brand": "Acme",
        "color": "red",
        "desc": 'A lamp\nfor "you"',
    }
    assert data.rejects().collect().select("row", "reason", "raw").rows() == [
        (6, "no earlier items", "[],B1,UK"),
        (7, "no next item", "['B1'],,UK"),
        (4, "unknown item", "B3"),
    ]
    assert data.info.counts["rows_of_other_locales"] == 3


def test_another_locale_is_another_dataset(tmp_path: Path, source: Path) -> None:
    data = import_amazon_m2(source, tmp_path / "out", locale="DE")
    assert data.catalogue()["B1"].fields["title"] == "Lampe"
    assert [h.item_ids for h in data.histories()] == [("B3", "B3")]


def test_a_wrong_locale_and_a_missing_column_are_one_sentence(tmp_path: Path, source: Path) -> None:
    with pytest.raises(DataError, match="no product of the locale 'JP'"):
        import_amazon_m2(source, tmp_path / "out", locale="JP")
    (source / "sessions_train.csv").write_text("prev_items,locale\n['B1'],UK\n")
    with pytest.raises(DataError, match=r"sessions_train.csv has no column for the next item"):
        import_amazon_m2(source, tmp_path / "out")


def test_lists_are_read_whole_and_a_price_that_says_none_is_none(tmp_path: Path, source: Path) -> None:
    (source / "products_train.csv").write_text(
        "id,locale,title,price\nB1,UK,Lamp,40000000.07\nB2,UK,NA,1.5\nB 3,UK,Rug,2\n"
    )
    (source / "sessions_train.csv").write_text(
        "prev_items,next_item,locale\n\"['B1' 'B 3']\",B2,UK\n\"['B1' ... 'B2']\",B2,UK\n['B1'],NULL,UK\n"
    )
    data = import_amazon_m2(source, tmp_path / "out", max_rejects=1)
    assert [h.item_ids for h in data.histories()] == [("B1", "B 3", "B2")]
    assert dict(data.catalogue()["B1"].fields) == {"title": "Lamp"}
    assert dict(data.catalogue()["B2"].fields) == {"price": "1.5"}
    assert data.info.counts["prices_that_say_missing"] == data.info.counts["texts_that_say_missing"] == 1
    assert data.rejects().collect().select("row", "reason").rows() == [
        (3, "the list of items cannot be read"),
        (4, "no next item"),
    ]
