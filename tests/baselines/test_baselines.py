"""Baselines: values computed by hand, nothing that depends on order, no look at the labels."""

from __future__ import annotations

import math
from collections.abc import Callable

import bm25s
import numpy as np
import polars as pl
import pytest

from trsr.baselines.simple import Bm25Ranker, PopularityRanker, RandomRanker, RecencyRanker
from trsr.errors import ConfigError
from trsr.recommend.ranker import Ranker
from trsr.types import RankingExample

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
EVENTS = pl.DataFrame(
    {
        "user_id": ["a", "a", "b", "c", "c"],
        "item_id": ["pen", "pen", "pen", "desk", "pen"],
        "position": [0, 1, 0, 0, 1],
    }
)


def example(
    history: tuple[str, ...],
    candidates: tuple[str, ...],
    positive: int = 0,
    example_id: str = "e",
) -> RankingExample:
    labels = tuple(int(i == positive) for i in range(len(candidates)))
    return RankingExample(example_id, "user", history, candidates, labels)


def margins(ranker: Ranker, question: RankingExample) -> list[float]:
    (answer,) = ranker.rank([question])
    assert answer.example_id == question.example_id
    assert answer.margins.dtype == np.float32
    return [float(margin) for margin in answer.margins]


RANKERS: list[Callable[[], Ranker]] = [
    lambda: RandomRanker(0),
    lambda: PopularityRanker(EVENTS),
    lambda: RecencyRanker(CATEGORIES),
    lambda: Bm25Ranker(TEXTS),
]


@pytest.mark.parametrize("make", RANKERS)
def test_a_ranker_answers_each_example_alike_in_any_order_and_any_process(make: Callable[[], Ranker]) -> None:
    questions = [example(("pen", "desk"), ("refill", "chair"), example_id=f"e{i}") for i in range(5)]
    forward = {a.example_id: a.margins.tolist() for a in make().rank(questions)}
    backward = {a.example_id: a.margins.tolist() for a in make().rank(questions[::-1])}
    assert forward == backward
    assert set(forward) == {q.example_id for q in questions}


@pytest.mark.parametrize("make", RANKERS)
def test_the_labels_are_not_looked_at(make: Callable[[], Ranker]) -> None:
    first, second = (example(("pen",), ("refill", "chair", "desk"), positive) for positive in (0, 2))
    assert margins(make(), first) == margins(make(), second)


@pytest.mark.parametrize("make", RANKERS)
def test_unknown_items_and_an_empty_history_get_a_finite_margin(make: Callable[[], Ranker]) -> None:
    assert all(math.isfinite(m) for m in margins(make(), example((), ("never-seen", "pen", "blank"))))
    assert all(math.isfinite(m) for m in margins(make(), example(("never-seen",), ("never-seen", "pen"))))


def test_random_margins_differ_between_examples_and_seeds() -> None:
    draws = [
        margins(RandomRanker(seed), example((), ("pen", "desk"), example_id=name))
        for seed, name in [(0, "a"), (0, "b"), (1, "a")]
    ]
    assert len({tuple(d) for d in draws}) == 3


def test_popularity_counts_users_and_not_events() -> None:
    got = margins(PopularityRanker(EVENTS), example((), ("desk", "pen", "chair")))
    assert got == pytest.approx([math.log(2), math.log(4), 0.0])


def test_recency_is_the_weighted_share_of_categories_met_in_the_history() -> None:
    ranker = RecencyRanker(CATEGORIES, half_life=1)
    got = margins(ranker, example(("chair", "pen"), ("refill", "desk", "pen")))
    assert got == pytest.approx([(1.0 + 0.0) / 2, 0.5, 1.0])


def test_recency_prefers_what_was_met_lately_to_what_was_met_long_ago() -> None:
    ranker = RecencyRanker(CATEGORIES)
    refill, desk = margins(ranker, example(("pen", "chair"), ("refill", "desk")))
    assert desk > refill


def test_recency_of_a_candidate_without_categories_is_that_of_itself() -> None:
    got = margins(RecencyRanker({}, half_life=1), example(("x", "y", "x"), ("x", "y", "z")))
    assert got == pytest.approx([1.25, 0.5, 0.0])


@pytest.mark.parametrize("half_life", [0.0, -1.0, math.nan])
def test_a_half_life_of_zero_or_less_is_refused(half_life: float) -> None:
    with pytest.raises(ConfigError, match="half_life"):
        RecencyRanker({}, half_life=half_life)


def lucene(tf: int, df: int, n_documents: int, length: int, mean_length: float) -> float:
    idf = math.log(1 + (n_documents - df + 0.5) / (df + 0.5))
    return idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * length / mean_length))


def test_bm25_is_the_lucene_formula_with_the_catalogues_frequencies() -> None:
    got = margins(Bm25Ranker(TEXTS), example(("pen",), ("refill", "chair", "blank")))
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
    got = margins(Bm25Ranker(texts), example(history, tuple(texts)))
    np.testing.assert_allclose(got, index.get_scores(query), rtol=1e-5)


def test_bm25_reads_the_profile_and_only_the_recent_items_asked_for() -> None:
    question = example(("chair", "pen"), ("refill", "desk", "chair"))
    refill, desk, chair = margins(Bm25Ranker(TEXTS, n_recent=1), question)
    assert refill > 0 == desk == chair
    assert min(margins(Bm25Ranker(TEXTS, n_recent=None), question)[::2]) > 0
    refill, desk, chair = margins(
        Bm25Ranker(TEXTS, n_recent=0, profiles={"e": "Likes OAK, unknown words"}), question
    )
    assert desk > 0 == refill == chair


def test_bm25_with_a_catalogue_without_words_scores_everything_zero() -> None:
    assert margins(Bm25Ranker({"a": "", "b": " "}), example(("a",), ("a", "b"))) == [0.0, 0.0]
    assert margins(Bm25Ranker({}), example(("a",), ("a", "b"))) == [0.0, 0.0]


def test_bm25_refuses_a_negative_number_of_recent_items() -> None:
    with pytest.raises(ConfigError, match="n_recent -1"):
        Bm25Ranker(TEXTS, n_recent=-1)
