"""NeuMF learns who likes what, repeats itself, and has no opinion on strangers."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from trsr.baselines.neural import NcfRanker
from trsr.baselines.settings import NcfConfig
from trsr.errors import DataError
from trsr.types import RankingExample

SETTINGS = NcfConfig(n_factors=(8,), n_epochs=(25,), learning_rate=(0.01,)).grid()[0]


def circles() -> pl.DataFrame:
    """Two circles of users, each with items of its own; every user has met 12 of their circle's 20."""
    rows = []
    for n in range(60):
        circle = n % 2
        for item in np.random.default_rng(n).choice(20, 12, replace=False):
            rows.append((f"u{n:02d}", f"c{circle}-{item:02d}"))
    return pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")


def examples() -> list[RankingExample]:
    """Ask each user for an unmet item of their circle, among unmet items of the other."""
    met: dict[str, set[str]] = {}
    for user, item in circles().iter_rows():
        met.setdefault(user, set()).add(item)
    found = []
    for user, items in met.items():
        circle = int(user[1:]) % 2
        target = next(name for n in range(20) if (name := f"c{circle}-{n:02d}") not in items)
        others = tuple(f"c{1 - circle}-{n:02d}" for n in range(0, 18, 2))
        found.append(RankingExample(user, user, (), (target, *others), (1,) + (0,) * 9))
    return found


def table(ranker: NcfRanker) -> np.ndarray[Any, Any]:
    return np.stack([answer.margins for answer in ranker.rank(examples())])


def test_users_get_what_others_of_their_kind_like() -> None:
    margins = table(NcfRanker(circles(), SETTINGS, seed=0))
    assert ((margins > margins[:, :1]).sum(axis=1) < 3).mean() > 0.8  # by chance 0.3


def test_a_fit_repeats_itself_whatever_the_order_of_events() -> None:
    short = SETTINGS | {"n_epochs": 1}
    first = table(NcfRanker(circles(), short, seed=0))
    shuffled = circles().sample(fraction=1, shuffle=True, seed=5)
    np.testing.assert_array_equal(first, table(NcfRanker(shuffled, short, seed=0)))
    assert not np.array_equal(first, table(NcfRanker(circles(), short, seed=1)))


def test_strangers_get_ties_and_unknown_items_are_last_and_counted() -> None:
    ranker = NcfRanker(circles(), SETTINGS | {"n_epochs": 1}, seed=0)
    stranger = RankingExample("a", "nobody", (), ("c0-01", "never", "c1-01"), (0, 1, 0))
    (answer,) = ranker.rank([stranger])
    assert answer.margins[1] < answer.margins[0] == answer.margins[2]
    assert ranker.facts([stranger]) == {
        "candidates": 3,
        "unknown_candidates": 1,
        "unknown_targets": 1,
        "examples_of_unknown_users": 1,
    }


def test_a_user_who_met_everything_does_not_hold_up_the_fit() -> None:
    collector = pl.DataFrame({"user_id": "z", "item_id": circles()["item_id"].unique()})
    ranker = NcfRanker(pl.concat([circles(), collector]), SETTINGS | {"n_epochs": 1}, seed=0)
    assert ranker.facts([RankingExample("a", "z", (), ("c0-01",), (1,))])["examples_of_unknown_users"] == 1


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(DataError, match="no event that ncf"):
        NcfRanker(circles().clear(), SETTINGS, seed=0)
