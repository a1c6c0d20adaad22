"""From `scores.parquet` to the content of `metrics.json`: every ranker on the same questions, with intervals.

The result depends on the rows and the seed only, never on the order of the rows. Metrics of one example come
from `metrics`, intervals from `significance`; what the numbers look like on a page belongs to `report`.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.errors import DataError
from trsr.evaluate.metrics import (
    EmptyTruthWarning,
    Metric,
    TieGroups,
    chance_level,
    logloss,
    ranking_metric,
    tie_groups,
)
from trsr.evaluate.significance import LEVEL, N_RESAMPLES, Interval, bootstrap_columns
from trsr.seeding import derive_rng

SCORE_COLUMNS = (
    "example_id",
    "user_id",
    "item_id",
    "label",
    "ranker",
    "margin",
    "score",
    "n_prompt_tokens",
    "n_cut_tokens",
)
DECIMALS = 6
N_SLICES = 4
MIN_SLICE_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class _Questions:
    """What all rankers were asked, in order of example id; row arrays are as long as the candidates."""

    example_ids: list[str]
    user_ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


def metric_list(ks: Sequence[int], *, probabilistic: bool) -> list[Metric]:
    """Return the metrics of a ranker in the order of the tables: recall, mrr and ndcg at each k, mrr, auc."""
    at_k = [Metric(family, k) for family in ("recall", "mrr", "ndcg") for k in sorted(set(ks))]
    whole = [Metric("mrr"), Metric("auc")]
    return at_k + whole + ([Metric("logloss")] if probabilistic else [])


def evaluate(
    scores: pl.DataFrame,
    *,
    protocol: Mapping[str, Any],
    ks: Sequence[int] = (3, 5, 10),
    seed: int = 0,
    probabilistic: Collection[str] = (),
    history_lengths: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Compute the content of `metrics.json`.

    Args:
        scores: One row a ranker, example and candidate, with the columns `SCORE_COLUMNS`.
        protocol: What describes the questions (kind, negatives, split, warnings, ...); copied, and `chance`
            and how it was averaged are added.
        ks: Cut-offs.
        seed: The run's seed, for the bootstrap.
        probabilistic: Rankers whose `score` is meant as a probability: only they get logloss.
        history_lengths: Items in the history of each example id; adds `slices`.

    Returns:
        `protocol`, `rankers`, `comparisons` (empty here), `counts` and, with history lengths, `slices`.
        Numbers are rounded to six decimals, None where a value does not exist. `value` is the mean over
        examples, `ci95` comes from resampling users.

    Raises:
        DataError: a column is missing, there is no row, a margin is NaN, or two rankers were not asked the
            same.
    """
    questions, by_ranker = _read(scores)
    groups = {name: _groups(rows, questions) for name, rows in by_ranker.items()}
    tables = {
        name: _metric_table(
            rows, groups[name], questions, metric_list(ks, probabilistic=name in probabilistic)
        )
        for name, rows in by_ranker.items()
    }
    everything = np.ones(len(questions.example_ids), dtype=bool)
    result: dict[str, Any] = {
        "protocol": {
            **protocol,
            "seed": seed,
            "interval": f"{LEVEL:.0%} percentile bootstrap over users, {N_RESAMPLES} resamples",
            "ties": "expectation over random orders of equal margins",
            "chance": _chance(questions, ks, everything),
        },
        "rankers": _intervals(tables, questions, everything, seed),
        "comparisons": [],
        "counts": _counts(scores, questions, groups),
    }
    if history_lengths is not None:
        result["slices"] = {"history_length": _slices(tables, questions, ks, seed, history_lengths)}
    return result


def _read(scores: pl.DataFrame) -> tuple[_Questions, dict[str, pl.DataFrame]]:
    """Check the rows and divide them by ranker, each in the same order of examples and candidates."""
    if missing := [column for column in SCORE_COLUMNS if column not in scores.columns]:
        raise DataError(
            f"The scores lack the column {missing[0]!r}; expected {', '.join(SCORE_COLUMNS)}:"
            " rank the examples again."
        )
    if scores.is_empty():
        raise DataError(
            "The scores have no row; expected one a ranker, example and candidate: rank the examples first."
        )
    keys = ["example_id", "user_id", "item_id", "label"]
    ordered = scores.sort("ranker", *keys, "margin", "score")
    by_ranker = {str(name): rows for (name,), rows in ordered.partition_by("ranker", as_dict=True).items()}
    first_name, first = next(iter(by_ranker.items()))
    for name, rows in by_ranker.items():
        if not rows.select(keys).equals(first.select(keys)):
            raise DataError(
                f"The rankers {first_name!r} and {name!r} were not asked the same examples and candidates;"
                " rank both on one set of examples."
            )
    examples = first.group_by("example_id", maintain_order=True).agg(
        pl.col("user_id").first(), pl.col("user_id").n_unique().alias("n_users"), pl.len().alias("n")
    )
    if not (examples["n_users"] == 1).all():
        doubtful = examples.filter(pl.col("n_users") > 1)["example_id"][0]
        raise DataError(
            f"The example {doubtful!r} belongs to more than one user; example ids must be unique."
        )
    return (
        _Questions(
            example_ids=examples["example_id"].to_list(),
            user_ids=np.asarray(examples["user_id"].to_list(), dtype=np.str_),
            labels=first["label"].to_numpy().astype(np.int64),
            offsets=np.concatenate(([0], np.cumsum(examples["n"].to_numpy()))).astype(np.int64),
        ),
        by_ranker,
    )


