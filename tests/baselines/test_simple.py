"""Simple baselines: hand-computed values, independent of order and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import bm25s
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from trsr.baselines import simple
from trsr.baselines.simple import (
    BM25,
    BagOfWordsRanker,
    Bm25Index,
    DecayedPopularityRanker,
    Popularity,
    RandomRanker,
    Recency,
    require,
)
from trsr.data.schema import EVENTS
from trsr.errors import ConfigError, DataError, MissingExtraError
from trsr.recommend.ranker import Ranker
from trsr.types import Item, RankingExample

TEXTS = {
    "pen": "red ink pen",
    "refill": "red ink refill refill",
    "chair": "leather chair",
    "desk": "oak desk",
    "blank": "",
}
CATEGORIES = {
    "pen": {"writing", "red"},
    "refill": {"writing", "ink"},
    "chair": {"furniture"},
    "desk": {"furniture"},
}
START = datetime(2026, 1, 1, tzinfo=UTC)


def events(*rows: tuple[str, str, float | None]) -> pl.DataFrame:
    """Return events by user, item and day."""
    times = [None if day is None else START + timedelta(days=day) for _, _, day in rows]
    listed = [(user, item, 0, time) for (user, item, _), time in zip(rows, times, strict=True)]
    return pl.DataFrame(listed, schema=EVENTS, orient="row")


EVENTS_OF_THREE = events(("a", "pen", 0), ("a", "pen", 1), ("b", "pen", 0), ("c", "desk", 0), ("c", "pen", 1))


def example(
    history: tuple[str, ...],
    candidates: tuple[str, ...],
    positive: int = 0,
    example_id: str = "e",
    day: float | None = None,
) -> RankingExample:
    labels = tuple(int(i == positive) for i in range(len(candidates)))
    time = None if day is None else START + timedelta(days=day)
    return RankingExample(example_id, "user", history, candidates, labels, time)


def margins(ranker: Ranker, question: RankingExample) -> list[float]:
    (answer,) = ranker.rank([question])
    assert answer.example_id == question.example_id
    assert answer.margins.dtype == np.float32
    return [float(margin) for margin in answer.margins]


def popularity() -> Popularity:
    ranker, split = Popularity(cast(Any, None)), SimpleNamespace(training_events=EVENTS_OF_THREE)
    ranker.fit(cast(Any, split))
    return ranker


def recency(categories: Mapping[str, set[str]], **settings: float) -> Recency:
    items = {name: Item(name, {"kind": "|".join(values)}) for name, values in categories.items()}
    data = SimpleNamespace(info=SimpleNamespace(category_fields=("kind",)), catalogue=lambda: items)
    return Recency(cast(Any, data), **settings)


TRAIN = [
    RankingExample("a", "a", (), ("pen", "chair", "desk"), (1, 0, 0)),
    RankingExample("b", "b", (), ("desk", "refill", "chair"), (0, 1, 0)),
]
SETTINGS: dict[str, Any] = {"C": 10.0, "max_ngram": 2, "min_df": 1}
RANKERS: list[Callable[[], Ranker]] = [
    lambda: RandomRanker(0),
    popularity,
    lambda: DecayedPopularityRanker(EVENTS_OF_THREE, half_life_days=2),
    lambda: recency(CATEGORIES),
    lambda: BM25(Bm25Index(TEXTS)),
    lambda: BagOfWordsRanker(TRAIN, lambda item: TEXTS.get(item, ""), SETTINGS),
]


@pytest.mark.parametrize("make", RANKERS)
def test_a_ranker_reads_no_label_and_answers_alike_in_any_order(make: Callable[[], Ranker]) -> None:
    questions = [example(("pen", "desk"), ("refill", "chair"), example_id=f"e{i}") for i in range(5)]
    forward, backward = (
        {a.example_id: a.margins.tolist() for a in make().rank(asked)}
        for asked in (questions, questions[::-1])
    )
    assert forward == backward
    assert set(forward) == {q.example_id for q in questions}
    first, second = (example(("pen",), ("refill", "chair", "desk"), positive) for positive in (0, 2))
    assert margins(make(), first) == margins(make(), second)
    for unknown in (example((), ("new", "pen", "blank")), example(("new",), ("new", "pen"))):
        assert all(math.isfinite(m) for m in margins(make(), unknown))


def test_random_margins_differ_between_examples_and_seeds() -> None:
    draws = [
        margins(RandomRanker(seed), example((), ("pen", "desk"), example_id=name))
        for seed, name in [(0, "a"), (0, "b"), (1, "a")]
    ]
    assert len({tuple(d) for d in draws}) == 3


def test_popularity_counts_users_and_not_events() -> None:
    got = margins(popularity(), example((), ("desk", "pen", "chair")))
    assert got == pytest.approx([math.log(2), math.log(4), 0.0])


def decayed(half_life: float, *rows: tuple[str, float | None]) -> DecayedPopularityRanker:
    log = events(*[(f"u{n}", item, day) for n, (item, day) in enumerate(rows)])
    return DecayedPopularityRanker(log, half_life_days=half_life)


def test_decayed_popularity_is_the_logarithm_of_the_faded_sum() -> None:
    got = margins(decayed(2, ("a", 0), ("a", 4), ("b", 8)), example((), ("a", "b"), day=10))
    assert got == pytest.approx([math.log2(0.5**5 + 0.5**3), -1.0])
    untimed = margins(decayed(4, ("a", 0), ("b", 4)), example((), ("a", "b")))  # all that may be learned from
    assert untimed == pytest.approx([-1.0, 0.0])


@settings(deadline=None)
@given(st.floats(0.01, 1e4), st.floats(0.1, 1e5))
def test_decayed_popularity_ranks_an_unseen_item_last(day: float, half_life: float) -> None:
    ranker = decayed(half_life, ("first", 0), ("later", 5))
    first, never = margins(ranker, example((), ("first", "never"), day=day))
    assert first > never


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(5, 50)), max_size=8))
def test_nothing_at_or_after_the_example_changes_decayed_popularity(future: list[tuple[str, float]]) -> None:
    past = [("a", 0.0), ("b", 1.0), ("a", 3.0), ("c", 4.0)]
    question = example((), ("a", "b", "c", "d"), day=5)
    assert margins(decayed(3, *past), question) == margins(decayed(3, *past, *future), question)


def test_a_thousand_half_lives_leave_a_finite_order() -> None:
    question = example((), ("a", "b", "never"), day=1000)
    a, b, never = margins(decayed(0.01, ("a", 0), ("b", 1), ("b", 1)), question)
    assert np.isfinite([a, b, never]).all()
    assert b > a > never


def test_events_without_a_time_are_counted_and_need_at_least_one_with_a_time() -> None:
    ranker = decayed(4, ("a", 0), ("b", None), ("b", None))
    assert ranker.facts([example((), ("a", "b"), day=1)]) == {"events_without_time": 2, "unmet_candidates": 1}
    with pytest.raises(
        ConfigError, match=r"popularity_decayed needs .* no event .* take it out of `rankers`"
    ):
        decayed(4, ("a", None))


def test_recency_is_the_weighted_share_of_categories_in_the_history() -> None:
    ranker = recency(CATEGORIES, half_life=1)
    got = margins(ranker, example(("chair", "pen"), ("refill", "desk", "pen")))
    assert got == pytest.approx([(1.0 + 0.0) / 2, 0.5, 1.0])
    refill, desk = margins(recency(CATEGORIES), example(("pen", "chair"), ("refill", "desk")))
    assert desk > refill
    itself = margins(recency({}, half_life=1), example(("x", "y", "x"), ("x", "y", "z")))
    assert itself == pytest.approx([1.25, 0.5, 0.0])


@pytest.mark.parametrize("half_life", [0.0, -1.0, math.nan])
def test_a_half_life_of_zero_or_less_is_refused(half_life: float) -> None:
    with pytest.raises(ConfigError, match="half_life"):
        recency({}, half_life=half_life)
    with pytest.raises(ConfigError, match="half_life_days"):
        decayed(half_life, ("a", 0))


def lucene(tf: int, df: int, n_documents: int, length: int, mean_length: float) -> float:
    idf = math.log(1 + (n_documents - df + 0.5) / (df + 0.5))
    return idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * length / mean_length))


def test_bm25_is_the_lucene_formula_with_the_catalogues_frequencies() -> None:
    got = margins(BM25(Bm25Index(TEXTS)), example(("pen",), ("refill", "chair", "blank")))
    mean_length = (3 + 4 + 2 + 2 + 0) / 5
    wanted = 2 * lucene(tf=1, df=2, n_documents=5, length=4, mean_length=mean_length)
    assert got == pytest.approx([wanted, 0.0, 0.0])


def test_bm25_of_candidates_equals_that_of_the_whole_catalogue() -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(40)])
    texts = {f"i{n}": " ".join(rng.choice(words, size=rng.integers(1, 12))) for n in range(60)}
    tokens = bm25s.tokenize(list(texts.values()), show_progress=False)
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index(tokens, show_progress=False)
    history = ("i1", "i2", "i2")
    query = " ".join(texts[item] for item in history).split()
    got = margins(BM25(Bm25Index(texts)), example(history, tuple(texts)))
    np.testing.assert_allclose(got, index.get_scores(query), rtol=1e-5)


def test_bm25_reads_the_profile_and_only_as_many_recent_items_as_requested() -> None:
    question = example(("chair", "pen"), ("refill", "desk", "chair"))
    refill, desk, chair = margins(BM25(Bm25Index(TEXTS), n_recent=1), question)
    assert refill > 0 == desk == chair
    assert min(margins(BM25(Bm25Index(TEXTS), n_recent=None), question)[::2]) > 0
    profiles = {"e": "Likes OAK, unknown words"}
    refill, desk, chair = margins(BM25(Bm25Index(TEXTS), n_recent=0, profiles=profiles), question)
    assert desk > 0 == refill == chair
    with pytest.raises(ConfigError, match="n_recent -1"):
        BM25(Bm25Index(TEXTS), n_recent=-1)


@pytest.mark.parametrize("texts", [{"a": "", "b": " "}, {}])
def test_bm25_with_a_catalogue_without_words_scores_everything_zero(texts: dict[str, str]) -> None:
    assert margins(BM25(Bm25Index(texts)), example(("a",), ("a", "b"))) == [0.0, 0.0]


def words(train: list[RankingExample] = TRAIN, **changed: Any) -> BagOfWordsRanker:
    return BagOfWordsRanker(train, lambda item: TEXTS.get(item, "xylophone"), SETTINGS | changed)


@pytest.mark.parametrize("history", [(), ("chair",)])
def test_bag_of_words_has_the_margins_of_scikit_learn(history: tuple[str, ...]) -> None:
    rows = [(TEXTS[c], label) for e in TRAIN for c, label in zip(e.candidates, e.labels, strict=True)]
    vectors = TfidfVectorizer(ngram_range=(1, 2), min_df=1, sublinear_tf=True)
    model = LogisticRegression(C=3, max_iter=1000)
    model.fit(vectors.fit_transform([text for text, _ in rows]), [label for _, label in rows])
    expected = model.decision_function(vectors.transform([TEXTS["refill"], TEXTS["chair"]]))
    got = margins(words(C=3.0), example(history, ("refill", "chair")))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert got[0] > got[1]


def test_candidates_without_a_known_word_are_counted_and_get_the_intercept() -> None:
    one = example((), ("unheard", "pen", "chair"))
    assert words().facts([one, one]) == {"candidates_without_a_known_word": 2}
    shut = words(C=1e-9)  # with no weights to speak of, the intercept is the log odds of the labels
    assert margins(shut, one)[0] == pytest.approx(np.log(2 / 4), abs=1e-4)


@pytest.mark.parametrize("train", [[], [example((), ("pen",))], [example((), ("pen",), positive=1)]])
def test_bag_of_words_without_both_labels_is_refused(train: list[RankingExample]) -> None:
    with pytest.raises(DataError, match="chosen and not chosen, and there are none of one kind"):
        words(train)


def test_bag_of_words_without_a_common_word_is_refused() -> None:
    with pytest.raises(DataError, match="no word that occurs 9 times; lower min_df"):
        words(min_df=9)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require("sklearn", "cornac", "torch")
    monkeypatch.setattr(simple, "find_spec", lambda name: name == "sklearn" or None)
    with pytest.raises(MissingExtraError, match=r"'cornac' is not installed: .*trsr\[baselines\]"):
        require("sklearn", "cornac")
