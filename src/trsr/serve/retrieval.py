"""Finds the candidates that are worth a language model's time: BM25 over the whole catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trsr.serve.catalogue import Catalogue
from trsr.types import Item


class Retriever:
    """Finds unseen items by the words of a profile and of recent items.

    Args:
        catalogue: The items.
        category_fields: The fields that a filter may name.
        popularity: Users who met an item, by item id; orders items that no word finds.
        n_recent: The newest history items whose words are looked for.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        category_fields: Sequence[str] = (),
        popularity: Mapping[str, int] | None = None,
        *,
        n_recent: int = 5,
    ) -> None:
        raise NotImplementedError

    def top(
        self, profile: str, history: Sequence[str], n: int, filters: Mapping[str, str] | None = None
    ) -> list[str]:
        """Return up to `n` item ids, best first, none of which is in `history`.

        Raises:
            DataError: a filter names a field that is no category field, or the history an unknown item.
        """
        raise NotImplementedError

    def put_items(self, items: Iterable[Item]) -> None:
        """Add or change items; they are found by every call after this one."""
        raise NotImplementedError
