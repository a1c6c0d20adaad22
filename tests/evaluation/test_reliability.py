"""The calibration error: near zero for calibrated scores, independent of order, with an honest interval."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.evaluation.metrics import Metric, brier, chance_level
from trsr.evaluation.reliability import bin_scores, calibration_error, reliability_curve, stack_runs
from trsr.evaluation.statistics import Interval
from trsr.recommend.ranker import sigmoid

Floats = npt.NDArray[np.float64]
N_CANDIDATES = 21
rows_of = st.lists(
    st.tuples(st.sampled_from([0.0, 0.05, 0.1, 0.5, 0.9, 1.0]), st.integers(0, 1)), min_size=1, max_size=80
)


def simulated(n_users: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Draw scores, and labels that are 1 with just that probability."""
    rng = np.random.default_rng(seed)
    scores = sigmoid(rng.normal(-3, 1.5, n_users * N_CANDIDATES))
    return scores, (rng.uniform(size=len(scores)) < scores).astype(float)


def ece(scores: npt.ArrayLike, labels: npt.ArrayLike, size: int = N_CANDIDATES) -> Interval:
    n = len(np.asarray(scores)) // size
    bins = bin_scores(scores, labels, np.arange(n + 1) * size)
    return calibration_error(bins, [f"u{i}" for i in range(n)], rng=0)


def test_calibrated_scores_have_an_error_near_0_whose_interval_holds_0() -> None:
    found = [ece(*simulated(300, seed)) for seed in range(20)]
    assert max(interval.value for interval in found) < 0.02
    assert all(interval.low <= interval.value <= interval.high for interval in found)
    assert sum(interval.low == 0 for interval in found) >= 17, "95 % would be 19 of 20"


def test_too_high_scores_have_an_error_whose_interval_excludes_0() -> None:
    scores, labels = simulated(300)
    found = ece(np.minimum(scores + 0.2, 1), labels)
    assert found.value == pytest.approx(0.2, abs=0.02)
    assert 0.15 < found.low < found.value < found.high < 0.25


def test_the_error_is_the_mean_gap_of_bins_of_equal_mass() -> None:
    scores = np.repeat([0.1, 0.6], [10, 10])
    labels = np.concatenate([np.repeat([1, 0], [3, 7]), np.repeat([1, 0], [5, 5])])
    assert ece(scores, labels, size=2).value == pytest.approx((0.2 + 0.1) / 2)
    rows = bin_scores(np.arange(100) / 100, np.zeros(100), [0, 100]).rows
    assert rows.ravel().tolist() == [10] * 10


@given(rows_of, st.randoms(use_true_random=False))
def test_equal_scores_share_a_bin_whatever_their_order(rows: list[tuple[float, int]], random: object) -> None:
    scores, labels = (np.asarray(column, dtype=float) for column in zip(*rows, strict=True))
    bins = bin_scores(scores, labels, [0, len(rows)])
    order = np.random.default_rng(random.getrandbits(32)).permutation(len(rows))  # type: ignore[attr-defined]
    again = bin_scores(scores[order], labels[order], [0, len(rows)])
    np.testing.assert_array_equal(bins.rows, again.rows)
    np.testing.assert_array_equal(bins.chosen, again.chosen)
    np.testing.assert_array_equal(bins.scores, again.scores)
    assert bins.rows.sum() == len(rows)
    assert (bins.rows > 0).sum() <= len(np.unique(scores))
    value = calibration_error(bins, ["u"], rng=0).value
    assert 0 <= value <= 1


def test_a_constant_at_the_base_rate_has_no_error() -> None:
    labels = np.tile([1.0] + [0.0] * 20, 30)
    found = ece(np.full(len(labels), 1 / 21), labels)
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.low == pytest.approx(0, abs=1e-12)
    assert (found.n_users, found.n_examples) == (30, 30)
    one_user = ece(*simulated(1))
    assert not math.isnan(one_user.value)
    assert math.isnan(one_user.low)


def test_calibration_error_resamples_users_not_rows() -> None:
    scores, labels = simulated(100)
    repeated = np.tile(scores.reshape(100, -1), 4).ravel(), np.tile(labels.reshape(100, -1), 4).ravel()
    once, four = ece(scores, labels), ece(*repeated, size=4 * N_CANDIDATES)
    assert four.value == pytest.approx(once.value, abs=1e-3)
    assert four.high == pytest.approx(once.high, rel=0.1), "each user's rows in four lists"


def test_opposite_errors_of_two_runs_do_not_cancel_out() -> None:
    labels = np.tile([1.0, 0.0], 20)
    offsets = np.arange(21) * 2
    high, low = (bin_scores(np.full(40, s), labels, offsets) for s in (0.7, 0.3))
    both = stack_runs([high, low], [np.arange(20)] * 2, 20)
    users = [f"u{i}" for i in range(20)]
    assert calibration_error(both, users, rng=0).value == pytest.approx(0.2)
    ((n, score, rate),) = reliability_curve(both, users, rng=0)
    assert (n, rate.value) == (80, 0.5)
    assert score == pytest.approx(0.5)


def test_the_curve_of_calibrated_scores_is_the_diagonal() -> None:
    scores, labels = simulated(400)
    bins = bin_scores(scores, labels, np.arange(401) * N_CANDIDATES)
    points = reliability_curve(bins, [f"u{i}" for i in range(400)], rng=0)
    assert len(points) == 10
    assert sum(rate.low <= score <= rate.high for _, score, rate in points) >= 8
    assert [score for _, score, _ in points] == sorted(score for _, score, _ in points)
    assert sum(n for n, _, _ in points) == len(scores)


def test_brier_is_the_mean_squared_error_of_each_example() -> None:
    np.testing.assert_allclose(brier([0.9, 0.2, 0.5], [1, 0, 0], [0, 2, 3]), [0.025, 0.25])
    levels = [float(brier([s] * 21, [1] + [0] * 20, [0, 21])[0]) for s in np.arange(1, 210) / 210]
    assert chance_level(Metric("brier"), 21) == pytest.approx(min(levels), abs=1e-9)
    assert math.isnan(chance_level(Metric("ece"), 21))
