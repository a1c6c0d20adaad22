"""From the values of every example to the content of `metrics.json`: means, intervals, comparisons, slices.

Values of one example come from `measured`, intervals from `significance`, pairs from `comparisons`; what the
numbers look like on a page belongs to `report`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.errors import DataError
from trsr.evaluate.metrics import Floats
from trsr.evaluate.per_example import Measured, measure, metric_list
from trsr.evaluate.profile_quality import ProfileQuality
from trsr.evaluate.reliability import (
    N_BINS,
    Probabilities,
    calibration_error,
    reliability_curve,
    side_by_side_bins,
)
from trsr.evaluate.slices import RULES, Traits, compare_on_slices, cut_examples
from trsr.evaluate.statistics import (
    LEVEL,
    N_COMPARISON_RESAMPLES,
    N_RESAMPLES,
    Comparison,
    Interval,
    bootstrap_ci,
    bootstrap_columns,
    compare_rankers,
)
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


MEASURES = ("grounding", "name_grounding", "copied", "coverage", "words", "repetition", "change")
N_WORST = 20
AT_LEAST = {"grounding": 0.5, "name_grounding": 0.5}
"""A profile with less of it is listed: more than half of what it says is not in the user's items."""
AT_MOST = {"copied": 0.2, "repetition": 0.2}
"""A profile with more of it is listed."""


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """The profile of one example with its measures."""

    example_id: str
    user_id: str
    text: str
    quality: ProfileQuality


def summarise_profiles(
    rows: Sequence[ProfileRow], prediction: Mapping[str, Floats], *, method: str, seed: int = 0
) -> dict[str, Any]:
    """Compute the entry `profiles` of `metrics.json`.

    Args:
        rows: One an example.
        prediction: Measures of prediction by name, shape (n_examples,) in the order of the rows.
        method: How the profiles were made.
        seed: The run's seed, for the bootstrap.

    Returns:
        `method`, `examples`, `empty` (profiles without text), `measures` (`value`, the mean over the examples
        that have it, `ci95` from resampling users, and `examples`, how many they are; a measure that none has
        is left out), `limits`, `beyond` (how many profiles lie beyond each limit) and `worst`: at most
        `N_WORST` profiles with the measure that lies farthest beyond its limit.
    """
    names = [*MEASURES, *prediction]
    table = np.asarray([[getattr(row.quality, name) for name in MEASURES] for row in rows], dtype=np.float64)
    table = np.column_stack([table.reshape(len(rows), len(MEASURES)), *prediction.values()])
    intervals = bootstrap_columns(table, [row.user_id for row in rows], rng=derive_rng(seed, "profiles"))
    beyond = [(distance, name, row) for row in rows for name, distance in _beyond(row).items()]
    return {
        "method": method,
        "examples": len(rows),
        "empty": sum(not row.text.strip() for row in rows),
        "measures": {
            name: {
                "value": rounded(interval.value),
                "ci95": [rounded(interval.low), rounded(interval.high)],
                "examples": interval.n_examples,
            }
            for name, interval in zip(names, intervals, strict=True)
            if interval.n_examples
        },
        "limits": {"at_least": AT_LEAST, "at_most": AT_MOST},
        "beyond": {name: sum(entry[1] == name for entry in beyond) for name in [*AT_LEAST, *AT_MOST]},
        "worst": _worst(beyond),
    }


def _beyond(row: ProfileRow) -> dict[str, float]:
    """Return how far beyond its limit each measure lies, as a share of the way to the worst value."""
    found = {}
    for name, limit in AT_LEAST.items():
        value = getattr(row.quality, name)
        if value < limit:  # never for NaN
            found[name] = (limit - value) / limit
    for name, limit in AT_MOST.items():
        value = getattr(row.quality, name)
        if value > limit:
            found[name] = (value - limit) / (1 - limit)
    return found


def _worst(beyond: Sequence[tuple[float, str, ProfileRow]]) -> list[dict[str, Any]]:
    """Return the profiles that lie farthest beyond a limit, each once; of equal ones the wordiest first."""

    def order(entry: tuple[float, str, ProfileRow]) -> tuple[float, int, str, str]:
        distance, name, row = entry
        return -distance, -len(row.quality.ungrounded), row.example_id, name

    chosen: dict[str, tuple[str, ProfileRow]] = {}
    for _, name, row in sorted(beyond, key=order):
        chosen.setdefault(row.example_id, (name, row))
    return [
        {
            "example_id": example_id,
            "user_id": row.user_id,
            "measure": name,
            "value": rounded(getattr(row.quality, name)),
            "ungrounded": list(row.quality.ungrounded),
            "text": row.text,
        }
        for example_id, (name, row) in list(chosen.items())[:N_WORST]
    ]


