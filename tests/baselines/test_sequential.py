"""The sequence models learn an order, repeat themselves, and put what they do not know last."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.baselines.neural import SequentialName, SequentialRanker, training_sequences
from trsr.baselines.settings import Bert4RecConfig, Gru4RecConfig, SasRecConfig
from trsr.errors import DataError, MissingExtraError
from trsr.types import RankingExample

N_ITEMS = 30
NAMES: tuple[SequentialName, ...] = ("sasrec", "gru4rec", "bert4rec")
CONFIGS: dict[str, Any] = {
    "sasrec": SasRecConfig(n_epochs=(3,), dim=(16,), batch_size=32, learning_rate=(0.01,), max_len=8),
    "gru4rec": Gru4RecConfig(n_epochs=(10,), dim=(16,), batch_size=16, learning_rate=(0.1,), max_len=8),
    "bert4rec": Bert4RecConfig(
        n_epochs=(60,), dim=(32,), dropout=(0.0,), batch_size=16, learning_rate=(0.01,), max_len=8
    ),
}


def walk(start: int, length: int) -> list[str]:
    """Return items each of which follows the one before."""
    return [f"i{(start + step) % N_ITEMS:02d}" for step in range(length)]


def events(sequences: list[list[str]]) -> pl.DataFrame:
    rows = [
        (f"u{n:03d}", item, place) for n, items in enumerate(sequences) for place, item in enumerate(items)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "position"], orient="row")


WALKS = events([walk(7 * n, 7) for n in range(80)])


def examples() -> list[RankingExample]:
    """Ask for the next of a walk, among nine others."""
    found = []
    for n in range(20):
        *history, target = walk(n, 6)
        rng = np.random.default_rng(n)
        others = rng.choice([i for i in range(N_ITEMS) if f"i{i:02d}" != target], 9, replace=False)
        candidates = (target, *(f"i{i:02d}" for i in others))
        found.append(RankingExample(f"e{n}", f"new{n}", tuple(history), candidates, (1,) + (0,) * 9))
    return found


def fit(name: SequentialName, log: pl.DataFrame = WALKS, seed: int = 0, **changes: Any) -> SequentialRanker:
    return SequentialRanker(name, log, CONFIGS[name].grid()[0] | changes, seed=seed)


def table(ranker: SequentialRanker) -> np.ndarray[Any, Any]:
    return np.stack([answer.margins for answer in ranker.rank(examples())])


@pytest.mark.parametrize("name", NAMES)
def test_the_next_item_of_a_walk_is_learned(name: SequentialName) -> None:
    margins = table(fit(name))
    places = (margins > margins[:, :1]).sum(axis=1)
    assert (places < 3).mean() > 0.8  # by chance 0.3


def states() -> tuple[list[int], list[int]]:
    """Return the states of the global generators of numpy and torch."""
    numpy_state: Any = np.random.get_state()
    return numpy_state[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_repeats_itself_and_leaves_the_randomness_of_others_alone(name: SequentialName) -> None:
    np.random.seed(3)
    torch.manual_seed(3)
    before = states()
    first = table(fit(name, n_epochs=1))
    assert states() == before
    np.random.seed(4)
    torch.manual_seed(4)
    np.testing.assert_array_equal(first, table(fit(name, n_epochs=1)))
    assert not np.array_equal(first, table(fit(name, n_epochs=1, seed=1)))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_events_in_the_table_does_not_count(name: SequentialName) -> None:
    shuffled = WALKS.sample(fraction=1, shuffle=True, seed=1)
    np.testing.assert_array_equal(table(fit(name, n_epochs=1)), table(fit(name, shuffled, n_epochs=1)))


@pytest.mark.parametrize("name", NAMES)
def test_unknown_items_are_last_and_counted(name: SequentialName) -> None:
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


@pytest.mark.parametrize("name", NAMES)
def test_fewer_sequences_than_a_batch_can_be_learned_from(name: SequentialName) -> None:
    ranker = fit(name, events([walk(0, 5), walk(9, 4), walk(3, 2)]), batch_size=64)
    (answer,) = ranker.rank(examples()[:1])
    assert np.isfinite(answer.margins).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_history_longer_than_the_model_reads_is_cut_at_its_old_end(name: SequentialName) -> None:
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


def test_users_of_single_events_cannot_be_learned_from() -> None:
    with pytest.raises(DataError, match="No user has two events that sasrec"):
        fit("sasrec", events([["a"], ["b"]]))


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cornac", None)
    monkeypatch.setattr("trsr.baselines.neural.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"'cornac' is not installed: .*trsr\[baselines\]"):
        fit("gru4rec")
