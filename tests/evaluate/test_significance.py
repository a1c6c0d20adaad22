"""Intervals over users: coverage, clusters, determinism, missing values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trsr.evaluate.statistics import bootstrap_ci, bootstrap_columns


def test_the_interval_of_independent_users_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_ci(values, [f"u{i}" for i in range(400)], rng=1)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert (interval.n_examples, interval.n_users) == (400, 400)


def test_about_95_of_100_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(5)
    users = [str(i) for i in range(60)]
    hits = 0
    for _ in range(200):
        interval = bootstrap_ci(rng.uniform(size=60), users, rng=rng, n_resamples=300)
        hits += interval.low <= 0.5 <= interval.high
    assert 180 <= hits <= 199


def test_repeating_every_example_of_a_user_does_not_narrow_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    users = np.array([f"u{i}" for i in range(50)])
    once = bootstrap_ci(values, users, rng=3)
    often = bootstrap_ci(np.repeat(values, 20), np.repeat(users, 20), rng=3)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_a_user_with_many_examples_weighs_by_examples_in_the_mean() -> None:
    assert bootstrap_ci([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], rng=0).value == 0.75


def test_the_order_of_the_rows_changes_nothing() -> None:
    rng = np.random.default_rng(7)
    values, users = rng.normal(size=300), rng.integers(0, 40, 300).astype(str)
    order = rng.permutation(300)
    assert bootstrap_ci(values, users, rng=1) == bootstrap_ci(values[order], users[order], rng=1)


def test_a_seed_gives_one_interval_and_another_seed_another() -> None:
    values, users = np.random.default_rng(0).normal(size=30), [str(i) for i in range(30)]
    assert bootstrap_ci(values, users, rng=1) == bootstrap_ci(values, users, rng=1)
    assert bootstrap_ci(values, users, rng=1) != bootstrap_ci(values, users, rng=2)


def test_missing_values_are_left_out_and_counted() -> None:
    interval = bootstrap_ci([1.0, math.nan, 0.0, math.nan], ["a", "a", "b", "c"], rng=0)
    assert interval.value == 0.5
    assert (interval.n_examples, interval.n_users) == (2, 2)
    assert 0.0 <= interval.low <= interval.high <= 1.0


def test_one_user_has_a_value_but_no_interval() -> None:
    interval = bootstrap_ci([1.0, 0.0], ["a", "a"], rng=0)
    assert interval.value == 0.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_no_value_at_all_gives_nan() -> None:
    interval = bootstrap_ci([math.nan], ["a"], rng=0)
    assert math.isnan(interval.value)
    assert interval.n_examples == 0


def test_a_column_has_the_same_interval_alone_and_beside_others() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    users = [str(i) for i in range(50)]
    alone = bootstrap_columns(values[:, :1], users, rng=0)[0]
    beside = bootstrap_columns(values, users, rng=0)[0]
    assert (alone.low, alone.high) == pytest.approx((beside.low, beside.high), abs=1e-12)


def test_a_value_without_a_user_is_refused() -> None:
    with pytest.raises(ValueError, match="user ids"):
        bootstrap_ci([1.0, 2.0], ["a"], rng=0)
