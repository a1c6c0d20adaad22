"""Several seeds of one experiment as one result.

A seed draws users and negatives, and starts and shuffles the training. One run's intervals cover the choice
of test users only; here each example's value is first averaged over the seeds that asked it, then users are
resampled, and the standard deviation between the seeds' means says how far another seed moves a value.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trsr.errors import DataError
from trsr.evaluate.aggregate import rounded
from trsr.evaluate.measured import Measured
from trsr.evaluate.metrics import Floats
from trsr.evaluate.reliability import Probabilities, calibration_error, side_by_side_bins


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
        return _mean(spread)

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
            name: float(_mean(np.asarray([[run.tie_rates[name]] for run in runs]))[0]) for name in shape
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
    return float(_mean(run.values[ranker][metric][:, np.newaxis])[0])


def _mean(table: Floats) -> Floats:
    """Average each column over the rows that have a value: (n_rows, n_columns) -> (n_columns,)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without any value is NaN
        return np.asarray(np.nanmean(table, axis=0))
