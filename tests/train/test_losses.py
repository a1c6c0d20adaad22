"""Losses against their formulas, and gradients of packed groups against those of separate sequences."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.packing import pack, packed_margins
from trsr.llm.transformers import load_causal_lm
from trsr.train.losses import JOINT_WEIGHT, answer_loss, full_loss, joint_loss, listwise_loss

ANSWERS = LabelTokens(5, 9)
GROUP = ScoringGroup(tuple(range(20, 33)), ((40, 41, 42), (50,), (60, 61, 62, 63), (40, 41)))
LABELS = torch.tensor([0, 0, 1, 0])

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
def test_the_listwise_loss_is_the_softmax_share_of_the_chosen(rows: list[tuple[float, int]]) -> None:
    every = sum(math.exp(margin) for margin, _ in rows)
    chosen = sum(math.exp(margin) for margin, label in rows if label)
    assert float(listwise_loss(*split(rows))) == pytest.approx(-math.log(chosen / every), rel=1e-4, abs=1e-4)


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


@pytest.fixture(params=["mask", "shared"])
def model(tiny_model: Path, request: pytest.FixtureRequest) -> Any:
    shared = request.param == "shared"
    return load_causal_lm(str(tiny_model), dtype="float32", device="cpu", shared_prefix=shared)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(packed: dict[str, torch.Tensor], separate: dict[str, torch.Tensor]) -> None:
    assert packed.keys() == separate.keys()
    assert max(float(g.abs().max()) for g in separate.values()) > 1e-2
    for name, gradient in separate.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("loss", [answer_loss, listwise_loss, joint_loss])
def test_packed_gradients_equal_those_of_separate_sequences(model: Any, loss: Loss) -> None:
    packed_loss = loss(packed_margins(model, pack(GROUP), ANSWERS), LABELS)
    packed = gradients(model, packed_loss)
    margins = []
    for suffix in GROUP.suffixes:
        logits = model(input_ids=torch.tensor([[*GROUP.prefix, *suffix]])).logits[0, -1]
        margins.append(logits[ANSWERS.positive] - logits[ANSWERS.negative])
    separate_loss = loss(torch.stack(margins), LABELS)
    assert packed_loss.item() == pytest.approx(separate_loss.item(), abs=1e-5)
    assert_same(packed, gradients(model, separate_loss))


@pytest.mark.parametrize("n_prefix", [13, 1, 0])
def test_the_full_loss_is_that_of_plain_language_modelling(model: Any, n_prefix: int) -> None:
    group = ScoringGroup(GROUP.prefix[:n_prefix], GROUP.suffixes)
    layout = pack(group)
    logits = model(input_ids=layout.tokens, attention_mask=layout.mask, position_ids=layout.positions).logits[
        0
    ]
    packed_loss = full_loss(logits, group, LABELS, ANSWERS)
    packed = gradients(model, packed_loss)
    total, count = torch.zeros(()), 0
    for suffix, label in zip(group.suffixes, LABELS.tolist(), strict=True):
        ids = torch.tensor([[*group.prefix, *suffix, ANSWERS.positive if label else ANSWERS.negative]])
        n = ids.shape[1] - 1
        total = total + n * model(input_ids=ids, labels=ids).loss  # its mean over n predicted tokens
        count += n
    assert packed_loss.item() == pytest.approx((total / count).item(), abs=1e-5)
    assert_same(packed, gradients(model, total / count))


def test_losses_of_the_tiny_model_have_not_moved(model: Any) -> None:
    margins = packed_margins(model, pack(GROUP), ANSWERS)
    found = [loss(margins, LABELS).item() for loss in (answer_loss, listwise_loss, joint_loss)]
    assert found == pytest.approx([0.86485, 1.81700, 1.98997], abs=1e-3)
