"""Training groups, profiles by epoch, the validation rule, steps and passes of a configuration."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.errors import ConfigError
from trsr.llm.fake import FakeTokenizer
from trsr.recommend.prompt import PromptBuilder, PromptConfig, load_ranking_template
from trsr.train.config import ProfileMix, TrainConfig
from trsr.train.dataset import CUTOFFS, profile_kind, recall_sum, training_groups
from trsr.types import RankingExample

EXAMPLES = [
    RankingExample("e1", "u1", ("a", "b"), ("c", "d", "e"), (0, 1, 0)),
    RankingExample("e2", "u2", ("c",), ("a", "b"), (1, 0)),
]


def test_training_groups_have_profile_and_labels_of_their_example() -> None:
    template = load_ranking_template("products", "products")
    builder = PromptBuilder(template, PromptConfig(), FakeTokenizer(), lambda item: f"Title: {item}")
    first, second = training_groups(EXAMPLES, {"e1": "likes gardens"}, builder)
    assert (first.labels, second.labels) == ((0, 1, 0), (1, 0))
    assert first.group == builder.build(("a", "b"), "likes gardens", ("c", "d", "e")).group
    assert second.group == builder.build(("c",), "", ("a", "b")).group
    assert "likes gardens" in FakeTokenizer().decode(first.group.prefix)
    assert "Profile" not in FakeTokenizer().decode(second.group.prefix)


@pytest.mark.parametrize(("none", "counted"), [(0.0, 0.0), (0.25, 0.25), (1.0, 0.0), (0.2, 0.8)])
def test_profile_kinds_are_drawn_by_their_shares_each_epoch(none: float, counted: float) -> None:
    mix = ProfileMix(none=none, counted=counted)
    draws = [[profile_kind(mix, 0, f"e{n}", epoch) for n in range(2000)] for epoch in (0, 1)]
    for drawn in draws:
        assert abs(drawn.count("none") / 2000 - none) < 0.04
        assert abs(drawn.count("counted") / 2000 - counted) < 0.04
    assert (draws[0] != draws[1]) == (none + counted > 0 and none < 1)
    assert profile_kind(mix, 0, "e7", 1) == draws[1][7]


def test_profile_shares_above_the_whole_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.1 in all, more than 1"):
        ProfileMix(none=0.6, counted=0.5)


def by_every_order(margins: list[int], labels: list[int]) -> float:
    """Average the plain metric over all orders in which equal margins may come."""
    totals = []
    for order in permutations(range(len(margins))):
        ranking = sorted(order, key=lambda i: -margins[i])
        totals.append(sum(sum(labels[i] for i in ranking[:k]) / sum(labels) for k in CUTOFFS))
    return float(np.mean(totals))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=6).filter(
        lambda rows: any(label for _, label in rows)
    )
)
def test_recall_sum_is_the_mean_over_all_orders_of_ties(rows: list[tuple[int, int]]) -> None:
    margins, labels = [m for m, _ in rows], [label for _, label in rows]
    found = recall_sum(np.asarray(margins, dtype=np.float32), labels)
    assert found == pytest.approx(by_every_order(margins, labels))


@pytest.mark.parametrize(("chosen", "expected"), [(0, 3), (19, 0), (4, 2)])
def test_recall_sum_has_its_known_values(chosen: int, expected: float) -> None:
    labels = [int(place == chosen) for place in range(20)]
    assert recall_sum(np.arange(20, 0, -1, dtype=np.float32), labels) == expected
    assert recall_sum(np.zeros(20, dtype=np.float32), labels) == pytest.approx((3 + 5 + 10) / 20)


def test_recall_sum_without_a_chosen_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be judged"):
        recall_sum(np.zeros(3, dtype=np.float32), [0, 0, 0])


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps", "validations"),
    [(2, None, 8, 4), (2, 100, 8, 4), (2, 6, 6, 3), (2, 1, 1, 1), (1, None, 4, 2), (0, None, 0, 0)],
)
def test_steps_and_validations_are_known_before(
    epochs: int, max_steps: int | None, steps: int, validations: int
) -> None:
    config = TrainConfig(batch_size=4).model_copy(update={"epochs": epochs, "max_steps": max_steps})
    assert config.n_steps(14) == steps
    assert config.n_validations(14) == validations


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    assert TrainConfig(batch_size=8, micro_batch_size=2).passes_per_step(2) == 2
    with pytest.raises(ConfigError, match="choose a multiple of 3"):
        TrainConfig(batch_size=8).passes_per_step(3)
