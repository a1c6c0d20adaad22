"""Cuts a history into blocks, filled from the oldest item on.

Boundaries depend only on what stands before them: appending events never moves a boundary, so what was
summarised for a full block stays valid. Only the last block may be partial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from trsr.types import Block


class CountSegmentation(BaseModel):
    """Blocks of a fixed number of items, as in the paper (5)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["count"] = "count"
    block_size: int = Field(default=5, ge=1)
    """Items in a full block."""


class TokenSegmentation(BaseModel):
    """Blocks of as many items as fit a token budget; an item longer than the budget is a block of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["tokens"] = "tokens"
    max_block_tokens: int = Field(default=256, ge=1)
    """Tokens of item text in a block, as `n_tokens` counts them; runs count words (`pipeline.workbench`)."""
    max_block_size: int = Field(default=20, ge=1)
    """Items in a block at most, so that many tiny items still become several blocks."""


Segmentation = Annotated[CountSegmentation | TokenSegmentation, Field(discriminator="kind")]


def segment(
    item_ids: Sequence[str],
    config: CountSegmentation | TokenSegmentation,
    n_tokens: Callable[[str], int] | None = None,
) -> list[Block]:
    """Cut item ids, oldest first, into blocks.

    Args:
        item_ids: The history; may be empty.
        config: How to cut.
        n_tokens: Item id to the token count of its text, at least 0; needed for `tokens`.

    Returns:
        Blocks whose items joined are `item_ids`; all but the last are complete.
    """
    match config:
        case CountSegmentation(block_size=size):
            starts = list(range(0, len(item_ids), size))
            last_complete = len(item_ids) % size == 0
        case TokenSegmentation():
            if n_tokens is None:
                raise ValueError("segmentation by tokens needs n_tokens")
            starts = _token_starts(item_ids, config, n_tokens)
            # Whether a further item would have fitted is not known, so the last block stays open.
            last_complete = False
    ends = [*starts[1:], len(item_ids)]
    return [
        Block(index, start, tuple(item_ids[start:end]), complete=end < len(item_ids) or last_complete)
        for index, (start, end) in enumerate(zip(starts, ends, strict=False))
    ]


def _token_starts(
    item_ids: Sequence[str], config: TokenSegmentation, n_tokens: Callable[[str], int]
) -> list[int]:
    """Return the index of each block's first item."""
    starts: list[int] = []
    used = size = 0
    for index, item_id in enumerate(item_ids):
        tokens = n_tokens(item_id)
        full = used + tokens > config.max_block_tokens or size == config.max_block_size
        if not starts or full:
            starts.append(index)
            used = size = 0
        used += tokens
        size += 1
    return starts
