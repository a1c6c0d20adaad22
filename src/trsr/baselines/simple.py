"""Rankers without a language model, on the same examples and candidates as the LLM.

Each is deterministic and reads no labels; its docstring names its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.data.dataset import Dataset
from trsr.errors import ConfigError, DataError, MissingExtraError
from trsr.recommend.ranker import ExampleScores, without_llm
from trsr.seeding import derive_rng
from trsr.splitting.split import Split
from trsr.summarize.counted import field_values
from trsr.types import RankingExample

_WHOLE = 10_000  # words of a field at most: all of them
_DAY = 86_400_000_000  # microseconds


_EXTRAS = {
    "sklearn": ("scikit-learn", "baselines"),
    "cornac": ("cornac", "baselines"),
    "torch": ("torch", "hf"),
}


def require(*packages: str) -> None:
    """Check that packages are installed, without importing them.

    Raises:
        MissingExtraError: one is not.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(*_EXTRAS[package])


class ExampleRanker:
    """A ranker that reads no prompt and scores each example by itself."""

    probabilistic = False

    def _margins(self, example: RankingExample) -> npt.ArrayLike:
        raise NotImplementedError  # one margin per candidate

    def rank(self, examples: Sequence[RankingExample]) -> Iterator[ExampleScores]:
        """Yield one answer per example; the same whatever the order of the examples."""
        for example in examples:
            yield without_llm(example, self._margins(example))


class RandomRanker(ExampleRanker):
    """Draws a standard normal margin for each candidate from the example's own seed."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _margins(self, example: RankingExample) -> npt.ArrayLike:
        rng = derive_rng(self._seed, "random-ranker", example.example_id)
        return rng.standard_normal(len(example.candidates))


class Popularity(ExampleRanker):
    """Scores a candidate by log(1 + users who interacted with it), in the events that may be learned from.

    Args:
        data: The dataset; `fit` counts its users.
    """

    name = "popularity"

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self._n_users: dict[str, int] | None = None

    def fit(self, split: Split) -> None:
        """Count the users of each item in `split.training_events`."""
        users = pl.col("user_id").n_unique().alias("n_users")
        counts = split.training_events.group_by("item_id").agg(users)
        self._n_users = dict(zip(counts["item_id"], counts["n_users"], strict=True))

    def _margins(self, example: RankingExample) -> npt.ArrayLike:
        if self._n_users is None:
            raise DataError("Popularity counts nothing yet; call `fit` with a split first.")
        return np.log1p([self._n_users.get(item, 0) for item in example.candidates])


class DecayedPopularityRanker(ExampleRanker):
    """Scores a candidate by log2 of the sum over its interactions of 0.5 ** (age / half-life).

    The age is counted from the example's own time, and only interactions strictly before it count; an example
    without a time takes all training events. An item without such an interaction ranks just below one whose
    only interaction is the oldest of all.

    Args:
        training_events: Columns `user_id`, `item_id` and `timestamp` (others are ignored): the events
            that may be learned from, see `Split.training_events`. Events without a time are left out and
            counted.
        half_life_days: Days after which an interaction counts half, above 0.

    Raises:
        ConfigError: no event has a time, or the half-life is not above 0.
    """

    name = "popularity_decayed"

    def __init__(self, training_events: pl.DataFrame, *, half_life_days: float) -> None:
        if not half_life_days > 0:
            raise ConfigError(f"Found half_life_days {half_life_days}; expected a number of days above 0.")
        timed = training_events.drop_nulls("timestamp").sort("timestamp")
        if timed.is_empty():
            raise ConfigError(
                "The ranker popularity_decayed needs times, and no event that it may learn from has one; "
                "take it out of `rankers`, or use `popularity`."
            )
        self._half_life = half_life_days
        self._n_without_time = len(training_events) - len(timed)
        days = timed.select("item_id", days=pl.col("timestamp").dt.epoch("us") / _DAY)
        self._first, self._last = float(days["days"][0]), float(days["days"][-1])
        by_item = days.group_by("item_id", maintain_order=True).agg("days")
        self._days = {item: np.asarray(when) for item, when in by_item.iter_rows()}

    def facts(self, examples: Sequence[RankingExample]) -> dict[str, int]:
        """Count the events that were left out, and the candidates without an earlier event."""
        unseen = sum(not len(self._before(item, e)) for e in examples for item in e.candidates)
        return {"events_without_time": self._n_without_time, "unmet_candidates": unseen}

    def _margins(self, example: RankingExample) -> npt.ArrayLike:
        now = self._last if example.timestamp is None else _in_days(example.timestamp)
        return [self._margin(self._before(item, example), now) for item in example.candidates]

    def _before(self, item: str, example: RankingExample) -> npt.NDArray[np.float64]:
        """Return the days of an item's events before the example, oldest first."""
        when = self._days.get(item, np.zeros(0))
        if example.timestamp is None:
            return when
        return when[: np.searchsorted(when, _in_days(example.timestamp), side="left")]

    def _margin(self, when: npt.NDArray[np.float64], now: float) -> float:
        if not len(when):
            return (min(self._first, now) - now) / self._half_life - 1
        halvings = (when - now) / self._half_life
        newest = halvings[-1]  # taken out of the sum, which would be 0 in float64 after a thousand half-lives
        return float(newest + np.log2(np.exp2(halvings - newest).sum()))


