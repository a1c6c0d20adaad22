"""Losses against their formulas; their gradients through a model are tested with the objective."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trsr.train.losses import JOINT_WEIGHT, answer_loss, joint_loss, listwise_loss

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
numbers = st.lists(st.tuples(st.floats(-30, 30, width=32), st.integers(0, 1)), min_size=1, max_size=8).filter(
    lambda rows: any(label for _, label in rows)
)


def split(rows: list[tuple[float, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([margin for margin, _ in rows]), torch.tensor([label for _, label in rows])


@given(numbers)
def test_the_answer_loss_is_the_cross_entropy_over_yes_and_no(rows: list[tuple[float, int]]) -> None:
    expected = sum(math.log1p(math.exp(-margin if label else margin)) for margin, label in rows) / len(rows)
    assert float(answer_loss(*split(rows))) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(numbers)
def test_the_listwise_loss_sets_each_chosen_against_all_that_were_not(rows: list[tuple[float, int]]) -> None:
    others = sum(math.exp(margin) for margin, label in rows if not label)
    chosen = [math.exp(margin) for margin, label in rows if label]
    expected = -sum(math.log(one / (one + others)) for one in chosen) / len(chosen)
    assert float(listwise_loss(*split(rows))) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_chosen_candidate_is_not_pushed_below_another_that_was_chosen() -> None:
    margins = torch.tensor([4.0, -1.0, 0.0], requires_grad=True)
    listwise_loss(margins, torch.tensor([1, 1, 0])).backward()
    assert margins.grad is not None
    assert (margins.grad[:2] < 0).all()  # both rise, the weaker one more
    assert margins.grad[1] < margins.grad[0]


@given(numbers)
def test_the_joint_loss_is_their_weighted_sum(rows: list[tuple[float, int]]) -> None:
    margins, labels = split(rows)
    expected = listwise_loss(margins, labels) + JOINT_WEIGHT * answer_loss(margins, labels)
    assert float(joint_loss(margins, labels)) == pytest.approx(float(expected))


def test_losses_have_their_known_values_at_equal_margins() -> None:
    margins, labels = torch.zeros(5), torch.tensor([1, 0, 0, 0, 0])
    assert float(answer_loss(margins, labels)) == pytest.approx(math.log(2))
    assert float(listwise_loss(margins, labels)) == pytest.approx(math.log(5))


@given(numbers, st.floats(-5, 5))
def test_only_the_listwise_loss_ignores_a_shift(rows: list[tuple[float, int]], shift: float) -> None:
    margins, labels = split(rows)
    assert float(listwise_loss(margins + shift, labels)) == pytest.approx(
        float(listwise_loss(margins, labels)), abs=1e-4
    )


def test_large_margins_stay_finite() -> None:
    margins, labels = torch.tensor([300.0, -300.0]), torch.tensor([0, 1])
    for loss in (answer_loss, listwise_loss, joint_loss):
        assert float(loss(margins, labels)) < 1000
