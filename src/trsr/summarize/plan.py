"""What has to be asked of the model to fold one user's blocks into a profile.

A plan is a list of calls in an order in which each reads only texts of earlier ones; the last call's text is
the profile. Plans say nothing about users, engines or stores: `run` executes the plans of many users in
rounds of independent calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from trsr.llm.base import GenerationParams
from trsr.segment import CountSegmentation, Segmentation
from trsr.types import Block

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
    """The text fields the summariser reads, in order; None for all of the data set."""
    max_field_tokens: int = Field(default=24, ge=1)
    """Tokens kept of each field of an item."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Tokens of a summary at most."""
    temperature: float = Field(default=0.0, ge=0)
    """0 for greedy decoding."""
    frequency_penalty: float = Field(default=0.5, ge=0, le=2)
    """Keeps small models from repeating themselves."""
    grounded: bool = False
    """Hold summaries to phrases of the items they are made of: none is invented, and an update or a merge
    speaks of all it has read, the newest first. The model chooses which phrases, and their order."""
    n_phrases: int = Field(default=12, ge=3)
    """Phrases of a grounded profile, a third of them of its newest block; a first summary has that third, and
    a merge takes its share from each summary it reads. See that `max_new_tokens` has room for them."""
    counts: bool = False
    """Put the counts of `counted` behind a written profile: how often costs nothing to know exactly."""
    fan_in: int = Field(default=6, ge=2)
    """Summaries read by one merge (hierarchical)."""

    @property
    def needs_calls(self) -> bool:
        """Whether a language model writes the profiles."""
        return self.method in {"hierarchical", "recurrent"}

    @property
    def params(self) -> GenerationParams:
        """The generation parameters of every call, for a template that does not say what ends a summary."""
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
