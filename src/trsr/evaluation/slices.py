"""Slices of the examples by history length, by how often the target was seen, and by shift of interests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trsr.errors import DataError
from trsr.evaluation.metrics import Floats, divide
from trsr.evaluation.per_example import PerExampleMetrics
from trsr.evaluation.statistics import compare_rankers, flipped, holm

N_SLICES = 4
MIN_SLICE_EXAMPLES = 20
WARM_FROM = 10
N_LATELY = 5
RULES = {
    "history_length": "items in the history, cut into up to four ranges of about equally many examples",
    "target": (
        f"how often the target occurs among the interactions that rankers learn from: cold is fewer than"
        f" {WARM_FROM}, warm {WARM_FROM} or more; of several targets the rarest counts"
    ),
    "interest": (
        f"1 - cosine of the category counts (title words where there are no categories) of a history's last"
        f" {N_LATELY} items and of its older ones; users above the median of the run are recent-shift, the"
        " others long-term"
    ),
}


@dataclass(frozen=True, slots=True)
class ExampleFeatures:
    """Features of an example, other than its candidates.

    Attributes:
        history_length: Items in its history.
        target_count: Occurrences of its target among the interactions that rankers learn from; None without
            a target.
        shift: See `interest_shift`; None where it does not exist.
    """

    history_length: int
    target_count: int | None = None
    shift: float | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Some examples: `chosen` is a mask over all; `low` and `high` are the smallest and largest value."""

    name: str
    low: float
    high: float
    chosen: npt.NDArray[np.bool_]


def interest_shift(values: Sequence[Collection[str]]) -> float | None:
    """Return how far the newest items of a history lie from the older ones, in [0, 1].

    Formula: `1 - (r . o) / (|r| |o|)`, where r and o count for each value in how many of the last `N_LATELY`
    items, and in how many of the older ones, it occurs.

    Args:
        values: The categories (or words) of each item of the history, oldest first; without the target.

    Returns:
        None where no item is older, or one side has no value.
    """
    recent, older = (
        Counter(value for item in part for value in set(item))
        for part in (values[-N_LATELY:], values[:-N_LATELY])
    )
    if not recent or not older:
        return None
    product = sum(n * older[value] for value, n in recent.items())
    norms = [sum(n * n for n in counts.values()) for counts in (recent, older)]
    return max(0.0, 1 - product / math.sqrt(norms[0] * norms[1]))


def cut_examples(
    measured: PerExampleMetrics, features: Mapping[str, ExampleFeatures]
) -> dict[str, list[Slice]]:
    """Divide the examples in each way of `RULES`; those without the value are in no slice.

    Raises:
        DataError: an example has no features.
    """
    unknown = [example for example in measured.example_ids if example not in features]
    if unknown:
        raise DataError(f"The example {unknown[0]!r} has no features; expected features of each example.")
    known = [features[example] for example in measured.example_ids]
    lengths = _column([one.history_length for one in known])
    n = max(1, min(N_SLICES, len(lengths) // MIN_SLICE_EXAMPLES))
    edges = np.unique(np.quantile(lengths, np.arange(1, n) / n, method="inverted_cdf"))
    shifts, middle = _mean_of_user(_column([one.shift for one in known]), measured.user_ids)
    return {
        "history_length": [
            replace(one, name=_range(int(one.low), int(one.high)))
            for one in _slices(lengths, edges, [""] * (len(edges) + 1))
        ],
        "target": _slices(_column([one.target_count for one in known]), [WARM_FROM - 1], ["cold", "warm"]),
        "interest": _slices(shifts, [middle], ["long-term", "recent-shift"]),
    }


def compare_on_slices(
    measured: PerExampleMetrics,
    slices: Mapping[str, Sequence[Slice]],
    pair: tuple[str, str],
    *,
    metric: str,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Compare two rankers on every slice; `a` is the first of the pair, whichever is better.

    `p_holm` is corrected for all slices of all ways to cut.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for way, parts in slices.items():
        found[way] = []
        for part in parts:
            values = {name: measured.values[name][metric][part.chosen] for name in pair}
            (one,) = compare_rankers(values, measured.user_ids[part.chosen], metric=metric, seed=seed)
            found[way].append(one if one["a"] == pair[0] else flipped(one))
    corrected = iter(holm([one["p"] for parts in found.values() for one in parts]).tolist())
    return {way: [one | {"p_holm": next(corrected)} for one in parts] for way, parts in found.items()}


def _column(values: Sequence[float | None]) -> Floats:
    return np.asarray([math.nan if value is None else value for value in values], dtype=np.float64)


def _slices(values: Floats, edges: npt.ArrayLike, names: Sequence[str]) -> list[Slice]:
    """Return the slices that have examples; one reaches up to its edge, the edge included."""
    place = np.where(np.isnan(values), -1, np.searchsorted(np.asarray(edges), values))
    found = []
    for number, name in enumerate(names):
        chosen = place == number
        if chosen.any():
            found.append(Slice(name, float(values[chosen].min()), float(values[chosen].max()), chosen))
    return found


def _range(low: int, high: int) -> str:
    return f"{low} items" if low == high else f"{low}–{high} items"


def _mean_of_user(values: Floats, user_ids: npt.NDArray[np.str_]) -> tuple[Floats, float]:
    """Replace each value by its user's mean (so a user is in one slice); return also the users' median."""
    users, user = np.unique(user_ids, return_inverse=True)
    known = ~np.isnan(values)
    totals = np.bincount(user[known], weights=values[known], minlength=len(users))
    counts = np.bincount(user[known], minlength=len(users))
    means = divide(totals, counts)
    return means[user], float(np.nanmedian(means)) if counts.any() else 0.0