def _in_days(time: datetime) -> float:
    return time.timestamp() * 1_000_000 / _DAY


class Recency(ExampleRanker):
    """Scores a candidate by how often, and how recently, its categories occur in the user's history.

    Margin = sum over history items h of `overlap(h, candidate) * 0.5 ** (age(h) / half_life)`, where age 0 is
    the newest item and overlap is the share of the candidate's categories that h has. A candidate without
    categories overlaps with itself only. Reads nothing but the example.

    Args:
        data: The dataset; its `category_fields` are read.
        half_life: Items after which an occurrence counts half, above 0.

    Raises:
        ConfigError: `half_life` is not above 0.
    """

    name = "recency"

    def __init__(self, data: Dataset, *, half_life: float = 5.0) -> None:
        if not half_life > 0:
            raise ConfigError(f"Found half_life {half_life}; expected a number of items above 0.")
        fields = data.info.category_fields
        self._categories = {i: sorted({*field_values(item, fields)}) for i, item in data.catalogue().items()}
        self._half_life = half_life

    def _margins(self, example: RankingExample) -> npt.ArrayLike:
        by_category: dict[str, float] = {}
        by_item: dict[str, float] = {}
        for age, item in enumerate(reversed(example.history)):
            weight = 0.5 ** (age / self._half_life)
            by_item[item] = by_item.get(item, 0.0) + weight
            for category in self._categories.get(item, ()):
                by_category[category] = by_category.get(category, 0.0) + weight
        found = []
        for item in example.candidates:
            if categories := self._categories.get(item):
                found.append(sum(by_category.get(category, 0.0) for category in categories) / len(categories))
            else:
                found.append(by_item.get(item, 0.0))
        return found


class BM25(ExampleRanker):
    """Scores a candidate's text by BM25 against the user's profile and the text of their history.

    The query is the profile (if any) and the texts of the last `n_recent` history items; a repeated word
    counts each time. Document frequencies and lengths come from the whole catalogue. The formula is Lucene's,
    with k1 = 1.5, b = 0.75 (Lù, "BM25S: Orders of magnitude faster lexical search via eager sparse scoring",
    2024); common English words are left out.

    Args:
        data: The dataset, or an index of its items, which several rankers may share; an item without a text
            has margin 0.
        profiles: Profile text by example id; missing means none.
        n_recent: How many of the newest history items to use; None for all (a weaker query: many words favour
            long documents), 0 for the profile alone.

    Raises:
        ConfigError: `n_recent` is negative.
        MissingExtraError: bm25s is not installed.
    """

    name = "bm25"

    def __init__(
        self,
        data: Dataset | Bm25Index,
        *,
        profiles: Mapping[str, str] | None = None,
        n_recent: int | None = 5,
    ) -> None:
        if n_recent is not None and n_recent < 0:
            raise ConfigError(
                f"Found n_recent {n_recent}; expected 0 or more, or None for the whole history."
            )
        self._profiles = profiles or {}
        self._n_recent = n_recent
        self._index = data if isinstance(data, Bm25Index) else Bm25Index.of(data)

    def _margins(self, example: RankingExample) -> npt.ArrayLike:
        n = len(example.history) if self._n_recent is None else self._n_recent
        recent = example.history[-n:] if n else ()
        query = self._index.query(self._profiles.get(example.example_id, ""), recent)
        return [self._index.score(query, item) for item in example.candidates]


