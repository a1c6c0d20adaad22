"""A packed sequence holds every token once, at its own position, and defines what each sees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trsr.llm.prefix_packing import Packed, Part, PrefixKV, Segment, pack

PART = Part(tuple(range(20, 37)), ((40, 41, 42), (50,), (60, 61, 62, 63, 64), (40, 41)))

tokens = st.lists(st.integers(0, 99), min_size=1, max_size=6).map(tuple)
parts = st.builds(
    Part,
    st.lists(st.integers(0, 99), max_size=8).map(tuple),
    st.lists(tokens, min_size=1, max_size=5).map(tuple),
    st.sampled_from([None, PrefixKV()]),
)
row_widths = st.sampled_from([1, 4, 128])


def seen_by(packed: Packed, segment: Segment, row: int, column: int, window: int | None) -> list[int]:
    """Return the positions that the token at a place of the rows may see, -1 for a stranger's."""
    mask = segment.mask(window)[row, column]
    prefix = torch.arange(segment.n_prefix)[mask[: segment.n_prefix]].tolist()
    own = []
    for other in torch.nonzero(mask[segment.n_prefix :])[:, 0].tolist():
        related = segment.owners[row, other] == segment.owners[row, column]
        own.append(int(packed.positions[0, segment.rows[row, other]]) if related else -1)
    return [*prefix, *own]


@given(st.lists(parts, min_size=1, max_size=3), row_widths)
def test_every_token_that_is_not_known_stands_once_and_in_order(few: list[Part], width: int) -> None:
    packed = pack(few, width)
    flat: list[int] = []
    for part in few:
        flat += [] if part.known is not None else part.prefix
        flat += [token for suffix in part.suffixes for token in suffix]
    assert packed.tokens.tolist() == [flat]
    assert len(flat) == sum(part.n_tokens for part in few)
    last = [suffix[-1] for part in few for suffix in part.suffixes]
    assert packed.tokens[0, packed.answers].tolist() == last
    assert packed.counts == tuple(len(part.suffixes) for part in few)


@given(st.lists(parts, min_size=1, max_size=3), row_widths, st.sampled_from([None, 1, 3, 50]))
def test_a_suffix_token_sees_its_own_sequence_so_far_and_nothing_else(
    few: list[Part], width: int, window: int | None
) -> None:
    packed = pack(few, width)
    for part, segment in zip(few, packed.layout.segments, strict=True):
        flat = segment.owners.flatten()[segment.order]
        expected = [number for number, suffix in enumerate(part.suffixes) for _ in suffix]
        assert flat.tolist() == expected
        for row, column in torch.nonzero(segment.owners >= 0).tolist():
            position = int(packed.positions[0, segment.rows[row, column]])
            first = 0 if window is None else max(0, position - window + 1)
            assert seen_by(packed, segment, row, column, window) == list(range(first, position + 1))


@given(st.lists(parts, min_size=1, max_size=3), row_widths)
def test_filling_sees_something_so_that_its_softmax_is_finite(few: list[Part], width: int) -> None:
    for segment in pack(few, width).layout.segments:
        assert segment.mask(None).any(dim=2).all()


@given(st.lists(tokens, min_size=1, max_size=12).map(tuple))
def test_rows_are_no_wider_than_row_tokens_unless_a_suffix_is(suffixes: tuple[tuple[int, ...], ...]) -> None:
    (segment,) = pack([Part((1, 2), suffixes)], 8).layout.segments
    assert segment.rows.shape[1] <= max(8, *map(len, suffixes))
    filled = int((segment.owners >= 0).sum())
    assert filled == sum(map(len, suffixes))


def test_a_suffix_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no answer position"):
        pack([Part((1, 2), ((3,), ()))])


def test_a_packed_sequence_can_be_moved() -> None:
    packed = pack([PART]).to(torch.device("meta"))
    (segment,) = packed.layout.segments
    tensors = (packed.tokens, packed.positions, packed.answers, segment.rows, segment.owners, segment.order)
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_a_known_prefix_says_how_much_memory_it_holds() -> None:
    known = PrefixKV({0: (torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4, dtype=torch.bfloat16))})
    assert known.n_bytes == 40 * 4 + 40 * 2
