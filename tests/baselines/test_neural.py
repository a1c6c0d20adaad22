"""Neural baselines learn, are deterministic, and rank unknown items last."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.baselines.neural import NcfRanker, SequentialName, SequentialRanker, training_sequences
from trsr.baselines.settings import Bert4RecConfig, Gru4RecConfig, NcfConfig, SasRecConfig
from trsr.errors import DataError
from trsr.recommend.ranker import Ranker
from trsr.types import RankingExample

N_ITEMS = 30
NAMES: tuple[SequentialName, ...] = ("sasrec", "gru4rec", "bert4rec")
CONFIGS: dict[str, Any] = {
    "sasrec": SasRecConfig(n_epochs=(3,), dim=(16,), batch_size=32, learning_rate=(0.01,), max_len=8),
    "gru4rec": Gru4RecConfig(n_epochs=(10,), dim=(16,), batch_size=16, learning_rate=(0.1,), max_len=8),
    "bert4rec": Bert4RecConfig(
        n_epochs=(60,), dim=(32,), dropout=(0.0,), batch_size=16, learning_rate=(0.01,), max_len=8
    ),
    "ncf": NcfConfig(n_factors=(8,), n_epochs=(25,), learning_rate=(0.01,)),
}


def walk(start: int, length: int) -> list[str]:
    """Return items each of which follows the one before."""
    return [f"i{(start + step) % N_ITEMS:02d}" for step in range(length)]


def events(sequences: list[list[str]]) -> pl.DataFrame:
    rows = [
        (f"u{n:03d}", item, place) for n, items in enumerate(sequences) for place, item in enumerate(items)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "position"], orient="row")


def circle_items(user: int) -> list[str]:
    """Return 12 of the 20 items of a user's circle; there are two circles."""
    chosen = np.random.default_rng(user).choice(20, 12, replace=False)
    return [f"c{user % 2}-{item:02d}" for item in chosen]


WALKS = events([walk(7 * n, 7) for n in range(80)])
CIRCLES = events([circle_items(user) for user in range(60)])


def next_of_a_walk(n: int) -> RankingExample:
    *history, target = walk(n, 6)
    rng = np.random.default_rng(n)
    others = rng.choice([i for i in range(N_ITEMS) if f"i{i:02d}" != target], 9, replace=False)
    candidates = (target, *(f"i{i:02d}" for i in others))
    return RankingExample(f"e{n}", f"new{n}", tuple(history), candidates, (1,) + (0,) * 9)


def unmet_of_the_circle(user: int) -> RankingExample:
    met = circle_items(user)
    target = next(name for n in range(20) if (name := f"c{user % 2}-{n:02d}") not in met)
    others = tuple(f"c{1 - user % 2}-{n:02d}" for n in range(0, 18, 2))
    return RankingExample(f"{user}", f"u{user:03d}", (), (target, *others), (1,) + (0,) * 9)


EXAMPLES: dict[str, list[RankingExample]] = {
    **{name: [next_of_a_walk(n) for n in range(20)] for name in NAMES},
    "ncf": [unmet_of_the_circle(user) for user in range(60)],
}


def fit(name: str, log: pl.DataFrame | None = None, seed: int = 0, **changes: Any) -> Any:
    point = CONFIGS[name].grid()[0] | changes
    if name == "ncf":
        return NcfRanker(CIRCLES if log is None else log, point, seed=seed)
    return SequentialRanker(name, WALKS if log is None else log, point, seed=seed)  # type: ignore[arg-type]


def table(name: str, ranker: Ranker) -> np.ndarray[Any, Any]:
    return np.stack([answer.margins for answer in ranker.rank(EXAMPLES[name])])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_next_item_and_the_kind_of_user_are_learned(name: str) -> None:
    margins = table(name, fit(name))
    assert ((margins > margins[:, :1]).sum(axis=1) < 3).mean() > 0.8  # by chance 0.3


