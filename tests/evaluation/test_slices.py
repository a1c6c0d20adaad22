"""Slices: which examples are in which, the shift of interests, and a pair of rankers compared on each."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from score_rows import make_scores

from trsr.errors import DataError
from trsr.evaluation.evaluate_scores import summarize
from trsr.evaluation.per_example import measure, metric_list
from trsr.evaluation.slices import WARM_FROM, ExampleFeatures, cut_examples, interest_shift

OLD = [["news"], ["news"], ["sport"], ["news", "world"], ["news"]]
MEASURED = measure(make_scores(), metric_list((3, 10)))


def members(features: dict[str, ExampleFeatures], way: str) -> dict[str, set[str]]:
    """Return the example ids in each slice."""
    ids = np.asarray(MEASURED.example_ids)
    return {one.name: set(ids[one.chosen].tolist()) for one in cut_examples(MEASURED, features)[way]}


@pytest.mark.parametrize(
    ("values", "shift"),
    [
        ([*OLD, *OLD], 0),
        ([*OLD, *[["food"]] * 5], 1),
        ([*OLD, ["food"], *[["food"]] * 5], 1 - 5 / (5 * np.sqrt(4**2 + 1 + 1 + 1))),
        ([["a", "a"], ["b"], *[["a"]] * 5], 1 - 1 / np.sqrt(2)),
        ([], None),
        (OLD, None),
        ([[], *OLD], None),
        ([*OLD, [], [], [], [], []], None),
    ],
)
def test_interest_shift_is_one_minus_the_cosine(values: list[list[str]], shift: float | None) -> None:
    assert interest_shift(values) == (None if shift is None else pytest.approx(shift))


def test_targets_seen_less_often_than_the_threshold_are_cold() -> None:
    features = {f"e{i}": ExampleFeatures(10, WARM_FROM - 1 if i < 7 else WARM_FROM) for i in range(60)}
    features["e59"] = ExampleFeatures(10, None)
    found = members(features, "target")
    assert found["cold"] == {f"e{i}" for i in range(7)}
    assert len(found["warm"]) == 60 - 7 - 1


def test_users_above_the_median_are_recent_shift_with_all_their_examples() -> None:
    # Two examples per user: user u has the mean shift u / 30, whatever its examples have.
    features = {
        f"e{i}": ExampleFeatures(10, 0, (i // 2) / 30 + (0.01 if i % 2 else -0.01)) for i in range(60)
    }
    found = members(features, "interest")
    assert found["recent-shift"] == {f"e{i}" for i in range(30, 60)}
    assert found["long-term"] == {f"e{i}" for i in range(30)}


def test_examples_without_a_shift_are_in_no_slice_and_features_are_required() -> None:
    found = members(
        {f"e{i}": ExampleFeatures(10, 0, i / 60 if i >= 20 else None) for i in range(60)}, "interest"
    )
    assert sum(map(len, found.values())) == 40
    assert members({f"e{i}": ExampleFeatures(10) for i in range(60)}, "interest") == {}
    with pytest.raises(DataError, match="has no features"):
        members({"e0": ExampleFeatures(3)}, "interest")


def test_a_pair_is_compared_on_every_slice_from_the_same_side() -> None:
    # `good` is better on even users; on odd ones it and noise change places.
    odd = pl.col("user_id").str.slice(1).cast(pl.Int64) % 2 == 1
    swapped = pl.when(odd).then(pl.col("ranker").replace({"good": "noise", "noise": "good"}))
    scores = make_scores().with_columns(ranker=swapped.otherwise("ranker"))
    result: dict[str, Any] = summarize(
        measure(scores, metric_list((3, 10))),
        protocol={},
        compared=["auc", "mrr@10"],
        features={f"e{i}": ExampleFeatures(10, 0 if (i // 2) % 2 else 50) for i in range(60)},
        slice_pair=("good", "noise"),
    )
    cold, warm = result["slices"]["target"]
    pairs = [*cold["comparisons"], *warm["comparisons"]]
    assert [one["metric"] for one in pairs] == ["auc", "mrr@10"] * 2
    assert {(one["a"], one["b"]) for one in pairs} == {("good", "noise")}
    (low, high), difference = cold["comparisons"][0]["ci95"], cold["comparisons"][0]["difference"]
    assert low < difference < high < 0 < warm["comparisons"][0]["difference"]
    values = [cold["rankers"][name]["auc"]["value"] for name in ("good", "noise")]
    assert difference == pytest.approx(values[0] - values[1], abs=2e-6)
    # Corrected for the three slices of all ways: cold, warm, and one range of history lengths.
    assert all(one["p"] < one["p_holm"] <= 3 * one["p"] + 1e-6 and one["p"] < 0.01 for one in pairs)
    assert (cold["users"], cold["examples"]) == (15, 30)


def test_without_a_pair_nothing_is_compared() -> None:
    features = {f"e{i}": ExampleFeatures(i) for i in range(60)}
    result = summarize(MEASURED, protocol={}, compared=["auc"], features=features)
    assert all(part["comparisons"] == [] for parts in result["slices"].values() for part in parts)
    assert "cold is fewer than 10" in result["protocol"]["slices"]["target"]
