"""The content of `metrics.json`: means, intervals, comparisons and slices of the values of every example."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.errors import DataError
from trsr.evaluation.metrics import Floats, divide
from trsr.evaluation.per_example import PerExampleMetrics, mean_of_known, measure, metric_list
from trsr.evaluation.reliability import (
    N_BINS,
    Bins,
    Probabilities,
    calibration_error,
    reliability_curve,
    stack_runs,
)
from trsr.evaluation.slices import RULES, ExampleFeatures, compare_on_slices, cut_examples
from trsr.evaluation.statistics import (
    LEVEL,
    N_COMPARISON_RESAMPLES,
    N_RESAMPLES,
    Interval,
    bootstrap_ci,
    bootstrap_columns,
    compare_rankers,
)
from trsr.seeding import derive_rng

DECIMALS = 6


def evaluate_scores(
    scores: pl.DataFrame,
    *,
    protocol: Mapping[str, Any],
    ks: Sequence[int] = (3, 5, 10),
    seed: int = 0,
    probabilistic: Collection[str] = (),
    features: Mapping[str, ExampleFeatures] | None = None,
) -> dict[str, Any]:
    """Compute the content of `metrics.json` from rows of scores; arguments as in `measure` and `summarize`.

    Raises:
        DataError: see `measure`.
    """
    measured = measure(scores, metric_list(ks), probabilistic=probabilistic)
    return summarize(measured, protocol=protocol, compared=main_metrics(ks), seed=seed, features=features)


def main_metrics(ks: Sequence[int]) -> list[str]:
    """Choose the metrics whose rankers are compared: recall@3, mrr@10 and auc with the usual cut-offs.

    These are the paper's two (first recall, deepest mrr) and one that sees the whole order.
    """
    return [f"recall@{min(ks)}", f"mrr@{max(ks)}", "auc"] if ks else ["auc"]


def summarize(
    measured: PerExampleMetrics,
    *,
    protocol: Mapping[str, Any],
    compared: Sequence[str],
    seed: int = 0,
    features: Mapping[str, ExampleFeatures] | None = None,
    slice_pair: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Compute the content of `metrics.json`.

    Args:
        measured: The values of every example.
        protocol: Describes the questions (kind, negatives, split, warnings, ...); copied, and `chance` and
            how the averages were made are added.
        compared: Metrics whose rankers are compared with one another.
        seed: The run's seed, for the resampling.
        features: Features of each example by id; adds `slices`.
        slice_pair: Two rankers that are compared on every slice.

    Returns:
        `protocol`, `rankers`, `comparisons`, `counts`, with probabilistic rankers `calibration`, and with
        features `slices`. Numbers are rounded to six decimals, None where a value does not exist.
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
            ranker: {
                name: _calibration_entry(found, measured.user_ids, seed) for name, found in variants.items()
            }
            for ranker, variants in measured.probabilities.items()
        }
    if features is not None:
        result["slices"] = _slices(measured, seed, features, slice_pair, compared)
        result["protocol"]["slices"] = dict(RULES)
    return result


def _intervals(
    measured: PerExampleMetrics, chosen: npt.NDArray[np.bool_], seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return `{ranker: {metric: {"value", "ci95"}}}` over the chosen examples; all on the same resamples."""
    users = measured.user_ids[chosen]
    columns = [(ranker, metric) for ranker, table in measured.values.items() for metric in table]
    values = np.column_stack([measured.values[ranker][metric][chosen] for ranker, metric in columns])
    intervals = bootstrap_columns(values, users, rng=derive_rng(seed, "bootstrap"))
    result: dict[str, dict[str, dict[str, Any]]] = {ranker: {} for ranker in measured.values}
    for (ranker, metric), interval in zip(columns, intervals, strict=True):
        result[ranker][metric] = entry_of(interval)
    for ranker in measured.probabilities:
        bins = _final_bins(measured, ranker).of(chosen)
        result[ranker]["ece"] = entry_of(calibration_error(bins, users, rng=derive_rng(seed, "bootstrap")))
    return result


def _final_bins(measured: PerExampleMetrics, ranker: str) -> Bins:
    """Return the bins of the scores as the ranker gives them."""
    variants = measured.probabilities[ranker]
    return variants.get("calibrated", variants["raw"]).bins


def _calibration_entry(found: Probabilities, users: npt.NDArray[np.str_], seed: int) -> dict[str, Any]:
    """Return logloss, brier and ece with their intervals, and the points of the reliability curve."""

    def rng() -> np.random.Generator:
        return derive_rng(seed, "bootstrap")

    return {
        "logloss": entry_of(bootstrap_ci(found.logloss, users, rng=rng())),
        "brier": entry_of(bootstrap_ci(found.brier, users, rng=rng())),
        "ece": entry_of(calibration_error(found.bins, users, rng=rng())),
        "curve": [
            {
                "candidates": n,
                "score": rounded(score),
                "rate": rounded(rate.value),
                "ci95": [rounded(rate.low), rounded(rate.high)],
            }
            for n, score, rate in reliability_curve(found.bins, users, rng=rng())
        ],
    }


def entry_of(interval: Interval) -> dict[str, Any]:
    """Return a mean and its interval as they are written in `metrics.json`."""
    return {"value": rounded(interval.value), "ci95": [rounded(interval.low), rounded(interval.high)]}


def rounded(value: float) -> float | None:
    """Round for JSON, which knows no NaN."""
    return None if math.isnan(value) else round(float(value), DECIMALS) + 0.0  # never -0.0


