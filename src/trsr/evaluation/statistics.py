"""Bootstrap intervals and paired tests over users, and the leaderboard of each metric.

A user's examples resemble one another, so users are resampled, not examples: the cluster bootstrap (Field and
Welsh, "Bootstrapping clustered data", JRSS B 2007).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from trsr.evaluation.metrics import PROBABILITY_METRICS, Floats, divide, parse_metric
from trsr.seeding import derive_rng

N_RESAMPLES = 2000
N_COMPARISON_RESAMPLES = 10_000  # the smallest p is 1 / 10,001, so 45 pairs can still differ significantly
LEVEL = 0.95
ALPHA = 0.05
TAILS = [100 * (1 - LEVEL) / 2, 100 - 100 * (1 - LEVEL) / 2]
_CELLS_AT_ONCE = 2_000_000
_ROUNDING = 1e-10

UserIds = Sequence[str] | npt.NDArray[np.str_]
Pairs = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]
UserWeights = Callable[[np.random.Generator, int, int], Floats]
"""(rng, n, n_users) -> weights of shape (n, n_users), one row per resample."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over examples with its 95 % interval; `low` and `high` are NaN with fewer than two users.

    `n_examples` and `n_users` count those that have a value.
    """

    value: float
    low: float
    high: float
    n_examples: int
    n_users: int


def bootstrap_ci(
    values: npt.ArrayLike,
    user_ids: UserIds,
    *,
    rng: np.random.Generator | int,
    n_resamples: int = N_RESAMPLES,
) -> Interval:
    """Return the mean of one value per example (NaN: no value), with its interval over resampled users."""
    column = np.asarray(values, dtype=np.float64)[:, np.newaxis]
    return bootstrap_columns(column, user_ids, rng=rng, n_resamples=n_resamples)[0]


def bootstrap_columns(
    values: npt.ArrayLike,
    user_ids: UserIds,
    *,
    rng: np.random.Generator | int,
    n_resamples: int = N_RESAMPLES,
) -> list[Interval]:
    """Return mean and percentile interval of each column, all on the same resamples of users.

    The order of rows does not matter, and another column changes no interval.

    Args:
        values: Shape (n_examples, n_columns); NaN where an example has no value.
        user_ids: The user of each example.
        rng: A generator, or a seed.
        n_resamples: How many times the users are drawn with replacement.
    """
    table = np.asarray(values, dtype=np.float64)
    users, user = np.unique(np.asarray(user_ids, dtype=np.str_), return_inverse=True)
    if table.ndim != 2 or len(table) != len(user):
        raise ValueError(f"expected one row per example, found shape {table.shape} for {len(user)} user ids")
    present = ~np.isnan(table)
    sums = sum_by_user(np.where(present, table, 0.0), user, len(users))
    counts = sum_by_user(present.astype(np.float64), user, len(users))
    means = _resampled_means(sums, counts, np.random.default_rng(rng), n_resamples)
    intervals = []
    for column in range(table.shape[1]):
        n_examples, n_users = int(counts[:, column].sum()), int((counts[:, column] > 0).sum())
        value = float(sums[:, column].sum() / n_examples) if n_examples else math.nan
        low, high = math.nan, math.nan
        if n_users > 1:
            # A resample may by chance hold no user with a value; it is NaN and left out.
            low, high = np.nanpercentile(means[:, column], TAILS).tolist()
        intervals.append(Interval(value, low, high, n_examples, n_users))
    return intervals


def sum_by_user(values: Floats, user: npt.NDArray[np.intp], n_users: int) -> Floats:
    """Add up the examples of each user: (n_examples, n_columns) -> (n_users, n_columns)."""
    # Sorted within each user first: not even the last bit may depend on the order of the rows.
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


def _random_signs(rng: np.random.Generator, n: int, n_users: int) -> Floats:
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
    if n_users == 0:
        return np.full((n_resamples, n_columns), np.nan)
    # Most columns have the same counts: each distinct column of counts is multiplied once.
    kinds, kind = np.unique(counts, axis=1, return_inverse=True)
    totals = weighted_totals(np.hstack([sums, kinds]), rng, n_resamples, times_drawn)
    return divide(totals[:, :n_columns], totals[:, n_columns:][:, kind.ravel()])


def compare_rankers(
    values: Mapping[str, npt.ArrayLike],
    user_ids: UserIds,
    *,
    metric: str,
    seed: int,
    n_resamples: int = N_COMPARISON_RESAMPLES,
) -> list[dict[str, Any]]:
    """Compare every pair of rankers on one metric.

    The interval is the percentile interval of the difference over resampled users. The p-value is that of a
    paired randomisation test: the signs of whole users' differences are flipped at random, and p is
    `(1 + times that |total| is at least the observed one) / (1 + n_resamples)`.

    Sources: Fisher, "The Design of Experiments", 1935; Smucker, Allan and Carterette, "A comparison of
    statistical significance tests for information retrieval evaluation", CIKM 2007; the added 1: Phipson and
    Smyth, "Permutation p-values should never be zero", SAGMB 2010.

    The order of rankers and rows does not matter, and another ranker changes only `p_holm` of a pair.

    Args:
        values: By ranker, the metric of each example, shape (n_examples,); an example that is NaN for one
            ranker is left out for all.
        user_ids: The user of each example.
        metric: Name of the metric, which determines whether higher is better.
        seed: The run's seed.
        n_resamples: Resamples of the interval, and of the test.

    Returns:
        Pairs as in `metrics.json`, sorted by name, with NaN for unknown numbers: `metric`, `a` (the ranker
        with the better mean; at a tie the first by name), `b`, `difference` (mean of `a` minus mean of `b`),
        its `ci95`, the two-sided `p` of this pair alone, `p_holm` corrected for all pairs, `effect_size`.
    """
    names = sorted(values)
    if len(names) < 2:
        return []
    table = np.column_stack([np.asarray(values[name], dtype=np.float64) for name in names])
    present = ~np.isnan(table).any(axis=1)
    users, user = np.unique(np.asarray(user_ids, dtype=np.str_)[present], return_inverse=True)
    sums = sum_by_user(table[present], user, len(users))
    counts = np.bincount(user, minlength=len(users)).astype(np.float64)
    first, second = pairs = tuple(np.asarray(list(combinations(range(len(names)), 2))).T)
    differences = sums[:, first] - sums[:, second]
    total = differences.sum(axis=0)
    if len(users) > 1:
        p = _randomisation_p(sums, pairs, total, derive_rng(seed, "comparisons", "signs"), n_resamples)
        rng = derive_rng(seed, "comparisons", "users")
        low, high = _difference_intervals(sums, counts, pairs, rng, n_resamples)
    else:
        p = low = high = np.full(len(first), np.nan)
    mean = total / counts.sum() if len(users) else np.full(len(first), np.nan)
    effect = effect_sizes(differences / counts[:, np.newaxis])
    sign = 1 if parse_metric(metric).higher_is_better else -1
    found: list[dict[str, Any]] = []
    numbers = np.column_stack([mean, low, high, p, holm(p), effect]).tolist()
    for i, j, row in zip(first, second, numbers, strict=True):
        pair = {
            "metric": metric,
            "a": names[i],
            "b": names[j],
            "difference": row[0],
            "ci95": row[1:3],
            "p": row[3],
            "p_holm": row[4],
            "effect_size": row[5],
        }
        found.append(flipped(pair) if sign * row[0] < 0 else pair)
    return sorted(found, key=lambda pair: (pair["a"], pair["b"]))


def flipped(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return a comparison with `a` and `b` exchanged."""
    return {
        **pair,
        "a": pair["b"],
        "b": pair["a"],
        "difference": _times(-1, pair["difference"]),
        "ci95": [_times(-1, end) for end in reversed(pair["ci95"])],
        "effect_size": _times(-1, pair["effect_size"]),
    }


