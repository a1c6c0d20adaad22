"""Calibration keeps orders, finds what simulated data hides, and is None where nothing can be learned."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from trsr.recommend.calibration import Calibration, fit_calibration
from trsr.recommend.ranker import sigmoid

Floats = npt.NDArray[np.float64]
Rows = tuple[Floats, Floats, list[str]]


def simulated(a: float, b: float, *, n_users: int = 600, seed: int = 0) -> Rows:
    """Draw 21 margins per user, and labels of which each is 1 with probability sigmoid(a * margin + b)."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(0, 2, n_users * 21)
    labels = (rng.uniform(size=len(margins)) < sigmoid(a * margins + b)).astype(float)
    return margins, labels, [f"u{i // 21}" for i in range(len(margins))]


def group_data(n_users: int, seed: int = 0) -> Rows:
    """One positive and twenty negatives per user; the positive's margin is higher by two."""
    rng = np.random.default_rng(seed)
    labels = np.tile([1.0] + [0.0] * 20, n_users)
    return rng.normal(size=len(labels)) + 2 * labels, labels, [f"u{i // 21}" for i in range(len(labels))]


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=60), st.floats(0.01, 20), st.floats(-10, 10)
)
def test_scores_lie_inside_0_and_1_and_keep_the_order(margins: list[float], a: float, b: float) -> None:
    scores = Calibration("platt", a, b).apply(margins)
    assert ((scores > 0) & (scores < 1)).all()
    assert (np.diff(scores[np.argsort(margins, kind="stable")]) >= 0).all()


@pytest.mark.parametrize(("a", "b"), [(0.5, -3.0), (1.7, -2.0), (1.0, 0.8)])
def test_fit_finds_the_parameters_of_simulated_data(a: float, b: float) -> None:
    found = fit_calibration(*simulated(a, b)).calibration
    assert found is not None
    assert found.kind == "platt"
    assert found.a == pytest.approx(a, rel=0.08)
    assert found.b == pytest.approx(b, abs=0.12)


def test_fit_mostly_prefers_fewer_parameters_where_they_are_enough() -> None:
    cold = [fit_calibration(*simulated(0.4, 0.0, seed=seed)).calibration for seed in range(5)]
    assert sum(c is not None and c.b == 0 and c.a == pytest.approx(0.4, rel=0.1) for c in cold) >= 3
    right = [fit_calibration(*simulated(1.0, 0.0, seed=seed, n_users=200)) for seed in range(8)]
    assert sum(fit.calibration is None for fit in right) >= 4
    assert all(set(fit.log_loss) == {"raw", "temperature", "platt"} for fit in right)


def test_fit_helps_users_it_has_not_seen() -> None:
    def log_loss(scores: Floats, labels: Floats) -> float:
        return float(-np.mean(np.log(np.where(labels == 1, scores, 1 - scores))))

    found = fit_calibration(*group_data(400)).calibration
    assert found is not None
    fresh, truth, _ = group_data(400, seed=1)
    assert log_loss(found.apply(fresh), truth) < log_loss(sigmoid(fresh), truth) - 0.1
    # Normal margins of equal variance: log odds are linear in the shift of 2 and the base rate of 1 in 21.
    assert found.a == pytest.approx(2, rel=0.1)
    assert found.b == pytest.approx(-2 - math.log(20), rel=0.1)


def test_fit_depends_on_neither_the_order_of_rows_nor_chance() -> None:
    margins, labels, users = group_data(60)
    order = np.random.default_rng(4).permutation(len(labels))
    first = fit_calibration(margins, labels, users)
    again = fit_calibration(margins[order], labels[order], [users[i] for i in order])
    assert first.calibration is not None
    assert again.calibration is not None
    assert first.calibration.kind == again.calibration.kind
    assert again.calibration.a == pytest.approx(first.calibration.a, rel=1e-6)
    assert fit_calibration(margins, labels, users) == first


def test_fit_is_finite_where_margins_divide_the_labels_perfectly() -> None:
    _, labels, users = group_data(30)
    found = fit_calibration(labels * 4 - 2, labels, users).calibration
    assert found is not None
    assert 0 < found.a < 10
    assert found.apply([2.0])[0] < 1 - 1e-3, "31 of 32 is the smoothed target"


MANY, FEW = group_data(30), group_data(9)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (FEW, "too few"),
        ((MANY[0], MANY[1] * 0, MANY[2]), "too few"),
        ((MANY[0], MANY[1], ["u0"] * len(MANY[2])), "too few"),
        ((MANY[0], MANY[1] * 0 + 1, MANY[2]), "not chosen"),
        ((MANY[0] * 0 + 3, *MANY[1:]), "all margins are equal"),
        ((-MANY[0], *MANY[1:]), "do not go with more choices"),
        ((np.zeros(0), np.zeros(0), []), "too few"),
    ],
)
def test_fit_says_why_nothing_can_be_learned(rows: Rows, reason: str) -> None:
    fit = fit_calibration(*rows)
    assert fit.calibration is None
    assert reason in fit.reason


@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.booleans(), st.integers(0, 15)), max_size=150))
def test_fit_takes_any_finite_margins(rows: list[tuple[float, bool, int]]) -> None:
    margins, labels, users = [r[0] for r in rows], [int(r[1]) for r in rows], [f"u{r[2]}" for r in rows]
    fit = fit_calibration(margins, labels, users)
    assert fit.calibration is None or fit.calibration.a > 0


def test_fit_refuses_a_margin_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        fit_calibration([math.nan, 0.0], [0, 1], ["a", "b"])


def test_calibration_survives_json_and_refuses_other_values() -> None:
    adapter = TypeAdapter(Calibration)
    for calibration in (Calibration("platt", 1.25, -0.5), Calibration("temperature", 0.1)):
        assert adapter.validate_json(adapter.dump_json(calibration)) == calibration
    for wrong in ({"kind": "isotonic", "a": 1.0}, {"kind": "platt", "a": -1.0}, {"kind": "platt", "a": "x"}):
        with pytest.raises(ValueError, match="validation error"):
            adapter.validate_python(wrong)
