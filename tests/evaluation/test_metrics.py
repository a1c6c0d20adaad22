"""Tie-aware metrics against brute force, two reference libraries and chance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from trsr.errors import ConfigError, DataError
from trsr.evaluation.metrics import (
    EmptyTruthWarning,
    Metric,
    chance_level,
    logloss,
    parse_metric,
    ranking_metric,
    tie_groups,
)

NAMES = ["recall@1", "recall@3", "mrr@1", "mrr@3", "mrr@10", "mrr", "ndcg@1", "ndcg@3", "ndcg@10", "auc"]


def value(name: str, margins: Sequence[float], labels: Sequence[int]) -> float:
    """Return a metric of one example."""
    groups = tie_groups(margins, labels, [0, len(labels)])
    return float(ranking_metric(parse_metric(name), groups)[0])


# --- the plain definition, for lists in a given order without ties ---------------------------------------


def plain(name: str, ordered: Sequence[int]) -> float:
    """Return a metric of labels that stand in ranked order, by its textbook definition."""
    metric = parse_metric(name)
    n, p = len(ordered), sum(ordered)
    k = n if metric.k is None else metric.k
    ranks = [rank for rank, label in enumerate(ordered, start=1) if label]
    match metric:
        case Metric("recall"):
            return sum(rank <= k for rank in ranks) / p
        case Metric("mrr", None):
            return sum(1 / rank for rank in ranks) / p
        case Metric("mrr"):
            return 1 / ranks[0] if ranks[0] <= k else 0.0
        case Metric("ndcg"):
            ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(p, k) + 1))
            return sum(1 / math.log2(rank + 1) for rank in ranks if rank <= k) / ideal
        case _:
            pairs = [a < b for a in ranks for b in range(1, n + 1) if b not in ranks]
            return sum(pairs) / len(pairs)


def brute_force(name: str, margins: Sequence[float], labels: Sequence[int]) -> float:
    """Average the plain definition over every order that the margins allow."""
    levels = sorted(set(margins), reverse=True)
    groups = [[label for m, label in zip(margins, labels, strict=True) if m == level] for level in levels]
    orders = itertools.product(*(list(itertools.permutations(group)) for group in groups))
    values = [plain(name, list(itertools.chain.from_iterable(order))) for order in orders]
    return math.fsum(values) / len(values)


@st.composite
def tied_lists(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """Draw up to six candidates with at most three margins: at least one positive and one negative."""
    n = draw(st.integers(2, 6))
    margins = draw(st.lists(st.sampled_from([-1.5, 0.0, 2.0]), min_size=n, max_size=n))
    n_positives = draw(st.integers(1, n - 1))
    labels = draw(st.permutations([1] * n_positives + [0] * (n - n_positives)))
    return margins, list(labels)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(example=tied_lists())
def test_closed_form_equals_the_average_over_all_orders_of_tied_candidates(
    name: str, example: tuple[list[float], list[int]]
) -> None:
    assert value(name, *example) == pytest.approx(brute_force(name, *example), abs=1e-12)


# --- parity with reference libraries --------------------------------------------------------------------


@pytest.mark.parametrize("n_positives", [1, 3])
def test_values_equal_those_of_trec_eval_where_nothing_is_tied(n_positives: int) -> None:
    rng = np.random.default_rng(1)
    n_examples, n = 200, 21
    margins = rng.permuted(np.tile(np.arange(n) / 7, (n_examples, 1)), axis=1)
    labels = (rng.permuted(np.tile(np.arange(n), (n_examples, 1)), axis=1) < n_positives).astype(int)
    evaluator = pytrec_eval.RelevanceEvaluator(
        {str(q): {f"d{i}": int(v) for i, v in enumerate(row)} for q, row in enumerate(labels)},
        {"recall_3,5,10", "recip_rank", "ndcg_cut_5,10"},
    )
    run = {str(q): {f"d{i}": float(v) for i, v in enumerate(row)} for q, row in enumerate(margins)}
    expected = evaluator.evaluate(run)
    groups = tie_groups(margins.ravel(), labels.ravel(), np.arange(n_examples + 1) * n)
    pairs = {
        "recall@3": "recall_3",
        "recall@10": "recall_10",
        "ndcg@5": "ndcg_cut_5",
        "ndcg@10": "ndcg_cut_10",
    }
    pairs["mrr@21"] = "recip_rank"
    for ours, theirs in pairs.items():
        got = ranking_metric(parse_metric(ours), groups)
        wanted = [expected[str(q)][theirs] for q in range(n_examples)]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-9)


def test_auc_equals_that_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        margins, labels = rng.integers(0, 4, 21), rng.permutation([1] * 3 + [0] * 18)
        assert value("auc", margins.tolist(), labels.tolist()) == pytest.approx(
            reference.roc_auc_score(labels, margins), abs=1e-12
        )


def test_logloss_equals_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    scores, labels = rng.uniform(size=(40, 21)), rng.integers(0, 2, size=(40, 21))
    scores[0, :2] = (0.0, 1.0)
    got = logloss(scores.ravel(), labels.ravel(), np.arange(41) * 21)
    wanted = [reference.log_loss(y, s, labels=[0, 1]) for y, s in zip(labels, scores, strict=True)]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-9)


# --- chance ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_positives", [1, 2, 20])
@pytest.mark.parametrize("name", NAMES)
def test_a_constant_scorer_lands_exactly_on_chance_with_the_positives_first(
    name: str, n_positives: int
) -> None:
    labels = [1] * n_positives + [0] * (21 - n_positives)
    assert value(name, [0.25] * 21, labels) == pytest.approx(
        chance_level(parse_metric(name), 21, n_positives), abs=1e-12
    )


def test_chance_levels_of_21_candidates_are_those_known_for_the_paper() -> None:
    wanted = {"recall@3": 0.1429, "recall@5": 0.2381, "recall@10": 0.4762}
    wanted |= {"mrr@3": 0.0873, "mrr@5": 0.1087, "mrr@10": 0.1395, "auc": 0.5}
    assert {name: round(chance_level(parse_metric(name), 21), 4) for name in wanted} == wanted


def test_chance_logloss_is_that_of_the_best_constant_probability() -> None:
    labels = [1] + [0] * 20
    scores = np.linspace(0.001, 0.999, 999)
    best = min(float(logloss([s] * 21, labels, [0, 21])[0]) for s in scores)
    assert chance_level(Metric("logloss"), 21) == pytest.approx(best, abs=1e-4)


# --- hand-computed values and edges ---------------------------------------------------------------------


def test_mrr_averages_over_all_clicks_and_mrr_at_k_takes_the_first() -> None:
    margins, labels = [4.0, 3.0, 2.0, 1.0], [1, 0, 0, 1]
    assert value("mrr", margins, labels) == pytest.approx((1 + 1 / 4) / 2)
    assert value("mrr@10", margins, labels) == 1.0


@settings(max_examples=60, deadline=None)
@given(margins=st.lists(st.sampled_from([-1.0, 0.0, 0.5]), min_size=1, max_size=8), k=st.integers(1, 10))
def test_all_clicked_is_perfect_up_to_the_cut_off(margins: list[float], k: int) -> None:
    labels = [1] * len(margins)
    assert value(f"ndcg@{k}", margins, labels) == pytest.approx(1.0)
    assert value(f"mrr@{k}", margins, labels) == pytest.approx(1.0)
    assert value(f"recall@{k}", margins, labels) == pytest.approx(min(k, len(margins)) / len(margins))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(margins=st.lists(st.floats(allow_nan=False), min_size=1, max_size=8))
def test_nothing_clicked_warns_and_is_nan(name: str, margins: list[float]) -> None:
    with pytest.warns(EmptyTruthWarning, match=f"{name}: 1 examples lack"):
        assert math.isnan(value(name, margins, [0] * len(margins)))


def test_auc_of_an_example_without_a_negative_is_nan() -> None:
    with pytest.warns(EmptyTruthWarning, match="a negative"):
        assert math.isnan(value("auc", [1.0, 0.0], [1, 1]))


def test_lists_of_different_lengths_are_kept_apart() -> None:
    together = tie_groups([0.0, 1.0, 1.0, 0.5, 0.5], [1, 0, 1, 0, 1], [0, 2, 5])
    for name in NAMES:
        got = ranking_metric(parse_metric(name), together)
        assert got.tolist() == [value(name, [0.0, 1.0], [1, 0]), value(name, [1.0, 0.5, 0.5], [1, 0, 1])]


def test_infinite_margins_are_ordered_and_tied_like_others() -> None:
    assert value("mrr", [-math.inf, math.inf, -math.inf], [1, 0, 0]) == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_tie_rate_is_the_share_of_tied_pairs() -> None:
    groups = tie_groups([1.0, 1.0, 0.0, 2.0, 1.0], [1, 0, 0, 1, 0], [0, 3, 5])
    assert groups.tie_rate().tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tie_groups([math.nan, 1.0], [0, 1], [0, 2]), "1 margins that are NaN"),
        (lambda: tie_groups([0.0, 1.0], [0, 2], [0, 2]), "label other than 0 and 1"),
        (lambda: logloss([1.5], [1], [0, 1]), "outside"),
        (lambda: logloss([math.nan], [1], [0, 1]), "1 scores that are NaN"),
    ],
)
def test_values_that_are_no_answer_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


@pytest.mark.parametrize("offsets", [[0, 1], [0, 0, 2], [1, 2]])
def test_offsets_that_do_not_fit_the_rows_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        tie_groups([0.0, 1.0], [0, 1], offsets)
    with pytest.raises(ValueError, match="order"):
        ranking_metric(Metric("logloss"), tie_groups([0.0, 1.0], [0, 1], [0, 2]))


@pytest.mark.parametrize("name", ["recall@3", "mrr@10", "ndcg@5", "mrr", "auc", "logloss"])
def test_a_metric_name_is_read_and_written_back(name: str) -> None:
    assert str(parse_metric(name)) == name


@pytest.mark.parametrize(
    "name", ["recall", "recall@0", "recall@-1", "auc@3", "logloss@1", "map@3", "mrr@", ""]
)
def test_an_unknown_metric_name_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(ConfigError, match="expected recall@K"):
        parse_metric(name)
