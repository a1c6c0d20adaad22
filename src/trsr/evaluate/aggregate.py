"""From the values of every example to the content of `metrics.json`: means, intervals, comparisons, slices.

Values of one example come from `measured`, intervals from `significance`, pairs from `comparisons`; what the
numbers look like on a page belongs to `report`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.evaluate.comparisons import N_RESAMPLES as N_COMPARISON_RESAMPLES
from trsr.evaluate.comparisons import Comparison, compare_rankers
from trsr.evaluate.measured import Measured, measure, metric_list
from trsr.evaluate.metrics import Floats
from trsr.evaluate.reliability import N_BINS, Probabilities, calibration_error, reliability_curve
from trsr.evaluate.significance import LEVEL, N_RESAMPLES, Interval, bootstrap_ci, bootstrap_columns
from trsr.evaluate.slices import RULES, Traits, compare_on_slices, cut_examples
from trsr.seeding import derive_rng

DECIMALS = 6


def evaluate(
    scores: pl.DataFrame,
    *,
    protocol: Mapping[str, Any],
    ks: Sequence[int] = (3, 5, 10),
    seed: int = 0,
    probabilistic: Collection[str] = (),
    traits: Mapping[str, Traits] | None = None,
) -> dict[str, Any]:
    """Compute the content of `metrics.json` from rows of scores, with the main metrics compared.

    Args:
        scores: One row a ranker, example and candidate, with the columns `measured.SCORE_COLUMNS`.
        protocol: What describes the questions, see `summarise`.
        ks: Cut-offs.
        seed: The run's seed, for the bootstrap.
        probabilistic: Rankers whose `score` is meant as a probability: only they get logloss, brier and
            ece.
        traits: What is known of each example id; adds `slices`.

    Raises:
        DataError: see `measure`.
    """
    measured = measure(scores, metric_list(ks), probabilistic=probabilistic)
    return summarise(measured, protocol=protocol, compared=main_metrics(ks), seed=seed, traits=traits)


def main_metrics(ks: Sequence[int]) -> list[str]:
    """Choose the metrics whose rankers are compared: recall@3, mrr@10 and auc with the usual cut-offs.

    These are the paper's two with the cut-offs nearest to it (first recall, deepest mrr), and one that sees
    the whole order. More metrics would mean more tests of nearly the same thing.
    """
    return [f"recall@{min(ks)}", f"mrr@{max(ks)}", "auc"] if ks else ["auc"]


def summarise(
    measured: Measured,
    *,
    protocol: Mapping[str, Any],
    compared: Sequence[str],
    seed: int = 0,
    traits: Mapping[str, Traits] | None = None,
    slice_pair: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Compute the content of `metrics.json`.

    Args:
        measured: The values of every example.
        protocol: What describes the questions (kind, negatives, split, warnings, ...); copied, and `chance`
            and how it was averaged are added.
        compared: Metrics whose rankers are compared with one another.
        seed: The run's seed, for the resampling.
        traits: What is known of each example id; adds `slices`.
        slice_pair: Two rankers that are compared on every slice.

    Returns:
        `protocol`, `rankers`, `comparisons`, `counts`, with probabilistic rankers `calibration`, and with
        traits `slices`. Numbers are rounded to six decimals, None where a value does not exist.
        `value` is the mean over examples (but see `reliability` for ece), `ci95` comes from resampling users.
    """
    everything = np.ones(len(measured.example_ids), dtype=bool)
    result: dict[str, Any] = {
        "protocol": {
            **protocol,
            "seed": seed,
            "interval": f"{LEVEL:.0%} percentile bootstrap over users, {N_RESAMPLES} resamples",
            "ties": "expectation over random orders of equal margins",
            "chance": _chance(measured, everything),
        },
        "rankers": _intervals(measured, everything, seed),
        "comparisons": _comparisons(measured, compared, seed),
        "counts": _counts(measured),
    }
    if result["comparisons"]:
        result["protocol"]["comparison"] = (
            f"paired randomisation test over users and bootstrap of the difference, {N_COMPARISON_RESAMPLES}"
            " resamples; p_holm is corrected for all pairs of a metric"
        )
    if measured.probabilities:
        result["protocol"]["ece"] = (
            f"{N_BINS} bins of equally many candidates, equal scores in one; interval: plus and minus the"
            f" {LEVEL:.0%} quantile of the bins' summed deviations over resampled users"
        )
        result["calibration"] = {
            ranker: {name: _probability_entry(values, measured, seed) for name, values in variants.items()}
            for ranker, variants in measured.probabilities.items()
        }
    if traits is not None:
        result["slices"] = _slices(measured, seed, traits, slice_pair, compared)
        result["protocol"]["slices"] = dict(RULES)
    return result


