"""The values rankers exchange."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.recommend.ranker import best_first, sigmoid, without_llm
from trsr.types import RankingExample

EXAMPLE = RankingExample("e", "u", (), ("a", "b", "c"), (0, 1, 0))


def test_best_first_ranks_from_one_and_keeps_the_order_of_equal_margins() -> None:
    items = best_first(EXAMPLE.candidates, [0.0, 2.0, 1.0])
    found = [(item.item_id, item.rank, item.margin) for item in items]
    assert found == [("b", 1, 2.0), ("c", 2, 1.0), ("a", 3, 0.0)]
    assert items[0].score == pytest.approx(1 / (1 + math.exp(-2)))
    assert [item.item_id for item in best_first(EXAMPLE.candidates, [1.0, 1.0, 1.0])] == ["a", "b", "c"]


def test_without_llm_reports_no_tokens() -> None:
    answer = without_llm(EXAMPLE, [1, 2, 3])
    assert answer.margins.dtype == np.float32
    assert answer.n_prompt_tokens.tolist() == answer.n_cut_tokens.tolist() == [0, 0, 0]


@given(st.floats(-1e4, 1e4))
def test_sigmoid_is_a_probability_and_symmetric(margin: float) -> None:
    up, down = sigmoid([margin, -margin]).tolist()
    assert 0.0 <= up <= 1.0
    assert up + down == pytest.approx(1.0)
