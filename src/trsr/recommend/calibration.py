"""Turns margins into probabilities by a fit on validation examples, without ever changing an order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic import Field, FiniteFloat

from trsr.recommend.ranker import sigmoid
from trsr.seeding import derive_rng

Kind = Literal["temperature", "platt"]
Floats = npt.NDArray[np.float64]

MIN_POSITIVES = 10
"""Chosen candidates, and users who have any, below which nothing is fitted."""
N_FOLDS = 10
KINDS: tuple[Kind, ...] = ("temperature", "platt")


@pydantic.dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """score = sigmoid(a * margin + b), with a > 0: a higher margin is always a higher score.

    `platt` has two parameters (Platt, "Probabilistic Outputs for Support Vector Machines and Comparisons to
    Regularized Likelihood Methods", 1999; his A is -a, his B is -b); `temperature` has one, a = 1 / T with
    b = 0 (Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017). No
    calibration at all is None.
    """

    kind: Kind
    a: Annotated[FiniteFloat, Field(gt=0)]
    b: FiniteFloat = 0.0

    def apply(self, margins: npt.ArrayLike) -> Floats:
        """Return one score per margin, the same shape, never quite 0 or 1."""
        scores = sigmoid(self.a * np.asarray(margins, dtype=np.float64) + self.b)
        return np.clip(scores, np.finfo(np.float64).tiny, 1.0 - np.finfo(np.float64).epsneg)


@dataclass(frozen=True, slots=True)
class CalibrationFit:
    """The result of `fit_calibration`.

    Attributes:
        calibration: The one chosen; None leaves sigmoid(margin) as it is.
        reason: Why this one, one clause.
        log_loss: Cross-validated log loss by kind, in nats per candidate, `raw` for sigmoid(margin); empty
            where nothing could be fitted.
        n_positives: Chosen candidates it was fitted on.
        n_users: Users it was fitted on.
    """

    calibration: Calibration | None
    reason: str
    log_loss: Mapping[str, float]
    n_positives: int
    n_users: int


def fit_calibration(
    margins: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: Sequence[str] | npt.NDArray[np.str_],
    *,
    seed: int = 0,
) -> CalibrationFit:
    """Fit temperature and Platt scaling, and choose between them and the raw sigmoid.

    The log loss of each is cross-validated over users (10 folds, drawn by seed; no user is in two), and the
    smallest wins; of equal ones the one with fewer parameters (raw, temperature, Platt). The winner is fitted
    again on all users.

    Nothing is fitted with fewer than 10 chosen candidates or 10 users who have any, without a negative, when
    all margins are equal, or when higher margins do not mean more choices (a would not be above 0).

    Args:
        margins: Shape (n,), finite.
        labels: Shape (n,), 1 for chosen, 0 otherwise.
        groups: Shape (n,), the user of each row.
        seed: The run's seed, for the folds.

    Raises:
        ValueError: the shapes differ, or a margin is not finite.
    """
    x, y = np.asarray(margins, dtype=np.float64), np.asarray(labels).astype(np.float64)
    names, user = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    if not (x.shape == y.shape == user.shape and x.ndim == 1 and np.isfinite(x).all()):
        raise ValueError("expected as many finite margins as labels and groups")
    calibration: Calibration | None = None
    losses: dict[str, float] = {}
    if not (reason := _obstacle(x, y, user)):
        fitted = {kind: _fit(kind, x, y) for kind in KINDS}
        # Both, not one: where Platt finds the margins turned around, a temperature says nothing either.
        if None in fitted.values():
            reason = "higher margins do not go with more choices"
        else:
            losses = _cross_validated(x, y, user, seed)
            best = min(losses, key=lambda name: losses[name])  # the first of equal ones
            calibration = next((fitted[kind] for kind in KINDS if kind == best), None)
            winner = "the raw sigmoid" if calibration is None else best
            reason = f"{winner} has the smallest cross-validated log loss"
    return CalibrationFit(calibration, reason, losses, int(y.sum()), len(names))


def _obstacle(x: Floats, y: Floats, user: npt.NDArray[np.intp]) -> str:
    """Return why nothing can be fitted, or an empty text."""
    n_positives, n_with = int(y.sum()), len(np.unique(user[y == 1]))
    if n_positives < MIN_POSITIVES or n_with < MIN_POSITIVES:
        return f"{n_positives} chosen candidates of {n_with} users are too few ({MIN_POSITIVES} needed)"
    if n_positives == len(y):
        return "there is no candidate that was not chosen"
    return "all margins are equal" if np.ptp(x) == 0 else ""


def _cross_validated(x: Floats, y: Floats, user: npt.NDArray[np.intp], seed: int) -> dict[str, float]:
    """Return each kind's log loss on users it was not fitted on; a fold without a fit uses the sigmoid."""
    n_users = int(user.max()) + 1
    fold = (derive_rng(seed, "calibration folds").permutation(n_users) % N_FOLDS)[user]
    totals: dict[str, float] = {"raw": float(_losses(x, y).sum()), "temperature": 0.0, "platt": 0.0}
    for held in range(min(N_FOLDS, n_users)):
        inside, outside = fold != held, fold == held
        for kind in KINDS:
            found = _fit(kind, x[inside], y[inside])
            logits = x[outside] if found is None else found.a * x[outside] + found.b
            totals[kind] += float(_losses(logits, y[outside]).sum())
    return {name: total / len(y) for name, total in totals.items()}


def _losses(logits: Floats, targets: Floats) -> Floats:
    """Return -log P(target) of each row, in nats; targets may lie between 0 and 1."""
    return np.asarray(np.logaddexp(0.0, logits) - targets * logits)


def _fit(kind: Kind, x: Floats, y: Floats) -> Calibration | None:
    """Maximise the likelihood of Platt's smoothed targets; None if a would not be above 0.

    The targets are (N+ + 1) / (N+ + 2) for chosen candidates and 1 / (N- + 2) for others (Platt 1999, section
    2.2): strictly between 0 and 1, so the maximum is finite even where margins divide the labels perfectly.
    """
    n_positive = y.sum()
    targets = np.where(y == 1, (n_positive + 1) / (n_positive + 2), 1 / (len(y) - n_positive + 2))
    scale = float(np.abs(x).max())
    if scale == 0:
        return None
    columns = [x / scale, np.ones_like(x)] if kind == "platt" else [x / scale]
    a, *b = (float(weight) for weight in _newton(np.column_stack(columns), targets))
    return Calibration(kind, a / scale, *b) if a > 0 else None


def _newton(design: Floats, targets: Floats) -> Floats:
    """Minimise the logistic loss by Newton steps that are halved until they help: (n, k), (n,) -> (k,).

    After Lin, Lin and Weng, "A note on Platt's probabilistic outputs for support vector machines", 2007.
    """
    weights = np.zeros(design.shape[1])
    loss = _losses(design @ weights, targets).sum()
    for _ in range(100):
        p = sigmoid(design @ weights)
        gradient = design.T @ (p - targets)
        if np.abs(gradient).max() <= 1e-10 * len(targets):
            break
        curvature = (design * (p * (1 - p))[:, np.newaxis]).T @ design + 1e-12 * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        length = 1.0
        while length > 1e-8:
            trial = weights - length * step
            trial_loss = _losses(design @ trial, targets).sum()
            if trial_loss <= loss - 1e-4 * length * float(gradient @ step):
                break
            length /= 2
        else:
            break
        weights, loss = trial, trial_loss
    return weights
