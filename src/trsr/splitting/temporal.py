"""The `temporal` protocol: a global split in time, the closest to how a recommender is used."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from datetime import datetime

import polars as pl

from trsr.data.dataset import Dataset
from trsr.errors import DataError
from trsr.splitting.protocols import TemporalProtocol
from trsr.splitting.questions import (
    SPLITS,
    Plan,
    Question,
    Split,
    by_seed,
    make_samplers,
    negatives_by_split,
    newest,
    readable_events,
    readable_items,
    text_counts,
)


def plan_temporal(dataset: Dataset, protocol: TemporalProtocol, seed: int) -> Plan:
    """Make the questions of the `temporal` protocol.

    An item is known from its first event on. Events at the very time of the target are neither history nor
    negatives. Questions from when too few other items were known to draw from are left out and counted.

    Raises:
        DataError: an event has no time, or a part would be empty or smaller than asked for.
    """
    items = readable_items(dataset)
    events = readable_events(dataset, items)
    valid_from, test_from = _cuts(dataset, events, protocol)
    first_seen = events.group_by("item_id").agg(known_from=pl.col("timestamp").min()).collect()
    counts = text_counts(dataset, items)
    items = items.join(first_seen, on="item_id", how="inner").sort("known_from", "item_id")

    found, n_short, n_early = _questions(events, items, protocol, valid_from, test_from)
    asked = {"train": protocol.n_train, "valid": protocol.n_valid, "test": protocol.n_test}
    questions: dict[Split, list[Question]] = {}
    for split in SPLITS:
        n = asked[split]
        if len(found[split]) < (1 if n is None and split != "valid" else n or 0):
            raise DataError(
                f"Only {len(found[split])} users have an event with enough history in the {split} stretch, "
                f"{n or 'at least 1'} are asked; lower n_{split} or min_history, or move the quantiles."
            )
        questions[split] = [found[split][user] for user in by_seed(found[split], seed)[:n]]

    popularity = None
    if protocol.negatives.kind == "popularity":
        popularity = events.filter(pl.col("timestamp") < valid_from).group_by("item_id").len("n").collect()
    return Plan(
        questions,
        make_samplers(dataset, items, protocol.negatives, popularity, questions),
        negatives_by_split(protocol.negatives),
        counts={
            **counts,
            "users": dataset.events().select(pl.col("user_id").n_unique()).collect().item(),
            "questions_too_short": n_short,
            "questions_too_few_items_known": n_early,
            "questions_not_drawn": sum(len(found[s]) - len(questions[s]) for s in SPLITS),
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


def _questions(
    events: pl.LazyFrame,
    items: pl.DataFrame,
    protocol: TemporalProtocol,
    valid_from: datetime,
    test_from: datetime,
) -> tuple[dict[Split, dict[str, Question]], int, int]:
    """Return the questions by split and user, and how many came too early.

    Too early for a user: the history is too short. Too early for the dataset: too few other items were known
    to draw the negatives from.
    """
    known = {item_id: item_id for item_id in items["item_id"].to_list()}
    known_from = items["known_from"].to_list()
    ends: dict[Split, datetime | None] = {"train": valid_from, "valid": test_from, "test": None}
    starts: dict[Split, datetime | None] = {"train": None, "valid": valid_from, "test": test_from}
    n_negatives = negatives_by_split(protocol.negatives)
    found: dict[Split, dict[str, Question]] = {split: {} for split in SPLITS}
    n_short = n_early = 0
    for user_id, raw_ids, times in _timelines(events):
        ids = [known[item_id] for item_id in raw_ids]
        for split in SPLITS:
            end, start = ends[split], starts[split]
            last = (len(times) if end is None else bisect_left(times, end)) - 1
            if last < 0 or (start is not None and times[last] < start):
                continue
            now = times[last]
            n_before = bisect_left(times, now)
            if n_before < protocol.min_history:
                n_short += 1
                continue
            n_known = bisect_right(known_from, now)
            if n_known - len(set(ids[: last + 1])) < n_negatives[split]:
                n_early += 1
                continue
            history, cut = newest(ids[:n_before], protocol.max_history)
            also_met = (*cut, *ids[n_before:last])
            # A user can be asked in several splits, and each point of their history has a profile of its own.
            name = f"{user_id}/{split}"
            found[split][user_id] = Question(
                name, user_id, history, (ids[last],), None, also_met, now, n_known
            )
    return found, n_short, n_early


def _timelines(events: pl.LazyFrame) -> Iterator[tuple[str, list[str], list[datetime]]]:
    """Yield each user's items and times, oldest first."""
    rows = (
        events.sort("user_id", "timestamp", "position")
        .group_by("user_id", maintain_order=True)
        .agg("item_id", "timestamp")
        .collect()
    )
    yield from rows.iter_rows()
