"""The content of `metrics.json`: values, intervals, comparisons, counts, slices."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from score_rows import make_scores

from trsr.errors import DataError
from trsr.evaluate.evaluation import evaluate, main_metrics
from trsr.evaluate.metrics import PROBABILITY_METRICS
from trsr.evaluate.slices import Traits
from trsr.recommend.calibration import Calibration

SCORES = make_scores()


def run(scores: pl.DataFrame = SCORES, **options: Any) -> dict[str, Any]:
    return evaluate(scores, protocol={"protocol": "sampled"}, **options)


def test_the_result_has_the_shape_that_a_run_folder_promises() -> None:
    result = run(probabilistic=["good"])
    assert list(result) == ["protocol", "rankers", "comparisons", "counts", "calibration"]
    assert result["protocol"]["protocol"] == "sampled"
    keys = ["metric", "a", "b", "difference", "ci95", "p", "p_holm", "effect_size"]
    assert [list(pair) for pair in result["comparisons"]] == [keys] * 9
    entry = result["rankers"]["good"]["recall@3"]
    assert list(entry) == ["value", "ci95"]
    assert entry["ci95"][0] < entry["value"] < entry["ci95"][1]
    json.dumps(result, allow_nan=False)


def test_counts_say_what_was_averaged_cut_and_tied() -> None:
    counts = run()["counts"]
    assert (counts["users"], counts["examples"], counts["candidates"]) == (30, 60, 60 * 21)
    assert counts["cut_prompts"] == 3 * 21
    assert counts["tie_rates"] == {"constant": 1.0, "good": 0.0, "noise": 0.0}
    assert counts["tie_rate"] == pytest.approx(1 / 3, abs=1e-6)
    assert counts["examples_without_truth"] == 0


def test_a_constant_scorer_is_exactly_at_chance_and_noise_within_its_interval() -> None:
    result = run(make_scores(n_examples=400, per_user=1))
    chance = result["protocol"]["chance"]
    assert chance["recall@3"] == pytest.approx(3 / 21, abs=1e-6)
    for metric, entry in result["rankers"]["constant"].items():
        assert entry["value"] == pytest.approx(chance[metric], abs=2e-6)
    for metric in ("recall@3", "mrr@10", "ndcg@5", "auc"):
        low, high = result["rankers"]["noise"][metric]["ci95"]
        assert low <= chance[metric] <= high
        assert result["rankers"]["good"][metric]["ci95"][0] > chance[metric]


def test_logloss_is_reported_only_for_probabilistic_rankers() -> None:
    rankers = run(probabilistic=["good"])["rankers"]
    assert "logloss" in rankers["good"]
    assert "logloss" not in rankers["noise"]


def calibrated(scores: pl.DataFrame = SCORES) -> pl.DataFrame:
    """Give `good` scores that are not the sigmoid of its margins."""
    scores_of = Calibration("platt", 2.0, -5.0).apply(scores["margin"].to_numpy())
    return scores.with_columns(
        score=pl.when(pl.col("ranker") == "good").then(pl.Series(scores_of)).otherwise(pl.col("score"))
    )


def test_calibration_says_what_scores_are_worth_before_and_after() -> None:
    plain = run(SCORES, probabilistic=["good"])
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
    assert run()["rankers"]["good"].keys().isdisjoint(PROBABILITY_METRICS)


def test_ece_does_not_depend_on_the_order_of_the_rows() -> None:
    shuffled = calibrated().sample(fraction=1.0, shuffle=True, seed=3)
    assert run(shuffled, probabilistic=["good"]) == run(calibrated(), probabilistic=["good"])


def test_the_order_of_the_rows_changes_nothing() -> None:
    traits = {f"e{i}": Traits(i, i % 12, (i % 7) / 7) for i in range(60)}
    shuffled = SCORES.sample(fraction=1.0, shuffle=True, seed=3)
    plain = run(traits=traits, probabilistic=["good"])
    assert run(shuffled, traits=traits, probabilistic=["good"]) == plain


def test_the_seed_changes_intervals_but_not_values() -> None:
    first, second = run(seed=0)["rankers"]["good"]["auc"], run(seed=1)["rankers"]["good"]["auc"]
    assert first["value"] == second["value"]
    assert first["ci95"] != second["ci95"]


def test_another_ranker_changes_no_other_rankers_numbers() -> None:
    alone = run(SCORES.filter(pl.col("ranker") == "good"))
    assert alone["rankers"]["good"] == run()["rankers"]["good"]


def test_slices_divide_the_examples_by_history_length() -> None:
    traits = {f"e{i}": Traits(10 + i % 8) for i in range(120)}
    scores = make_scores(n_examples=120)
    result = run(scores, traits=traits)
    slices = result["slices"]["history_length"]
    assert [(s["min"], s["max"]) for s in slices] == [(10, 11), (12, 13), (14, 15), (16, 17)]
    assert sum(s["examples"] for s in slices) == 120
    total = sum(s["examples"] * s["rankers"]["good"]["auc"]["value"] for s in slices) / 120
    assert total == pytest.approx(result["rankers"]["good"]["auc"]["value"], abs=1e-5)


def test_few_examples_are_not_cut_into_slices_too_small_for_an_interval() -> None:
    slices = run(traits={f"e{i}": Traits(i) for i in range(60)})["slices"]["history_length"]
    assert [s["examples"] for s in slices] == [20, 20, 20]


def test_histories_of_one_length_make_one_slice() -> None:
    slices = run(traits={f"e{i}": Traits(7) for i in range(60)})["slices"]["history_length"]
    assert [(s["min"], s["max"], s["examples"]) for s in slices] == [(7, 7, 60)]


def test_an_example_without_a_click_is_counted_and_left_out() -> None:
    scores = SCORES.with_columns(
        pl.when(pl.col("example_id") == "e0").then(0).otherwise(pl.col("label")).alias("label")
    )
    result = run(scores)
    without = run(SCORES.filter(pl.col("example_id") != "e0"))
    assert result["counts"]["examples_without_truth"] == 1
    assert result["rankers"]["good"]["auc"]["value"] == without["rankers"]["good"]["auc"]["value"]


def test_one_user_has_values_but_no_interval() -> None:
    result = run(SCORES.filter(pl.col("user_id") == "u0"))
    entry = result["rankers"]["good"]["auc"]
    assert entry["value"] is not None
    assert entry["ci95"] == [None, None]


def test_traits_are_needed_for_each_example() -> None:
    with pytest.raises(DataError, match="traits of the example"):
        run(traits={"e0": Traits(3)})


def test_every_pair_is_compared_on_the_main_metrics_from_the_better_side() -> None:
    result = run()
    found = {(pair["metric"], pair["a"], pair["b"]): pair for pair in result["comparisons"]}
    assert (
        {metric for metric, _, _ in found} == set(main_metrics((3, 5, 10))) == {"recall@3", "mrr@10", "auc"}
    )
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
def test_the_main_metrics_follow_the_cut_offs(ks: tuple[int, ...], wanted: list[str]) -> None:
    assert main_metrics(ks) == wanted


def test_one_ranker_has_nothing_to_be_compared_with() -> None:
    result = run(SCORES.filter(pl.col("ranker") == "good"))
    assert result["comparisons"] == []
    assert "comparison" not in result["protocol"]


def shuffle(scores: pl.DataFrame, column: str) -> pl.DataFrame:
    """Shuffle a column within each example, each in its own way."""
    key = pl.Series("key", np.random.default_rng(5).uniform(size=scores.height))
    return scores.with_columns(key).with_columns(pl.col(column).sort_by("key").over("example_id")).drop("key")


def test_constant_random_and_shuffled_labels_are_at_chance_and_not_told_apart() -> None:
    scores = make_scores(n_examples=300, per_user=1)
    good = scores.filter(pl.col("ranker") == "good")
    shuffled = shuffle(good, "margin").with_columns(pl.lit("blind").alias("ranker"))
    others = scores.filter(pl.col("ranker") != "good")
    result = run(pl.concat([others, shuffled.select(others.columns)]))
    for metric, level in result["protocol"]["chance"].items():
        for name in ("noise", "blind") if metric not in PROBABILITY_METRICS else ():
            low, high = result["rankers"][name][metric]["ci95"]
            assert low <= level <= high, (name, metric)
    assert all(pair["p_holm"] > 0.05 for pair in result["comparisons"])
    assert len(result["comparisons"]) == 9


def test_a_good_ranker_whose_labels_are_shuffled_falls_to_chance() -> None:
    scores = make_scores(n_examples=300, per_user=1).filter(pl.col("ranker") == "good")
    before, after = run(scores), run(shuffle(scores, "label"))
    for metric in ("recall@3", "mrr@10", "ndcg@5", "auc"):
        level = after["protocol"]["chance"][metric]
        assert before["rankers"]["good"][metric]["ci95"][0] > level
        low, high = after["rankers"]["good"][metric]["ci95"]
        assert low <= level <= high, metric
