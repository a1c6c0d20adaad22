"""The `temporal` protocol: a global split in time, the closest to how a recommender is used."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from datetime import datetime
from typing import Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from trsr.data.dataset import Dataset
from trsr.errors import DataError
from trsr.splitting.example_specs import (
    ExampleSpec,
    Plan,
    by_seed,
    make_samplers,
    newest,
    readable_events,
    readable_items,
    text_counts,
)
from trsr.splitting.negatives import SPLITS, NegativesConfig, SplitName


class TemporalProtocol(BaseModel):
    """A global split in time: train before the first cut, validation between the two, test after the second.

    One example per user and split: the user's last event in that stretch, with all that came before it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["temporal"]
    """Always `temporal`."""
    valid_quantile: float = Field(default=0.8, gt=0, lt=1)
    """Where validation starts: the time by which this share of all events has happened."""
    test_quantile: float = Field(default=0.9, gt=0, lt=1)
    """Where the test starts."""
    min_history: int = Field(default=1, ge=0)
    """Fewest items before the target; examples with fewer are left out."""
    max_history: int | None = Field(default=None, ge=1)
    """Newest history items that are kept; None keeps all."""
    n_train: int | None = Field(default=None, ge=1)
    """Training users, chosen by seed; None for all."""
    n_valid: int | None = Field(default=None, ge=0)
    """Validation users, chosen by seed; None for all."""
    n_test: int | None = Field(default=None, ge=1)
    """Test users, chosen by seed; None for all."""
    negatives: NegativesConfig = NegativesConfig()
    """How the other candidates are drawn, from the items known by the time of the example."""

    @model_validator(mode="after")
    def _consistent(self) -> TemporalProtocol:
        if self.valid_quantile >= self.test_quantile:
            raise ValueError(
                f"valid_quantile {self.valid_quantile} must be below test_quantile {self.test_quantile}"
            )
        if self.max_history is not None and self.min_history > self.max_history:
            raise ValueError(f"min_history {self.min_history} exceeds max_history {self.max_history}")
        return self


def plan_temporal(dataset: Dataset, protocol: TemporalProtocol, seed: int) -> Plan:
    """Choose the users of each split, and their targets.

    An item is known from its first event on. Events at the very time of the target are neither history nor
    negatives. Examples from when too few other items were known to draw from are left out and counted.

    Raises:
        DataError: an event has no time, or a part would be empty or smaller than requested.
    """
    items = readable_items(dataset)
    events = readable_events(dataset, items)
    counts = text_counts(dataset, items)
    valid_from, test_from = _cuts(dataset, events, protocol)
    first_seen = events.group_by("item_id").agg(known_from=pl.col("timestamp").min()).collect()
    items = items.join(first_seen, on="item_id", how="inner").sort("known_from", "item_id")

    found, n_short, n_early = _specs(events, items, protocol, valid_from, test_from)
    requested = {"train": protocol.n_train, "valid": protocol.n_valid, "test": protocol.n_test}
    specs: dict[SplitName, list[ExampleSpec]] = {}
    for split in SPLITS:
        n = requested[split]
        if len(found[split]) < (1 if n is None and split != "valid" else n or 0):
            raise DataError(
                f"Only {len(found[split])} users have an event with enough history in the {split} stretch, "
                f"{n or 'at least 1'} are requested; lower n_{split} or min_history, or move the quantiles."
            )
        specs[split] = [found[split][user] for user in by_seed(found[split], seed)[:n]]

    popularity = None
    if protocol.negatives.kind == "popularity":
        popularity = events.filter(pl.col("timestamp") < valid_from).group_by("item_id").len("n").collect()
    return Plan(
        specs,
        protocol.negatives.by_split(),
        make_samplers(dataset, items, protocol.negatives, popularity, specs),
        counts={
            **counts,
            "users": dataset.events().select(pl.col("user_id").n_unique()).collect().item(),
            "questions_too_short": n_short,
            "questions_too_few_items_known": n_early,
            "questions_not_drawn": sum(len(found[s]) - len(specs[s]) for s in SPLITS),
        },
        description={
            "split": "time",
            "target": "each user's last item in the stretch",
            "valid_from": valid_from.isoformat(),
            "test_from": test_from.isoformat(),
        },
    )


def _cuts(dataset: Dataset, events: pl.LazyFrame, protocol: TemporalProtocol) -> tuple[datetime, datetime]:
    times = events.select("timestamp").collect()["timestamp"]
    if times.is_empty() or times.null_count():
        raise DataError(
            f"{times.null_count()} of {len(times)} events of {dataset.info.name!r} have no time, which the "
            "temporal protocol needs; use the sampled protocol."
        )
    times = times.sort()
    cuts = [times[int(q * len(times))] for q in (protocol.valid_quantile, protocol.test_quantile)]
    if not times[0] < cuts[0] < cuts[1]:
        raise DataError(
            f"The times of {dataset.info.name!r} are too alike to be cut at the quantiles "
            f"{protocol.valid_quantile} and {protocol.test_quantile}; use the sampled protocol."
        )
    return cuts[0], cuts[1]


def _specs(
    events: pl.LazyFrame,
    items: pl.DataFrame,
    protocol: TemporalProtocol,
    valid_from: datetime,
    test_from: datetime,
) -> tuple[dict[SplitName, dict[str, ExampleSpec]], int, int]:
    """Return the examples by split and user, and how many came too early.

    Too early for a user: the history is too short. Too early for the dataset: too few other items were known
    to draw the negatives from.
    """
    known = {item_id: item_id for item_id in items["item_id"].to_list()}
    known_from = items["known_from"].to_list()
    n_negatives = protocol.negatives.by_split()
    found: dict[SplitName, dict[str, ExampleSpec]] = {split: {} for split in SPLITS}
    n_short = n_early = 0
    timelines = (
        events.sort("user_id", "timestamp", "position")
        .group_by("user_id", maintain_order=True)
        .agg("item_id", "timestamp")
        .collect()
    )
    for user_id, item_ids, times in timelines.iter_rows():
        ids = [known[item_id] for item_id in item_ids]
        ends = [0, bisect_left(times, valid_from), bisect_left(times, test_from), len(times)]
        for split, first, end in zip(SPLITS, ends, ends[1:], strict=False):
            if first == end:
                continue
            last = end - 1
            now = times[last]
            n_before = bisect_left(times, now)
            if n_before < protocol.min_history:
                n_short += 1
                continue
            n_known = bisect_right(known_from, now)
            if n_known - len(set(ids[:end])) < n_negatives[split]:
                n_early += 1
                continue
            history, cut = newest(ids[:n_before], protocol.max_history)
            also_seen = (*cut, *ids[n_before:last])
            # A user can be in several splits, and each point of their history has a profile of its own.
            name = f"{user_id}/{split}"
            found[split][user_id] = ExampleSpec(
                name, user_id, history, (ids[last],), None, also_seen, now, n_known
            )
    return found, n_short, n_early
