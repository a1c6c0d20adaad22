"""Plans read only earlier texts, and an appended block changes one chain link or one path of the tree."""

from __future__ import annotations

import pytest
from helpers import item_ids
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trsr.summarize.plan import (
    Call,
    CountSegmentation,
    SummaryConfig,
    plan_calls,
    plan_hierarchical,
    plan_recurrent,
    segment,
)
from trsr.types import Block

N_BLOCKS = st.integers(1, 60)
FAN_IN = st.integers(2, 8)


def blocks(n: int, block_size: int = 2) -> list[Block]:
    return segment(item_ids(0, n * block_size), CountSegmentation(block_size=block_size))


def depth(n: int, fan_in: int) -> int:
    """Return the merge levels above `n` blocks, by counting."""
    levels = 0
    while n > 1:
        n = -(-n // fan_in)
        levels += 1
    return levels


def subtree(calls: list[Call], place: int) -> object:
    """Return all that a call's text depends on."""
    call = calls[place]
    return call.kind, call.item_ids, tuple(subtree(calls, i) for i in call.inputs)


def test_recurrent_is_a_chain() -> None:
    assert plan_recurrent(blocks(3)) == [
        Call("first", (), ("i0", "i1")),
        Call("update", (0,), ("i2", "i3")),
        Call("update", (1,), ("i4", "i5")),
    ]


def test_hierarchical_merges_neighbours_level_by_level() -> None:
    calls = plan_hierarchical(blocks(7, 1), 3)
    assert [call.kind for call in calls] == ["first"] * 7 + ["merge"] * 3
    assert [call.inputs for call in calls[7:]] == [(0, 1, 2), (3, 4, 5), (7, 8, 6)]


@given(st.integers(2, 20), st.integers(0, 5))
def test_the_papers_single_merge_is_the_case_where_all_fit(n: int, spare: int) -> None:
    calls = plan_hierarchical(blocks(n), n + spare)
    assert calls[n:] == [Call("merge", tuple(range(n)), item_ids(0, 2 * n))]


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_a_lone_block_needs_one_call(method: str) -> None:
    config = SummaryConfig.model_validate({"method": method})
    assert plan_calls(blocks(1), config) == [Call("first", (), ("i0", "i1"))]
    assert plan_calls([], config) == []


@pytest.mark.parametrize("method", ["none", "counted"])
def test_methods_without_a_model_plan_no_calls(method: str) -> None:
    assert plan_calls(blocks(3), SummaryConfig.model_validate({"method": method})) == []


@given(N_BLOCKS, FAN_IN)
def test_every_text_of_the_tree_is_read_once_in_time_order(n: int, fan_in: int) -> None:
    calls = plan_hierarchical(blocks(n), fan_in)
    read = [place for call in calls for place in call.inputs]
    assert sorted(read) == list(range(len(calls) - 1))
    assert calls[-1].item_ids == item_ids(0, 2 * n)
    for place, call in enumerate(calls):
        assert all(i < place for i in call.inputs)
        if call.kind == "merge":
            assert 2 <= len(call.inputs) <= fan_in
            assert call.item_ids == tuple(item for i in call.inputs for item in calls[i].item_ids)


@given(N_BLOCKS, FAN_IN)
def test_an_appended_block_changes_one_path_of_the_tree(n: int, fan_in: int) -> None:
    old = plan_hierarchical(blocks(n), fan_in)
    new = plan_hierarchical(blocks(n + 1), fan_in)
    known = {subtree(old, place) for place in range(len(old))}
    changed = [place for place in range(len(new)) if subtree(new, place) not in known]
    assert len(changed) <= 1 + depth(n + 1, fan_in)


@given(N_BLOCKS)
def test_an_appended_block_adds_one_link_to_the_chain(n: int) -> None:
    assert plan_recurrent(blocks(n + 1))[:n] == plan_recurrent(blocks(n))


def test_the_configuration_makes_the_parameters_of_every_call() -> None:
    params = SummaryConfig(max_new_tokens=7, temperature=0.5, frequency_penalty=0.25).params
    assert (params.max_new_tokens, params.temperature, params.frequency_penalty) == (7, 0.5, 0.25)
    assert "\n" in params.stop


@pytest.mark.parametrize("wrong", [{"fan_in": 1}, {"max_new_tokens": 0}, {"method": "magic"}, {"blocks": 3}])
def test_a_wrong_setting_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SummaryConfig.model_validate(wrong)
