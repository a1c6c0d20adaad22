"""Values of every example, and rows that are refused."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from score_rows import make_scores

from trsr.errors import DataError
from trsr.evaluation.metrics import PROBABILITY_METRICS, Metric
from trsr.evaluation.per_example import SCORE_COLUMNS, measure, metric_list

SCORES = make_scores()


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
    measured = measure(shorter, metric_list((3,)))
    for metric, levels in measured.chance.items():
        if metric not in PROBABILITY_METRICS:
            np.testing.assert_allclose(measured.values["constant"][metric], levels, atol=1e-12)
    assert measured.chance["recall@3"][measured.example_ids.index("e7")] == 1.0


def test_an_example_without_truth_is_nan_and_counted_without_a_warning() -> None:
    no_click = pl.when(pl.col("example_id") == "e0").then(0).otherwise(pl.col("label"))
    measured = measure(SCORES.with_columns(label=no_click), [Metric("auc")])
    assert math.isnan(measured.values["good"]["auc"][0])
    assert measured.n_without_truth == 1


I4 = pl.col("item_id") == "i4"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        *((SCORES.drop(column), f"lack the column '{column}'") for column in SCORE_COLUMNS),
        (SCORES.clear(), "no row"),
        (SCORES.filter((pl.col("ranker") != "noise") | (pl.col("example_id") != "e1")), "different examples"),
        (SCORES.with_columns(margin=pl.when(I4).then(None).otherwise("margin")), "NaN"),
        (SCORES.with_columns(margin=pl.when(I4).then(math.nan).otherwise("margin")), "NaN"),
        (
            SCORES.with_columns(user_id=pl.when(I4).then(pl.lit("x")).otherwise("user_id")),
            "more than one user",
        ),
    ],
)
def test_unusable_rows_are_refused(broken: pl.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure(broken, metric_list((3,)))
