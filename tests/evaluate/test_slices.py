"""Slices: who is in which, what a shift of interests is, and a pair of rankers compared on each."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from score_rows import make_scores

from trsr.evaluate.evaluation import summarise
from trsr.evaluate.per_example import Measured, measure, metric_list
from trsr.evaluate.slices import WARM_FROM, Traits, cut_examples, interest_shift

OLD = [["news"], ["news"], ["sport"], ["news", "world"], ["news"]]


@pytest.fixture(scope="module")
def measured() -> Measured:
    """The values of sixty examples of thirty users."""
    return measure(make_scores(), metric_list((3, 10)))


def members(measured: Measured, traits: dict[str, Traits], way: str) -> dict[str, list[str]]:
    """Return the example ids in each slice."""
    ids = np.asarray(measured.example_ids)
    return {one.name: ids[one.chosen].tolist() for one in cut_examples(measured, traits)[way]}


def test_a_user_who_goes_on_as_before_has_not_shifted() -> None:
    assert interest_shift([*OLD, *OLD]) == pytest.approx(0)


def test_a_user_whose_last_five_items_share_nothing_with_the_older_has_shifted_wholly() -> None:
    assert interest_shift([*OLD, *[["food"]] * 5]) == 1
    assert interest_shift([*OLD, ["food"], *[["food"]] * 5]) == pytest.approx(
        1 - 5 / (5 * np.sqrt(4**2 + 1 + 1 + 1))
    )


def test_a_value_counts_once_an_item() -> None:
    assert interest_shift([["a", "a"], ["b"], *[["a"]] * 5]) == interest_shift([["a"], ["b"], *[["a"]] * 5])


@pytest.mark.parametrize("values", [[], OLD, [[], *OLD], [*OLD, [], [], [], [], []]])
def test_without_values_on_both_sides_there_is_no_shift(values: list[list[str]]) -> None:
    assert interest_shift(values) is None


def test_targets_met_less_often_than_the_threshold_are_cold(measured: Measured) -> None:
    traits = {f"e{i}": Traits(10, WARM_FROM - 1 if i < 7 else WARM_FROM) for i in range(60)}
    traits["e59"] = Traits(10, None)
    found = members(measured, traits, "target")
    assert sorted(found["cold"]) == sorted(f"e{i}" for i in range(7))
    assert len(found["warm"]) == 60 - 7 - 1


def test_users_above_the_median_are_recent_shift_with_all_their_examples(measured: Measured) -> None:
    # Two examples a user: user u has the mean shift u / 30, whatever its examples have.
    traits = {f"e{i}": Traits(10, 0, (i // 2) / 30 + (0.01 if i % 2 else -0.01)) for i in range(60)}
    found = members(measured, traits, "interest")
    assert sorted(found["recent-shift"]) == sorted(f"e{i}" for i in range(30, 60))
    assert sorted(found["long-term"]) == sorted(f"e{i}" for i in range(30))


def test_examples_without_a_shift_are_in_no_slice(measured: Measured) -> None:
    traits = {f"e{i}": Traits(10, 0, i / 60 if i >= 20 else None) for i in range(60)}
    found = members(measured, traits, "interest")
    assert sum(map(len, found.values())) == 40
    assert members(measured, {f"e{i}": Traits(10) for i in range(60)}, "interest") == {}


def test_a_pair_is_compared_on_every_slice_from_the_same_side() -> None:
    scores = make_scores()
    # `good` is better on even users; on odd ones it and noise change places.
    odd = pl.col("user_id").str.slice(1).cast(pl.Int64) % 2 == 1
    turned = pl.when(odd).then(pl.col("ranker").replace({"good": "noise", "noise": "good"}))
    scores = scores.with_columns(ranker=turned.otherwise("ranker"))
    traits = {f"e{i}": Traits(10, 0 if (i // 2) % 2 else 50) for i in range(60)}
    result: dict[str, Any] = summarise(
        measure(scores, metric_list((3, 10))),
        protocol={},
        compared=["auc", "mrr@10"],
        traits=traits,
        slice_pair=("good", "noise"),
    )
    cold, warm = result["slices"]["target"]
    assert [one["metric"] for one in cold["comparisons"]] == ["auc", "mrr@10"]
    assert {(one["a"], one["b"]) for part in (cold, warm) for one in part["comparisons"]} == {
        ("good", "noise")
    }
    (low, high), difference = cold["comparisons"][0]["ci95"], cold["comparisons"][0]["difference"]
    assert low < difference < high < 0 < warm["comparisons"][0]["difference"]
    values = [cold["rankers"][name]["auc"]["value"] for name in ("good", "noise")]
    assert difference == pytest.approx(values[0] - values[1], abs=2e-6)
    ps = [(one["p"], one["p_holm"]) for part in (cold, warm) for one in part["comparisons"]]
    # Corrected for the three slices of all ways: cold, warm, and one range of history lengths.
    assert max(p for p, _ in ps) < 0.01
    assert all(p < p_holm <= 3 * p + 1e-6 for p, p_holm in ps)
    assert cold["users"] == 15
    assert cold["examples"] == 30


def test_without_a_pair_nothing_is_compared(measured: Measured) -> None:
    traits = {f"e{i}": Traits(i) for i in range(60)}
    result = summarise(measured, protocol={}, compared=["auc"], traits=traits)
    assert all(part["comparisons"] == [] for parts in result["slices"].values() for part in parts)
    assert "cold is fewer than 10" in result["protocol"]["slices"]["target"]
