"""The catalogue takes items while it is read, and what it says of an item is never out of date."""

from __future__ import annotations

import pytest
from serve_parts import FIELDS, ITEMS, catalogue

from trsr.errors import DataError
from trsr.text import verbalize_item
from trsr.types import Item


def test_a_text_is_the_one_that_a_run_makes_of_the_item() -> None:
    text = catalogue().texts(None, 3, None)
    for item_id, item in ITEMS.items():
        assert text(item_id) == text(item_id) == verbalize_item(item, max_field_tokens=3)


def test_a_changed_item_has_its_new_text_and_the_fields_in_their_order() -> None:
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


def test_an_unknown_item_is_named() -> None:
    with pytest.raises(DataError, match="'nowhere' is not in the catalogue"):
        catalogue().texts(None, None, None)("nowhere")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Item("x", {"colour": "red"}), f"'x' has the field 'colour'.*{', '.join(FIELDS)}"),
        (Item("", {}), "empty"),
    ],
)
def test_one_wrong_item_keeps_the_others_out_too(wrong: Item, said: str) -> None:
    items = catalogue()
    with pytest.raises(DataError, match=said):
        items.put([Item("good", {"title": "hat"}), wrong])
    assert "good" not in items


def test_only_the_fields_asked_for_are_read() -> None:
    assert catalogue().texts(("title",), None, None)("i1") == f"Title: {ITEMS['i1'].fields['title']}"
