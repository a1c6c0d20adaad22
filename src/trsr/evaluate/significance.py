"""How sure a mean is: bootstrap intervals over users.

A user's examples resemble one another, so users are resampled, not examples: the cluster bootstrap (Field and
Welsh, "Bootstrapping clustered data", JRSS B 2007). Knows nothing of rankers or metrics; differences between
rankers belong to `comparisons`, which weights users by the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
