"""Combine several rankers: a conditional logit over their margins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trsr.errors import DataError
from trsr.seeding import derive_rng

Floats = npt.NDArray[np.float64]

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""L2 penalties that are tried, from weak to strong."""
N_FOLDS = 10
_STEPS = 50


@dataclass(frozen=True, slots=True)
class Fusion:
    """margin = sum over features of weight * value / scale.

    Attributes:
        weights: By how much a standard deviation of each feature moves the margin.
        scales: The standard deviation of each feature over the candidates it was fitted on.
        strength: The L2 penalty.
        log_loss: Cross-validated conditional log loss of each penalty tried, in nats per example.
    """

    weights: Mapping[str, float]
    scales: Mapping[str, float]
    strength: float
    log_loss: Mapping[str, float]

    def margins(self, features: npt.ArrayLike) -> Floats:
        """Return one margin per candidate: (n_candidates, n_features) -> (n_candidates,)."""
        factors = np.asarray([*self.weights.values()]) / np.asarray([*self.scales.values()])
        return np.asarray(np.asarray(features, dtype=np.float64) @ factors)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `fusion.json`."""
        return {
            "weights": dict(self.weights),
            "scales": dict(self.scales),
            "strength": self.strength,
            "cross_validated_log_loss": dict(self.log_loss),
        }


def fit_fusion(
    features: Sequence[npt.ArrayLike],
    labels: Sequence[npt.ArrayLike],
    users: Sequence[str],
    names: Sequence[str],
    *,
    seed: int = 0,
) -> Fusion:
    """Fit the weights by penalised maximum likelihood.

    Model: P(candidate) = softmax over the example's candidates of w · x (McFadden, "Conditional logit
    analysis of qualitative choice behavior", 1974); of several chosen ones, each counts its share. Minimised:
    the mean of -log P(chosen) over examples, plus strength / 2 * |w|^2, features divided by their standard
    deviation (values that are equal for all candidates of an example cancel out). The strength is the one of
    `STRENGTHS` with the smallest loss cross-validated over users in ten folds, leave-one-user-out with ten
    users or fewer; the stronger of equal ones.

    Args:
        features: For each example, shape (n_candidates, n_features), finite.
        labels: For each example, shape (n_candidates,), 1 for chosen.
        users: The user of each example.
        names: Of the features.
        seed: The run's seed, for the folds.

    Raises:
        DataError: fewer than two users have an example with a chosen and an unchosen candidate.
    """
    rows = [
        (np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), user)
        for x, y, user in zip(features, labels, users, strict=True)
        if 0 < np.asarray(y).sum() < len(np.asarray(y))
    ]
    known = sorted({user for _, _, user in rows})
    if len(known) < 2:
        raise DataError(
            f"Found {len(known)} validation users whose choice can be learned from; fusion needs two:"
            " raise n_valid of the protocol, or take fusion out of `rankers`."
        )
    deviation = np.concatenate([x for x, _, _ in rows]).std(axis=0)
    scales = np.where(deviation > 0, deviation, 1.0)
    groups = [(x / scales, y / y.sum()) for x, y, _ in rows]
    drawn = derive_rng(seed, "fusion folds").permutation(len(known)) % N_FOLDS
    folds = dict(zip(known, drawn.tolist(), strict=True))
    fold = [folds[user] for _, _, user in rows]
    losses = {strength: _held_out_loss(groups, fold, strength) for strength in STRENGTHS}
    best = min(reversed(STRENGTHS), key=lambda strength: losses[strength])
    weights = _fit(groups, best)
    return Fusion(
        dict(zip(names, weights.tolist(), strict=True)),
        dict(zip(names, scales.tolist(), strict=True)),
        best,
        {f"{strength:g}": loss for strength, loss in losses.items()},
    )


def _held_out_loss(groups: Sequence[tuple[Floats, Floats]], fold: Sequence[int], strength: float) -> float:
    total = 0.0
    for held in sorted(set(fold)):
        weights = _fit([g for g, f in zip(groups, fold, strict=True) if f != held], strength)
        total += sum(_loss(x, y, weights) for (x, y), f in zip(groups, fold, strict=True) if f == held)
    return total / len(groups)


def _loss(x: Floats, y: Floats, weights: Floats) -> float:
    utility = x @ weights
    top = utility.max()
    return float(top + np.log(np.exp(utility - top).sum()) - y @ utility)


def _fit(groups: Sequence[tuple[Floats, Floats]], strength: float) -> Floats:
    """Minimise the convex loss by Newton steps that are halved until they help."""
    size = groups[0][0].shape[1]

    def objective(weights: Floats) -> float:
        mean = sum(_loss(x, y, weights) for x, y in groups) / len(groups)
        return mean + strength / 2 * float(weights @ weights)

    weights = np.zeros(size)
    value = objective(weights)
    for _ in range(_STEPS):
        gradient, curvature = strength * weights, strength * np.eye(size)
        for x, y in groups:
            utility = x @ weights
            p = np.exp(utility - utility.max())
            p /= p.sum()
            mean = p @ x
            gradient = gradient + (mean - y @ x) / len(groups)
            curvature = curvature + ((x * p[:, np.newaxis]).T @ x - np.outer(mean, mean)) / len(groups)
        if np.abs(gradient).max() < 1e-9:
            break
        step, length = np.linalg.solve(curvature, gradient), 1.0
        while length > 1e-8 and objective(weights - length * step) > value:
            length /= 2
        if length <= 1e-8:
            break
        weights = weights - length * step
        value = objective(weights)
    return weights
