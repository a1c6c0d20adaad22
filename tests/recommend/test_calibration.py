"""Calibration: it never changes an order, finds what simulated data hides, and knows when to stay away."""

from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.errors import RunMismatchError
from trsr.recommend.calibration import Calibration, CalibrationFit, fit_calibration
from trsr.recommend.ranker import sigmoid

Floats = npt.NDArray[np.float64]
margins_of = st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=60)


def simulated(
    a: float, b: float, *, n_users: int = 600, n_candidates: int = 21, seed: int = 0
) -> tuple[Floats, Floats, list[str]]:
    """Draw margins, and labels of which each is 1 with probability sigmoid(a * margin + b)."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(0, 2, n_users * n_candidates)
    labels = (rng.uniform(size=len(margins)) < sigmoid(a * margins + b)).astype(float)
    return margins, labels, [f"u{i // n_candidates}" for i in range(len(margins))]


def log_loss(scores: Floats, labels: Floats) -> float:
    return float(-np.mean(np.log(np.where(labels == 1, scores, 1 - scores))))


def group_data(n_users: int, seed: int = 0) -> tuple[Floats, Floats, list[str]]:
    """One positive and twenty negatives a user; the positive's margin is higher by two."""
    rng = np.random.default_rng(seed)
    labels = np.tile([1.0] + [0.0] * 20, n_users)
    return rng.normal(size=len(labels)) + 2 * labels, labels, [f"u{i // 21}" for i in range(len(labels))]


@given(margins_of, st.floats(0.01, 20), st.floats(-10, 10))
def test_scores_lie_inside_0_and_1_and_never_change_an_order(
    margins: list[float], a: float, b: float
) -> None:
    scores = Calibration("platt", a, b).apply(margins)
    assert ((scores > 0) & (scores < 1)).all()
    order = np.argsort(margins, kind="stable")
    assert (np.diff(scores[order]) >= 0).all()


@pytest.mark.parametrize(("a", "b"), [(0.5, -3.0), (1.7, -2.0), (1.0, 0.8)])
def test_the_parameters_of_simulated_data_are_found(a: float, b: float) -> None:
    found = fit_calibration(*simulated(a, b)).calibration
    assert found is not None
    assert found.kind == "platt"
    assert found.a == pytest.approx(a, rel=0.08)
    assert found.b == pytest.approx(b, abs=0.12)


def test_a_temperature_is_enough_where_the_offset_is_0() -> None:
    kinds = [fit_calibration(*simulated(0.4, 0.0, seed=seed)) for seed in range(5)]
    temperatures = [fit.calibration for fit in kinds if fit.calibration and fit.calibration.b == 0]
    assert len(temperatures) >= 3
    assert all(found.a == pytest.approx(0.4, rel=0.1) for found in temperatures)


def test_margins_that_are_calibrated_already_are_mostly_left_alone() -> None:
    fits = [fit_calibration(*simulated(1.0, 0.0, seed=seed, n_users=200)) for seed in range(8)]
    assert sum(fit.calibration is None for fit in fits) >= 4
    assert all(set(fit.log_loss) == {"raw", "temperature", "platt"} for fit in fits)


def test_the_fit_helps_users_it_has_not_seen() -> None:
    margins, labels, users = group_data(400)
    found = fit_calibration(margins, labels, users).calibration
    assert found is not None
    fresh, truth, _ = group_data(400, seed=1)
    assert log_loss(found.apply(fresh), truth) < log_loss(sigmoid(fresh), truth) - 0.1
    # Candidates divided by this model: log odds of a normal shift of 2, and the base rate of 1 in 21.
    assert found.a == pytest.approx(2, rel=0.1)
    assert found.b == pytest.approx(-2 - math.log(20), rel=0.1)


def test_the_fit_depends_on_neither_the_order_of_rows_nor_chance() -> None:
    margins, labels, users = group_data(60)
    order = np.random.default_rng(4).permutation(len(labels))
    first = fit_calibration(margins, labels, users)
    again = fit_calibration(margins[order], labels[order], [users[i] for i in order])
    assert first.calibration is not None
    assert again.calibration is not None
    assert first.calibration.kind == again.calibration.kind
    assert again.calibration.a == pytest.approx(first.calibration.a, rel=1e-6)
    assert fit_calibration(margins, labels, users) == first


def test_margins_that_divide_the_labels_perfectly_have_a_finite_fit() -> None:
    _, labels, users = group_data(30)
    found = fit_calibration(labels * 4 - 2, labels, users).calibration
    assert found is not None
    assert 0 < found.a < 10
    assert found.apply([2.0])[0] < 1 - 1e-3, "31 of 32 is the smoothed target"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("few", "too few"),
        ("no positive", "too few"),
        ("one user", "too few"),
        ("no negative", "not chosen"),
        ("constant", "all margins are equal"),
        ("turned", "do not go with more choices"),
        ("nothing", "too few"),
    ],
)
def test_where_nothing_can_be_learned_there_is_no_calibration(case: str, reason: str) -> None:
    margins, labels, users = group_data(9 if case == "few" else 30)
    match case:
        case "no positive":
            labels = labels * 0
        case "one user":
            users = ["u0"] * len(users)
        case "no negative":
            labels = labels * 0 + 1
        case "constant":
            margins = margins * 0 + 3
        case "turned":
            margins = -margins
        case "nothing":
            margins, labels, users = np.zeros(0), np.zeros(0), []
    fit = fit_calibration(margins, labels, users)
    assert isinstance(fit, CalibrationFit)
    assert fit.calibration is None
    assert reason in fit.reason


@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.booleans(), st.integers(0, 15)), max_size=150))
def test_no_input_breaks_the_fit(rows: list[tuple[float, bool, int]]) -> None:
    fit = fit_calibration(
        [row[0] for row in rows], [int(row[1]) for row in rows], [f"u{row[2]}" for row in rows]
    )
    if fit.calibration is not None:
        assert fit.calibration.a > 0


def test_a_margin_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_calibration([math.nan, 0.0], [0, 1], ["a", "b"])


def test_json_keeps_a_calibration_whole() -> None:
    for calibration in (Calibration("platt", 1.25, -0.5), Calibration("temperature", 0.1)):
        assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "isotonic", "a": 1.0, "b": 0.0},
        {"kind": "platt", "a": -1.0, "b": 0.0},
        {"kind": "temperature", "a": 1.0, "b": 0.5},
        {"kind": "platt", "a": 1.0},
        {"kind": "platt", "a": "x", "b": 0.0},
    ],
)
def test_what_is_no_calibration_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(RunMismatchError, match="calibrate the model again"):
        Calibration.from_json(content)
