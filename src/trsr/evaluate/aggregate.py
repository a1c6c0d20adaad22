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

from trsr.errors import DataError
from trsr.evaluate.comparisons import N_RESAMPLES as N_COMPARISON_RESAMPLES
from trsr.evaluate.comparisons import Comparison, compare_rankers
from trsr.evaluate.measured import Measured, measure, metric_list
from trsr.evaluate.metrics import Floats
from trsr.evaluate.reliability import N_BINS, Probabilities, calibration_error, reliability_curve
from trsr.evaluate.significance import LEVEL, N_RESAMPLES, Interval, bootstrap_ci, bootstrap_columns
from trsr.seeding import derive_rng

DECIMALS = 6
N_SLICES = 4
MIN_SLICE_EXAMPLES = 20


def evaluate(
    scores: pl.DataFrame,
    *,
    protocol: Mapping[str, Any],
    ks: Sequence[int] = (3, 5, 10),
    seed: int = 0,
    probabilistic: Collection[str] = (),
    history_lengths: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Compute the content of `metrics.json` from rows of scores, with the main metrics compared.

    Args:
        scores: One row a ranker, example and candidate, with the columns `measured.SCORE_COLUMNS`.
        protocol: What describes the questions, see `summarise`.
        ks: Cut-offs.
        seed: The run's seed, for the bootstrap.
        probabilistic: Rankers whose `score` is meant as a probability: only they get logloss, brier and
            ece.
        history_lengths: Items in the history of each example id; adds `slices`.

    Raises:
        DataError: see `measure`.
    """
    measured = measure(scores, metric_list(ks), probabilistic=probabilistic)
    return summarise(
        measured, protocol=protocol, compared=main_metrics(ks), seed=seed, history_lengths=history_lengths
    )


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
    history_lengths: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Compute the content of `metrics.json`.

    Args:
        measured: The values of every example.
        protocol: What describes the questions (kind, negatives, split, warnings, ...); copied, and `chance`
            and how it was averaged are added.
        compared: Metrics whose rankers are compared with one another.
        seed: The run's seed, for the resampling.
        history_lengths: Items in the history of each example id; adds `slices`.

    Returns:
        `protocol`, `rankers`, `comparisons`, `counts`, with probabilistic rankers `calibration`, and with
        history lengths `slices`. Numbers are rounded to six decimals, None where a value does not exist.
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
    if history_lengths is not None:
        result["slices"] = {"history_length": _slices(measured, seed, history_lengths)}
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
    return [
        {
            "metric": pair.metric,
            "a": pair.a,
            "b": pair.b,
            "difference": rounded(pair.difference),
            "ci95": [rounded(pair.low), rounded(pair.high)],
            "p": rounded(pair.p),
            "p_holm": rounded(pair.p_holm),
            "effect_size": rounded(pair.effect_size),
        }
        for pair in found
    ]


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


def _slices(measured: Measured, seed: int, history_lengths: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the metrics for up to `N_SLICES` ranges of history length, of about equally many examples."""
    unknown = [example for example in measured.example_ids if example not in history_lengths]
    if unknown:
        raise DataError(
            f"The history length of the example {unknown[0]!r} is not known; give one for each example."
        )
    lengths = np.asarray([history_lengths[example] for example in measured.example_ids], dtype=np.int64)
    n = max(1, min(N_SLICES, len(lengths) // MIN_SLICE_EXAMPLES))
    edges = np.unique(np.quantile(lengths, np.arange(1, n) / n, method="inverted_cdf"))
    place = np.searchsorted(edges, lengths)  # A slice reaches up to its edge, the edge included.
    result = []
    for index in np.unique(place).tolist():
        chosen = place == index
        result.append(
            {
                "min": int(lengths[chosen].min()),
                "max": int(lengths[chosen].max()),
                "examples": int(chosen.sum()),
                "users": len(np.unique(measured.user_ids[chosen])),
                "chance": _chance(measured, chosen),
                "rankers": _intervals(measured, chosen, seed),
            }
        )
    return result
