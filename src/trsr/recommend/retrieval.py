"""Finds the candidates that are worth a language model's time: BM25 over the whole catalogue."""

from __future__ import annotations

import gc
import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.data.dataset import Dataset
from trsr.errors import DataError, MissingExtraError
from trsr.recommend.catalogue import Catalogue
from trsr.summarize.counted import field_values
from trsr.templating import plain_line
from trsr.types import Item

_MAX_FIELD_WORDS = 10_000
_K1, _B = 1.5, 0.75
_MAX_CHANGED = 1000
"""Items changed since the index was made, above which it is made anew."""

Floats = npt.NDArray[np.float32]


class Retriever:
    """Finds unseen items by the words of a profile and of recent items.

    The formula is Lucene's BM25 with k1 = 1.5, b = 0.75, as in `baselines.simple.Bm25Ranker`; a word said
    twice counts twice. Among items of equal score, such as those that no word finds, the popular come first.
    Items that change after the index was made are scored beside it, with its word statistics, until a new one
    is made in the background.

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
        self._documents: dict[str, _Document] = {}
        self._changing = threading.Lock()
        self._remaking = threading.Lock()
        self._changed: frozenset[str] = frozenset()
        self._index: _Index
        self._remake()

    @classmethod
    def of(cls, catalogue: Catalogue, dataset: Dataset | None) -> Retriever:
        """Return a retriever that takes categories and popularity from a dataset."""
        if dataset is None:
            return cls(catalogue)
        users = dataset.events().group_by("item_id").agg(pl.col("user_id").n_unique()).collect()
        return cls(catalogue, dataset.info.category_fields, dict(users.iter_rows()))

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
        main, delta, changed = self._index  # the same throughout, whatever is put meanwhile
        for field in filters or {}:
            if field not in self.category_fields:
                known = ", ".join(self.category_fields) or "none, the data has no category fields"
                raise DataError(f"Found a filter on {field!r}; expected {known}.")
        recent = history[-self.n_recent :] if self.n_recent else []
        recent = [item_id for item_id in recent if item_id not in self.catalogue.deleted]  # without words
        words = self._split(" ".join([profile, *map(self._text, recent)]))
        wanted = [(field, _folded(value)) for field, value in (filters or {}).items()]
        scores = np.concatenate([main.scores(words), delta.scores(words)])
        popularity = np.concatenate([main.popularity, delta.popularity])
        allowed = [main.allowed(wanted, {*history, *changed}), delta.allowed(wanted, history)]
        left = np.flatnonzero(np.concatenate(allowed))
        best = left[np.lexsort((left, -popularity[left], -scores[left]))[:n]].tolist()
        n_main = len(main.item_ids)
        return [
            main.item_ids[row] if row < n_main else delta.documents[row - n_main].item.item_id for row in best
        ]

    def put_items(self, items: Iterable[Item]) -> None:
        """Add or change items; they are found by every call that begins after this one ends.

        Raises:
            DataError: as `Catalogue.put`.
        """
        items = list(items)
        with self._changing:
            self.catalogue.put(items)
            self._change([item.item_id for item in items])

    def delete_items(self, item_ids: Sequence[str]) -> None:
        """Delete items; no call that begins after this one ends finds them."""
        with self._changing:
            self.catalogue.delete(item_ids)
            self._change(item_ids)

    def _change(self, item_ids: Sequence[str]) -> None:
        """Let the index follow items that changed in the catalogue."""
        self._changed = self._changed.union(item_ids)
        self._index = self._beside(self._index.main)
        if len(self._changed) > _MAX_CHANGED and self._remaking.acquire(blocking=False):
            threading.Thread(target=self._remake_once, name="trsr-index", daemon=True).start()

    def _remake_once(self) -> None:
        try:
            self._remake()
        finally:
            self._remaking.release()

    def _remake(self) -> None:
        """Make the index anew; what changes meanwhile stays beside it."""
        with self._changing:
            items, deleted = dict(self.catalogue.items), set(self.catalogue.deleted)
        left = [item for name, item in items.items() if name not in deleted]
        main = self._main(self._documents_of(left))
        with self._changing:
            now = self.catalogue.items
            self._changed = frozenset(name for name in self._changed if now[name] is not items.get(name))
            self._index = self._beside(main)
        gc.freeze()  # else the collector stops all threads again and again to look through the catalogue

    def _main(self, documents: Sequence[_Document]) -> _Main:
        words = [document.words for document in documents]
        bm25 = None
        if any(words):
            bm25 = self._bm25s.BM25(k1=_K1, b=_B, method="lucene")
            bm25.index(words, show_progress=False)
        by_value: dict[tuple[str, str], list[int]] = {}
        for row, document in enumerate(documents):
            for value in document.values:
                by_value.setdefault(value, []).append(row)
        return _Main(
            item_ids=[document.item.item_id for document in documents],
            rows={document.item.item_id: row for row, document in enumerate(documents)},
            bm25=bm25,
            mean_length=sum(map(len, words)) / max(1, len(words)) or 1.0,
            by_value=by_value,
            popularity=self._popularities(documents),
        )

    def _beside(self, main: _Main) -> _Index:
        """Return an index with the changed items as they are now, if they are still there."""
        items = [self.catalogue.items[name] for name in self._changed if name in self.catalogue]
        documents = self._documents_of(items)
        return _Index(main, _Delta(main, documents, self._popularities(documents)), self._changed)

    def _popularities(self, documents: Sequence[_Document]) -> npt.NDArray[np.int64]:
        return np.array([self._popularity.get(one.item.item_id, 0) for one in documents], dtype=np.int64)

    def _documents_of(self, items: Iterable[Item]) -> list[_Document]:
        """Return these items as they are searched; what is known is not split again."""
        items = list(items)
        known = [self._documents.get(item.item_id) for item in items]
        new = [item for item, one in zip(items, known, strict=True) if one is None or one.item is not item]
        texts = self._split_all([self._text(item.item_id) for item in new])
        made = {
            item.item_id: _Document(item, words, self._values(item))
            for item, words in zip(new, texts, strict=True)
        }
        self._documents.update(made)
        return [made.get(item.item_id) or self._documents[item.item_id] for item in items]

    def _values(self, item: Item) -> list[tuple[str, str]]:
        """Return the values that a filter may name, each with its field."""
        found = {
            (field, _folded(text))
            for field in self.category_fields
            for text in (item.fields.get(field, ""), *field_values(item, [field]))
            if text
        }
        return list(found)

    def _split_all(self, texts: list[str]) -> list[list[str]]:
        if not texts:
            return []
        found: list[list[str]] = self._bm25s.tokenize(texts, return_ids=False, show_progress=False)
        return found

    def _split(self, text: str) -> list[str]:
        return self._split_all([text])[0] if text.strip() else []


@dataclass(slots=True)
class _Document:
    """An item as it is searched."""

    item: Item
    words: list[str]
    values: list[tuple[str, str]]
    _counts: Counter[str] | None = None

    def counts(self) -> Counter[str]:
        """Return how often each word is in it."""
        if self._counts is None:
            self._counts = Counter(self.words)
        return self._counts


@dataclass(frozen=True)
class _Main:
    """The items that the index was made of; rows are places in `item_ids`."""

    item_ids: list[str]
    rows: dict[str, int]
    bm25: Any
    mean_length: float
    by_value: dict[tuple[str, str], list[int]]
    popularity: npt.NDArray[np.int64]

    def scores(self, words: list[str]) -> Floats:
        """Return the BM25 score of each row, 0 where no word is found."""
        known = self.bm25.get_tokens_ids(words) if self.bm25 is not None else []
        if not known:
            return np.zeros(len(self.item_ids), dtype=np.float32)
        return np.asarray(self.bm25.get_scores_from_ids(known), dtype=np.float32)

    def idf(self, word: str) -> float:
        """Return the weight of a word."""
        place = None if self.bm25 is None else self.bm25.vocab_dict.get(word)
        n = 0
        if place is not None:
            start, end = self.bm25.scores["indptr"][place : place + 2]
            n = int(end - start)
        return math.log(1 + (len(self.item_ids) - n + 0.5) / (n + 0.5))

    def allowed(self, values: Iterable[tuple[str, str]], without: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Return for each row whether it has all these values and is none of some items."""
        allowed = np.ones(len(self.item_ids), dtype=bool)
        for value in values:
            has = np.zeros_like(allowed)
            has[self.by_value.get(value, [])] = True
            allowed &= has
        allowed[[self.rows[name] for name in without if name in self.rows]] = False
        return allowed


