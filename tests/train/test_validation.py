"""The validation rule counts ties by expectation."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.train.dataset import CUTOFFS, recall_sum


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
def test_it_is_the_mean_over_all_orders_of_tied_candidates(rows: list[tuple[int, int]]) -> None:
    margins, labels = [m for m, _ in rows], [label for _, label in rows]
    found = recall_sum(np.asarray(margins, dtype=np.float32), labels)
    assert found == pytest.approx(by_every_order(margins, labels))


def test_a_constant_scorer_lands_on_chance() -> None:
    assert recall_sum(np.zeros(20, dtype=np.float32), [1] + [0] * 19) == pytest.approx((3 + 5 + 10) / 20)


def test_a_perfect_and_a_worst_ranking_have_the_ends_of_the_scale() -> None:
    margins = np.arange(20, 0, -1, dtype=np.float32)
    assert recall_sum(margins, [1] + [0] * 19) == 3
    assert recall_sum(margins, [0] * 19 + [1]) == 0
    assert recall_sum(margins, [0] * 4 + [1] + [0] * 15) == 2


def test_a_group_without_a_chosen_candidate_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="cannot be judged"):
        recall_sum(np.zeros(3, dtype=np.float32), [0, 0, 0])