def _times(sign: int, value: float | None) -> float | None:
    return None if value is None else sign * value + 0.0  # never -0.0


def _difference_intervals(
    sums: Floats, counts: Floats, pairs: Pairs, rng: np.random.Generator, n_resamples: int
) -> Floats:
    """Return the ends of the interval of each pair's difference, shape (2, n_pairs)."""
    totals = weighted_totals(np.column_stack([sums, counts]), rng, n_resamples, times_drawn)
    means = totals[:, :-1] / totals[:, -1:]
    return np.asarray(np.percentile(means[:, pairs[0]] - means[:, pairs[1]], TAILS, axis=0))


def _randomisation_p(
    sums: Floats, pairs: Pairs, total: Floats, rng: np.random.Generator, n_resamples: int
) -> Floats:
    """Return the p-value of each pair, shape (n_pairs,)."""
    # Signs act on users, so one product for each ranker serves all of its pairs.
    flipped = weighted_totals(sums, rng, n_resamples, _random_signs)
    # Many totals equal the observed one exactly; rounding must not make them smaller.
    reached = np.abs(total) - _ROUNDING * np.abs(sums).sum(axis=0).max()
    as_extreme = (np.abs(flipped[:, pairs[0]] - flipped[:, pairs[1]]) >= reached).sum(axis=0)
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
    and reporting effect sizes", Frontiers in Psychology 2013, equation 6. 0 where no user differs, NaN where
    it is not defined.
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


# --- the leaderboard: read from `metrics.json`, where unknown numbers are None -----------------------------

