"""From rows of scores to one value per example, metric and ranker; the order of the rows does not matter."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.errors import DataError
from trsr.evaluation.metrics import (
    PROBABILITY_METRICS,
    EmptyTruthWarning,
    Floats,
    Ints,
    Metric,
    TieGroups,
    brier,
    chance_level,
    logloss,
    ranking_metric,
    tie_groups,
)
from trsr.evaluation.reliability import Probabilities, bin_scores
from trsr.recommend.ranker import sigmoid

QUESTION_KEYS = ("example_id", "user_id", "item_id", "label")
SCORE_COLUMNS = (*QUESTION_KEYS, "ranker", "margin", "score", "n_prompt_tokens", "n_cut_tokens")


@dataclass(frozen=True, slots=True)
class PerExampleMetrics:
    """The values of every example, in order of example ids; NaN where an example has none.

    Attributes:
        example_ids: Shape (n_examples,), ascending.
        user_ids: Shape (n_examples,).
        values: By ranker and metric name, shape (n_examples,) each.
        chance: By metric name, the chance level of each example, shape (n_examples,).
        n_candidates: Candidates of all examples.
        n_cut: Candidates whose prompt was cut for at least one ranker.
        tie_rates: By ranker, the mean share of tied (positive, negative) pairs; NaN if there is no pair.
        n_without_truth: Examples that lack a positive or a negative.
        probabilities: By probabilistic ranker, where ece is computed: `raw` judges sigmoid(margin), and
            `calibrated` the scores where they differ from it.
    """

    example_ids: list[str]
    user_ids: npt.NDArray[np.str_]
    values: dict[str, dict[str, Floats]]
    chance: dict[str, Floats]
    n_candidates: int
    n_cut: int
    tie_rates: dict[str, float]
    n_without_truth: int
    probabilities: dict[str, dict[str, Probabilities]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Questions:
    """The examples of all rankers, in order of example id; `labels` has one entry per candidate."""

    example_ids: list[str]
    user_ids: npt.NDArray[np.str_]
    labels: Ints
    offsets: Ints


def metric_list(ks: Sequence[int]) -> list[Metric]:
    """Return the metrics in the order of the tables: at each k, of the whole order, of probabilities."""
    at_k = [Metric(family, k) for family in ("recall", "mrr", "ndcg") for k in sorted(set(ks))]
    return [*at_k, *map(Metric, ("mrr", "auc", "logloss", "brier", "ece"))]


def measure(
    scores: pl.DataFrame, metrics: Sequence[Metric], *, probabilistic: Collection[str] = ()
) -> PerExampleMetrics:
    """Compute the metrics of every example for every ranker.

    Args:
        scores: One row per ranker, example and candidate, with the columns `SCORE_COLUMNS`.
        metrics: The names of the metrics.
        probabilistic: Rankers whose `score` is a probability: only they get logloss, brier and ece.

    Raises:
        DataError: a column is missing, there is no row, a margin is NaN, or two rankers have different
            examples or candidates.
    """
    by_ranker = _split(scores)
    questions = _questions(by_ranker)
    labels, offsets = questions.labels, questions.offsets
    groups = {
        name: tie_groups(rows["margin"].fill_null(math.nan).to_numpy(), labels, offsets)
        for name, rows in by_ranker.items()
    }
    n_candidates = np.diff(offsets)
    n_positives = np.add.reduceat(labels, offsets[:-1])
    # Most examples are of few kinds, so the chance level is computed once per kind.
    kinds, kind = np.unique(np.column_stack([n_candidates, n_positives]), axis=0, return_inverse=True)
    return PerExampleMetrics(
        example_ids=questions.example_ids,
        user_ids=questions.user_ids,
        values={
            name: _values(rows, groups[name], questions, metrics, probabilistic=name in probabilistic)
            for name, rows in by_ranker.items()
        },
        chance={
            str(metric): np.asarray([chance_level(metric, n, p) for n, p in kinds.tolist()])[kind.ravel()]
            for metric in metrics
        },
        n_candidates=len(labels),
        n_cut=scores.filter(pl.col("n_cut_tokens") > 0).select("example_id", "item_id").n_unique(),
        tie_rates={name: mean_of_known(found.tie_rate()) for name, found in groups.items()},
        n_without_truth=int(((n_positives == 0) | (n_positives == n_candidates)).sum()),
        probabilities={
            name: _probabilities(rows, questions)
            for name, rows in by_ranker.items()
            if name in probabilistic and Metric("ece") in metrics
        },
    )


def mean_of_known(values: Floats) -> float:
    """Return the mean without NaN; NaN if there is no other value."""
    known = values[~np.isnan(values)]
    return math.fsum(known) / len(known) if len(known) else math.nan


def _split(scores: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Check the rows and divide them by ranker, each in the same order of examples and candidates."""
    if missing := [column for column in SCORE_COLUMNS if column not in scores.columns]:
        raise DataError(
            f"The scores lack the column {' and '.join(map(repr, missing))}; expected "
            f"{', '.join(SCORE_COLUMNS)}: rank the examples again."
        )
    if scores.is_empty():
        raise DataError(
            "The scores have no row; expected one per ranker, example and candidate: rank the examples first."
        )
    ordered = scores.sort("ranker", *QUESTION_KEYS, "margin", "score")
    return {str(name): rows for (name,), rows in ordered.partition_by("ranker", as_dict=True).items()}