def _groups(rows: pl.DataFrame, questions: _Questions) -> TieGroups:
    return tie_groups(rows["margin"].fill_null(math.nan).to_numpy(), questions.labels, questions.offsets)


def _metric_table(
    rows: pl.DataFrame, groups: TieGroups, questions: _Questions, metrics: Sequence[Metric]
) -> dict[str, npt.NDArray[np.float64]]:
    """Return each metric's value for each example, shape (n_examples,)."""
    table = {}
    with warnings.catch_warnings():  # Counted once as `examples_without_truth` instead of once a metric.
        warnings.simplefilter("ignore", EmptyTruthWarning)
        for metric in metrics:
            if metric.family == "logloss":
                table[str(metric)] = logloss(
                    rows["score"].fill_null(math.nan).to_numpy(), questions.labels, questions.offsets
                )
            else:
                table[str(metric)] = ranking_metric(metric, groups)
    return table


def _intervals(
    tables: Mapping[str, Mapping[str, npt.NDArray[np.float64]]],
    questions: _Questions,
    chosen: npt.NDArray[np.bool_],
    seed: int,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return `{ranker: {metric: {"value", "ci95"}}}` over the chosen examples; all on the same resamples."""
    columns = [(ranker, metric) for ranker, table in tables.items() for metric in table]
    values = np.column_stack([tables[ranker][metric][chosen] for ranker, metric in columns])
    intervals = bootstrap_columns(values, questions.user_ids[chosen], rng=derive_rng(seed, "bootstrap"))
    result: dict[str, dict[str, dict[str, Any]]] = {ranker: {} for ranker in tables}
    for (ranker, metric), interval in zip(columns, intervals, strict=True):
        result[ranker][metric] = _entry(interval)
    return result


def _entry(interval: Interval) -> dict[str, Any]:
    return {"value": _round(interval.value), "ci95": [_round(interval.low), _round(interval.high)]}


def _round(value: float) -> float | None:
    """Round for JSON, which knows no NaN; `+ 0.0` turns -0.0 into 0.0."""
    return None if math.isnan(value) else round(float(value), DECIMALS) + 0.0


def _chance(
    questions: _Questions, ks: Sequence[int], chosen: npt.NDArray[np.bool_]
) -> dict[str, float | None]:
    """Return the mean chance level over the chosen examples, for each metric."""
    n_candidates = np.diff(questions.offsets)[chosen]
    n_positives = np.add.reduceat(questions.labels, questions.offsets[:-1])[chosen]
    kinds = sorted(Counter(zip(n_candidates.tolist(), n_positives.tolist(), strict=True)).items())
    result = {}
    for metric in metric_list(ks, probabilistic=True):
        levels = [(chance_level(metric, n, p), times) for (n, p), times in kinds]
        known = [(level, times) for level, times in levels if not math.isnan(level)]
        total = sum(times for _, times in known)
        mean = math.fsum(level * times for level, times in known) / total if total else math.nan
        result[str(metric)] = _round(mean)
    return result


def _counts(scores: pl.DataFrame, questions: _Questions, groups: Mapping[str, TieGroups]) -> dict[str, Any]:
    """Return what was counted over; `tie_rate` is the mean over rankers of the share of tied pairs."""
    n_candidates = np.diff(questions.offsets)
    n_positives = np.add.reduceat(questions.labels, questions.offsets[:-1])
    tie_rates = {}
    for name, ranker_groups in groups.items():
        rates = ranker_groups.tie_rate()
        tie_rates[name] = float(np.nanmean(rates)) if not np.isnan(rates).all() else math.nan
    cut = scores.filter(pl.col("n_cut_tokens") > 0).select("example_id", "item_id").n_unique()
    known = [rate for rate in tie_rates.values() if not math.isnan(rate)]
    return {
        "users": len(np.unique(questions.user_ids)),
        "examples": len(questions.example_ids),
        "candidates": len(questions.labels),
        "cut_prompts": cut,
        "tie_rate": _round(math.fsum(known) / len(known)) if known else None,
        "tie_rates": {name: _round(rate) for name, rate in tie_rates.items()},
        "examples_without_truth": int(((n_positives == 0) | (n_positives == n_candidates)).sum()),
    }


def _slices(
    tables: Mapping[str, Mapping[str, npt.NDArray[np.float64]]],
    questions: _Questions,
    ks: Sequence[int],
    seed: int,
    history_lengths: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Return the metrics for up to `N_SLICES` ranges of history length, of about equally many examples."""
    unknown = [example for example in questions.example_ids if example not in history_lengths]
    if unknown:
        raise DataError(
            f"The history length of the example {unknown[0]!r} is not known; give one for each example."
        )
    lengths = np.asarray([history_lengths[example] for example in questions.example_ids], dtype=np.int64)
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
                "users": len(np.unique(questions.user_ids[chosen])),
                "chance": _chance(questions, ks, chosen),
                "rankers": _intervals(tables, questions, chosen, seed),
            }
        )
    return result
