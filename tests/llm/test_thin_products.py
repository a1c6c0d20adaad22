"""Turning products round changes nothing but the time."""

from __future__ import annotations

import pytest
import torch
from tiny_models import random_model
from torch import nn

from trsr.llm.generation import MAX_ROWS, turn_thin_products


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(5,), (1, 5), (2, 5), (MAX_ROWS, 1, 5), (MAX_ROWS + 1, 5), (4, 3, 5), (0, 5)]
)
def test_the_output_is_that_of_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 7, bias=bias), torch.randn(shape)
    expected = layer(x)
    assert turn_thin_products(layer) == 1
    found = layer(x)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()


def test_few_rows_are_turned_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(5, 7)
    turn_thin_products(layer)
    rows: list[int] = []
    real = nn.functional.linear

    def note(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return real(x, *rest)

    monkeypatch.setattr(nn.functional, "linear", note)
    for n in (1, 2, MAX_ROWS, MAX_ROWS + 1, 400):
        layer(torch.randn(n, 5))
    assert rows == [1, MAX_ROWS + 1, 400]


def test_a_model_says_the_same_and_half_precision_is_left_alone() -> None:
    model = random_model("llama")
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.inference_mode():
        expected = model(tokens).logits
        assert turn_thin_products(model) == 2 * 7 + 1
        torch.testing.assert_close(model(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    assert turn_thin_products(random_model("llama").to(torch.bfloat16)) == 0
