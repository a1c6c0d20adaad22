"""Ranking metrics of one example each, as expectations over the random order of equal margins.

Any fixed order of tied candidates would let the order of the input leak into the value. Each metric is its
average over all orders of the tied candidates, in closed form, so a constant scorer lands exactly on
`chance_level`. Everything is computed for many examples of any length at once, from the groups of equal
margin. Source of the closed forms: McSherry and Najork, "Computing Information Retrieval Performance Measures
Efficiently in the Presence of Tied Scores", ECIR 2008.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trsr.errors import ConfigError, DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_CUT_METRICS = ("recall", "mrr", "ndcg")
_WHOLE_METRICS = ("mrr", "auc", "logloss", "brier", "ece")
PROBABILITY_METRICS = frozenset({"logloss", "brier", "ece"})
"""Metrics of scores as probabilities, not of the order of margins; lower is better."""
_SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)


class EmptyTruthWarning(UserWarning):
    """Examples without a positive (for auc: or without a negative) have no value; they get NaN."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's family and its cut-off: `recall@3` is `("recall", 3)`, `auc` is `("auc", None)`."""

    family: str
    k: int | None = None

    def __str__(self) -> str:
        return self.family if self.k is None else f"{self.family}@{self.k}"

    @property
    def higher_is_better(self) -> bool:
        """False for metrics of probabilities."""
        return self.family not in PROBABILITY_METRICS


def parse_metric(name: str) -> Metric:
    """Read a metric name: `recall@K`, `mrr@K`, `ndcg@K`, `mrr`, `auc`, `logloss`, `brier` or `ece`, K from 1.

    Raises:
        ConfigError: any other text.
    """
    found = re.fullmatch(r"([a-z]+)(?:@([1-9][0-9]{0,5}))?", name)
    if found:
        family, cut = found.groups()
        if family in (_WHOLE_METRICS if cut is None else _CUT_METRICS):
            return Metric(family, None if cut is None else int(cut))
    raise ConfigError(
        f"Found the metric {name!r}; expected recall@K, mrr@K, ndcg@K (K from 1), mrr, auc, logloss,"
        " brier or ece."
    )


@dataclass(frozen=True, slots=True)
class TieGroups:
    """The candidates of many examples, best first, divided into groups of equal margin.

    Attributes:
        example: Shape (n_groups,), ascending: the example of each group.
        before: Shape (n_groups,): candidates of the example with a higher margin.
        size: Shape (n_groups,): candidates in the group.
        positives: Shape (n_groups,): how many of them are positive.
        n_candidates: Shape (n_examples,).
        n_positives: Shape (n_examples,).
    """

    example: Ints
    before: Ints
    size: Ints
    positives: Ints
    n_candidates: Ints
    n_positives: Ints

    def sum_by_example(self, values: npt.ArrayLike) -> Floats:
        """Add up the values of the groups of each example: (n_groups,) -> (n_examples,)."""
        weights = np.asarray(values, dtype=np.float64)
        return np.bincount(self.example, weights, minlength=len(self.n_candidates)).astype(np.float64)

    def tie_rate(self) -> Floats:
        """Return for each example the share of (positive, negative) pairs with equal margins."""
        tied = self.sum_by_example(self.positives * (self.size - self.positives))
        return divide(tied, self.n_positives * (self.n_candidates - self.n_positives))


def tie_groups(margins: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike) -> TieGroups:
    """Sort the candidates of each example by margin and find the groups of equal margin.

    Args:
        margins: Shape (n_rows,), higher is better; infinities are allowed.
        labels: Shape (n_rows,), 1 for a positive and 0 for a negative.
        offsets: Shape (n_examples + 1,): example i owns the rows `offsets[i]` to `offsets[i + 1]`.

    Raises:
        DataError: a margin is NaN, or a label is neither 0 nor 1.
        ValueError: the shapes do not fit, or an example has no candidate.
    """
    margin, label = np.asarray(margins), np.asarray(labels).astype(np.int64)
    bounds = np.asarray(offsets, dtype=np.int64)
    n_candidates = np.diff(bounds)
    if margin.shape != label.shape or bounds[0] != 0 or bounds[-1] != len(margin) or (n_candidates < 1).any():
        raise ValueError("margins, labels and offsets do not describe lists of at least one candidate each")
    if np.isnan(margin).any():
        raise DataError(
            f"Found {int(np.isnan(margin).sum())} margins that are NaN; a ranker must give every candidate a"
            " number: leave these examples out or rank them again."
        )
    if not np.isin(label, (0, 1)).all():
        raise DataError(
            "Found a label other than 0 and 1; expected 1 for a chosen candidate and 0 otherwise."
        )
    example = np.repeat(np.arange(len(n_candidates)), n_candidates)
    order = np.lexsort((-margin, example))
    margin, label = margin[order], label[order]
    first = np.ones(len(margin), dtype=bool)
    first[1:] = (margin[1:] != margin[:-1]) | (example[1:] != example[:-1])
    start = np.flatnonzero(first)
    return TieGroups(
        example=example[start],
        before=start - bounds[example[start]],
        size=np.diff(np.append(start, len(margin))),
        positives=np.add.reduceat(label, start) if len(start) else start,
        n_candidates=n_candidates,
        n_positives=np.bincount(example, weights=label, minlength=len(n_candidates)).astype(np.int64),
    )