def _questions(by_ranker: dict[str, pl.DataFrame]) -> _Questions:
    first_name, first = next(iter(by_ranker.items()))
    for name, rows in by_ranker.items():
        if not rows.select(QUESTION_KEYS).equals(first.select(QUESTION_KEYS)):
            raise DataError(
                f"The rankers {first_name!r} and {name!r} have different examples or candidates;"
                " rank both on one set of examples."
            )
    examples = first.group_by("example_id", maintain_order=True).agg(
        pl.col("user_id").first(), n_users=pl.col("user_id").n_unique(), n=pl.len()
    )
    shared = examples.filter(pl.col("n_users") > 1)["example_id"]
    if len(shared):
        raise DataError(
            f"The example {shared[0]!r} belongs to more than one user; example ids must be unique."
        )
    return _Questions(
        example_ids=examples["example_id"].to_list(),
        user_ids=np.asarray(examples["user_id"].to_list(), dtype=np.str_),
        labels=first["label"].to_numpy().astype(np.int64),
        offsets=np.concatenate(([0], np.cumsum(examples["n"].to_numpy()))).astype(np.int64),
    )


def _values(
    rows: pl.DataFrame,
    groups: TieGroups,
    questions: _Questions,
    metrics: Sequence[Metric],
    *,
    probabilistic: bool,
) -> dict[str, Floats]:
    """Return each metric's value for each example, shape (n_examples,)."""
    table = {}
    with warnings.catch_warnings():  # counted as `n_without_truth`
        warnings.simplefilter("ignore", EmptyTruthWarning)
        for metric in metrics:
            if metric.family not in PROBABILITY_METRICS:
                table[str(metric)] = ranking_metric(metric, groups)
            elif probabilistic and metric.family != "ece":  # no single example has an ece
                judge = logloss if metric.family == "logloss" else brier
                scores = rows["score"].fill_null(math.nan).to_numpy()
                table[str(metric)] = judge(scores, questions.labels, questions.offsets)
    return table


def _probabilities(rows: pl.DataFrame, questions: _Questions) -> dict[str, Probabilities]:
    named = {"raw": sigmoid(rows["margin"].to_numpy())}
    scores = rows["score"].fill_null(math.nan).to_numpy()
    if not np.allclose(named["raw"], scores, rtol=0, atol=1e-6):
        named["calibrated"] = scores
    labels, offsets = questions.labels, questions.offsets
    return {
        name: Probabilities(
            logloss(values, labels, offsets),
            brier(values, labels, offsets),
            bin_scores(values, labels, offsets),
        )
        for name, values in named.items()
    }
