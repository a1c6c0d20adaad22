"""Several seeds as one result: averages by example, the spread between seeds."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from score_rows import make_scores

from trsr.errors import DataError
from trsr.evaluate.evaluation import add_spread, pool, summarise
from trsr.evaluate.per_example import Measured, measure, metric_list

SCORES = make_scores(n_examples=20, n_candidates=6, per_user=2)


def measured(scores: pl.DataFrame = SCORES) -> Measured:
    return measure(scores, metric_list((3,)))


def turned(scores: pl.DataFrame = SCORES) -> pl.DataFrame:
    """Return the scores of a run that orders all candidates the other way round."""
    return scores.with_columns(-pl.col("margin"))


def test_an_example_has_the_mean_over_the_seeds_that_asked_it() -> None:
    one, two = measured(SCORES), measured(turned())
    both = pool([one, two])
    np.testing.assert_allclose(both.values["good"]["auc"], 0.5)
    fewer = pool([one, measured(turned(SCORES.filter(pl.col("example_id") != "e3")))])
    place = fewer.example_ids.index("e3")
    assert fewer.values["good"]["auc"][place] == one.values["good"]["auc"][place]
    np.testing.assert_allclose(np.delete(fewer.values["good"]["auc"], place), 0.5)


def test_a_run_pooled_with_itself_is_itself_with_its_questions_counted_twice() -> None:
    one = measured()
    both = pool([one, one])
    assert both.example_ids == one.example_ids
    assert both.user_ids.tolist() == one.user_ids.tolist()
    for name, table in one.values.items():
        for metric, column in table.items():
            np.testing.assert_allclose(both.values[name][metric], column)
    assert both.tie_rates == one.tie_rates
    assert (both.n_candidates, both.n_cut) == (2 * one.n_candidates, 2 * one.n_cut)


def test_seeds_of_other_users_make_the_interval_narrower() -> None:
    def users(first: int, last: int) -> Measured:
        return measured(SCORES.filter(pl.col("user_id").is_in([f"u{i}" for i in range(first, last)])))

    alone = summarise(users(0, 5), protocol={}, compared=[])
    pooled = summarise(pool([users(0, 5), users(5, 10)]), protocol={}, compared=[])
    assert (alone["counts"]["users"], pooled["counts"]["users"]) == (5, 10)
    (a, b), (c, d) = (part["rankers"]["noise"]["auc"]["ci95"] for part in (alone, pooled))
    assert d - c < b - a
    assert pooled["rankers"] == summarise(measured(), protocol={}, compared=[])["rankers"]


def test_the_spread_is_the_standard_deviation_of_the_means_of_the_seeds() -> None:
    runs = {4: measured(), 5: measured(turned())}
    metrics = summarise(pool(list(runs.values())), protocol={}, compared=["auc"])
    add_spread(metrics, runs)
    assert metrics["seeds"] == [4, 5]
    entry = metrics["rankers"]["good"]["auc"]
    first, second = entry["by_seed"]
    assert first == pytest.approx(1 - second, abs=1e-6)
    assert entry["seed_std"] == pytest.approx(abs(first - second) / math.sqrt(2), abs=1e-6)
    assert entry["value"] == pytest.approx(0.5)
    assert metrics["rankers"]["constant"]["auc"]["seed_std"] == 0
    add_spread(metrics, {4: runs[4]})
    assert metrics["rankers"]["good"]["auc"]["seed_std"] is None


def test_ece_of_several_seeds_is_the_mean_of_theirs() -> None:
    def scored(scores: pl.DataFrame) -> Measured:
        return measure(scores, metric_list((3,)), probabilistic=["good"])

    runs = {1: scored(SCORES), 2: scored(SCORES.with_columns(pl.col("score") / 2))}
    metrics = summarise(pool(list(runs.values())), protocol={}, compared=[])
    add_spread(metrics, runs)
    entry = metrics["rankers"]["good"]["ece"]
    assert entry["value"] == pytest.approx(sum(entry["by_seed"]) / 2, abs=1e-6)
    assert entry["by_seed"][0] != entry["by_seed"][1]
    assert list(metrics["calibration"]["good"]) == ["raw", "calibrated"]


def test_runs_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DataError, match="different rankers"):
        pool([measured(), measured(SCORES.filter(pl.col("ranker") != "noise"))])
    with pytest.raises(DataError, match="different users"):
        pool([measured(), measured(SCORES.with_columns(user_id=pl.lit("x")))])
