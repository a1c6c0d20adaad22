"""Paired comparisons: right p-values, honest under the null, independent of every order."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.evaluate.statistics import Comparison, compare_rankers, effect_sizes, holm

Values = dict[str, npt.NDArray[np.float64]]


def compare(values: Values, users: list[str] | None = None, **options: Any) -> list[Comparison]:
    n = len(next(iter(values.values())))
    asked: dict[str, Any] = {"metric": "auc", "seed": 0, "n_resamples": 2000} | options
    return compare_rankers(values, users or [f"u{i}" for i in range(n)], **asked)


def random_values(n: int, *names: str, seed: int = 0) -> Values:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(size=n) for name in names}


def exact_p(differences: npt.NDArray[np.float64]) -> float:
    """Return the share of all sign patterns whose total is at least as extreme as the observed one."""
    totals = [
        abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return float(np.mean(np.asarray(totals) >= abs(differences.sum()) - 1e-9))


# --- right numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_p_is_that_of_all_sign_patterns_where_these_can_be_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 2, size=(2, 9)).astype(float)
    (pair,) = compare({"a": a + 0.3 * (seed > 1), "b": b}, n_resamples=20_000)
    assert pair.p == pytest.approx(exact_p(a + 0.3 * (seed > 1) - b), abs=0.012)


def test_signs_are_flipped_by_user_and_not_by_example() -> None:
    rng = np.random.default_rng(3)
    by_user = rng.normal(0.3, 1, size=8)
    values = {"a": np.repeat(by_user, 25), "b": np.zeros(200)}
    (pair,) = compare(values, [f"u{i // 25}" for i in range(200)], n_resamples=20_000)
    (as_users,) = compare({"a": by_user, "b": np.zeros(8)}, n_resamples=20_000)
    assert pair.p == as_users.p == pytest.approx(exact_p(by_user), abs=0.012)
    assert pair.effect_size == pytest.approx(as_users.effect_size)


def test_the_interval_of_a_difference_is_that_of_the_normal_approximation() -> None:
    values = random_values(400, "a", "b")
    (pair,) = compare(values)
    differences = values[pair.a] - values[pair.b]
    half = 1.96 * differences.std() / math.sqrt(400)
    assert pair.difference == pytest.approx(differences.mean())
    assert pair.low == pytest.approx(differences.mean() - half, abs=0.15 * half)
    assert pair.high == pytest.approx(differences.mean() + half, abs=0.15 * half)


def test_a_pair_that_moves_together_is_told_apart_although_its_users_differ_widely() -> None:
    base = np.random.default_rng(0).uniform(size=60)
    (pair,) = compare({"plain": base, "shifted": base + np.linspace(0.01, 0.03, 60)})
    assert (pair.a, pair.b) == ("shifted", "plain")
    assert pair.p < 0.001
    assert 0 < pair.low < pair.difference < pair.high < 0.03


def test_equal_rankers_have_p_one_and_no_difference() -> None:
    values = random_values(30, "a")
    (pair,) = compare({"b": values["a"], "a": values["a"]})
    assert (pair.a, pair.b, pair.p, pair.p_holm) == ("a", "b", 1.0, 1.0)
    assert (pair.difference, pair.low, pair.high, pair.effect_size) == (0, 0, 0, 0)


def test_the_smallest_p_is_never_zero() -> None:
    (pair,) = compare({"a": np.ones(200), "b": np.zeros(200)}, n_resamples=999)
    assert pair.p == 1 / 1000
    assert math.isnan(pair.effect_size), "every user differs by the same: no spread to measure by"


def test_about_5_of_100_equal_pairs_are_called_different_and_no_more() -> None:
    rng, false_alarms = np.random.default_rng(1), 0
    for seed in range(300):
        a, b = rng.integers(0, 2, size=(2, 40)).astype(float) + rng.normal(0, 0.1, size=(2, 40))
        (pair,) = compare({"a": a, "b": b}, seed=seed, n_resamples=400)
        false_alarms += pair.p < 0.05
    assert 5 <= false_alarms <= 27


def test_lower_is_better_for_logloss() -> None:
    (pair,) = compare({"high": np.array([2.0, 3.0]), "low": np.array([1.0, 1.5])}, metric="logloss")
    assert (pair.a, pair.b, pair.difference) == ("low", "high", -1.25)
    assert pair.low <= pair.difference <= pair.high <= 0


# --- what must not matter -------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn) -> tuple[Values, list[str]]:
    """Draw two to four rankers on up to twelve examples of a few users; values are often equal or missing."""
    n = draw(st.integers(1, 12))
    cell = st.sampled_from([0.0, 1 / 3, 0.5, 1.0])
    missing = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    values = {}
    for name in "abcd"[: draw(st.integers(2, 4))]:
        column = np.array(draw(st.lists(cell, min_size=n, max_size=n)))
        column[np.array(missing) & (draw(st.integers(0, 3)) > 0)] = math.nan
        values[name] = column
    return values, draw(st.lists(st.sampled_from(["u", "v", "w", "x"]), min_size=n, max_size=n))


def same(left: list[Comparison], right: list[Comparison]) -> None:
    assert repr(left) == repr(right)  # NaN is equal to itself here


@settings(max_examples=60, deadline=None)
@given(table=tables(), data=st.data())
def test_the_order_of_rankers_and_of_rows_changes_nothing(
    table: tuple[Values, list[str]], data: st.DataObject
) -> None:
    values, users = table
    names = data.draw(st.permutations(list(values)))
    rows = data.draw(st.permutations(range(len(users))))
    turned = {name: values[name][rows] for name in names}
    wanted = compare(values, users, n_resamples=50)
    same(compare(turned, [users[i] for i in rows], n_resamples=50), wanted)


@settings(max_examples=60, deadline=None)
@given(table=tables())
def test_numbers_stay_in_their_ranges(table: tuple[Values, list[str]]) -> None:
    values, users = table
    pairs = compare(values, users, n_resamples=50)
    assert len(pairs) == math.comb(len(values), 2)
    for pair in pairs:
        assert pair.a != pair.b
        assert math.isnan(pair.difference) or pair.difference >= 0
        if not math.isnan(pair.p):
            assert 0 < pair.p <= pair.p_holm <= 1
            assert pair.low <= pair.high


def test_another_ranker_changes_nothing_of_a_pair_but_its_correction() -> None:
    values = random_values(50, "a", "b", "c", "d")
    (alone,) = compare({name: values[name] for name in "ab"})
    beside = next(pair for pair in compare(values) if {pair.a, pair.b} == {"a", "b"})
    assert (beside.difference, beside.p) == (alone.difference, alone.p)
    assert (beside.low, beside.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert beside.p_holm >= alone.p_holm


def test_a_seed_gives_one_result_and_another_seed_another() -> None:
    values = random_values(50, "a", "b")
    same(compare(values, seed=1), compare(values, seed=1))
    assert repr(compare(values, seed=1)) != repr(compare(values, seed=2))


# --- edges ----------------------------------------------------------------------------------------------


def test_an_example_without_a_value_for_one_ranker_is_left_out_for_both() -> None:
    (pair,) = compare({"a": np.array([1.0, math.nan, 1.0]), "b": np.array([0.5, 9.0, 0.0])})
    assert pair.difference == 0.75


def test_one_user_has_a_difference_but_no_interval_and_no_p() -> None:
    (pair,) = compare({"a": np.array([1.0, 1.0]), "b": np.array([0.0, 1.0])}, ["u", "u"])
    assert pair.difference == 0.5
    assert all(math.isnan(x) for x in (pair.low, pair.high, pair.p, pair.p_holm, pair.effect_size))


def test_no_value_at_all_and_one_ranker_give_no_claim() -> None:
    (pair,) = compare({"a": np.array([math.nan]), "b": np.array([1.0])})
    assert math.isnan(pair.difference)
    assert compare({"a": np.ones(3)}) == []


# --- corrections and effect sizes -----------------------------------------------------------------------


def test_holm_gives_the_values_computed_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]).tolist() == [1.0, 1.0]
    assert holm([0.2]).tolist() == [0.2]


@settings(max_examples=100)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_keeps_their_order_and_is_at_most_bonferroni(p: list[float]) -> None:
    corrected = holm(p)
    assert (corrected >= np.asarray(p)).all()
    assert (corrected <= np.minimum(1, len(p) * np.asarray(p)) + 1e-15).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


def test_the_effect_size_is_the_mean_difference_in_standard_deviations_between_users() -> None:
    differences = np.random.default_rng(0).normal(0.5, 1, size=(10_000, 1))
    assert effect_sizes(differences)[0] == pytest.approx(0.5, abs=0.03)
    assert effect_sizes(np.array([[1.0], [2.0], [3.0]]))[0] == pytest.approx(2.0)