def _intervals(
    measured: Measured, chosen: npt.NDArray[np.bool_], seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return `{ranker: {metric: {"value", "ci95"}}}` over the chosen examples; all on the same resamples."""
    columns = [(ranker, metric) for ranker, table in measured.values.items() for metric in table]
    values = np.column_stack([measured.values[ranker][metric][chosen] for ranker, metric in columns])
    intervals = bootstrap_columns(values, measured.user_ids[chosen], rng=derive_rng(seed, "bootstrap"))
    result: dict[str, dict[str, dict[str, Any]]] = {ranker: {} for ranker in measured.values}
    for (ranker, metric), interval in zip(columns, intervals, strict=True):
        result[ranker][metric] = _entry(interval)
    for ranker, variants in measured.probabilities.items():
        scores = variants.get("calibrated", variants["raw"])
        result[ranker]["ece"] = _entry(
            calibration_error(
                scores.bins.of(chosen), measured.user_ids[chosen], rng=derive_rng(seed, "bootstrap")
            )
        )
    return result


def _probability_entry(values: Probabilities, measured: Measured, seed: int) -> dict[str, Any]:
    """Return logloss, brier and ece with their intervals, and the points of the reliability curve."""
    users = measured.user_ids

    def rng() -> np.random.Generator:
        return derive_rng(seed, "bootstrap")

    return {
        "logloss": _entry(bootstrap_ci(values.logloss, users, rng=rng())),
        "brier": _entry(bootstrap_ci(values.brier, users, rng=rng())),
        "ece": _entry(calibration_error(values.bins, users, rng=rng())),
        "curve": [
            {
                "candidates": point.n_candidates,
                "score": rounded(point.score),
                "rate": rounded(point.rate),
                "ci95": [rounded(point.low), rounded(point.high)],
            }
            for point in reliability_curve(values.bins, users, rng=rng())
        ],
    }


def _entry(interval: Interval) -> dict[str, Any]:
    return {
        "value": rounded(interval.value),
        "ci95": [rounded(interval.low), rounded(interval.high)],
    }


def rounded(value: float) -> float | None:
    """Round for JSON, which knows no NaN; `+ 0.0` turns -0.0 into 0.0."""
    return None if math.isnan(value) else round(float(value), DECIMALS) + 0.0


def _comparisons(measured: Measured, compared: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Return every pair of rankers for each metric that both have."""
    found: list[Comparison] = []
    for metric in compared:
        values = {name: table[metric] for name, table in measured.values.items() if metric in table}
        found += compare_rankers(values, measured.user_ids, metric=metric, seed=seed)
    return [_pair_entry(pair) for pair in found]


def _pair_entry(pair: Comparison) -> dict[str, Any]:
    return {
        "metric": pair.metric,
        "a": pair.a,
        "b": pair.b,
        "difference": rounded(pair.difference),
        "ci95": [rounded(pair.low), rounded(pair.high)],
        "p": rounded(pair.p),
        "p_holm": rounded(pair.p_holm),
        "effect_size": rounded(pair.effect_size),
    }


def _chance(measured: Measured, chosen: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    """Return the mean chance level over the chosen examples, for each metric."""
    return {metric: rounded(_mean(levels[chosen])) for metric, levels in measured.chance.items()}


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return math.fsum(known) / len(known) if len(known) else math.nan


def _counts(measured: Measured) -> dict[str, Any]:
    """Return what was counted over; `tie_rate` is the mean over rankers of the share of tied pairs."""
    return {
        "users": len(np.unique(measured.user_ids)),
        "examples": len(measured.example_ids),
        "candidates": measured.n_candidates,
        "cut_prompts": measured.n_cut,
        "tie_rate": rounded(_mean(np.asarray(list(measured.tie_rates.values())))),
        "tie_rates": {name: rounded(rate) for name, rate in measured.tie_rates.items()},
        "examples_without_truth": measured.n_without_truth,
    }


def _slices(
    measured: Measured,
    seed: int,
    traits: Mapping[str, Traits],
    pair: tuple[str, str] | None,
    compared: Sequence[str],
) -> dict[str, list[dict[str, Any]]]:
    """Return, for each way to cut, the metrics of every slice, and there the comparison of a pair."""
    slices = cut_examples(measured, traits)
    result: dict[str, list[dict[str, Any]]] = {
        way: [
            {
                "name": part.name,
                "min": rounded(part.low),
                "max": rounded(part.high),
                "examples": int(part.chosen.sum()),
                "users": len(np.unique(measured.user_ids[part.chosen])),
                "chance": _chance(measured, part.chosen),
                "rankers": _intervals(measured, part.chosen, seed),
                "comparisons": [],
            }
            for part in parts
        ]
        for way, parts in slices.items()
    }
    if pair is None:
        return result
    for metric in compared:
        for way, found in compare_on_slices(measured, slices, pair, metric=metric, seed=seed).items():
            for entry, one in zip(result[way], found, strict=True):
                entry["comparisons"].append(_pair_entry(one))
    return result
