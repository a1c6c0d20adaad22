"""Plan the LLM calls that turn a user's blocks into a profile.

A plan is a list of calls in an order in which each reads only texts of earlier ones; the last call's text is
the profile. Plans say nothing about users, engines or stores: `executor` executes the plans of many users in
rounds of independent calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from trsr.llm.base import GenerationParams
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
    """Tokens of item text in a block, as `n_tokens` counts them; runs count words."""
    max_block_size: int = Field(default=20, ge=1)
    """Maximum number of items in a block: many tiny items still become several blocks."""


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


Method = Literal["none", "counted", "hierarchical", "recurrent"]


class SummaryConfig(BaseModel):
    """How profiles are made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "recurrent"
    """`none`, `counted` (no model call), `hierarchical` or `recurrent`."""
    segmentation: Segmentation = CountSegmentation()
    """How a history is cut into blocks."""
    template: str = "auto"
    """A built-in one (`news`, `products`, `movies`, `generic`, `paper`), a file, or `auto`: by domain."""
    fields: tuple[str, ...] | None = None
    """The text fields the summarizer reads, in order; None for all of the data set."""
    max_field_tokens: int = Field(default=24, ge=1)
    """Tokens kept of each field of an item."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Maximum number of tokens of a summary."""
    temperature: float = Field(default=0.0, ge=0)
    """0 for greedy decoding."""
    frequency_penalty: float = Field(default=0.5, ge=0, le=2)
    """Keeps small models from repeating themselves."""
    grounded: bool = False
    """Constrain summaries to phrases of the items they are made from. An update or a merge has phrases of
    everything it reads, the newest first. The model chooses the phrases and their order."""
    n_phrases: int = Field(default=12, ge=3)
    """Phrases of a grounded profile, a third of them from its newest block. A first summary has that third,
    and a merge takes an equal share from each summary it reads. `max_new_tokens` must have room for them."""
    counts: bool = False
    """Append the counts of `counted` to a written profile."""
    fan_in: int = Field(default=6, ge=2)
    """Summaries read by one merge (hierarchical)."""

    @property
    def needs_calls(self) -> bool:
        """Whether a language model writes the profiles."""
        return self.method in {"hierarchical", "recurrent"}

    @property
    def params(self) -> GenerationParams:
        """The generation parameters of every call, for a template without a section `stop`."""
        return GenerationParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            frequency_penalty=self.frequency_penalty,
            stop=("\n",),
        )


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a plan.

    Attributes:
        kind: `first` reads a block; `update` a summary and a block; `merge` several summaries in time order.
        inputs: Places in the plan of the calls whose texts it reads.
        item_ids: The items of its block; for a merge, of all blocks below it.
    """

    kind: Literal["first", "update", "merge"]
    inputs: tuple[int, ...]
    item_ids: tuple[str, ...]


def plan_recurrent(blocks: Sequence[Block]) -> list[Call]:
    """Plan a chain: the first block by itself, then (summary so far + next block) for each further one.

    Call k depends on blocks 0..k only, so an appended block costs one call.
    """
    chain: list[Call] = []
    for block in blocks:
        before = (len(chain) - 1,) if chain else ()
        chain.append(Call("update" if chain else "first", before, block.item_ids))
    return chain


def plan_hierarchical(blocks: Sequence[Block], fan_in: int) -> list[Call]:
    """Plan a tree: each block by itself, then merges of up to `fan_in` neighbours until one text is left.

    Groups are counted from the oldest, so an appended block re-merges one path: 1 + O(log n) calls. The
    paper's single merge is the case of at most `fan_in` blocks; a lone block needs no merge.
    """
    calls = [Call("first", (), block.item_ids) for block in blocks]
    level = list(range(len(calls)))
    while len(level) > 1:
        groups = [tuple(level[i : i + fan_in]) for i in range(0, len(level), fan_in)]
        level = []
        for group in groups:
            level.append(group[0] if len(group) == 1 else _merge(calls, group))
    return calls


def _merge(calls: list[Call], inputs: tuple[int, ...]) -> int:
    """Append a merge of these calls; return its place."""
    calls.append(Call("merge", inputs, tuple(item for i in inputs for item in calls[i].item_ids)))
    return len(calls) - 1


def plan_calls(blocks: Sequence[Block], config: SummaryConfig) -> list[Call]:
    """Plan the calls of one user by the configured method; none for `none` and `counted`."""
    match config.method:
        case "recurrent":
            return plan_recurrent(blocks)
        case "hierarchical":
            return plan_hierarchical(blocks, config.fan_in)
        case "none" | "counted":
            return []