@dataclass(frozen=True)
class _Delta:
    """Items that are not in the index, scored as if they were: with its statistics."""

    main: _Main
    documents: list[_Document]
    popularity: npt.NDArray[np.int64]

    def scores(self, words: list[str]) -> Floats:
        """Return the BM25 score of each document."""
        places: dict[str, list[int]] = {}
        for place, word in enumerate(words):
            places.setdefault(word, []).append(place)
        idf = {word: np.float32(self.main.idf(word)) for word in places}
        return np.array([self._score(one, places, idf) for one in self.documents], dtype=np.float32)

    def _score(
        self, document: _Document, places: Mapping[str, Sequence[int]], idf: Mapping[str, np.float32]
    ) -> np.float32:
        """Add the same numbers in the same order as bm25s does, so that equal items stay equal."""
        counts = document.counts()
        room = _K1 * (1 - _B + _B * len(document.words) / self.main.mean_length)
        found = sorted((place, word) for word in places.keys() & counts for place in places[word])
        score = np.float32(0)
        for _, word in found:
            score += np.float32(float(idf[word]) * (counts[word] / (room + counts[word])))
        return score

    def allowed(self, values: Sequence[tuple[str, str]], without: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return for each document what `_Main.allowed` does."""
        gone = set(without)
        return np.array(
            [one.item.item_id not in gone and set(values) <= set(one.values) for one in self.documents],
            dtype=bool,
        )


class _Index(NamedTuple):
    """The catalogue at one moment: what the index was made of, and what changed since."""

    main: _Main
    delta: _Delta
    changed: frozenset[str]


def _folded(value: str) -> str:
    return plain_line(value).casefold()
