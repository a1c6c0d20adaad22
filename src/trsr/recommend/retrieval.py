"""Finds the candidates that are worth a language model's time: BM25 over the whole catalogue."""

from __future__ import annotations

import gc
import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trsr.errors import DataError, MissingExtraError
from trsr.recommend.catalogue import Catalogue
from trsr.summarize.counted import field_values
from trsr.templating import plain_line
from trsr.types import Item

_MAX_FIELD_WORDS = 10_000
_K1, _B = 1.5, 0.75
_MAX_CHANGED = 1000
"""Items changed since the index was made, above which it is made anew."""


class Retriever:
    """Finds unseen items by the words of a profile and of recent items.

    The formula is Lucene's BM25 with k1 = 1.5, b = 0.75, as in `baselines.simple.Bm25Ranker`; a word said
    twice counts twice. Among items of equal score, such as those that no word finds, the popular come first.
    Items that change after the index was made are scored with its word statistics, until a new one is made in
    the background.

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
        self._changing = threading.Lock()
        self._remaking = threading.Lock()
        self._snapshot = _Snapshot(self._index([]), {}, frozenset())
        self._remake()

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
        index, later, changed = self._snapshot  # the same throughout, whatever is put meanwhile
        for field in filters or {}:
            if field not in self.category_fields:
                known = ", ".join(self.category_fields) or "none, the data has no category fields"
                raise DataError(f"Found a filter on {field!r}; expected {known}.")
        wanted = {(field, _folded(value)) for field, value in (filters or {}).items()}
        recent = history[-self.n_recent :] if self.n_recent else []
        texts = [self._text(name) for name in recent if name not in self.catalogue.deleted]
        query = " ".join([profile, *texts])
        words = self._split([query])[0] if query.strip() else []
        seen, added = set(history), list(later.values())
        scores = np.concatenate([index.scores(words), index.scores_of(added, words)])
        popularity = np.array([one.popularity for one in added], dtype=np.int64)
        popularity = np.concatenate([index.popularity, popularity])
        allowed = [one.item.item_id not in seen and wanted <= set(one.values) for one in added]
        left = np.flatnonzero(np.concatenate([index.allowed(wanted, seen | changed), allowed]))
        best = left[np.lexsort((left, -popularity[left], -scores[left]))[:n]].tolist()
        n_index = len(index.documents)
        found = [index.documents[row] if row < n_index else added[row - n_index] for row in best]
        return [document.item.item_id for document in found]

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
        index, later, changed = self._snapshot
        later = {name: one for name, one in later.items() if name not in item_ids}
        now = [self.catalogue.items[name] for name in dict.fromkeys(item_ids) if name in self.catalogue]
        later |= {one.item.item_id: one for one in self._documents(now)}
        self._snapshot = _Snapshot(index, later, changed.union(item_ids))
        if len(self._snapshot.changed) > _MAX_CHANGED and self._remaking.acquire(blocking=False):
            threading.Thread(target=self._remake_once, name="trsr-index", daemon=True).start()

    def _remake_once(self) -> None:
        try:
            self._remake()
        finally:
            self._remaking.release()

    def _remake(self) -> None:
        """Make the index anew; items that change meanwhile stay apart from it."""
        with self._changing:
            items, deleted = dict(self.catalogue.items), set(self.catalogue.deleted)
            index, later, _ = self._snapshot
        made = {id(one.item): one for one in (*index.documents, *later.values())}
        left = [item for name, item in items.items() if name not in deleted]
        made |= {id(one.item): one for one in self._documents([i for i in left if id(i) not in made])}
        index = self._index([made[id(item)] for item in left])
        with self._changing:
            now = self.catalogue.items
            changed = frozenset(name for name in self._snapshot.changed if now[name] is not items.get(name))
            later = {name: one for name, one in self._snapshot.later.items() if name in changed}
            self._snapshot = _Snapshot(index, later, changed)
        gc.freeze()  # else the collector stops all threads again and again to look through the catalogue

    def _index(self, documents: list[_Document]) -> _Index:
        words = [document.words for document in documents]
        bm25 = None
        if any(words):
            bm25 = self._bm25s.BM25(k1=_K1, b=_B, method="lucene")
            bm25.index(words, show_progress=False)
        by_value: dict[tuple[str, str], list[int]] = {}
        for row, document in enumerate(documents):
            for value in document.values:
                by_value.setdefault(value, []).append(row)
        return _Index(
            documents=documents,
            rows={document.item.item_id: row for row, document in enumerate(documents)},
            bm25=bm25,
            mean_length=sum(map(len, words)) / max(1, len(words)) or 1.0,
            by_value=by_value,
            popularity=np.array([document.popularity for document in documents], dtype=np.int64),
        )

    def _documents(self, items: Sequence[Item]) -> list[_Document]:
        words = self._split([self._text(item.item_id) for item in items])
        return [
            _Document(item, said, self._values(item), self._popularity.get(item.item_id, 0))
            for item, said in zip(items, words, strict=True)
        ]

    def _values(self, item: Item) -> list[tuple[str, str]]:
        """Return the values that a filter may name, each with its field."""
        found = {
            (field, _folded(text))
            for field in self.category_fields
            for text in (item.fields.get(field, ""), *field_values(item, [field]))
            if text
        }
        return list(found)

    def _split(self, texts: list[str]) -> list[list[str]]:
        words: list[list[str]] = []
        if texts:
            words = self._bm25s.tokenize(texts, return_ids=False, show_progress=False)
        return words


@dataclass(frozen=True)
class _Document:
    """An item as it is searched."""

    item: Item
    words: list[str]
    values: list[tuple[str, str]]
    popularity: int

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each word is in it."""
        return Counter(self.words)