def pool(runs: Sequence[Measured]) -> Measured:
    """Average the values of every example over the runs that have it.

    The bins of ece stay apart for each run, so that opposite errors of two seeds do not cancel out. Counts of
    candidates, cut prompts and examples without truth are added up, tie rates averaged.

    Raises:
        DataError: the runs have different rankers or metrics, or an example belongs to different users.
    """
    first = runs[0]
    shape = {name: list(table) for name, table in first.values.items()}
    for run in runs[1:]:
        if {name: list(table) for name, table in run.values.items()} != shape:
            raise DataError(
                "The seeds have different rankers or metrics; pool runs of one configuration only."
            )
    example_ids = sorted(set().union(*(run.example_ids for run in runs)))
    users: dict[str, str] = {}
    for run in runs:
        for example, user in zip(run.example_ids, run.user_ids.tolist(), strict=True):
            if users.setdefault(example, user) != user:
                raise DataError(
                    f"The example {example!r} belongs to different users in different seeds; pool runs on one"
                    " dataset only."
                )
    places = [np.searchsorted(example_ids, run.example_ids) for run in runs]

    def mean(columns: Sequence[Floats]) -> Floats:
        spread = np.full((len(runs), len(example_ids)), np.nan)
        for row, place, column in zip(spread, places, columns, strict=True):
            row[place] = column
        return _mean_of(spread)

    return Measured(
        example_ids=example_ids,
        user_ids=np.asarray([users[example] for example in example_ids], dtype=np.str_),
        values={
            name: {metric: mean([run.values[name][metric] for run in runs]) for metric in metrics}
            for name, metrics in shape.items()
        },
        chance={metric: mean([run.chance[metric] for run in runs]) for metric in first.chance},
        n_candidates=sum(run.n_candidates for run in runs),
        n_cut=sum(run.n_cut for run in runs),
        tie_rates={
            name: float(_mean_of(np.asarray([[run.tie_rates[name]] for run in runs]))[0]) for name in shape
        },
        n_without_truth=sum(run.n_without_truth for run in runs),
        probabilities={
            ranker: {
                name: Probabilities(
                    mean([values.logloss for values in found]),
                    mean([values.brier for values in found]),
                    side_by_side_bins([values.bins for values in found], places, len(example_ids)),
                )
                for name in dict.fromkeys(name for run in runs for name in run.probabilities[ranker])
                # A run without a calibration has its raw scores as the final ones.
                for found in [
                    [run.probabilities[ranker].get(name, run.probabilities[ranker]["raw"]) for run in runs]
                ]
            }
            for ranker in first.probabilities
        },
    )


def add_spread(metrics: dict[str, Any], runs: Mapping[int, Measured]) -> None:
    """Add `seeds`, and to each value of a ranker `by_seed` and `seed_std`.

    `seed_std` is the standard deviation (n - 1) of the seeds' means, None for one seed. It holds all that a
    seed changes: test users and negatives as well as training.

    Args:
        metrics: The content of `metrics.json` for the pooled runs; changed in place.
        runs: The runs by seed.
    """
    metrics["seeds"] = list(runs)
    for name, entries in metrics["rankers"].items():
        for metric, entry in entries.items():
            means = np.asarray([_value(run, name, metric) for run in runs.values()])
            entry["by_seed"] = [rounded(value) for value in means]
            entry["seed_std"] = rounded(float(means.std(ddof=1))) if len(means) > 1 else None


def _value(run: Measured, ranker: str, metric: str) -> float:
    """Return a run's own value of a metric."""
    if metric == "ece":
        variants = run.probabilities[ranker]
        bins = variants.get("calibrated", variants["raw"]).bins
        return calibration_error(bins, run.user_ids, rng=0, n_resamples=1).value
    return float(_mean_of(run.values[ranker][metric][:, np.newaxis])[0])


def _mean_of(table: Floats) -> Floats:
    """Average each column over the rows that have a value: (n_rows, n_columns) -> (n_columns,)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without any value is NaN
        return np.asarray(np.nanmean(table, axis=0))
