"""How sure a mean, or a difference of two rankers, is: bootstrap intervals and paired tests over users.

A user's examples resemble one another, so users are resampled, not examples: the cluster bootstrap (Field and
Welsh, "Bootstrapping clustered data", JRSS B 2007).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from trsr.evaluate.metrics import parse_metric
from trsr.seeding import derive_rng

N_RESAMPLES = 2000
LEVEL = 0.95
_CELLS_AT_ONCE = 2_000_000

Floats = npt.NDArray[np.float64]
UserWeights = Callable[[np.random.Generator, int, int], Floats]
"""(rng, n, n_users) -> weights of shape (n, n_users): one row a resample."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over examples with its interval; `low` and `high` are NaN with fewer than two users.

    Attributes:
        value: Mean over the examples that have a value.
        low: Lower end.
        high: Upper end.
        n_examples: Examples with a value (not NaN).
        n_users: Users with at least one such example.
    """

    value: float
    low: float
    high: float
    n_examples: int
    n_users: int


def bootstrap_ci(
    values: npt.ArrayLike,
    user_ids: Sequence[str] | npt.NDArray[np.str_],
    *,
    rng: np.random.Generator | int,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Return the mean of one value an example, with its percentile interval over resampled users.

    Args:
        values: Shape (n_examples,); NaN means that the example has no value.
        user_ids: The user of each example.
        rng: A generator, or a seed (SPEC 7).
        n_resamples: How many times the users are drawn with replacement.
        level: Coverage, in (0, 1).
    """
    column = np.asarray(values, dtype=np.float64)[:, np.newaxis]
    return bootstrap_columns(column, user_ids, rng=rng, n_resamples=n_resamples, level=level)[0]


def bootstrap_columns(
    values: npt.ArrayLike,
    user_ids: Sequence[str] | npt.NDArray[np.str_],
    *,
    rng: np.random.Generator | int,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
) -> list[Interval]:
    """Do `bootstrap_ci` for several columns on the same resamples.

    Columns are independent of one another: adding a ranker's column changes no other interval. Users are put
    in order of their ids, so the order of the rows does not matter.

    Args:
        values: Shape (n_examples, n_columns).
        user_ids: The user of each example.
        rng: A generator, or a seed (SPEC 7).
        n_resamples: How many times the users are drawn with replacement.
        level: Coverage, in (0, 1).

    Returns:
        One interval a column.
    """
    table = np.asarray(values, dtype=np.float64)
    users, user = np.unique(np.asarray(user_ids, dtype=np.str_), return_inverse=True)
    if table.ndim != 2 or len(table) != len(user):
        raise ValueError(f"expected one row an example, found shape {table.shape} for {len(user)} user ids")
    present = ~np.isnan(table)
    sums = sum_by_user(np.where(present, table, 0.0), user, len(users))
    counts = sum_by_user(present.astype(np.float64), user, len(users))
    means = _resampled_means(sums, counts, np.random.default_rng(rng), n_resamples)
    tail = 100 * (1 - level) / 2
    intervals = []
    for column in range(table.shape[1]):
        n_examples, n_users = int(counts[:, column].sum()), int((counts[:, column] > 0).sum())
        value = float(sums[:, column].sum() / n_examples) if n_examples else math.nan
        low, high = math.nan, math.nan
        if n_users > 1:
            # A resample may by chance hold no user with a value; it says nothing and is left out.
            low, high = np.nanpercentile(means[:, column], [tail, 100 - tail]).tolist()
        intervals.append(Interval(value, low, high, n_examples, n_users))
    return intervals


def sum_by_user(values: Floats, user: npt.NDArray[np.intp], n_users: int) -> Floats:
    """Add up the examples of each user: (n_examples, n_columns) -> (n_users, n_columns)."""
    # Sorted within each user first, so that not even the last bit depends on the order of the rows.
    result = np.zeros((n_users, values.shape[1]))
    for column in range(values.shape[1]):
        order = np.lexsort((values[:, column], user))
        result[:, column] = np.bincount(user[order], weights=values[order, column], minlength=n_users)
    return result


def times_drawn(rng: np.random.Generator, n: int, n_users: int) -> Floats:
    """Draw as many users as there are, with replacement: how often each came, shape (n, n_users)."""
    drawn = rng.integers(n_users, size=(n, n_users))
    drawn += n_users * np.arange(n)[:, np.newaxis]
    return np.bincount(drawn.ravel(), minlength=n * n_users).reshape(n, n_users).astype(np.float64)


