"""Fusion: it finds the weights that simulated choices hide, and beats each feature alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from trsr.baselines.fusion import fit_fusion
from trsr.errors import DataError

Floats = npt.NDArray[np.float64]
WEIGHTS = np.asarray([1.2, 0.6, 0.0])
SCALES = np.asarray([1.0, 10.0, 0.1])
NAMES = ("llm", "popularity", "noise")


def choices(n: int, seed: int = 0) -> tuple[list[Floats], list[Floats], list[str]]:
    """Draw candidates, and one choice each by a softmax of the weighted features."""
    rng = np.random.default_rng(seed)
    features, labels = [], []
    for _ in range(n):
        x = rng.normal(size=(21, 3))
        p = np.exp(x @ WEIGHTS)
        features.append(x * SCALES + 5)  # what all candidates share must not matter
        labels.append(np.eye(21)[rng.choice(21, p=p / p.sum())])
    return features, labels, [f"u{i}" for i in range(n)]


def mean_rank(margins: list[Floats], labels: list[Floats]) -> float:
    return float(np.mean([(m > m[y == 1]).sum() for m, y in zip(margins, labels, strict=True)]))


@pytest.mark.slow
def test_the_weights_of_simulated_choices_are_found_and_beat_each_feature_alone() -> None:
    fusion = fit_fusion(*choices(400), NAMES)
    np.testing.assert_allclose([*fusion.weights.values()], WEIGHTS, atol=0.15)
    np.testing.assert_allclose([*fusion.scales.values()], SCALES, rtol=0.05)
    features, labels, _ = choices(400, seed=1)
    joined = mean_rank([fusion.margins(x) for x in features], labels)
    for column in range(3):
        assert joined < mean_rank([x[:, column] for x in features], labels) - 0.2
    content = fusion.to_json()
    assert content["weights"].keys() == content["scales"].keys() == set(NAMES)
    assert content["strength"] in map(float, content["cross_validated_log_loss"])


def test_few_users_of_pure_noise_are_penalised_most() -> None:
    features, labels, users = choices(12)
    fusion = fit_fusion([x[:, 2:] for x in features], labels, users, ["noise"])
    assert fusion.strength >= 0.1
    assert abs(fusion.weights["noise"]) < 0.3


def test_a_feature_that_never_varies_gets_no_weight() -> None:
    features, labels, users = choices(30)
    flat = [np.column_stack([x[:, 0], np.full(21, 3.0)]) for x in features]
    assert fit_fusion(flat, labels, users, ["llm", "flat"]).weights["flat"] == pytest.approx(0, abs=1e-9)


def test_examples_without_a_choice_are_skipped_and_none_left_is_refused() -> None:
    features, labels, users = choices(20)
    more = fit_fusion([*features, features[0]], [*labels, labels[0] * 0], [*users, "x"], NAMES)
    assert more == fit_fusion(features, labels, users, NAMES)
    with pytest.raises(DataError, match="Found 1 validation users"):
        fit_fusion(features[:1], labels[:1], users[:1], NAMES)
