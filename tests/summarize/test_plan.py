"""Appended events move no block boundary; a plan reads every text once, in time order."""

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
    TokenSegmentation,
    plan_calls,
    plan_hierarchical,
    plan_recurrent,
    segment,
)
from trsr.types import Block

N_BLOCKS = st.integers(1, 60)
FAN_IN = st.integers(2, 8)
LENGTHS = st.lists(st.integers(0, 40), max_size=60)  # of items, in tokens
Config = CountSegmentation | TokenSegmentation
CONFIGS = st.one_of(
    st.builds(CountSegmentation, block_size=st.integers(1, 8)),
    st.builds(TokenSegmentation, max_block_tokens=st.integers(1, 60), max_block_size=st.integers(1, 8)),
)


def history(lengths: list[int]) -> list[str]:
    """Return items whose id is their place and their number of tokens, such as `3:17`."""
    return [f"{place}:{length}" for place, length in enumerate(lengths)]


def n_tokens(item_id: str) -> int:
    return int(item_id.partition(":")[2])


def cut(lengths: list[int], config: Config) -> list[Block]:
    return segment(history(lengths), config, n_tokens)


@given(LENGTHS, st.lists(st.integers(0, 40), max_size=20), CONFIGS)
def test_blocks_joined_are_the_history_and_appended_events_move_no_boundary(
    lengths: list[int], more: list[int], config: Config
) -> None:
    before, after = cut(lengths, config), cut(lengths + more, config)
    ids = history(lengths)
    assert [item for block in before for item in block.item_ids] == ids
    assert [block.index for block in before] == list(range(len(before)))
    assert all(ids[block.start] == block.item_ids[0] for block in before)
    assert all(block.complete for block in before[:-1])
    complete = [block for block in before if block.complete]
    assert after[: len(complete)] == complete
    assert [block.start for block in after[: len(before)]] == [block.start for block in before]


@given(LENGTHS, st.integers(1, 60), st.integers(1, 8))
def test_a_block_keeps_its_token_budget_and_is_as_full_as_it_can_be(
    lengths: list[int], budget: int, size: int
) -> None:
    blocks = cut(lengths, TokenSegmentation(max_block_tokens=budget, max_block_size=size))
    sums = [sum(map(n_tokens, block.item_ids)) for block in blocks]
    for block, total in zip(blocks, sums, strict=True):
        assert len(block.item_ids) <= size
        assert total <= budget or len(block.item_ids) == 1
    for block, total, following in zip(blocks, sums, blocks[1:], strict=False):
        assert len(block.item_ids) == size or total + n_tokens(following.item_ids[0]) > budget


@pytest.mark.parametrize(
    ("lengths", "config", "blocks"),
    [
        ([1] * 5, CountSegmentation(block_size=2), [(2, True), (2, True), (1, False)]),
        ([1] * 2, CountSegmentation(block_size=2), [(2, True)]),
        (
            [5, 5],
            TokenSegmentation(max_block_tokens=10),
            [(2, False)],
        ),  # a further item of no token might fit
        ([5, 5, 1], TokenSegmentation(max_block_tokens=10), [(2, True), (1, False)]),
        ([3, 99, 3, 3], TokenSegmentation(max_block_tokens=10), [(1, True), (1, True), (2, False)]),
        ([], CountSegmentation(), []),
        ([], TokenSegmentation(), []),
    ],
)
def test_blocks_are_filled_from_the_oldest(
    lengths: list[int], config: Config, blocks: list[tuple[int, bool]]
) -> None:
    assert [(len(block.item_ids), block.complete) for block in cut(lengths, config)] == blocks


def test_segmentation_by_tokens_needs_a_count() -> None:
    with pytest.raises(ValueError, match="needs n_tokens"):
        segment(["a"], TokenSegmentation())


def blocks(n: int, block_size: int = 2) -> list[Block]:
    return segment(item_ids(0, n * block_size), CountSegmentation(block_size=block_size))


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
    # The paper's single merge is the case where all blocks fit.
    assert plan_hierarchical(blocks(4), 5)[4:] == [Call("merge", (0, 1, 2, 3), item_ids(0, 8))]


@pytest.mark.parametrize(
    ("method", "n_calls"), [("recurrent", 1), ("hierarchical", 1), ("none", 0), ("counted", 0)]
)
def test_a_lone_block_needs_one_call_by_a_model_and_none_without(method: str, n_calls: int) -> None:
    config = SummaryConfig.model_validate({"method": method})
    assert plan_calls(blocks(1), config) == [Call("first", (), ("i0", "i1"))][:n_calls]
    assert plan_calls([], config) == []


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


def test_the_configuration_makes_the_parameters_of_every_call() -> None:
    params = SummaryConfig(max_new_tokens=7, temperature=0.5, frequency_penalty=0.25).params
    assert (params.max_new_tokens, params.temperature, params.frequency_penalty) == (7, 0.5, 0.25)
    assert params.stop == ("\n",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fan_in": 1},
        {"max_new_tokens": 0},
        {"method": "magic"},
        {"blocks": 3},
        {"segmentation": {"kind": "count", "block_size": 0}},
        {"segmentation": {"kind": "tokens", "max_block_tokens": 0}},
    ],
)
def test_a_wrong_setting_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SummaryConfig.model_validate(wrong)
