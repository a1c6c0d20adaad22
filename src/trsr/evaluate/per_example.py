"""From rows of scores to one value an example, metric and ranker, all rankers asked the same.

The result depends on the rows only, never on their order. What the metrics are belongs to `metrics`, what is
made of the values to `aggregate`, `comparisons` and `pooling`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.errors import DataError
from trsr.evaluate.metrics import (
    PROBABILITY_METRICS,
    EmptyTruthWarning,
    Floats,
    Metric,
    TieGroups,
    brier,
    chance_level,
    logloss,
    ranking_metric,
    tie_groups,
)
from trsr.evaluate.reliability import Probabilities, bin_scores
from trsr.recommend.ranker import sigmoid

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
QUESTION_KEYS = ("example_id", "user_id", "item_id", "label")


@dataclass(frozen=True, slots=True)
class Measured:
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
        probabilities: By probabilistic ranker, what its scores are worth as probabilities where ece was asked
            for: `raw` for sigmoid(margin), and `calibrated` where its scores are something else.
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
    """What all rankers were asked, in order of example id; row arrays are as long as the candidates."""

    example_ids: list[str]
    user_ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    @property
    def n_candidates(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def n_positives(self) -> npt.NDArray[np.int64]:
        return np.asarray(np.add.reduceat(self.labels, self.offsets[:-1]))


def metric_list(ks: Sequence[int]) -> list[Metric]:
    """Return the metrics in the order of the tables: at each k, of the whole order, of probabilities."""
    at_k = [Metric(family, k) for family in ("recall", "mrr", "ndcg") for k in sorted(set(ks))]
    return [*at_k, *map(Metric, ("mrr", "auc", "logloss", "brier", "ece"))]


def measure(
    scores: pl.DataFrame, metrics: Sequence[Metric], *, probabilistic: Collection[str] = ()
) -> Measured:
    """Compute the metrics of every example for every ranker.

    Args:
        scores: One row a ranker, example and candidate, with the columns `SCORE_COLUMNS`.
        metrics: What to compute.
        probabilistic: Rankers whose `score` is meant as a probability: only they get logloss, brier and
            ece.

    Raises:
        DataError: a column is missing, there is no row, a margin is NaN, or two rankers were not asked the
            same.
    """
    questions, by_ranker = _read(scores)
    groups = {name: _groups(rows, questions) for name, rows in by_ranker.items()}
    n_candidates, n_positives = questions.n_candidates, questions.n_positives
    return Measured(
        example_ids=questions.example_ids,
        user_ids=questions.user_ids,
        values={
            name: _values(rows, groups[name], questions, metrics, probabilistic=name in probabilistic)
            for name, rows in by_ranker.items()
        },
        chance={str(metric): _chance(metric, n_candidates, n_positives) for metric in metrics},
        n_candidates=len(questions.labels),
        n_cut=scores.filter(pl.col("n_cut_tokens") > 0).select("example_id", "item_id").n_unique(),
        tie_rates={name: _mean(ranker_groups.tie_rate()) for name, ranker_groups in groups.items()},
        n_without_truth=int(((n_positives == 0) | (n_positives == n_candidates)).sum()),
        probabilities={
            name: _probabilities(rows, questions)
            for name, rows in by_ranker.items()
            if name in probabilistic and Metric("ece") in metrics
        },
    )


def _probabilities(rows: pl.DataFrame, questions: _Questions) -> dict[str, Probabilities]:
    """Judge the sigmoid of the margins, and the scores where they are something else."""
    raw = sigmoid(rows["margin"].to_numpy())
    scores = rows["score"].fill_null(math.nan).to_numpy()
    named = {"raw": raw} | ({} if np.allclose(raw, scores, rtol=0, atol=1e-6) else {"calibrated": scores})
    labels, offsets = questions.labels, questions.offsets
    return {
        name: Probabilities(
            logloss(values, labels, offsets),
            brier(values, labels, offsets),
            bin_scores(values, labels, offsets),
        )
        for name, values in named.items()
    }


def _read(scores: pl.DataFrame) -> tuple[_Questions, dict[str, pl.DataFrame]]:
    """Check the rows and divide them by ranker, each in the same order of examples and candidates."""
    if missing := [column for column in SCORE_COLUMNS if column not in scores.columns]:
        raise DataError(
            f"The scores lack the column {' and '.join(map(repr, missing))}; expected "
            f"{', '.join(SCORE_COLUMNS)}: rank the examples again."
        )
    if scores.is_empty():
        raise DataError(
            "The scores have no row; expected one a ranker, example and candidate: rank the examples first."
        )
    ordered = scores.sort("ranker", *QUESTION_KEYS, "margin", "score")
    by_ranker = {str(name): rows for (name,), rows in ordered.partition_by("ranker", as_dict=True).items()}
    first_name, first = next(iter(by_ranker.items()))
    for name, rows in by_ranker.items():
        if not rows.select(QUESTION_KEYS).equals(first.select(QUESTION_KEYS)):
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
    with warnings.catch_warnings():  # Counted once as `n_without_truth` instead of once a metric.
        warnings.simplefilter("ignore", EmptyTruthWarning)
        for metric in metrics:
            if metric.family not in PROBABILITY_METRICS:
                table[str(metric)] = ranking_metric(metric, groups)
            elif probabilistic and metric.family != "ece":  # which no single example has
                judge = logloss if metric.family == "logloss" else brier
                scores = rows["score"].fill_null(math.nan).to_numpy()
                table[str(metric)] = judge(scores, questions.labels, questions.offsets)
    return table


def _chance(
    metric: Metric, n_candidates: npt.NDArray[np.int64], n_positives: npt.NDArray[np.int64]
) -> Floats:
    """Return the chance level of each example; most examples are of few kinds."""
    kinds, kind = np.unique(np.column_stack([n_candidates, n_positives]), axis=0, return_inverse=True)
    return np.asarray([chance_level(metric, n, p) for n, p in kinds.tolist()])[kind.ravel()]


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
