"""Decayed popularity: the sum by hand, only what happened before, no answer where there are no times."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.baselines.simple import DecayedPopularityRanker
from trsr.data.dataset import EVENTS
from trsr.errors import ConfigError
from trsr.types import RankingExample

START = datetime(2026, 1, 1, tzinfo=UTC)


def events(*rows: tuple[str, float | None]) -> pl.DataFrame:
    """Return events of one user each, by item and day."""
    listed = [
        (f"u{n}", item, 0, None if day is None else START + timedelta(days=day))
        for n, (item, day) in enumerate(rows)
    ]
    return pl.DataFrame(listed, schema=EVENTS, orient="row")


def margins(ranker: DecayedPopularityRanker, day: float | None, *candidates: str) -> list[float]:
    when = None if day is None else START + timedelta(days=day)
    example = RankingExample("e", "u", (), candidates, (1,) + (0,) * (len(candidates) - 1), when)
    (answer,) = ranker.rank([example])
    return [float(margin) for margin in answer.margins]


def test_a_margin_is_the_logarithm_of_the_faded_sum() -> None:
    ranker = DecayedPopularityRanker(events(("a", 0), ("a", 4), ("b", 8)), half_life_days=2)
    got = margins(ranker, 10, "a", "b")
    assert got == pytest.approx([math.log2(0.5**5 + 0.5**3), -1.0])


def test_what_was_liked_lately_beats_what_was_liked_more_often_long_ago() -> None:
    log = events(*[("old", float(day)) for day in range(9)], ("new", 99.0))
    old, new = margins(DecayedPopularityRanker(log, half_life_days=7), 100, "old", "new")
    assert new > old
    old, new = margins(DecayedPopularityRanker(log, half_life_days=10_000), 100, "old", "new")
    assert old > new


@settings(deadline=None)
@given(st.floats(0.01, 1e4), st.floats(0.1, 1e5))
def test_an_item_nobody_had_met_is_last(day: float, half_life: float) -> None:
    ranker = DecayedPopularityRanker(events(("first", 0), ("later", 5)), half_life_days=half_life)
    first, never = margins(ranker, day, "first", "never")
    assert first > never


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(5, 50)), max_size=8))
def test_nothing_at_or_after_the_example_changes_a_score(future: list[tuple[str, float]]) -> None:
    past = [("a", 0.0), ("b", 1.0), ("a", 3.0), ("c", 4.0)]
    alone = DecayedPopularityRanker(events(*past), half_life_days=3)
    both = DecayedPopularityRanker(events(*past, *future), half_life_days=3)
    assert margins(alone, 5, "a", "b", "c", "d") == margins(both, 5, "a", "b", "c", "d")


def test_a_thousand_half_lives_leave_a_finite_order() -> None:
    ranker = DecayedPopularityRanker(events(("a", 0), ("b", 1), ("b", 1)), half_life_days=0.01)
    a, b, never = margins(ranker, 1000, "a", "b", "never")
    assert np.isfinite([a, b, never]).all()
    assert b > a > never


def test_an_example_without_a_time_takes_all_that_may_be_learned_from() -> None:
    ranker = DecayedPopularityRanker(events(("a", 0), ("b", 4)), half_life_days=4)
    assert margins(ranker, None, "a", "b") == pytest.approx([-1.0, 0.0])


def test_events_without_a_time_are_left_out_and_counted() -> None:
    ranker = DecayedPopularityRanker(events(("a", 0), ("b", None), ("b", None)), half_life_days=4)
    example = RankingExample("e", "u", (), ("a", "b"), (1, 0), START + timedelta(days=1))
    assert ranker.facts([example]) == {"events_without_time": 2, "unmet_candidates": 1}


def test_data_without_times_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        ConfigError, match=r"popularity_decayed needs .* no event .* take it out of `rankers`"
    ):
        DecayedPopularityRanker(events(("a", None)), half_life_days=4)


def test_a_half_life_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="half_life_days 0"):
        DecayedPopularityRanker(events(("a", 0)), half_life_days=0)
