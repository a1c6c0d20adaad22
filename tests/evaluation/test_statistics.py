"""Intervals over users, paired comparisons, and the leaderboard made from them."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.evaluation.statistics import (
    Leaderboard,
    bootstrap_ci,
    bootstrap_columns,
    compare_rankers,
    effect_sizes,
    format_p,
    holm,
    leaderboards,
    significantly_best,
)

Values = dict[str, npt.NDArray[np.float64]]


def users(n: int) -> list[str]:
    return [f"u{i}" for i in range(n)]


# --- intervals --------------------------------------------------------------------------------------------


def test_bootstrap_ci_equals_the_normal_approximation_for_independent_users() -> None:
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_ci(values, users(400), rng=1)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert (interval.n_examples, interval.n_users) == (400, 400)


def test_bootstrap_ci_covers_the_true_mean_in_about_95_of_100_cases() -> None:
    rng = np.random.default_rng(5)
    found = [bootstrap_ci(rng.uniform(size=60), users(60), rng=rng, n_resamples=300) for _ in range(200)]
    assert 180 <= sum(interval.low <= 0.5 <= interval.high for interval in found) <= 199


def test_bootstrap_ci_resamples_users_not_examples() -> None:
    values, names = np.random.default_rng(0).normal(size=50), np.array(users(50))
    once = bootstrap_ci(values, names, rng=3)
    often = bootstrap_ci(np.repeat(values, 20), np.repeat(names, 20), rng=3)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert bootstrap_ci([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], rng=0).value == 0.75


def test_bootstrap_ci_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(7)
    values, names, order = rng.normal(size=300), rng.integers(0, 40, 300).astype(str), rng.permutation(300)
    assert bootstrap_ci(values, names, rng=1) == bootstrap_ci(values[order], names[order], rng=1)
    assert bootstrap_ci(values, names, rng=1) != bootstrap_ci(values, names, rng=2)


def test_bootstrap_ci_leaves_out_missing_values() -> None:
    interval = bootstrap_ci([1.0, math.nan, 0.0, math.nan], ["a", "a", "b", "c"], rng=0)
    assert (interval.value, interval.n_examples, interval.n_users) == (0.5, 2, 2)
    assert 0.0 <= interval.low <= interval.high <= 1.0
    one_user = bootstrap_ci([1.0, 0.0], ["a", "a"], rng=0)
    assert one_user.value == 0.5
    assert math.isnan(one_user.low)
    assert math.isnan(one_user.high)
    assert math.isnan(bootstrap_ci([math.nan], ["a"], rng=0).value)


def test_bootstrap_columns_are_independent_of_one_another() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    alone = bootstrap_columns(values[:, :1], users(50), rng=0)[0]
    together = bootstrap_columns(values, users(50), rng=0)[0]
    assert (alone.low, alone.high) == pytest.approx((together.low, together.high), abs=1e-12)
    with pytest.raises(ValueError, match="user ids"):
        bootstrap_ci([1.0, 2.0], ["a"], rng=0)


# --- comparisons ------------------------------------------------------------------------------------------


def compare(values: Values, names: list[str] | None = None, **options: Any) -> list[SimpleNamespace]:
    chosen: dict[str, Any] = {"metric": "auc", "seed": 0, "n_resamples": 2000} | options
    pairs = compare_rankers(values, names or users(len(next(iter(values.values())))), **chosen)
    return [SimpleNamespace(**pair, low=pair["ci95"][0], high=pair["ci95"][1]) for pair in pairs]


def random_values(n: int, *names: str) -> Values:
    rng = np.random.default_rng(0)
    return {name: rng.uniform(size=n) for name in names}


def exact_p(differences: npt.NDArray[np.float64]) -> float:
    """Return the share of all sign patterns whose total is at least as extreme as the observed one."""
    signs = np.asarray(list(itertools.product((1, -1), repeat=len(differences))))
    return float(np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9))


@pytest.mark.parametrize("seed", range(4))
def test_p_equals_the_share_of_all_sign_patterns(seed: int) -> None:
    a, b = np.random.default_rng(seed).integers(0, 2, size=(2, 9)).astype(float)
    a += 0.3 * (seed > 1)
    (pair,) = compare({"a": a, "b": b}, n_resamples=20_000)
    assert pair.p == pytest.approx(exact_p(a - b), abs=0.012)


def test_signs_are_flipped_by_user_not_by_example() -> None:
    by_user = np.random.default_rng(3).normal(0.3, 1, size=8)
    values = {"a": np.repeat(by_user, 25), "b": np.zeros(200)}
    (pair,) = compare(values, [f"u{i // 25}" for i in range(200)], n_resamples=20_000)
    (as_users,) = compare({"a": by_user, "b": np.zeros(8)}, n_resamples=20_000)
    assert pair.p == as_users.p == pytest.approx(exact_p(by_user), abs=0.012)
    assert pair.effect_size == pytest.approx(as_users.effect_size)


def test_difference_interval_equals_the_normal_approximation() -> None:
    values = random_values(400, "a", "b")
    (pair,) = compare(values)
    differences = values[pair.a] - values[pair.b]
    half = 1.96 * differences.std() / math.sqrt(400)
    assert pair.difference == pytest.approx(differences.mean())
    assert pair.low == pytest.approx(differences.mean() - half, abs=0.15 * half)
    assert pair.high == pytest.approx(differences.mean() + half, abs=0.15 * half)


def test_a_constant_shift_is_significant_although_users_differ_widely() -> None:
    base = np.random.default_rng(0).uniform(size=60)
    (pair,) = compare({"plain": base, "shifted": base + np.linspace(0.01, 0.03, 60)})
    assert (pair.a, pair.b) == ("shifted", "plain")
    assert pair.p < 0.001
    assert 0 < pair.low < pair.difference < pair.high < 0.03


def test_equal_rankers_have_p_one_and_the_smallest_p_is_not_zero() -> None:
    values = random_values(30, "a")
    (pair,) = compare({"b": values["a"], "a": values["a"]})
    assert (pair.a, pair.b, pair.p, pair.p_holm) == ("a", "b", 1.0, 1.0)
    assert (pair.difference, pair.low, pair.high, pair.effect_size) == (0, 0, 0, 0)
    (pair,) = compare({"a": np.ones(200), "b": np.zeros(200)}, n_resamples=999)
    assert pair.p == 1 / 1000
    assert math.isnan(pair.effect_size), "every user differs by the same"


def test_about_5_of_100_equal_pairs_are_called_different() -> None:
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


@settings(max_examples=60, deadline=None)
@given(table=tables(), data=st.data())
def test_the_order_of_rankers_and_rows_changes_nothing(
    table: tuple[Values, list[str]], data: st.DataObject
) -> None:
    values, names = table
    order = data.draw(st.permutations(range(len(names))))
    shuffled = {name: values[name][order] for name in data.draw(st.permutations(list(values)))}
    pairs = compare(values, names, n_resamples=50)
    assert repr(compare(shuffled, [names[i] for i in order], n_resamples=50)) == repr(pairs)
    assert len(pairs) == math.comb(len(values), 2)
    for pair in pairs:
        assert pair.a != pair.b
        assert math.isnan(pair.difference) or pair.difference >= 0
        if not math.isnan(pair.p):
            assert 0 < pair.p <= pair.p_holm <= 1
            assert pair.low <= pair.high


def test_another_ranker_changes_only_the_corrected_p() -> None:
    values = random_values(50, "a", "b", "c", "d")
    (alone,) = compare({name: values[name] for name in "ab"})
    together = next(pair for pair in compare(values) if {pair.a, pair.b} == {"a", "b"})
    assert (together.difference, together.p) == (alone.difference, alone.p)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert together.p_holm >= alone.p_holm
    assert compare(values, seed=2) != compare(values, seed=1)


def test_missing_values_users_and_rankers_leave_numbers_unknown() -> None:
    (pair,) = compare({"a": np.array([1.0, math.nan, 1.0]), "b": np.array([0.5, 9.0, 0.0])})
    assert pair.difference == 0.75, "an example without a value for one ranker is left out for both"
    (pair,) = compare({"a": np.array([1.0, 1.0]), "b": np.array([0.0, 1.0])}, ["u", "u"])
    assert pair.difference == 0.5
    assert all(math.isnan(x) for x in (pair.low, pair.high, pair.p, pair.p_holm, pair.effect_size))
    (pair,) = compare({"a": np.array([math.nan]), "b": np.array([1.0])})
    assert math.isnan(pair.difference)
    assert compare({"a": np.ones(3)}) == []


@settings(max_examples=100)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_is_at_most_bonferroni(p: list[float]) -> None:
    corrected = holm(p)
    assert (corrected >= np.asarray(p)).all()
    assert (corrected <= np.minimum(1, len(p) * np.asarray(p)) + 1e-15).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


def test_holm_and_effect_sizes_equal_values_computed_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]).tolist() == [1.0, 1.0]
    differences = np.random.default_rng(0).normal(0.5, 1, size=(10_000, 1))
    assert effect_sizes(differences)[0] == pytest.approx(0.5, abs=0.03)
    assert effect_sizes(np.array([[1.0], [2.0], [3.0]]))[0] == pytest.approx(2.0)


# --- the leaderboard --------------------------------------------------------------------------------------


def pair_of(a: str, b: str, p: float | None, metric: str = "auc", **changes: Any) -> dict[str, Any]:
    numbers = {"difference": 0.2, "ci95": [0.1, 0.3], "p": p, "p_holm": p, "effect_size": 0.5}
    return {"metric": metric, "a": a, "b": b, **numbers, **changes}


def board(pairs: list[dict[str, Any]], values: dict[str, float | None], metric: str = "auc") -> Leaderboard:
    rankers = {name: {metric: {"value": value, "ci95": [None, None]}} for name, value in values.items()}
    (found,) = leaderboards({"comparisons": pairs, "rankers": rankers})
    return found


def test_leaderboard_lists_competitors_best_first_with_verdicts() -> None:
    pairs = [pair_of("b", "c", 0.5), pair_of("a", "c", 0.001), pair_of("a", "b", 0.2)]
    found = board(pairs, {"c": 0.4, "a": 0.8, "b": 0.6})
    assert found.best == "a"
    assert [(one.name, one.verdict) for one in found.competitors] == [
        ("b", "no significant difference"),
        ("c", "beaten"),
    ]
    assert found.sentence == ("a beats c on auc (corrected p < 0.05); no significant difference from b.")


@pytest.mark.parametrize(
    ("p_b", "p_c", "sentence"),
    [
        (0.01, 0.02, "a beats every other ranker on auc (corrected p < 0.05)."),
        (0.05, None, "a is first on auc, but with no significant difference from b and c."),
    ],
)
def test_leaderboard_sentence_claims_what_the_test_shows(
    p_b: float, p_c: float | None, sentence: str
) -> None:
    pairs = [pair_of("a", "b", p_b), pair_of("a", "c", p_c), pair_of("b", "c", 1.0)]
    assert board(pairs, {"a": 0.8, "b": 0.6, "c": 0.4}).sentence == sentence


def test_ahead_is_positive_where_lower_is_better_and_from_either_side() -> None:
    changes: dict[str, Any] = {"difference": -0.2, "ci95": [-0.3, -0.1], "effect_size": -0.5}
    found = board([pair_of("a", "b", 0.01, "logloss", **changes)], {"a": 0.2, "b": 0.4}, "logloss")
    (one,) = found.competitors
    assert (one.name, one.ahead, one.low, one.high, one.effect_size) == ("b", 0.2, 0.1, 0.3, 0.5)
    assert found.sentence == "a beats b on logloss (corrected p < 0.05)."
    (one,) = board(
        [pair_of("b", "a", 0.9, difference=0.0, ci95=[-0.1, 0.2])], {"a": 0.5, "b": 0.5}
    ).competitors
    assert (one.name, one.ahead, one.low, one.high) == ("b", 0.0, -0.2, 0.1)


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("mrr@10", "it needs examples with a chosen candidate"),
        ("auc", "it needs examples with a chosen and an unchosen candidate"),
        ("logloss", "it needs a score for every candidate"),
    ],
)
def test_leaderboard_without_values_has_no_winner(metric: str, why: str) -> None:
    nothing = pair_of("a", "b", None, metric, difference=None, ci95=[None, None], effect_size=None)
    found = board([nothing], {"a": None, "b": None}, metric)
    assert found.sentence == f"No example has a value of {metric}, so no ranker is first: {why}."
    (one,) = found.competitors
    assert (one.ahead, one.low, one.high, one.effect_size) == (None, None, None, None)
    assert (one.verdict, one.beaten) == ("no value", False)


@pytest.mark.parametrize(("p", "text"), [(None, "–"), (0.0004, "< 0.001"), (0.0412, "0.041"), (1.0, "1.000")])
def test_no_p_value_is_written_as_zero(p: float | None, text: str) -> None:
    assert format_p(p) == text


def test_significantly_best_needs_more_than_the_best_value() -> None:
    def rankers(metric: str, **ends: list[float | None]) -> dict[str, Any]:
        return {name: {metric: {"ci95": span}} for name, span in ends.items()}

    losses = rankers("logloss", a=[0.19, 0.21], b=[0.29, 0.31])
    assert significantly_best(losses, "logloss", 0.25) == "a"
    assert significantly_best(losses, "logloss", 0.2) is None, "no better than chance"
    assert significantly_best({"a": losses["a"]}, "logloss", None) is None, "nothing to compare with"
    assert significantly_best(rankers("logloss", a=[0.1, 0.2], b=[None, None]), "logloss", None) is None
    assert significantly_best(rankers("auc", a=[0.69, 0.71], b=[0.5, 0.6]), "auc", 0.5) == "a"
    assert significantly_best(rankers("auc", a=[0.69, 0.71], b=[0.5, 0.7]), "auc", 0.5) is None
