"""Immutable values passed between stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be read, bought or watched: an id and its text fields in rendering order.

    Empty fields are left out; an item without any text has `fields == {}`.
    """

    item_id: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class History:
    """A user's items, oldest first; `timestamps` (UTC) is as long as `item_ids`, or None."""

    user_id: str
    item_ids: tuple[str, ...]
    timestamps: tuple[datetime, ...] | None = None

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True, slots=True)
class Block:
    """A consecutive slice of a history: items `start` to `start + len(item_ids)`; `index` counts from 0.

    Only a user's last block may be incomplete.
    """

    index: int
    start: int
    item_ids: tuple[str, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class Profile:
    """A user's profile at a point of the history.

    Attributes:
        user_id: The user.
        text: The profile; empty for method `none`.
        method: `none`, `counted`, `hierarchical` or `recurrent`.
        n_items: Number of history items it covers, from the oldest.
        key: The store's key of the last call that made it; None if no call was made.
    """

    user_id: str
    text: str
    method: str
    n_items: int
    key: str | None = None


@dataclass(frozen=True, slots=True)
class RankingExample:
    """One ranking question: a history strictly before the target, candidates, and what was chosen.

    Attributes:
        example_id: Unique over all splits: the user id for one row per user (with the split appended if a
            user can be in several), the impression id for impressions.
        user_id: The user; confidence intervals resample users.
        history: Item ids, oldest first, all strictly before the target.
        candidates: Item ids in an order shuffled by the example's own seed.
        labels: 1 for a chosen candidate, 0 otherwise; as long as `candidates`.
        timestamp: The time of the question (UTC), if known.
    """

    example_id: str
    user_id: str
    history: tuple[str, ...]
    candidates: tuple[str, ...]
    labels: tuple[int, ...]
    timestamp: datetime | None = None

    def __post_init__(self) -> None:
        if len(self.candidates) != len(self.labels):
            raise ValueError(f"{len(self.candidates)} candidates but {len(self.labels)} labels")


@dataclass(frozen=True, slots=True)
class Explanation:
    """Leave-one-out attribution of a candidate's margin.

    Attributes:
        margin: The margin with the whole prompt.
        without_item: (item id, margin - margin without it) for each recent item shown, oldest first; above 0
            if the item favours the candidate.
        without_note: The same for the sentences of the user's notes.
        without_sentence: The same for the profile's sentences, in order (clauses, if it is one sentence).
    """

    margin: float
    without_item: tuple[tuple[str, float], ...]
    without_note: tuple[tuple[str, float], ...]
    without_sentence: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class RankedItem:
    """A candidate with its place in a ranking.

    Attributes:
        item_id: The item.
        rank: From 1, the best.
        margin: In logits.
        score: In [0, 1].
        index: Its position among the given candidates, from 0.
        title: The item's title; empty if the ranker does not know its text.
        explanation: Why it has this margin, if requested.
    """

    item_id: str
    rank: int
    margin: float
    score: float
    index: int = 0
    title: str = ""
    explanation: Explanation | None = None