def recall_at_k(groups: TieGroups, k: int) -> Floats:
    """Return the expected share of an example's positives that are among the first k.

    Formula: sum over groups of `p * clip(k - b, 0, s) / s`, divided by the number of positives, for a group
    of s candidates with p positives after b better ones (McSherry and Najork 2008, precision and recall).
    """
    hits = groups.positives * np.clip(k - groups.before, 0, groups.size) / groups.size
    return divide(groups.sum_by_example(hits), groups.n_positives)


def mrr(groups: TieGroups) -> Floats:
    """Return the expected mean of 1 / rank over **all** positives of an example, without a cut-off.

    This is MIND's official `mrr` (Wu et al., "MIND: A Large-scale Dataset for News Recommendation", ACL
    2020); with several positives it is not the reciprocal rank of the first one, which `mrr_at_k` gives.
    Formula: sum over groups of `p / s * (H(b + s) - H(b))`, H the harmonic numbers, divided by the number of
    positives.
    """
    harmonic = _prefix_sums(1.0 / np.arange(1, _longest(groups) + 1))
    gain = harmonic[groups.before + groups.size] - harmonic[groups.before]
    return divide(groups.sum_by_example(groups.positives / groups.size * gain), groups.n_positives)


def mrr_at_k(groups: TieGroups, k: int) -> Floats:
    """Return the expected 1 / rank of the **first** positive, 0 if it is after place k.

    Only the first group that holds a positive matters. Its first positive is at place j of the group with
    probability `C(s - j, p - 1) / C(s, p)` (McSherry and Najork 2008, reciprocal rank), computed by the
    recursion `P(1) = p / s`, `P(j + 1) = P(j) * (s - j - p + 1) / (s - j)`.
    """
    holds = np.flatnonzero(groups.positives)
    examples, first = np.unique(groups.example[holds], return_index=True)
    chosen = holds[first]
    before, size, positives = groups.before[chosen], groups.size[chosen], groups.positives[chosen]
    probability, value = positives / size, np.zeros(len(chosen))
    for j in range(1, min(k, int(size.max(initial=0))) + 1):
        value += np.where(before + j <= k, probability / (before + j), 0.0)
        probability = probability * np.clip(size - j - positives + 1, 0, None) / np.maximum(size - j, 1)
    result = np.zeros(len(groups.n_candidates))
    result[examples] = value
    return divide(result, (groups.n_positives > 0).astype(np.int64))


def ndcg_at_k(groups: TieGroups, k: int) -> Floats:
    """Return the expected discounted gain of the first k over the best possible one, with gains 0 and 1.

    Formula: discount `1 / log2(rank + 1)` (Järvelin and Kekäläinen, TOIS 2002), each place of a group earning
    `p / s` of it; the ideal puts min(positives, k) positives first.
    """
    discount = _prefix_sums(1.0 / np.log2(np.arange(2, max(_longest(groups), k) + 2)))
    reach = discount[np.minimum(groups.before + groups.size, k)] - discount[np.minimum(groups.before, k)]
    gain = groups.sum_by_example(groups.positives / groups.size * reach)
    return divide(gain, discount[np.minimum(groups.n_positives, k)])


def auc(groups: TieGroups) -> Floats:
    """Return the share of (positive, negative) pairs in the right order, a tied pair counting 1/2.

    The Mann-Whitney statistic of each example (Fawcett, "An introduction to ROC analysis", 2006). NaN where
    an example has no positive or no negative.
    """
    negatives = groups.size - groups.positives
    positives_before = np.cumsum(groups.positives) - groups.positives
    first_group = np.searchsorted(groups.example, np.arange(len(groups.n_candidates)))
    better = positives_before - positives_before[first_group[groups.example]]
    right = groups.sum_by_example(negatives * (better + groups.positives / 2))
    return divide(right, groups.n_positives * (groups.n_candidates - groups.n_positives))


