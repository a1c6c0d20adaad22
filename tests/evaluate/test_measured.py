"""Values of every example: what they are, and which rows are refused."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from score_rows import make_scores

from trsr.errors import DataError
from trsr.evaluate.metrics import PROBABILITY_METRICS, Metric
from trsr.evaluate.per_example import SCORE_COLUMNS, Measured, measure, metric_list

SCORES = make_scores()


def run(scores: pl.DataFrame = SCORES) -> Measured:
    return measure(scores, metric_list((3,)))


def test_every_ranker_has_a_value_for_every_example_and_metric() -> None:
    measured = measure(SCORES, metric_list((3,)), probabilistic=["good"])
    names = ["recall@3", "mrr@3", "ndcg@3", "mrr", "auc"]
    assert {ranker: list(table) for ranker, table in measured.values.items()} == {
        "constant": names,
        "good": [*names, "logloss", "brier"],
        "noise": names,
    }
    assert measured.example_ids == sorted(measured.example_ids)
    assert len(measured.user_ids) == len(measured.example_ids) == 60
    assert all(len(column) == 60 for table in measured.values.values() for column in table.values())


def test_a_constant_ranker_is_at_the_chance_level_of_each_example() -> None:
    shorter = SCORES.filter((pl.col("example_id") != "e7") | pl.col("item_id").is_in(["i0", "i1", "i2"]))
    measured = run(shorter)
    for metric, levels in measured.chance.items():
        if metric not in PROBABILITY_METRICS:
            np.testing.assert_allclose(measured.values["constant"][metric], levels, atol=1e-12)
    assert measured.chance["recall@3"][measured.example_ids.index("e7")] == 1.0


def test_an_example_without_truth_is_nan_and_counted_without_a_warning() -> None:
    scores = SCORES.with_columns(
        label=pl.when(pl.col("example_id") == "e0").then(0).otherwise(pl.col("label"))
    )
    measured = measure(scores, [Metric("auc")])
    assert math.isnan(measured.values["good"]["auc"][0])
    assert measured.n_without_truth == 1


@pytest.mark.parametrize("column", SCORE_COLUMNS)
def test_a_missing_column_is_named(column: str) -> None:
    with pytest.raises(DataError, match=f"lack the column '{column}'"):
        run(SCORES.drop(column))


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no row"):
        run(SCORES.clear())


def test_rankers_asked_different_questions_are_refused() -> None:
    fewer = SCORES.filter((pl.col("ranker") != "noise") | (pl.col("example_id") != "e1"))
    with pytest.raises(DataError, match="not asked the same"):
        run(fewer)


@pytest.mark.parametrize("margin", [None, float("nan")])
def test_a_missing_margin_is_refused(margin: float | None) -> None:
    broken = SCORES.with_columns(
        pl.when(pl.col("item_id") == "i4").then(pl.lit(margin)).otherwise(pl.col("margin")).alias("margin")
    )
    with pytest.raises(DataError, match="NaN"):
        run(broken)


def test_an_example_of_two_users_is_refused() -> None:
    mixed = SCORES.with_columns(
        pl.when(pl.col("item_id") == "i4").then(pl.lit("other")).otherwise(pl.col("user_id")).alias("user_id")
    )
    with pytest.raises(DataError, match="more than one user"):
        run(mixed)