def random_signs(rng: np.random.Generator, n: int, n_users: int) -> Floats:
    """Draw +1 or -1 for each user, equally likely, shape (n, n_users)."""
    return rng.integers(2, size=(n, n_users), dtype=np.int8).astype(np.float64) * 2 - 1


def weighted_totals(
    table: Floats, rng: np.random.Generator, n_resamples: int, weights: UserWeights
) -> Floats:
    """Add up the users of each resample by its weights: (n_users, n_columns) -> (n_resamples, n_columns)."""
    n_users, n_columns = table.shape
    totals = np.empty((n_resamples, n_columns))
    step = max(1, _CELLS_AT_ONCE // max(n_users, 1))
    for start in range(0, n_resamples, step):
        n = min(step, n_resamples - start)
        # Not `@`: einsum adds up in one order, whatever the number of threads.
        totals[start : start + n] = np.einsum("ru,uc->rc", weights(rng, n, n_users), table)
    return totals


def _resampled_means(sums: Floats, counts: Floats, rng: np.random.Generator, n_resamples: int) -> Floats:
    """Draw users with replacement: (n_users, n_columns) twice -> means of shape (n_resamples, n_columns)."""
    n_users, n_columns = sums.shape
    means = np.full((n_resamples, n_columns), np.nan)
    if n_users == 0:
        return means
    # Most columns have the same counts: each kind is multiplied once.
    kinds, kind = np.unique(counts, axis=1, return_inverse=True)
    totals = weighted_totals(np.hstack([sums, kinds]), rng, n_resamples, times_drawn)
    n_examples = totals[:, n_columns:][:, kind.ravel()]
    np.divide(totals[:, :n_columns], n_examples, out=means, where=n_examples > 0)
    return means


# The smallest possible p is 1 / 10,001, so that 45 pairs can still be told apart.
N_COMPARISON_RESAMPLES = 10_000
_ROUNDING = 1e-10


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two rankers on one metric; `a` is the one with the better mean (at a tie: first by name).

    What cannot be known is NaN: interval and p with fewer than two users, the effect size where every user
    has the same difference other than 0.

    Attributes:
        metric: Name of the metric.
        a: The better ranker.
        b: The other one.
        difference: Mean of `a` minus mean of `b` over the examples; positive where higher is better.
        low: Lower end of the difference's 95 % interval.
        high: Upper end.
        p: Two-sided p-value of this pair alone, in (0, 1].
        p_holm: The same, corrected for all pairs of this metric.
        effect_size: Mean over users of the user's difference, in standard deviations between users.
    """

    metric: str
    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    effect_size: float


def compare_rankers(
    values: Mapping[str, npt.ArrayLike],
    user_ids: Sequence[str] | npt.NDArray[np.str_],
    *,
    metric: str,
    seed: int,
    n_resamples: int = N_COMPARISON_RESAMPLES,
) -> list[Comparison]:
    """Compare every pair of rankers on one metric.

    The interval is the percentile interval of the difference over resampled users (cluster bootstrap, see
    `significance`). The p-value is that of a paired randomisation test: if two rankers are equal, swapping
    their answers for a user changes nothing, so the signs of whole users' differences are flipped at random,
    and p is `(1 + times that |total| is at least the observed one) / (1 + n_resamples)`.

    Sources: Fisher, "The Design of Experiments", 1935; Smucker, Allan and Carterette, "A comparison of
    statistical significance tests for information retrieval evaluation", CIKM 2007; the added 1: Phipson and
    Smyth, "Permutation p-values should never be zero", SAGMB 2010.

    The result depends on values, users and seed, never on the order of rankers or rows. Another ranker
    changes no number of a pair but `p_holm`.

    Args:
        values: By ranker, the metric of each example, shape (n_examples,); an example that is NaN for one
            ranker is left out for all.
        user_ids: The user of each example.
        metric: Name of the metric, which says whether higher is better.
        seed: The run's seed.
        n_resamples: Resamples of the interval, and of the test.

    Returns:
        One comparison a pair, by the names of the better and then of the other ranker.
    """
    names = sorted(values)
    if len(names) < 2:
        return []
    table = np.column_stack([np.asarray(values[name], dtype=np.float64) for name in names])
    present = ~np.isnan(table).any(axis=1)
    users, user = np.unique(np.asarray(user_ids, dtype=np.str_)[present], return_inverse=True)
    sums = sum_by_user(table[present], user, len(users))
    counts = np.bincount(user, minlength=len(users)).astype(np.float64)
    first, second = np.asarray(list(combinations(range(len(names)), 2))).T
    differences = sums[:, first] - sums[:, second]
    total = differences.sum(axis=0)
    if len(users) > 1:
        p = _randomisation_p(sums, first, second, total, seed, n_resamples)
        low, high = _intervals(sums, counts, first, second, seed, n_resamples)
    else:
        p = low = high = np.full(len(first), np.nan)
    mean = total / counts.sum() if len(users) else np.full(len(first), np.nan)
    effect = effect_sizes(differences / counts[:, np.newaxis])
    sign = 1 if parse_metric(metric).higher_is_better else -1
    numbers = np.column_stack([mean, low, high, p, holm(p), effect])
    found = []
    for i, j, row in zip(first, second, numbers.tolist(), strict=True):
        pair = Comparison(metric, names[i], names[j], *row)
        found.append(pair if not sign * pair.difference < 0 else turned(pair))
    return sorted(found, key=lambda pair: (pair.a, pair.b))


def turned(pair: Comparison) -> Comparison:
    """Look at a pair from the other side."""
    return replace(
        pair,
        a=pair.b,
        b=pair.a,
        difference=-pair.difference,
        low=-pair.high,
        high=-pair.low,
        effect_size=-pair.effect_size,
    )


def _intervals(
    sums: Floats,
    counts: Floats,
    first: npt.NDArray[np.intp],
    second: npt.NDArray[np.intp],
    seed: int,
    n_resamples: int,
) -> Floats:
    """Return the ends of the interval of each pair's difference, shape (2, n_pairs)."""
    both = np.column_stack([sums, counts])
    totals = weighted_totals(both, derive_rng(seed, "comparisons", "users"), n_resamples, times_drawn)
    means = totals[:, :-1] / totals[:, -1:]
    tail = 100 * (1 - LEVEL) / 2
    return np.asarray(np.percentile(means[:, first] - means[:, second], [tail, 100 - tail], axis=0))


def _randomisation_p(
    sums: Floats,
    first: npt.NDArray[np.intp],
    second: npt.NDArray[np.intp],
    total: Floats,
    seed: int,
    n_resamples: int,
) -> Floats:
    """Return the p-value of each pair, shape (n_pairs,)."""
    # Signs act on users, so one product for each ranker serves all of its pairs.
    flipped = weighted_totals(sums, derive_rng(seed, "comparisons", "signs"), n_resamples, random_signs)
    # Many totals equal the observed one exactly; rounding must not make them smaller.
    reached = np.abs(total) - _ROUNDING * np.abs(sums).sum(axis=0).max()
    as_extreme = (np.abs(flipped[:, first] - flipped[:, second]) >= reached).sum(axis=0)
    return np.asarray((1 + as_extreme) / (1 + n_resamples))


def holm(p: npt.ArrayLike) -> Floats:
    """Correct p-values for how many they are: the chance of even one false claim stays below the level.

    Formula: with p-values in ascending order and m of them, the i-th (from 0) becomes the largest of
    `min(1, (m - k) * p_k)` over k up to i. Source: Holm, "A simple sequentially rejective multiple test
    procedure", Scandinavian Journal of Statistics 1979.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.minimum(1.0, (len(values) - np.arange(len(values))) * values[order])
    corrected = np.empty(len(values))
    corrected[order] = np.maximum.accumulate(steps)
    return corrected


def effect_sizes(differences: npt.ArrayLike) -> Floats:
    """Return the standardised mean difference of each pair: (n_users, n_pairs) -> (n_pairs,).

    Formula: `d_z = mean(d) / sd(d)` over users, d being the user's mean difference and sd with n - 1. Source:
    Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, section 2.3.5; Lakens, "Calculating
    and reporting effect sizes", Frontiers in Psychology 2013, equation 6. Cohen calls .2 small, .5 medium and
    .8 large. 0 where no user differs, NaN where it is not defined.
    """
    table = np.asarray(differences, dtype=np.float64)
    if len(table) < 2:
        return np.full(table.shape[1], math.nan)
    mean, spread = table.mean(axis=0), table.std(axis=0, ddof=1)
    same = spread <= _ROUNDING * np.abs(table).max(axis=0)
    effect = np.full(len(mean), math.nan)
    np.divide(mean, spread, out=effect, where=~same)
    effect[(table == 0).all(axis=0)] = 0.0
    return effect