NOTE = (
    "All rankers answered the same questions, so each pair is compared user by user. Corrected p: how often"
    " two equal rankers would differ this much by chance, made stricter because every pair is tested"
    f" (randomisation test, Holm); below {ALPHA} one beats the other. No significant difference does not mean"
    " equal: more users may reveal one. Effect size: the mean difference in standard deviations between"
    " users; 0.2 is small, 0.5 medium, 0.8 large (Cohen)."
)


@dataclass(frozen=True, slots=True)
class Competitor:
    """A ranker compared with the best one.

    `ahead` is how far the best one is ahead (positive is better for every metric), with its interval `low` to
    `high`, corrected p-value and effect size.
    """

    name: str
    value: float | None
    ahead: float | None
    low: float | None
    high: float | None
    p: float | None
    effect_size: float | None

    @property
    def beaten(self) -> bool:
        """Whether the best ranker is significantly better."""
        return self.p is not None and self.p < ALPHA

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self.value is None:
            return "no value"
        return "beaten" if self.beaten else "no significant difference"


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """The rankers on one metric: the best one, and its competitors, best first."""

    metric: str
    best: str
    value: float | None
    competitors: tuple[Competitor, ...]

    @property
    def sentence(self) -> str:
        """The rankers that the best one beats, and the others."""
        if self.value is None:
            return f"No example has a value of {self.metric}, so no ranker is first: {_missing(self.metric)}."
        beaten = [one.name for one in self.competitors if one.beaten]
        others = [one.name for one in self.competitors if not one.beaten]
        open_ones = f"no significant difference from {_join(others)}" if others else ""
        if not beaten:
            return f"{self.best} is first on {self.metric}, but with {open_ones}."
        whom = "every other ranker" if len(beaten) > 1 and not others else _join(beaten)
        text = f"{self.best} beats {whom} on {self.metric} (corrected p < {ALPHA})"
        return f"{text}; {open_ones}." if others else f"{text}."


def leaderboards(metrics: Mapping[str, Any]) -> list[Leaderboard]:
    """Return one leaderboard per compared metric, from the content of `metrics.json`."""
    names = dict.fromkeys(pair["metric"] for pair in metrics["comparisons"])
    return [_leaderboard(metrics["rankers"], metric, pairs_on(metrics, metric)) for metric in names]


def _leaderboard(
    rankers: Mapping[str, Any], metric: str, pairs: Mapping[tuple[str, str], Mapping[str, Any]]
) -> Leaderboard:
    sign = 1 if parse_metric(metric).higher_is_better else -1

    def place(name: str) -> tuple[float, str]:
        value = rankers[name][metric]["value"]
        return math.inf if value is None else -sign * value, name

    best, *others = sorted({name for name, _ in pairs}, key=place)
    competitors = []
    for name in others:
        pair, value = pairs[best, name], rankers[name][metric]["value"]
        low, high = [_times(sign, end) for end in pair["ci95"]][::sign]
        ahead, effect_size = _times(sign, pair["difference"]), _times(sign, pair["effect_size"])
        competitors.append(Competitor(name, value, ahead, low, high, pair["p_holm"], effect_size))
    return Leaderboard(metric, best, rankers[best][metric]["value"], tuple(competitors))


def pairs_on(metrics: Mapping[str, Any], metric: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the comparisons on a metric by (a, b), each from both sides: `difference` is a minus b."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in metrics["comparisons"]:
        if pair["metric"] == metric:
            found[pair["a"], pair["b"]] = dict(pair)
            found[pair["b"], pair["a"]] = flipped(pair)
    return found


def significantly_best(rankers: Mapping[str, Any], metric: str, chance: float | None) -> str | None:
    """Return the ranker whose interval is above all others and above chance, or None.

    This is stricter than a paired test: overlapping intervals do not mean that two rankers are equal.
    """
    spans = {name: values[metric]["ci95"] for name, values in rankers.items() if metric in values}
    if len(spans) < 2 or any(None in span for span in spans.values()):
        return None
    sign = 1 if parse_metric(metric).higher_is_better else -1
    lows = {name: min(sign * end for end in span) for name, span in spans.items()}
    best = max(lows, key=lambda name: (lows[name], name))
    highest = max(sign * end for name, span in spans.items() if name != best for end in span)
    return best if lows[best] > highest and (chance is None or lows[best] > sign * chance) else None


def format_number(value: float | None, digits: int = 3) -> str:
    """Write a number with a fixed count of decimals; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def format_interval(ends: Sequence[float | None], digits: int = 3) -> str:
    """Write an interval; empty if an end is None."""
    low, high = ends
    return "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def format_p(p: float | None) -> str:
    """Write a p-value with three decimals; none is written as 0."""
    return "< 0.001" if p is not None and p < 0.001 else format_number(p)


def _missing(metric: str) -> str:
    family = parse_metric(metric).family
    if family in PROBABILITY_METRICS:
        return "it needs a score for every candidate"
    return f"it needs examples with a chosen {'and an unchosen ' if family == 'auc' else ''}candidate"


def _join(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
