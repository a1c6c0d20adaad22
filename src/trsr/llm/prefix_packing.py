"""Lay out users and their candidates as one sequence in which every shared prefix is read once.

    prefix A  suffix A0  suffix A1  prefix B  suffix B0 ...
    0 .. p    p ..       p ..       0 .. q    q ..          positions start again at each suffix

A suffix sees only its own prefix and itself, as in a sequence of its own. Training and ranking use this
layout; `trsr.llm.prefix_attention` computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

# Suffixes share rows of about this many tokens: long enough that prefix keys are not copied for every suffix,
# short enough that few keys are read only to be masked.
ROW_TOKENS = 128

_T = TypeVar("_T")
_Value = TypeVar("_Value", "Segment", "Packed")


@dataclass
class PrefixKV:
    """Keys and values of a prefix read before, by layer; each of shape (1, H_kv, P, D)."""

    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(x.numel() * x.element_size() for pair in self.layers.values() for x in pair)


@dataclass(frozen=True)
class Part:
    """A group's prefix and the suffixes that one pass reads.

    Attributes:
        prefix: Token ids, P of them; may be empty.
        suffixes: Token ids, each at least one.
        known: The prefix's keys and values from an earlier pass; its tokens are then not read again.
        keep: Receives the prefix's keys and values for later passes.
    """

    prefix: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]
    known: PrefixKV | None = None
    keep: PrefixKV | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens read."""
        return (0 if self.known else len(self.prefix)) + sum(map(len, self.suffixes))


@dataclass(frozen=True)
class Segment:
    """The location of a part in a packed sequence, for attention.

    Attributes:
        start: The part's first place in the sequence.
        n_prefix: P, tokens of the prefix, read or known.
        rows: Shape (R, W), places of the suffix tokens, whole suffixes next to each other; padded with the
            row's last place.
        steps: Shape (R, W), each token's number within its suffix.
        owners: Shape (R, W), each token's suffix; -1 for padding.
        order: Shape (n_suffix_tokens,), each suffix token's place in the flattened `rows`.
        known: As in `Part`.
        keep: As in `Part`.
    """

    start: int
    n_prefix: int
    rows: torch.Tensor
    steps: torch.Tensor
    owners: torch.Tensor
    order: torch.Tensor
    known: PrefixKV | None
    keep: PrefixKV | None

    @property
    def n_read(self) -> int:
        """Tokens of the prefix in the sequence."""
        return 0 if self.known else self.n_prefix

    def mask(self, window: int | None) -> torch.Tensor:
        """Return which of the prefix and their row suffix tokens see, bool, shape (R, W, P + W).

        Args:
            window: A token sees the last `window` positions, including its own; None for all.
        """
        steps, owners = self.steps, self.owners
        distance = steps[:, :, None] - steps[:, None, :]
        own = (owners[:, :, None] == owners[:, None, :]) & (distance >= 0)
        prefix = steps.new_ones((*steps.shape, self.n_prefix), dtype=torch.bool)
        if window is not None:
            own = own & (distance < window)
            from_start = self.n_prefix + steps
            prefix = from_start[:, :, None] - torch.arange(self.n_prefix, device=steps.device) < window
        return torch.cat([prefix, own], dim=2)


def near_mask(n: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Return which of n positions see which, bool, shape (n, n); None if they see all before them.

    `window` as for `Segment.mask`.
    """
    if window is None or window >= n:
        return None
    step = torch.arange(n, device=device)
    distance = step[:, None] - step[None, :]
    return (distance >= 0) & (distance < window)


@dataclass(frozen=True)
class Layout:
    """The location of all parts of a packed sequence, and a cache of what attention derives from it."""

    segments: tuple[Segment, ...]
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def remembered(self, name: Hashable, make: Callable[[], _T]) -> _T:
        """Return `make()`, computed once per name: layers need the same masks."""
        if name not in self._derived:
            self._derived[name] = make()
        found: _T = self._derived[name]
        return found


@dataclass(frozen=True)
class Packed:
    """Some parts as one sequence of T tokens.

    Attributes:
        tokens: Shape (1, T), token ids.
        positions: Shape (1, T), within each candidate's own sequence.
        answers: Shape (n_suffixes,), the place of each suffix's last token, which predicts the answer.
        layout: The location of the parts.
        counts: Number of suffixes of each part.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    answers: torch.Tensor
    layout: Layout
    counts: tuple[int, ...]

    def to(self, device: torch.device) -> Packed:
        """Return the same on another device."""
        segments = tuple(_moved(segment, device) for segment in self.layout.segments)
        return replace(_moved(self, device), layout=Layout(segments))


def _moved(value: _Value, device: torch.device) -> _Value:
    tensors: dict[str, Any] = {
        name: x.to(device) for name, x in vars(value).items() if isinstance(x, torch.Tensor)
    }
    return replace(value, **tensors)


def pack(parts: Sequence[Part], row_tokens: int = ROW_TOKENS) -> Packed:
    """Lay out parts as one sequence.

    Raises:
        ValueError: a suffix is empty.
    """
    tokens: list[int] = []
    positions: list[torch.Tensor] = []
    answers: list[int] = []
    segments = []
    for part in parts:
        if not all(part.suffixes):
            raise ValueError("a suffix without tokens has no answer position")
        segment = _segment(part, len(tokens), row_tokens)
        segments.append(segment)
        if part.known is None:
            tokens += part.prefix
            positions.append(torch.arange(len(part.prefix)))
        for suffix in part.suffixes:
            tokens += suffix
            positions.append(len(part.prefix) + torch.arange(len(suffix)))
            answers.append(len(tokens) - 1)
    return Packed(
        torch.tensor(tokens)[None],
        torch.cat(positions)[None],
        torch.tensor(answers),
        Layout(tuple(segments)),
        tuple(len(part.suffixes) for part in parts),
    )


def _segment(part: Part, start: int, row_tokens: int) -> Segment:
    """Lay out a part's suffixes in rows; no suffix is split between rows."""
    lengths = [len(suffix) for suffix in part.suffixes]
    width = max([*lengths, min(row_tokens, sum(lengths))])
    rows: list[list[int]] = []  # of suffix numbers, in order
    free = 0
    for number, length in enumerate(lengths):
        if length > free:
            rows.append([])
            free = width
        rows[-1].append(number)
        free -= length
    width = max(sum(lengths[number] for number in row) for row in rows)
    places = torch.zeros(len(rows), width, dtype=torch.long)
    steps = torch.zeros_like(places)
    owners = torch.full_like(places, -1)
    place = start + (0 if part.known else len(part.prefix))
    order = []
    for r, row in enumerate(rows):
        column = 0
        for number in row:
            here = slice(column, column + lengths[number])
            places[r, here] = torch.arange(place, place + lengths[number])
            steps[r, here] = torch.arange(lengths[number])
            owners[r, here] = number
            order.append(r * width + torch.arange(here.start, here.stop))
            place += lengths[number]
            column = here.stop
        places[r, column:] = place - 1
    return Segment(start, len(part.prefix), places, steps, owners, torch.cat(order), part.known, part.keep)
