"""Sample negatives: items that a user did not choose, ranked against the chosen one.

A negative is never the target or an item that the user is known to have interacted with, and never occurs
twice in one example. A draw visits the whole catalogue only where nearly all of it is excluded; `targets`
visits all targets of the split.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from trsr.errors import DataError

NegativesKind = Literal["uniform", "popularity", "same-category", "targets"]
SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
_MAX_ROUNDS = 20


class NegativesConfig(BaseModel):
    """How negatives are drawn, and how many an example gets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: NegativesKind = "uniform"
    """`uniform`; `popularity`: in proportion to an item's interactions + 1; `same-category`: items that share
    all the target's categories, then all but the last, and so on, then any item; `targets`: in proportion to
    how many users of the same split have the item as a target, so that an item's popularity says nearly
    nothing about whether it is the chosen one (the in-batch negatives of two-tower training; Yi et al.,
    "Sampling-bias-corrected neural modeling", RecSys 2019)."""
    n_train: int = Field(default=4, ge=1)
    """Negatives of a training example."""
    n_test: int = Field(default=20, ge=1)
    """Negatives of a validation or test example."""

    def by_split(self) -> dict[SplitName, int]:
        """Return the negatives of an example of each split."""
        return {"train": self.n_train, "valid": self.n_test, "test": self.n_test}


class NegativeSampler:
    """Draws negatives from a catalogue whose order is fixed once: draws depend on the generator only.

    Args:
        item_ids: The catalogue, without duplicates. With `n_known` in `draw`, its order is the order in which
            items became known.
        kind: How to draw.
        popularity: Weights by item id, 0 for an absent item: interactions for `popularity`, users with this
            target for `targets`.
        categories: Values of the category fields by item id, broad to narrow; needed for `same-category`.
            A value that lists several ("Paper, Notebooks" or "Drama|War") counts as several levels; the first
            None or empty value ends an item's path.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        kind: NegativesKind = "uniform",
        *,
        popularity: Mapping[str, int] | None = None,
        categories: Mapping[str, Sequence[str | None]] | None = None,
    ) -> None:
        self.kind = kind
        self._ids = list(item_ids)
        self._index = {item_id: i for i, item_id in enumerate(self._ids)}
        counts, values = popularity or {}, categories or {}
        if kind == "popularity":
            self._cumulative = np.cumsum([counts.get(i, 0) + 1.0 for i in self._ids], dtype=np.float64)
        if kind == "targets":
            self._chosen = {i: n for i, item_id in enumerate(self._ids) if (n := counts.get(item_id, 0))}
        if kind == "same-category":
            self._paths = [_path(values.get(item_id, ())) for item_id in self._ids]
            self._shelves: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
            for index, path in enumerate(self._paths):
                for depth in range(1, len(path) + 1):
                    self._shelves[path[:depth]].append(index)

    def draw(
        self,
        rng: np.random.Generator,
        target: str,
        exclude: Collection[str],
        n: int,
        *,
        n_known: int | None = None,
    ) -> tuple[tuple[str, ...], int]:
        """Draw `n` different items that are neither the target nor in `exclude`.

        Args:
            rng: The example's own generator.
            target: The positive item.
            exclude: Item ids that may not be drawn: all that the user is known to have interacted with.
            n: How many, at least 0.
            n_known: Draw from the first `n_known` items of the catalogue only; None for all.

        Returns:
            The items, and how many of them come from outside the target's narrowest category.

        Raises:
            DataError: fewer than `n` items are left to draw from.
        """
        limit = len(self._ids) if n_known is None else n_known
        banned = {i for x in (target, *exclude) if (i := self._index.get(x, limit)) < limit}
        if self.kind == "targets":
            return self._named(self._draw_targets(rng, banned, n, limit)), 0
        if limit - len(banned) < n:
            raise DataError(
                f"Only {limit - len(banned)} items are left to draw {n} negatives from (catalogue of {limit},"
                f" {len(banned)} of them the target or in the user's history); request fewer negatives."
            )
        if self.kind == "popularity":
            return self._named(_draw_weighted(rng, self._cumulative[:limit], banned, n)), 0
        if self.kind == "uniform":
            return self._named(_draw_uniform(rng, limit, banned, n)), 0
        return self._draw_near(rng, target, banned, n, limit)

    def _draw_targets(self, rng: np.random.Generator, banned: set[int], n: int, limit: int) -> list[int]:
        left = [i for i in self._chosen if i < limit and i not in banned]
        if len(left) < n:
            raise DataError(
                f"Only {len(left)} targets of other users of the split are left to draw {n} negatives from;"
                " request fewer negatives or more users."
            )
        weights = np.array([self._chosen[i] for i in left], dtype=np.float64)
        return [left[place] for place in _draw_proportional(rng, weights, n)]

    def _draw_near(
        self, rng: np.random.Generator, target: str, banned: set[int], n: int, limit: int
    ) -> tuple[tuple[str, ...], int]:
        """Draw from the target's narrowest shelf, then from wider ones, until there are `n`."""
        path = self._paths[self._index[target]] if target in self._index else ()
        chosen: list[int] = []
        n_near = 0
        for depth in range(len(path), 0, -1):
            shelf = self._shelves[path[:depth]]
            size = bisect_left(shelf, limit)
            on_shelf = {bisect_left(shelf, i) for i in banned if self._paths[i][:depth] == path[:depth]}
            take = min(n - len(chosen), size - len(on_shelf))
            found = [shelf[place] for place in _draw_uniform(rng, size, on_shelf, take)]
            chosen += found
            banned = banned.union(found)
            if depth == len(path):
                n_near = take
        chosen += _draw_uniform(rng, limit, banned, n - len(chosen))
        return self._named(chosen), n - n_near

    def draw_unchecked(self, rng: np.random.Generator, n: int) -> tuple[str, ...]:
        """Draw `n` different items from the whole catalogue, target and history included.

        The paper's released code does this; kept for comparison only.
        """
        if len(self._ids) < n:
            raise DataError(
                f"The catalogue has {len(self._ids)} items, {n} negatives are requested; request fewer."
            )
        return self._named(_draw_uniform(rng, len(self._ids), set(), n))

    def _named(self, indices: list[int]) -> tuple[str, ...]:
        return tuple(self._ids[i] for i in indices)