def _comparisons(measured: PerExampleMetrics, compared: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Return every pair of rankers for each metric that both have."""
    found = []
    for metric in compared:
        values = {name: table[metric] for name, table in measured.values.items() if metric in table}
        found += compare_rankers(values, measured.user_ids, metric=metric, seed=seed)
    return [_rounded_pair(pair) for pair in found]


def _rounded_pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: rounded(pair[name]) for name in ("difference", "p", "p_holm", "effect_size")}
    return {**pair, **numbers, "ci95": [rounded(end) for end in pair["ci95"]]}


def _chance(measured: PerExampleMetrics, chosen: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    """Return the mean chance level over the chosen examples, for each metric."""
    return {metric: rounded(mean_of_known(levels[chosen])) for metric, levels in measured.chance.items()}


def _counts(measured: PerExampleMetrics) -> dict[str, Any]:
    """Return the counts; `tie_rate` is the mean over rankers of the share of tied pairs."""
    return {
        "users": len(np.unique(measured.user_ids)),
        "examples": len(measured.example_ids),
        "candidates": measured.n_candidates,
        "cut_prompts": measured.n_cut,
        "tie_rate": rounded(mean_of_known(np.asarray(list(measured.tie_rates.values())))),
        "tie_rates": {name: rounded(rate) for name, rate in measured.tie_rates.items()},
        "examples_without_truth": measured.n_without_truth,
    }


def _slices(
    measured: PerExampleMetrics,
    seed: int,
    features: Mapping[str, ExampleFeatures],
    pair: tuple[str, str] | None,
    compared: Sequence[str],
) -> dict[str, list[dict[str, Any]]]:
    """Return, for each kind of slices, their metrics and the comparison of a pair."""
    slices = cut_examples(measured, features)
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
            for part, one in zip(result[way], found, strict=True):
                part["comparisons"].append(_rounded_pair(one))
    return result


# --- several seeds ------------------------------------------------------------------------------------------


def pool(runs: Sequence[PerExampleMetrics]) -> PerExampleMetrics:
    """Average the values of every example over the runs that have it.

    The bins of ece stay separate for each run, so opposite errors of two seeds do not cancel out. Counts of
    candidates, cut prompts and examples without truth are added up, tie rates averaged.

    Raises:
        DataError: the runs have different rankers or metrics, or an example belongs to different users.
    """
    first = runs[0]
    shape = {name: list(table) for name, table in first.values.items()}
    if any({name: list(table) for name, table in run.values.items()} != shape for run in runs):
        raise DataError("The seeds have different rankers or metrics; pool runs of one configuration only.")
    users = _users_of(runs)
    example_ids = sorted(users)
    places = [np.searchsorted(example_ids, run.example_ids) for run in runs]

    def mean(columns: Sequence[Floats]) -> Floats:
        table = np.full((len(runs), len(example_ids)), np.nan)
        for row, place, column in zip(table, places, columns, strict=True):
            row[place] = column
        return divide(np.nansum(table, axis=0), (~np.isnan(table)).sum(axis=0))

    def probabilities(ranker: str, name: str) -> Probabilities:
        # A run without a calibration has its raw scores as the final ones.
        found = [run.probabilities[ranker].get(name, run.probabilities[ranker]["raw"]) for run in runs]
        return Probabilities(
            mean([one.logloss for one in found]),
            mean([one.brier for one in found]),
            stack_runs([one.bins for one in found], places, len(example_ids)),
        )

    return PerExampleMetrics(
        example_ids=example_ids,
        user_ids=np.asarray([users[example] for example in example_ids], dtype=np.str_),
        values={
            name: {metric: mean([run.values[name][metric] for run in runs]) for metric in metrics}
            for name, metrics in shape.items()
        },
        chance={metric: mean([run.chance[metric] for run in runs]) for metric in first.chance},
        n_candidates=sum(run.n_candidates for run in runs),
        n_cut=sum(run.n_cut for run in runs),
        tie_rates={name: mean_of_known(np.asarray([run.tie_rates[name] for run in runs])) for name in shape},
        n_without_truth=sum(run.n_without_truth for run in runs),
        probabilities={
            ranker: {
                name: probabilities(ranker, name)
                for name in dict.fromkeys(name for run in runs for name in run.probabilities[ranker])
            }
            for ranker in first.probabilities
        },
    )


def _users_of(runs: Sequence[PerExampleMetrics]) -> dict[str, str]:
    """Return the user of every example of all runs."""
    users: dict[str, str] = {}
    for run in runs:
        for example, user in zip(run.example_ids, run.user_ids.tolist(), strict=True):
            if users.setdefault(example, user) != user:
                raise DataError(
                    f"The example {example!r} belongs to different users in different seeds; pool runs on one"
                    " dataset only."
                )
    return users


def add_spread(metrics: dict[str, Any], runs: Mapping[int, PerExampleMetrics]) -> None:
    """Add `seeds`, and to each value of a ranker `by_seed` and `seed_std`.

    `seed_std` is the standard deviation (n - 1) of the seeds' means, None for one seed. It holds all that a
    seed changes: test users and negatives as well as training.

    Args:
        metrics: The content of `metrics.json` for the pooled runs; changed in place.
        runs: The runs by seed.
    """
    metrics["seeds"] = list(runs)
    for ranker, entries in metrics["rankers"].items():
        for metric, entry in entries.items():
            means = np.asarray([_mean(run, ranker, metric) for run in runs.values()])
            entry["by_seed"] = [rounded(value) for value in means]
            entry["seed_std"] = rounded(float(means.std(ddof=1))) if len(means) > 1 else None


def _mean(run: PerExampleMetrics, ranker: str, metric: str) -> float:
    """Return a run's own value of a metric."""
    if metric == "ece":
        return calibration_error(_final_bins(run, ranker), run.user_ids, rng=0, n_resamples=1).value
    return mean_of_known(run.values[ranker][metric])