class Bm25Index:
    """A BM25 index read item by item: only candidates are scored, never the whole catalogue.

    bm25s keeps, for each word, the documents that hold it with their final weight. Turned around once, a
    document's score is the sum of its words' weights times how often the query has them.

    Raises:
        MissingExtraError: bm25s is not installed.
    """

    def __init__(self, item_texts: Mapping[str, str]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise MissingExtraError("bm25s", "baselines") from error
        self._row = {item: row for row, item in enumerate(item_texts)}
        self._tokenize = bm25s.tokenize
        tokens = bm25s.tokenize(list(item_texts.values()), show_progress=False)
        self._words: dict[str, int] = dict(tokens.vocab)
        self._tokens = [np.asarray(ids, dtype=np.int64) for ids in tokens.ids]
        n_words = max(self._words.values(), default=-1) + 2
        document = self._word = np.zeros(0, dtype=np.int64)
        self._weight = np.zeros(0, dtype=np.float32)
        if any(len(ids) for ids in self._tokens):
            index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
            index.index(tokens, show_progress=False)
            by_word = index.scores
            document = np.asarray(by_word["indices"])
            word = np.repeat(np.arange(len(by_word["indptr"]) - 1), np.diff(by_word["indptr"]))
            order = np.argsort(document, kind="stable")
            document, self._word = document[order], word[order]
            self._weight = np.asarray(by_word["data"])[order]
        self._starts = np.searchsorted(document, np.arange(len(self._row) + 1))
        self._n_words = max(n_words, int(self._word.max(initial=0)) + 1)

    @classmethod
    def of(cls, data: Dataset) -> Bm25Index:
        """Index the whole texts of a dataset's items.

        Raises:
            MissingExtraError: bm25s is not installed.
        """
        text = data.item_texts(None, _WHOLE, None)
        return cls({item_id: text(item_id) for item_id in data.catalogue()})

    def query(self, text: str, item_ids: Sequence[str]) -> npt.NDArray[np.float32]:
        """Count the words of a text and of items, unknown ones left out: shape (n_words,)."""
        words: list[str] = []
        if text.strip():
            words = self._tokenize([text], return_ids=False, show_progress=False)[0]
        ids = [self._words[word] for word in words if word in self._words]
        rows = [self._row[item] for item in item_ids if item in self._row]
        parts = [np.asarray(ids, dtype=np.int64), *(self._tokens[row] for row in rows)]
        return np.bincount(np.concatenate(parts), minlength=self._n_words).astype(np.float32)

    def score(self, query: npt.NDArray[np.float32], item_id: str) -> float:
        """Return the BM25 score of one item, 0 for an unknown one."""
        row = self._row.get(item_id)
        if row is None:
            return 0.0
        span = slice(self._starts[row], self._starts[row + 1])
        return float(self._weight[span] @ query[self._word[span]])


class BagOfWordsRanker(ExampleRanker):
    """Scores a candidate by the log odds that an item with these words is a chosen one.

    Features are TF-IDF of n-grams of words (sublinear counts, rows of length 1). An item without a word
    that the training candidates have has the intercept as its margin. Margins are not calibrated
    for the test, where a smaller share of candidates is chosen.

    Args:
        examples: The training examples, with their candidates and labels.
        text: The text of an item id.
        settings: `C`, the inverse strength of the L2 penalty; `max_ngram`, the longest n-gram;
            `min_df`, in how many training candidates an n-gram must occur.

    Raises:
        DataError: there is nothing to learn from: no examples, one kind of label, or no words.
    """

    name = "bag_of_words"

    def __init__(
        self, examples: Sequence[RankingExample], text: Callable[[str], str], settings: dict[str, Any]
    ) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self._text = text
        self._words = TfidfVectorizer(
            ngram_range=(1, settings["max_ngram"]), min_df=settings["min_df"], sublinear_tf=True
        )
        labels = [label for example in examples for label in example.labels]
        if len(set(labels)) < 2:
            raise DataError(
                "bag_of_words learns from training candidates, chosen and not chosen, and there are none of"
                " one kind; set n_train of the protocol, or leave bag_of_words out."
            )
        try:
            rows = self._words.fit_transform(text(c) for example in examples for c in example.candidates)
        except ValueError as error:  # of scikit-learn, for an empty vocabulary
            raise DataError(
                f"The texts of the training candidates have no word that occurs {settings['min_df']} times;"
                " lower min_df of bag_of_words, or leave it out."
            ) from error
        self._model = LogisticRegression(C=settings["C"], max_iter=1000).fit(rows, labels)

    def facts(self, examples: Sequence[RankingExample]) -> dict[str, int]:
        """Count the candidates without a known word."""
        unknown = [self._rows(e.candidates).getnnz(axis=1) == 0 for e in examples]
        return {"candidates_without_a_known_word": int(sum(part.sum() for part in unknown))}

    def _margins(self, example: RankingExample) -> npt.ArrayLike:
        return np.asarray(self._model.decision_function(self._rows(example.candidates)))

    def _rows(self, items: Sequence[str]) -> Any:
        return self._words.transform([self._text(item) for item in items])