@dataclass(frozen=True)
class _Index:
    """Documents with their word statistics; rows are places in `documents`."""

    documents: list[_Document]
    rows: dict[str, int]
    bm25: Any
    mean_length: float
    by_value: dict[tuple[str, str], list[int]]
    popularity: npt.NDArray[np.int64]

    def scores(self, words: list[str]) -> npt.NDArray[np.float32]:
        """Return the BM25 score of each row, 0 where no word is found."""
        known = self.bm25.get_tokens_ids(words) if self.bm25 is not None else []
        if not known:
            return np.zeros(len(self.documents), dtype=np.float32)
        return np.asarray(self.bm25.get_scores_from_ids(known), dtype=np.float32)

    def scores_of(self, others: Sequence[_Document], words: list[str]) -> npt.NDArray[np.float32]:
        """Return the score that each of these documents would have in the index.

        The same numbers are added in the same order as by bm25s, so equal items stay equal.
        """
        idf = {word: float(np.float32(self._idf(word))) for word in words} if others else {}
        found = np.zeros(len(others), dtype=np.float32)
        for place, document in enumerate(others):
            counts, score = document.counts, np.float32(0)
            room = _K1 * (1 - _B + _B * len(document.words) / self.mean_length)
            for word in filter(counts.__contains__, words):
                score += np.float32(idf[word] * (counts[word] / (room + counts[word])))
            found[place] = score
        return found

    def _idf(self, word: str) -> float:
        column = None if self.bm25 is None else self.bm25.vocab_dict.get(word)
        n = 0
        if column is not None:
            start, end = self.bm25.scores["indptr"][column : column + 2]
            n = int(end - start)
        return math.log(1 + (len(self.documents) - n + 0.5) / (n + 0.5))

    def allowed(self, values: Iterable[tuple[str, str]], without: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Return for each row whether it has all these values and is none of some items."""
        allowed = np.ones(len(self.documents), dtype=bool)
        for value in values:
            has = np.zeros_like(allowed)
            has[self.by_value.get(value, [])] = True
            allowed &= has
        allowed[[self.rows[name] for name in without if name in self.rows]] = False
        return allowed


class _Snapshot(NamedTuple):
    """The catalogue at one moment: an index, items put later, and all that changed since it was made."""

    indexed: _Index
    later: dict[str, _Document]
    changed: frozenset[str]


def _folded(value: str) -> str:
    return plain_line(value).casefold()