def _path(values: Sequence[str | None]) -> tuple[str, ...]:
    path: list[str] = []
    for value in values:
        if not value:
            break
        path += [part.strip() for part in re.split(r"\||, ", value)]
    return tuple(path)


def _draw_uniform(rng: np.random.Generator, limit: int, banned: set[int], n: int) -> list[int]:
    """Draw `n` different numbers below `limit` that are not in `banned`, each set equally likely."""
    if n <= 0:
        return []
    # Rejection is cheap while at least half of the range is free; else listing the free numbers costs no more
    # than `banned` itself did.
    if limit < 2 * (len(banned) + n):
        free = np.asarray([i for i in range(limit) if i not in banned], dtype=np.int64)
        return list(rng.permutation(free)[:n].tolist())
    chosen: dict[int, None] = {}
    while len(chosen) < n:
        for i in rng.integers(limit, size=2 * (n - len(chosen))).tolist():
            if len(chosen) < n and i not in banned:
                chosen.setdefault(i)
    return list(chosen)


def _draw_weighted(
    rng: np.random.Generator, cumulative: npt.NDArray[np.float64], banned: set[int], n: int
) -> list[int]:
    """Draw `n` different indices one after the other in proportion to their weights, without `banned`."""
    chosen: dict[int, None] = {}
    for _ in range(_MAX_ROUNDS):
        points = rng.random(2 * (n - len(chosen))) * cumulative[-1]
        for i in np.searchsorted(cumulative, points, side="right").tolist():
            if len(chosen) < n and i < len(cumulative) and i not in banned:
                chosen.setdefault(i)
        if len(chosen) == n:
            return list(chosen)
    # The excluded items hold nearly all the weight: list the rest and draw from it exactly.
    weights = np.diff(cumulative, prepend=0.0)
    weights[list(banned | chosen.keys())] = 0.0
    rest = rng.choice(len(weights), size=n - len(chosen), replace=False, p=weights / weights.sum())
    return [*chosen, *rest.tolist()]


def _draw_proportional(rng: np.random.Generator, weights: npt.NDArray[np.float64], n: int) -> list[int]:
    """Draw `n` different places, each with a probability exactly in proportion to its weight.

    Systematic sampling in random order (Madow, Annals of Mathematical Statistics 1949): drawing one after the
    other without replacement would take heavy ones less often than in proportion. A place whose
    probability would exceed 1 is always taken, and the others share the rest.
    """
    order = rng.permutation(len(weights))
    sure: list[int] = []
    while n > len(sure):
        shares = weights[order] / weights[order].sum() * (n - len(sure))
        if (heavy := shares >= 1).any():
            sure += order[heavy].tolist()
            order = order[~heavy]
            continue
        ends = np.cumsum(shares)
        ends[-1] = n - len(sure)  # not a rounding less
        points = rng.random() + np.arange(n - len(sure))
        return [*sure, *order[np.searchsorted(ends, points, side="right")].tolist()]
    return sure
