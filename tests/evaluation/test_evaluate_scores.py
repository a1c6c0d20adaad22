"""The content of `metrics.json`, of one run and pooled over seeds."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from score_rows import make_scores

from trsr.errors import DataError
from trsr.evaluation.evaluate_scores import add_spread, evaluate_scores, main_metrics, pool, summarize
from trsr.evaluation.metrics import PROBABILITY_METRICS
from trsr.evaluation.per_example import PerExampleMetrics, measure, metric_list
from trsr.evaluation.slices import ExampleFeatures
from trsr.recommend.calibration import Calibration

SCORES = make_scores()


def run(scores: pl.DataFrame = SCORES, **options: Any) -> dict[str, Any]:
    return evaluate_scores(scores, protocol={"protocol": "sampled"}, **options)


def test_metrics_have_the_documented_shape() -> None:
    result = run(probabilistic=["good"])
    assert list(result) == ["protocol", "rankers", "comparisons", "counts", "calibration"]
    assert result["protocol"]["protocol"] == "sampled"
    keys = ["metric", "a", "b", "difference", "ci95", "p", "p_holm", "effect_size"]
    assert [list(pair) for pair in result["comparisons"]] == [keys] * 9
    entry = result["rankers"]["good"]["recall@3"]
    assert list(entry) == ["value", "ci95"]
    assert entry["ci95"][0] < entry["value"] < entry["ci95"][1]
    assert "logloss" in result["rankers"]["good"]
    assert result["rankers"]["noise"].keys().isdisjoint(PROBABILITY_METRICS)
    json.dumps(result, allow_nan=False)


def test_counts_say_what_was_averaged_cut_and_tied() -> None:
    assert run()["counts"] == {
        "users": 30,
        "examples": 60,
        "candidates": 60 * 21,
        "cut_prompts": 3 * 21,
        "tie_rate": pytest.approx(1 / 3, abs=1e-6),
        "tie_rates": {"constant": 1.0, "good": 0.0, "noise": 0.0},
        "examples_without_truth": 0,
    }


def calibrated(scores: pl.DataFrame = SCORES) -> pl.DataFrame:
    """Give `good` scores that are not the sigmoid of its margins."""
    scores_of = Calibration("platt", 2.0, -5.0).apply(scores["margin"].to_numpy())
    return scores.with_columns(
        score=pl.when(pl.col("ranker") == "good").then(pl.Series(scores_of)).otherwise(pl.col("score"))
    )


def test_calibration_judges_scores_before_and_after() -> None:
    plain = run(probabilistic=["good"])
    assert list(plain["calibration"]["good"]) == ["raw"]
    result = run(calibrated(), probabilistic=["good"])
    before, after = (result["calibration"]["good"][name] for name in ("raw", "calibrated"))
    assert before == plain["calibration"]["good"]["raw"]
    for metric in ("logloss", "brier", "ece"):
        assert after[metric] == result["rankers"]["good"][metric], "the table shows the scores as they are"
        assert after[metric]["value"] < before[metric]["value"]
    low, high = after["ece"]["ci95"]
    assert low <= after["ece"]["value"] <= high < before["ece"]["ci95"][0]
    assert sum(point["candidates"] for point in after["curve"]) == 60 * 21
    assert result["protocol"]["chance"]["ece"] is None


def test_the_order_of_rows_and_other_rankers_change_nothing() -> None:
    options = {
        "features": {f"e{i}": ExampleFeatures(i, i % 12, (i % 7) / 7) for i in range(60)},
        "probabilistic": ["good"],
    }
    result, shuffled = run(calibrated(), **options), calibrated().sample(fraction=1.0, shuffle=True, seed=3)
    assert run(shuffled, **options) == result
    alone = run(calibrated().filter(pl.col("ranker") == "good"), **options)
    assert alone["rankers"]["good"] == result["rankers"]["good"]
    assert alone["comparisons"] == []
    assert "comparison" not in alone["protocol"]


@pytest.mark.parametrize(
    ("lengths", "slices"),
    [
        ([10 + i % 8 for i in range(120)], [(10, 11, 30), (12, 13, 30), (14, 15, 30), (16, 17, 30)]),
        (list(range(60)), [(0, 19, 20), (20, 39, 20), (40, 59, 20)]),
        ([7] * 60, [(7, 7, 60)]),
    ],
    ids=["four ranges", "no range below 20 examples", "one length"],
)
def test_slices_divide_the_examples_by_history_length(
    lengths: list[int], slices: list[tuple[int, int, int]]
) -> None:
    features = {f"e{i}": ExampleFeatures(length) for i, length in enumerate(lengths)}
    result = run(make_scores(n_examples=len(lengths)), features=features)
    found = result["slices"]["history_length"]
    assert [(part["min"], part["max"], part["examples"]) for part in found] == slices
    total = sum(part["examples"] * part["rankers"]["good"]["auc"]["value"] for part in found) / len(lengths)
    assert total == pytest.approx(result["rankers"]["good"]["auc"]["value"], abs=1e-5)


def test_every_pair_is_compared_on_the_main_metrics_from_the_better_side() -> None:
    result = run()
    found = {(pair["metric"], pair["a"], pair["b"]): pair for pair in result["comparisons"]}
    assert {metric for metric, _, _ in found} == {"recall@3", "mrr@10", "auc"}
    for (metric, a, b), pair in found.items():
        better, worse = (result["rankers"][name][metric]["value"] for name in (a, b))
        assert pair["difference"] == pytest.approx(better - worse, abs=2e-6)
        assert pair["difference"] >= 0
        assert pair["p"] <= pair["p_holm"] <= 1
    assert found["auc", "good", "noise"]["p_holm"] < 0.01


@pytest.mark.parametrize(
    ("ks", "wanted"),
    [((10, 5, 1), ["recall@1", "mrr@10", "auc"]), ((3,), ["recall@3", "mrr@3", "auc"]), ((), ["auc"])],
)
def test_main_metrics_follow_the_cut_offs(ks: tuple[int, ...], wanted: list[str]) -> None:
    assert main_metrics(ks) == wanted


def shuffle(scores: pl.DataFrame, column: str) -> pl.DataFrame:
    """Shuffle a column within each example, each in its own way."""
    key = pl.Series("key", np.random.default_rng(5).uniform(size=scores.height))
    return scores.with_columns(key).with_columns(pl.col(column).sort_by("key").over("example_id")).drop("key")


def test_random_rankers_are_at_chance_without_a_significant_difference() -> None:
    scores = make_scores(n_examples=300, per_user=1)
    good, others = scores.filter(pl.col("ranker") == "good"), scores.filter(pl.col("ranker") != "good")
    blind = shuffle(good, "margin").with_columns(ranker=pl.lit("blind"))
    result = run(pl.concat([others, blind.select(others.columns)]))
    for metric, level in result["protocol"]["chance"].items():
        for name in ("noise", "blind") if metric not in PROBABILITY_METRICS else ():
            low, high = result["rankers"][name][metric]["ci95"]
            assert low <= level <= high, (name, metric)
    assert all(pair["p_holm"] > 0.05 for pair in result["comparisons"])
    shuffled = run(shuffle(good, "label"))
    for metric in ("recall@3", "mrr@10", "ndcg@5", "auc"):
        low, high = shuffled["rankers"]["good"][metric]["ci95"]
        assert low <= shuffled["protocol"]["chance"][metric] <= high, metric


# --- several seeds ----------------------------------------------------------------------------------------

FEW = make_scores(n_examples=20, n_candidates=6, per_user=2)
TURNED = FEW.with_columns(-pl.col("margin"))


def measured(scores: pl.DataFrame = FEW, **options: Any) -> PerExampleMetrics:
    return measure(scores, metric_list((3,)), **options)


def test_pool_averages_each_example_over_the_seeds_that_have_it() -> None:
    one = measured()
    np.testing.assert_allclose(pool([one, measured(TURNED)]).values["good"]["auc"], 0.5)
    fewer = pool([one, measured(TURNED.filter(pl.col("example_id") != "e3"))])
    place = fewer.example_ids.index("e3")
    assert fewer.values["good"]["auc"][place] == one.values["good"]["auc"][place]
    np.testing.assert_allclose(np.delete(fewer.values["good"]["auc"], place), 0.5)


def test_pool_of_a_run_with_itself_counts_its_questions_twice() -> None:
    one = measured()
    both = pool([one, one])
    assert both.example_ids == one.example_ids
    assert both.user_ids.tolist() == one.user_ids.tolist()
    for name, table in one.values.items():
        for metric, column in table.items():
            np.testing.assert_allclose(both.values[name][metric], column)
    assert both.tie_rates == one.tie_rates
    assert (both.n_candidates, both.n_cut) == (2 * one.n_candidates, 2 * one.n_cut)


def test_pool_of_seeds_with_other_users_equals_one_run_of_all() -> None:
    halves = [
        measured(FEW.filter(pl.col("user_id").is_in([f"u{i}" for i in part])))
        for part in (range(5), range(5, 10))
    ]
    pooled, alone = (summarize(run, protocol={}, compared=[]) for run in (pool(halves), halves[0]))
    assert (alone["counts"]["users"], pooled["counts"]["users"]) == (5, 10)
    (a, b), (c, d) = (part["rankers"]["noise"]["auc"]["ci95"] for part in (alone, pooled))
    assert d - c < b - a
    assert pooled["rankers"] == summarize(measured(), protocol={}, compared=[])["rankers"]


def test_add_spread_gives_the_standard_deviation_of_the_seeds_means() -> None:
    runs = {4: measured(), 5: measured(TURNED)}
    metrics = summarize(pool(list(runs.values())), protocol={}, compared=["auc"])
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
    halved = FEW.with_columns(pl.col("score") / 2)
    runs = {n: measured(scores, probabilistic=["good"]) for n, scores in enumerate((FEW, halved))}
    metrics = summarize(pool(list(runs.values())), protocol={}, compared=[])
    add_spread(metrics, runs)
    entry = metrics["rankers"]["good"]["ece"]
    assert entry["value"] == pytest.approx(sum(entry["by_seed"]) / 2, abs=1e-6)
    assert entry["by_seed"][0] != entry["by_seed"][1]
    assert list(metrics["calibration"]["good"]) == ["raw", "calibrated"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (FEW.filter(pl.col("ranker") != "noise"), "different rankers"),
        (FEW.with_columns(user_id=pl.lit("x")), "different users"),
    ],
)
def test_pool_refuses_runs_that_do_not_belong_together(other: pl.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pool([measured(), measured(other)])
