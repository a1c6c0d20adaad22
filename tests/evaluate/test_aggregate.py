"""The content of `metrics.json`: values, intervals, counts, slices, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from trsr.errors import DataError
from trsr.evaluate.aggregate import SCORE_COLUMNS, evaluate
from trsr.rank.base import sigmoid


def make_scores(n_examples: int = 60, n_candidates: int = 21, per_user: int = 2) -> pl.DataFrame:
    """Return scores of `good` (noisy truth), `noise` and `constant`; the positive always comes first."""
    rng = np.random.default_rng(0)
    label = np.tile([1] + [0] * (n_candidates - 1), n_examples)
    example = np.repeat(np.arange(n_examples), n_candidates)
    frames = []
    for ranker, margin in {
        "good": rng.normal(size=len(label)) + 2 * label,
        "noise": rng.normal(size=len(label)),
        "constant": np.zeros(len(label)),
    }.items():
        frames.append(
            pl.DataFrame(
                {
                    "example_id": [f"e{i}" for i in example],
                    "user_id": [f"u{i // per_user}" for i in example],
                    "item_id": [f"i{i % n_candidates}" for i in range(len(label))],
                    "label": label,
                    "ranker": ranker,
                    "margin": margin.astype(np.float32),
                    "score": sigmoid(margin),
                    "n_prompt_tokens": 100,
                    "n_cut_tokens": np.where(example < 3, 5, 0),
                }
            )
        )
    return pl.concat(frames)


SCORES = make_scores()


def run(scores: pl.DataFrame = SCORES, **options: Any) -> dict[str, Any]:
    return evaluate(scores, protocol={"protocol": "sampled"}, **options)


def test_the_result_has_the_shape_that_a_run_folder_promises() -> None:
    result = run(probabilistic=["good"])
    assert list(result) == ["protocol", "rankers", "comparisons", "counts"]
    assert result["protocol"]["protocol"] == "sampled"
    assert result["comparisons"] == []
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


def test_the_order_of_the_rows_changes_nothing() -> None:
    lengths = {f"e{i}": i for i in range(60)}
    shuffled = SCORES.sample(fraction=1.0, shuffle=True, seed=3)
    plain = run(history_lengths=lengths, probabilistic=["good"])
    assert run(shuffled, history_lengths=lengths, probabilistic=["good"]) == plain


def test_the_seed_changes_intervals_but_not_values() -> None:
    first, second = run(seed=0)["rankers"]["good"]["auc"], run(seed=1)["rankers"]["good"]["auc"]
    assert first["value"] == second["value"]
    assert first["ci95"] != second["ci95"]


def test_another_ranker_changes_no_other_rankers_numbers() -> None:
    alone = run(SCORES.filter(pl.col("ranker") == "good"))
    assert alone["rankers"]["good"] == run()["rankers"]["good"]


def test_slices_divide_the_examples_by_history_length() -> None:
    lengths = {f"e{i}": 10 + i % 8 for i in range(120)}
    scores = make_scores(n_examples=120)
    result = run(scores, history_lengths=lengths)
    slices = result["slices"]["history_length"]
    assert [(s["min"], s["max"]) for s in slices] == [(10, 11), (12, 13), (14, 15), (16, 17)]
    assert sum(s["examples"] for s in slices) == 120
    total = sum(s["examples"] * s["rankers"]["good"]["auc"]["value"] for s in slices) / 120
    assert total == pytest.approx(result["rankers"]["good"]["auc"]["value"], abs=1e-5)


def test_few_examples_are_not_cut_into_slices_too_small_for_an_interval() -> None:
    slices = run(history_lengths={f"e{i}": i for i in range(60)})["slices"]["history_length"]
    assert [s["examples"] for s in slices] == [20, 20, 20]


def test_histories_of_one_length_make_one_slice() -> None:
    slices = run(history_lengths={f"e{i}": 7 for i in range(60)})["slices"]["history_length"]
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


def test_a_history_length_is_needed_for_each_example() -> None:
    with pytest.raises(DataError, match="history length of the example"):
        run(history_lengths={"e0": 3})