def states() -> tuple[list[int], list[int]]:
    """Return the states of the global generators of numpy and torch."""
    numpy_state: Any = np.random.get_state()
    return numpy_state[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_fit_is_deterministic_and_restores_global_random_states(name: str) -> None:
    np.random.seed(3)
    torch.manual_seed(3)
    before = states()
    first = table(name, fit(name, n_epochs=1))
    assert states() == before
    np.random.seed(4)
    torch.manual_seed(4)
    shuffled = (CIRCLES if name == "ncf" else WALKS).sample(fraction=1, shuffle=True, seed=1)
    np.testing.assert_array_equal(first, table(name, fit(name, shuffled, n_epochs=1)))
    assert not np.array_equal(first, table(name, fit(name, n_epochs=1, seed=1)))


@pytest.mark.parametrize("name", NAMES)
def test_unknown_items_are_last_and_counted(name: str) -> None:
    ranker = fit(name, n_epochs=1)
    known = RankingExample("a", "u", ("i00", "never"), ("i01", "never", "i02"), (0, 1, 0))
    nothing = RankingExample("b", "u", ("never",), ("i01", "never", "i02"), (1, 0, 0))
    first, second = (answer.margins for answer in ranker.rank([known, nothing]))
    assert first[1] < min(first[0], first[2])
    assert second[1] < second[0] == second[2]
    assert ranker.facts([known, nothing]) == {
        "candidates": 6,
        "unknown_candidates": 2,
        "unknown_targets": 1,
        "examples_without_known_history": 1,
    }


def test_ncf_ties_for_unknown_users_and_survives_users_of_every_item() -> None:
    collector = pl.DataFrame({"user_id": "z", "item_id": CIRCLES["item_id"].unique()})
    log = pl.concat([CIRCLES.drop("position"), collector])
    ranker = fit("ncf", log, n_epochs=1)
    stranger = RankingExample("a", "nobody", (), ("c0-01", "never", "c1-01"), (0, 1, 0))
    (answer,) = ranker.rank([stranger])
    assert answer.margins[1] < answer.margins[0] == answer.margins[2]
    assert ranker.facts([stranger, RankingExample("b", "z", (), ("c0-01",), (1,))]) == {
        "candidates": 4,
        "unknown_candidates": 1,
        "unknown_targets": 1,
        "examples_of_unknown_users": 2,
    }


@pytest.mark.parametrize("name", NAMES)
def test_fewer_sequences_than_a_batch_can_be_learned_from(name: str) -> None:
    ranker = fit(name, events([walk(0, 5), walk(9, 4), walk(3, 2)]), batch_size=64)
    (answer,) = ranker.rank(EXAMPLES[name][:1])
    assert np.isfinite(answer.margins).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_history_longer_than_the_model_reads_is_cut_at_its_old_end(name: str) -> None:
    ranker = fit(name, n_epochs=1)
    long = RankingExample("a", "u", tuple(walk(0, 20)), ("i20", "i05"), (1, 0))
    short = RankingExample("a", "u", tuple(walk(12, 8)), ("i20", "i05"), (1, 0))
    first, second = (next(ranker.rank([e])).margins for e in (long, short))
    np.testing.assert_array_equal(first, second)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(2, 9))
def test_pieces_hold_every_event_in_order_and_are_cut_from_the_newest_end(length: int, size: int) -> None:
    log = events([[f"i{n}" for n in range(length)]])
    pieces = training_sequences(log, size)
    joined = [item for piece in reversed(pieces) for item in piece]
    left_out = length - len(joined)
    assert joined == [f"i{n}" for n in range(left_out, length)]
    assert left_out == (1 if length % size == 1 else 0)
    assert all(2 <= len(piece) <= size for piece in pieces)


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(DataError, match="No user has two events that sasrec"):
        fit("sasrec", events([["a"], ["b"]]))
    with pytest.raises(DataError, match="no event that ncf"):
        fit("ncf", CIRCLES.clear())
