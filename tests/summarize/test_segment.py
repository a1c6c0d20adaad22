"""Blocks are filled from the oldest item, and appending events never moves a boundary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trsr.summarize.plan import CountSegmentation, TokenSegmentation, segment
from trsr.types import Block

# An item's id is its place and its number of tokens: "3:17".
LENGTHS = st.lists(st.integers(0, 40), max_size=60)
CONFIGS = st.one_of(
    st.builds(CountSegmentation, block_size=st.integers(1, 8)),
    st.builds(TokenSegmentation, max_block_tokens=st.integers(1, 60), max_block_size=st.integers(1, 8)),
)


def history(lengths: list[int]) -> list[str]:
    return [f"{place}:{length}" for place, length in enumerate(lengths)]


def n_tokens(item_id: str) -> int:
    return int(item_id.partition(":")[2])


def cut(lengths: list[int], config: CountSegmentation | TokenSegmentation) -> list[Block]:
    return segment(history(lengths), config, n_tokens)


@given(LENGTHS, CONFIGS)
def test_blocks_joined_are_the_history(
    lengths: list[int], config: CountSegmentation | TokenSegmentation
) -> None:
    blocks = cut(lengths, config)
    assert [item for block in blocks for item in block.item_ids] == history(lengths)
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert all(history(lengths)[block.start] == block.item_ids[0] for block in blocks)


@given(LENGTHS, CONFIGS)
def test_only_the_last_block_may_be_incomplete(
    lengths: list[int], config: CountSegmentation | TokenSegmentation
) -> None:
    assert all(block.complete for block in cut(lengths, config)[:-1])


@given(LENGTHS, st.lists(st.integers(0, 40), max_size=20), CONFIGS)
def test_appending_events_never_moves_a_boundary(
    lengths: list[int], more: list[int], config: CountSegmentation | TokenSegmentation
) -> None:
    before, after = cut(lengths, config), cut(lengths + more, config)
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


def test_blocks_by_count_are_filled_from_the_oldest() -> None:
    assert segment("abcde", CountSegmentation(block_size=2)) == [
        Block(0, 0, ("a", "b"), complete=True),
        Block(1, 2, ("c", "d"), complete=True),
        Block(2, 4, ("e",), complete=False),
    ]
    assert segment("ab", CountSegmentation(block_size=2))[-1].complete


def test_a_block_by_tokens_stays_open_while_a_further_item_might_fit() -> None:
    config = TokenSegmentation(max_block_tokens=10)
    assert [block.complete for block in cut([5, 5], config)] == [False]
    assert [block.complete for block in cut([5, 5, 1], config)] == [True, False]


def test_an_item_longer_than_the_budget_is_a_block_of_its_own() -> None:
    blocks = cut([3, 99, 3, 3], TokenSegmentation(max_block_tokens=10))
    assert [len(block.item_ids) for block in blocks] == [1, 1, 2]


@pytest.mark.parametrize("config", [CountSegmentation(), TokenSegmentation()])
def test_an_empty_history_has_no_blocks(config: CountSegmentation | TokenSegmentation) -> None:
    assert cut([], config) == []


def test_segmentation_by_tokens_needs_a_count() -> None:
    with pytest.raises(ValueError, match="needs n_tokens"):
        segment(["a"], TokenSegmentation())


def test_an_empty_block_cannot_be_asked_for() -> None:
    with pytest.raises(ValidationError):
        CountSegmentation(block_size=0)
    with pytest.raises(ValidationError):
        TokenSegmentation(max_block_tokens=0)
