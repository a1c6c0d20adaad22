"""Finds the candidates that are worth a language model's time: BM25 over the whole catalogue."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trsr.errors import DataError, MissingExtraError
from trsr.serve.catalogue import Catalogue
from trsr.summarize.counted import field_values
from trsr.templating import plain_line
from trsr.types import Item

_MAX_FIELD_WORDS = 10_000


class Retriever:
    """Finds unseen items by the words of a profile and of recent items.

    The formula is Lucene's BM25 with k1 = 1.5, b = 0.75, as in `trsr.rank.baselines.Bm25Ranker`; a word said
    twice counts twice. Among items of equal score, such as those that no word finds, the popular come first.

    Args:
        catalogue: The items.
        category_fields: The fields that a filter may name.
        popularity: Users who met an item, by item id; 0 for a missing one.
        n_recent: The newest history items whose words are looked for.

    Raises:
        MissingExtraError: bm25s is not installed.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        category_fields: Sequence[str] = (),
        popularity: Mapping[str, int] | None = None,
        *,
        n_recent: int = 5,
    ) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise MissingExtraError("bm25s", "baselines") from error
        self.catalogue = catalogue
        self.category_fields = tuple(category_fields)
        self.n_recent = n_recent
        self._bm25s: Any = bm25s
        self._popularity = popularity or {}
        self._text = catalogue.texts(None, _MAX_FIELD_WORDS, None)
        self._words: dict[str, tuple[str, list[str]]] = {}  # item id -> its text and the words of it
        self._building = threading.Lock()
        self._stale = False
        self._index = self._build()

    def top(
        self, profile: str, history: Sequence[str], n: int, filters: Mapping[str, str] | None = None
    ) -> list[str]:
        """Return up to `n` item ids, best first, none of which is in `history`.

        Args:
            profile: The user's profile; may be empty.
            history: Item ids, oldest first; may be empty.
            n: At most how many.
            filters: For each field the value that an item must have among its values, in any case.

        Raises:
            DataError: a filter names a field that is no category field, or a newest item is unknown.
        """
        index = self._index  # one and the same throughout, whatever is put meanwhile
        for field in filters or {}:
            if field not in self.category_fields:
                known = ", ".join(self.category_fields) or "none, the data has no category fields"
                raise DataError(f"Found a filter on {field!r}; expected {known}.")
        recent = history[-self.n_recent :] if self.n_recent else []
        scores = index.scores(self._split(" ".join([profile, *map(self._text, recent)])))
        allowed = np.ones(len(index.item_ids), dtype=bool)
        for field, value in (filters or {}).items():
            rows = index.by_value.get((field, _folded(value)), [])
            allowed &= np.isin(np.arange(len(allowed)), rows)
        allowed[[index.rows[item] for item in history if item in index.rows]] = False
        left = np.flatnonzero(allowed)
        order = np.lexsort((left, -index.popularity[left], -scores[left]))[:n]
        return [index.item_ids[row] for row in left[order].tolist()]

    def put_items(self, items: Iterable[Item]) -> None:
        """Add or change items; they are found by every call that begins after this one ends.

        The index is made anew, beside the old one, which serves until then: put many items at once rather
        than one by one. Calls that wait for each other share one new index.

        Raises:
            DataError: as `Catalogue.put`.
        """
        self.catalogue.put(items)
        self._stale = True
        with self._building:
            if self._stale:
                self._stale = False
                self._index = self._build()

    def _build(self) -> _Index:
        items = list(self.catalogue.items.values())
        texts = {item.item_id: self._text(item.item_id) for item in items}
        new = [name for name, text in texts.items() if self._words.get(name, ("",))[0] != text]
        for name, words in zip(new, self._split_all([texts[name] for name in new]), strict=True):
            self._words[name] = texts[name], words
        documents = [self._words[item.item_id][1] for item in items]
        bm25 = None
        if any(documents):
            bm25 = self._bm25s.BM25(k1=1.5, b=0.75, method="lucene")
            bm25.index(documents, show_progress=False)
        by_value: dict[tuple[str, str], list[int]] = {}
        for row, item in enumerate(items):
            for field in self.category_fields:
                whole = item.fields.get(field, "")
                for value in {_folded(text) for text in (whole, *field_values(item, [field])) if text}:
                    by_value.setdefault((field, value), []).append(row)
        return _Index(
            item_ids=[item.item_id for item in items],
            rows={item.item_id: row for row, item in enumerate(items)},
            bm25=bm25,
            by_value=by_value,
            popularity=np.array([self._popularity.get(item.item_id, 0) for item in items], dtype=np.int64),
        )

    def _split_all(self, texts: list[str]) -> list[list[str]]:
        if not texts:
            return []
        found: list[list[str]] = self._bm25s.tokenize(texts, return_ids=False, show_progress=False)
        return found

    def _split(self, text: str) -> list[str]:
        return self._split_all([text])[0] if text.strip() else []


@dataclass(frozen=True)
class _Index:
    """The catalogue at one moment; rows are places in `item_ids`."""

    item_ids: list[str]
    rows: dict[str, int]
    bm25: Any
    by_value: dict[tuple[str, str], list[int]]
    popularity: npt.NDArray[np.int64]

    def scores(self, words: list[str]) -> npt.NDArray[np.float32]:
        """Return the BM25 score of each row, 0 where no word is found."""
        known = self.bm25.get_tokens_ids(words) if self.bm25 is not None else []
        if not known:
            return np.zeros(len(self.item_ids), dtype=np.float32)
        return np.asarray(self.bm25.get_scores_from_ids(known), dtype=np.float32)


def _folded(value: str) -> str:
    return plain_line(value).casefold()