def logloss(scores: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike) -> Floats:
    """Return the mean over an example's candidates of -log(probability of the true label), in nats.

    Shapes as in `tie_groups`; `scores` are probabilities in [0, 1], moved away from 0 and 1 by 2.2e-16 so
    that one certain mistake stays finite (scikit-learn's convention). Defined for examples without positives.

    Raises:
        DataError: a score is outside [0, 1] or NaN.
    """
    score, label, bounds = _probabilities(scores, labels, offsets, "logloss")
    truth = np.clip(np.where(label == 1, score, 1 - score), _SMALLEST_PROBABILITY, 1.0)
    return np.asarray(np.add.reduceat(-np.log(truth), bounds[:-1]) / np.diff(bounds))


def brier(scores: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike) -> Floats:
    """Return the mean over an example's candidates of (score - label) squared, in [0, 1].

    Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 1950, in its
    usual form for two outcomes (half of the original). Shapes as in `tie_groups`.

    Raises:
        DataError: a score is outside [0, 1] or NaN.
    """
    score, label, bounds = _probabilities(scores, labels, offsets, "brier")
    return np.asarray(np.add.reduceat((score - label) ** 2, bounds[:-1]) / np.diff(bounds))


def _probabilities(
    scores: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike, name: str
) -> tuple[Floats, Floats, Ints]:
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    bounds = np.asarray(offsets, dtype=np.int64)
    if score.shape != label.shape or bounds[-1] != len(score) or (np.diff(bounds) < 1).any():
        raise ValueError("scores, labels and offsets do not describe lists of at least one candidate each")
    if n_missing := int(np.isnan(score).sum()):
        raise DataError(
            f"Found {n_missing} scores that are NaN or missing; {name} expects a probability for every "
            "candidate: leave it out for this ranker."
        )
    if not ((score >= 0) & (score <= 1)).all():
        raise DataError(
            f"Found a score outside [0, 1]; {name} expects probabilities: leave it out for this ranker."
        )
    return score, label, bounds


def ranking_metric(metric: Metric, groups: TieGroups) -> Floats:
    """Return a metric's value for each example, shape (n_examples,).

    If an example has no positive the value is NaN, and one `EmptyTruthWarning` has the count.

    Raises:
        ValueError: the metric is logloss, brier or ece, which need scores instead of an order.
    """
    match metric:
        case Metric("recall", int(k)):
            values = recall_at_k(groups, k)
        case Metric("mrr", int(k)):
            values = mrr_at_k(groups, k)
        case Metric("ndcg", int(k)):
            values = ndcg_at_k(groups, k)
        case Metric("mrr", None):
            values = mrr(groups)
        case Metric("auc", None):
            values = auc(groups)
        case _:
            raise ValueError(f"{metric} is not computed from an order")
    if empty := int(np.isnan(values).sum()):
        lacking = "a positive or a negative" if metric.family == "auc" else "a positive"
        warnings.warn(
            f"{metric}: {empty} examples lack {lacking}; they are NaN", EmptyTruthWarning, stacklevel=2
        )
    return values


def chance_level(metric: Metric, n_candidates: int, n_positives: int = 1) -> float:
    """Return the expectation of a metric when the order is random.

    For logloss and brier: the best that a constant probability can reach, the entropy of the base rate in
    nats and its variance. NaN for ece: such a constant has none.
    """
    n, p = n_candidates, n_positives
    lacking = (p < 1 and metric.family not in PROBABILITY_METRICS) or (p == n and metric.family == "auc")
    if lacking or metric.family == "ece":
        return math.nan
    k = n if metric.k is None else min(metric.k, n)
    match metric.family:
        case "recall":
            level = k / n
        case "mrr" if metric.k is None:
            level = math.fsum(1 / rank for rank in range(1, n + 1)) / n
        case "mrr":
            level = math.fsum(math.comb(n - j, p - 1) / math.comb(n, p) / j for j in range(1, k + 1))
        case "ndcg":
            gains = [1 / math.log2(rank + 1) for rank in range(1, k + 1)]
            level = p / n * math.fsum(gains) / math.fsum(gains[: min(p, k)])
        case "auc":
            level = 0.5
        case "brier":
            level = p / n * (1 - p / n)
        case _:
            level = -math.fsum(rate * math.log(rate) for rate in (p / n, 1 - p / n) if rate > 0)
    return level


def _longest(groups: TieGroups) -> int:
    return int(groups.n_candidates.max(initial=0))


def _prefix_sums(values: Floats) -> Floats:
    """(n,) -> (n + 1,), starting with 0."""
    return np.concatenate(([0.0], np.cumsum(values)))


def divide(values: npt.ArrayLike, by: npt.ArrayLike) -> Floats:
    """Divide, with NaN (and no numpy warning) where the divisor is 0."""
    top, bottom = np.asarray(values, dtype=np.float64), np.asarray(by, dtype=np.float64)
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0))
