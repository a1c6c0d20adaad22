"""Negatives of kind `targets`: what others of the split chose, so that only knowing the user helps."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.data.dataset import EVENTS, Dataset
from trsr.data.writer import write_dataset
from trsr.seeding import derive_rng
from trsr.splitting.examples import build_examples, make_resampler
from trsr.splitting.negatives import _draw_proportional
from trsr.splitting.protocols import SampledProtocol, TemporalProtocol
from trsr.train.dataset import recall_sum
from trsr.types import RankingExample

START = datetime(2024, 1, 1, tzinfo=UTC)


def make(folder: Path, histories: list[list[int]], *, times: bool = False) -> Dataset:
    """Write a dataset of users with these items; with times, event k of user u happens at minute 7 k + u."""
    rows = [
        (f"u{u}", f"i{item}", k, START + timedelta(minutes=7 * k + u) if times else None)
        for u, items in enumerate(histories)
        for k, item in enumerate(items)
    ]
    items = sorted({row[1] for row in rows})
    return write_dataset(
        folder,
        name="small",
        domain="products",
        text_fields=["title"],
        category_fields=[],
        items=pl.DataFrame({"item_id": items, "title": [f"Thing {item}" for item in items]}),
        events=pl.DataFrame(rows, schema=EVENTS, orient="row"),
        source="invented",
    )


def histories(n_users: int, n_items: int, *, skew: float = 0.0) -> list[list[int]]:
    """Return eight items a user; item i is met in proportion to 1 / (i + 3) ^ skew."""
    weights = 1 / (np.arange(n_items) + 3.0) ** skew
    rng = derive_rng(0, "histories")
    drawn = rng.choice(n_items, size=(n_users, 8), p=weights / weights.sum())
    return [[int(item) for item in row] for row in drawn]


def chosen(example: RankingExample) -> set[str]:
    return {item for item, label in zip(example.candidates, example.labels, strict=True) if label}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.data())
def test_a_draw_takes_each_in_proportion_and_the_heavy_always(
    weights: list[int], data: st.DataObject
) -> None:
    n = data.draw(st.integers(0, len(weights)))
    draws = [_draw_proportional(derive_rng(1, i), np.array(weights, float), n) for i in range(400)]
    assert all(len(set(draw)) == len(draw) == n for draw in draws)
    taken = np.bincount([i for draw in draws for i in draw], minlength=len(weights)) / 400
    free, left = set(range(len(weights))), n
    while heavy := {i for i in free if left * weights[i] >= sum(weights[j] for j in free)}:
        assert all(taken[i] == 1 for i in heavy)
        free, left = free - heavy, left - len(heavy)
    for i in free:
        assert taken[i] == pytest.approx(left * weights[i] / sum(weights[j] for j in free), abs=0.13)


@pytest.mark.parametrize("kind", ["uniform", "targets"])
def test_against_targets_it_does_not_help_to_know_what_is_popular(tmp_path: Path, kind: str) -> None:
    protocol = SampledProtocol.model_validate(
        {
            "min_history": 1,
            "max_history": 9,
            "n_valid": 50,
            "n_test": 600,
            "negatives": {"kind": kind, "n_test": 9},
        }
    )
    splits = build_examples(make(tmp_path / "d", histories(1000, 300, skew=0.7)), protocol, seed=0)
    popular = Counter(next(iter(chosen(e))) for e in splits.test)  # even that of the very targets
    found = [
        recall_sum(np.array([popular[c] for c in e.candidates], np.float32), e.labels) for e in splits.test
    ]
    above_chance = np.mean(found) - (3 + 5 + 10) / 10
    noise = np.std(found) / len(found) ** 0.5
    assert (above_chance > 10 * noise) if kind == "uniform" else (abs(above_chance) < 4 * noise)


def test_targets_are_lent_within_a_split_only_and_each_epoch_draws_its_own(tmp_path: Path) -> None:
    protocol = SampledProtocol.model_validate(
        {
            "min_history": 3,
            "n_valid": 5,
            "n_test": 8,
            "train_targets": 2,
            "negatives": {"kind": "targets", "n_test": 1},
        }
    )
    data = make(tmp_path / "d", histories(60, 60))
    splits = build_examples(data, protocol, seed=0)
    for part in (splits.train, splits.valid, splits.test):
        lent = set().union(*map(chosen, part))
        assert all(set(e.candidates) <= lent for e in part)
    resample = make_resampler(data, protocol, seed=0)
    fresh = [resample(e, 1) for e in splits.train]
    lent = set().union(*map(chosen, splits.train))
    assert all(set(e.candidates) <= lent for e in fresh)
    assert [e.candidates for e in fresh] != [e.candidates for e in splits.train]


def test_temporal_targets_are_known_before_they_are_lent(tmp_path: Path) -> None:
    protocol = TemporalProtocol.model_validate(
        {"kind": "temporal", "min_history": 2, "negatives": {"kind": "targets", "n_train": 1, "n_test": 1}}
    )
    users = histories(80, 200)
    splits = build_examples(make(tmp_path / "d", users, times=True), protocol, seed=0)
    first: dict[str, datetime] = {}
    for u, items in enumerate(users):
        for k, item in enumerate(items):
            time = START + timedelta(minutes=7 * k + u)
            first[f"i{item}"] = min(time, first.get(f"i{item}", time))
    assert splits.test
    for e in splits.test:
        assert e.timestamp is not None
        assert all(first[c] <= e.timestamp for c in e.candidates)
