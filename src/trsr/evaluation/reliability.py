"""Expected calibration error: among candidates with a score near s, is a share s chosen?

The error is not a mean over examples: each example keeps its sums in every bin, and users are resampled from
those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trsr.evaluation.metrics import Floats, Ints, divide
from trsr.evaluation.statistics import (
    LEVEL,
    N_RESAMPLES,
    TAILS,
    Interval,
    UserIds,
    sum_by_user,
    times_drawn,
    weighted_totals,
)

N_BINS = 10


@dataclass(frozen=True, slots=True)
class Bins:
    """Sums over the candidates of each example that fall into each bin, lowest scores first.

    Attributes:
        rows: Shape (n_examples, n_runs, n_bins): number of candidates.
        scores: The same shape: sum of their scores.
        chosen: The same shape: how many of them were chosen.
    """

    rows: Floats
    scores: Floats
    chosen: Floats

    def of(self, examples: npt.NDArray[np.bool_]) -> Bins:
        """Return the sums of some examples; the bins stay where they are."""
        return Bins(self.rows[examples], self.scores[examples], self.chosen[examples])


@dataclass(frozen=True, slots=True)
class Probabilities:
    """One set of scores, example by example: log loss, Brier score and sums by bin."""

    logloss: Floats
    brier: Floats
    bins: Bins


def bin_scores(scores: npt.ArrayLike, labels: npt.ArrayLike, offsets: npt.ArrayLike) -> Bins:
    """Put candidates into `N_BINS` bins of about equally many, by score.

    Equal scores always share a bin, the one in which the middle of their stretch lies. So no order of tied
    candidates can change a value, and a bin may be larger, or empty.

    Args:
        scores: Shape (n_rows,), probabilities.
        labels: Shape (n_rows,), 1 for chosen and 0 otherwise.
        offsets: Shape (n_examples + 1,): example i owns the rows `offsets[i]` to `offsets[i + 1]`.
    """
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    bounds: Ints = np.asarray(offsets, dtype=np.int64)
    n_examples = len(bounds) - 1
    _, tie, n_tied = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(n_tied) - n_tied / 2
    bin_of_row = np.floor(middle / len(score) * N_BINS).astype(np.int64)[tie]
    cell = np.repeat(np.arange(n_examples), bounds[1:] - bounds[:-1]) * N_BINS + bin_of_row
    # Sorted: not even the last bit of a sum may depend on the order of the rows.
    order = np.lexsort((score, cell))

    def add_up(values: Floats) -> Floats:
        sums: Floats = np.bincount(cell[order], values[order], n_examples * N_BINS).astype(np.float64)
        return sums.reshape(n_examples, 1, N_BINS)

    return Bins(add_up(np.ones(len(score))), add_up(score), add_up(label))


def stack_runs(runs: Sequence[Bins], places: Sequence[npt.NDArray[np.intp]], n_examples: int) -> Bins:
    """Stack the bins of several runs, each run with bins of its own.

    Args:
        runs: With one run each, shape (n_examples of the run, 1, n_bins).
        places: For each run, the place of its examples among all.
        n_examples: How many there are in all.
    """

    def stack(tables: Sequence[Floats]) -> Floats:
        stacked = np.zeros((n_examples, len(runs), N_BINS))
        for number, (table, place) in enumerate(zip(tables, places, strict=True)):
            stacked[place, number] = table[:, 0]
        return stacked

    return Bins(
        stack([run.rows for run in runs]),
        stack([run.scores for run in runs]),
        stack([run.chosen for run in runs]),
    )


def calibration_error(
    bins: Bins, user_ids: UserIds, *, rng: np.random.Generator | int, n_resamples: int = N_RESAMPLES
) -> Interval:
    """Return the expected calibration error with its interval over users, in [0, 1].

    Formula: sum over bins of `|chosen - sum of scores| / candidates`, that is the gap between mean score and
    share chosen, weighted by the bin's share of candidates (Naeini, Cooper and Hauskrecht, AAAI 2015), in
    bins of equal mass (Nguyen and O'Connor, EMNLP 2015). Over several runs it is their mean.

    Interval: the signed gaps g of the bins are resampled over users to g*; by the triangle inequality the
    error is at most `sum |g* - g|` away from the true one of these bins, so the interval is the error plus
    and minus the 95 % quantile of that, cut at 0 and 1. A plain percentile interval would miss perfect
    calibration, because chance alone makes every resample look worse calibrated.
    """
    gaps, rows = _sum_by_user(user_ids, bins.chosen - bins.scores, bins.rows)
    n_users, n_rows, n_examples = len(rows), rows.sum(), len(bins.rows)
    gap = gaps.sum(axis=0) / n_rows
    value = float(np.abs(gap).sum())
    if n_users < 2:
        return Interval(value, math.nan, math.nan, n_examples, n_users)
    table = np.column_stack([gaps, rows.sum(axis=1)])
    totals = weighted_totals(table, np.random.default_rng(rng), n_resamples, times_drawn)
    drawn = totals[:, :-1] / totals[:, -1:]
    reach = float(np.quantile(np.abs(drawn - gap).sum(axis=1), LEVEL))
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach), n_examples, n_users)


def reliability_curve(
    bins: Bins, user_ids: UserIds, *, rng: np.random.Generator | int
) -> list[tuple[int, float, Interval]]:
    """Return for each bin with candidates their number, mean score, and share chosen with its interval.

    The bins of several runs are added up by their place.
    """
    parts = (part.sum(axis=1) for part in (bins.rows, bins.scores, bins.chosen))
    rows, scores, chosen = _sum_by_user(user_ids, *parts)
    n_users, n_bins = rows.shape
    totals = weighted_totals(np.hstack([rows, chosen]), np.random.default_rng(rng), N_RESAMPLES, times_drawn)
    rates = divide(totals[:, n_bins:], totals[:, :n_bins])
    points = []
    for place in np.flatnonzero(rows.sum(axis=0)).tolist():
        n, score, rate = (float(part[:, place].sum()) for part in (rows, scores, chosen))
        low, high = math.nan, math.nan
        if n_users > 1:
            low, high = np.nanpercentile(rates[:, place], TAILS).tolist()
        points.append((int(n), score / n, Interval(rate / n, low, high, len(bins.rows), n_users)))
    return points


def _sum_by_user(user_ids: UserIds, *tables: Floats) -> list[Floats]:
    """Add up each table by user: (n_examples, ...) -> (n_users, n_cells), users in order of their ids."""
    users, user = np.unique(np.asarray(user_ids, dtype=np.str_), return_inverse=True)
    return [sum_by_user(table.reshape(len(user), -1), user, len(users)) for table in tables]
