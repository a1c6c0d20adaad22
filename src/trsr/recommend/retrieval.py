"""Finds the candidates that are worth a language model's time: BM25 over the whole catalogue."""

from __future__ import annotations

import gc
import math
import threading
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from trsr.errors import DataError, MissingExtraError
from trsr.recommend.catalogue import Catalogue
from trsr.summarize.counted import field_values
from trsr.templating import sanitize_line
from trsr.types import Item

_MAX_FIELD_WORDS = 10_000
_MAX_WORDS = 10_000
_K1, _B = 1.5, 0.75
_NO_ROWS = array("q")


class Retriever:
    """Finds unseen items by the words of a profile and of recent items; safe to use from several threads.

    The formula is Lucene's BM25 with k1 = 1.5, b = 0.75, as in `baselines.simple.BM25`; a word said
    twice counts twice. Among items of equal score, such as those that no word finds, the popular come first.

    Args:
        catalogue: The items.
        category_fields: The fields that a filter may name.
        popularity: Users who met an item, by item id; 0 for a missing one.
        n_recent: The newest history items whose words are looked for.

    Raises:
        MissingExtraError: bm25s, which divides texts into words, is not installed.
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
        self._tokenize: Any = bm25s.tokenize
        self._popularity = popularity or {}
        self._text = catalogue.texts(None, _MAX_FIELD_WORDS, None)
        self._lock = threading.Lock()
        self._index = self._make_index()
        gc.freeze()  # else the collector stops all threads again and again to look through the catalogue

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
        for field in filters or {}:
            if field not in self.category_fields:
                known = ", ".join(self.category_fields) or "none, the data has no category fields"
                raise DataError(f"Found a filter on {field!r}; expected {known}.")
        recent = history[-self.n_recent :] if self.n_recent else []
        texts = [self._text(name) for name in recent if name not in self.catalogue.deleted]
        (words,) = self._words([" ".join([profile, *texts])])
        wanted = [(field, _folded(value)) for field, value in (filters or {}).items()]
        with self._lock:
            return self._index.best(words, wanted, history, n)

    def put_items(self, items: Iterable[Item]) -> None:
        """Add or change items; they are found by every call that begins after this one ends.

        Raises:
            DataError: as `Catalogue.put`.
        """
        items = list(items)
        with self._lock:
            self.catalogue.put(items)
            self._add(self._index, list(dict.fromkeys(item.item_id for item in items)))
            if self._index.is_stale:
                self._index = self._make_index()

    def delete_items(self, item_ids: Sequence[str]) -> None:
        """Delete items; no call that begins after this one ends finds them."""
        with self._lock:
            self.catalogue.delete(item_ids)
            for item_id in item_ids:
                self._index.remove(item_id)

    def _make_index(self) -> _Index:
        index = _Index()
        self._add(index, [name for name in self.catalogue.items if name in self.catalogue])
        return index

    def _add(self, index: _Index, item_ids: Sequence[str]) -> None:
        texts = self._words([self._text(item_id) for item_id in item_ids])
        for item_id, words in zip(item_ids, texts, strict=True):
            values = self._values(self.catalogue.items[item_id])
            index.add(item_id, words, values, self._popularity.get(item_id, 0))

    def _values(self, item: Item) -> set[tuple[str, str]]:
        """Return the values that a filter may name, each with its field."""
        return {
            (field, _folded(text))
            for field in self.category_fields
            for text in (item.fields.get(field, ""), *field_values(item, [field]))
            if text
        }

    def _words(self, texts: list[str]) -> list[list[str]]:
        words: list[list[str]] = self._tokenize(texts, return_ids=False, show_progress=False)
        return words


def _folded(value: str) -> str:
    return sanitize_line(value).casefold()


class _Index:
    """Rows of items by word and by value; a changed item gets a new row, and its old one is empty."""

    def __init__(self) -> None:
        self._item_ids: list[str] = []
        self._rows: dict[str, int] = {}
        self._lengths = array("q")  # words of each row; -1 for an empty one
        self._popularity = array("q")
        self._by_word: dict[str, tuple[array[int], array[int]]] = defaultdict(
            lambda: (array("q"), array("q"))
        )
        self._by_value: dict[tuple[str, str], array[int]] = defaultdict(lambda: array("q"))
        self._columns: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]] | None = None
        self._parts = lru_cache(_MAX_WORDS)(self._make_parts)

    @property
    def is_stale(self) -> bool:
        """Whether most rows are empty."""
        return len(self._item_ids) > 2 * len(self._rows) + 1000

    def add(
        self, item_id: str, words: Sequence[str], values: Iterable[tuple[str, str]], popularity: int
    ) -> None:
        self.remove(item_id)
        row = self._rows[item_id] = len(self._item_ids)
        self._item_ids.append(item_id)
        self._lengths.append(len(words))
        self._popularity.append(popularity)
        for word, count in Counter(words).items():
            rows, counts = self._by_word[word]
            rows.append(row)
            counts.append(count)
        for value in values:
            self._by_value[value].append(row)

    def remove(self, item_id: str) -> None:
        if (row := self._rows.pop(item_id, None)) is not None:
            self._lengths[row] = -1
        self._columns = None
        self._parts.cache_clear()

    def best(
        self, words: Sequence[str], values: Iterable[tuple[str, str]], without: Iterable[str], n: int
    ) -> list[str]:
        """Return up to `n` items that have all these values, best first."""
        if self._columns is None:
            lengths = np.array(self._lengths)
            here = lengths >= 0
            mean_length = lengths[here].sum() / max(1, len(self._rows)) or 1.0
            room = _K1 * (1 - _B + _B * lengths / mean_length)
            self._columns = here, np.array(self._popularity), room
        here, popularity, _ = self._columns
        allowed = here.copy()
        for value in values:
            has = np.zeros_like(allowed)
            has[np.array(self._by_value.get(value, _NO_ROWS))] = True
            allowed &= has
        allowed[[self._rows[name] for name in without if name in self._rows]] = False
        scores = np.zeros(len(here), dtype=np.float32)
        for word in words:
            rows, parts = self._parts(word)
            scores[rows] += parts
        left = np.flatnonzero(allowed)
        best = left[np.lexsort((left, -popularity[left], -scores[left]))[:n]]
        return [self._item_ids[row] for row in best.tolist()]

    def _make_parts(self, word: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the rows that have a word, and what it adds to their scores, rounded as bm25s does."""
        assert self._columns is not None
        here, _, room = self._columns
        rows, counts = map(np.array, self._by_word.get(word, (_NO_ROWS, _NO_ROWS)))
        rows, counts = rows[here[rows]], counts[here[rows]]
        n_without = len(self._rows) - len(rows)
        idf = np.float32(math.log(1 + (n_without + 0.5) / (len(rows) + 0.5)))
        return rows, (float(idf) * (counts / (room[rows] + counts))).astype(np.float32)
