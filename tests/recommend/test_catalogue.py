"""The catalogue takes items while it is read, and what it says of an item is never out of date."""

from __future__ import annotations

import pytest
from serve_parts import FIELDS, ITEMS, catalogue

from trsr.errors import DataError
from trsr.text import verbalize_item
from trsr.types import Item


def test_texts_are_those_that_a_run_makes() -> None:
    text, titles = catalogue().texts(None, 3, None), catalogue().texts(("title",), None, None)
    for item_id, item in ITEMS.items():
        assert text(item_id) == text(item_id) == verbalize_item(item, max_field_tokens=3)
        assert titles(item_id) == f"Title: {item.fields['title']}"
    with pytest.raises(DataError, match="'nowhere' is not in the catalogue"):
        text("nowhere")


def test_texts_follow_changed_items_whose_fields_are_in_order() -> None:
    items = catalogue()
    text = items.texts(None, None, None)
    assert text("i1").startswith("Category: paper")
    items.put(
        [Item("i1", {"brand": "Acme", "title": "spade", "category": ""}), Item("new", {"title": "hat"})]
    )
    assert text("i1") == "Title: spade; Brand: Acme"
    assert items.items["i1"].fields == {"title": "spade", "brand": "Acme"}
    assert text("new") == "Title: hat"
    assert "new" in items
    assert len(items) == len(ITEMS) + 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Item("x", {"colour": "red"}), f"'x' has the field 'colour'.*{', '.join(FIELDS)}"),
        (Item("", {}), "empty"),
    ],
)
def test_put_refuses_all_items_for_one_wrong_one(wrong: Item, said: str) -> None:
    items = catalogue()
    with pytest.raises(DataError, match=said):
        items.put([Item("good", {"title": "hat"}), wrong])
    assert "good" not in items
