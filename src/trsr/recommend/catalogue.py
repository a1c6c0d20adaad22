"""The items that a running service knows: those of the dataset, and those put later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from trsr.errors import DataError
from trsr.text import Tokenizer, verbalize_item
from trsr.types import Item

_MAX_TEXTS = 200_000


class Catalogue:
    """Items by id; safe to read while another thread puts items.

    Args:
        items: What it starts with.
        fields: The text fields an item may have, in rendering order. They bound the length of every text.

    Attributes:
        items: The items by id, as they are now; deleted ones stay without fields, for the histories that name
            them.
        deleted: The ids of these.
    """

    def __init__(self, items: Mapping[str, Item], fields: Sequence[str]) -> None:
        self.items = dict(items)
        self.fields = tuple(fields)
        self.deleted: set[str] = set()

    def __contains__(self, item_id: object) -> bool:
        return item_id in self.items and item_id not in self.deleted

    def __len__(self) -> int:
        return len(self.items) - len(self.deleted)

    def item(self, item_id: str) -> Item:
        """Return an item.

        Raises:
            DataError: there is no such item; names it.
        """
        found = self.items.get(item_id)
        if found is None:
            raise DataError(f"The item {item_id!r} is not in the catalogue; put it there first.")
        return found

    def put(self, items: Iterable[Item]) -> None:
        """Add or change items; all of them or, when one is wrong, none.

        Empty fields are left out and the fields brought into rendering order, as a dataset has them.

        Raises:
            DataError: an item has a field that the catalogue does not know, or an empty id; names both.
        """
        for item in [self._checked(item) for item in items]:
            self.items[item.item_id] = item
            self.deleted.discard(item.item_id)

    def delete(self, item_ids: Iterable[str]) -> None:
        """Forget what items say; only histories know them from now on."""
        for item_id in item_ids:
            self.deleted.add(item_id)
            self.items[item_id] = Item(item_id, {})

    def _checked(self, item: Item) -> Item:
        if not item.item_id:
            raise DataError("Found an item with an empty id; give every item an id.")
        if unknown := [field for field in item.fields if field not in self.fields]:
            raise DataError(
                f"The item {item.item_id!r} has the field {' and '.join(map(repr, unknown))}; "
                f"expected only {', '.join(self.fields)}."
            )
        return Item(item.item_id, {f: item.fields[f] for f in self.fields if item.fields.get(f)})

    def texts(
        self, fields: Sequence[str] | None, max_field_tokens: int | None, tokenizer: Tokenizer | None
    ) -> Callable[[str], str]:
        """Return a function from item id to the text of the item as it is now (see `verbalize_item`).

        It remembers the texts it made, and raises DataError for an item that is not there.
        """
        shown = self.fields if fields is None else tuple(fields)
        made: dict[str, tuple[Item, str]] = {}

        def text(item_id: str) -> str:
            item = self.item(item_id)
            known = made.get(item_id)
            if known is not None and known[0] is item:
                return known[1]
            words = verbalize_item(item, fields=shown, max_field_tokens=max_field_tokens, tokenizer=tokenizer)
            if len(made) >= _MAX_TEXTS:
                made.clear()
            made[item_id] = item, words
            return words

        return text
