"""Which interactions a ranker may learn from, so that nothing of validation or test leaks into it."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from trsr.data.examples import Splits
from trsr.data.tables import EVENTS, Dataset
from trsr.errors import DataError
from trsr.types import RankingExample

_COLUMNS = EVENTS.names()


def fit_events(dataset: Dataset, splits: Splits) -> pl.DataFrame:
    """Return the events that rankers may be fitted on: user_id, item_id, position, timestamp.

    - `sampled`: all events, save that validation and test users stop strictly before their target.
    - `temporal`: all events before validation begins.
    - `impressions`: logged events before validation begins (where they have times) and the clicks of training
      impressions; of validation and test users, only what their first such impression lists as history, and
      never an item they are asked about in validation or test.

    Users who are in no split count as training users. Where logged histories carry no times, as in MIND,
    those of other users may reach beyond the start of validation.

    Raises:
        DataError: the examples were made from another dataset.
    """
    match splits.description.get("protocol"):
        case "temporal":
            events = dataset.events().filter(pl.col("timestamp") < splits.valid_from)
        case "impressions":
            events = _around_impressions(dataset, splits)
        case _:
            events = _before_targets(dataset, splits)
    return events.select(_COLUMNS).sort("user_id", "position").collect()


def _before_targets(dataset: Dataset, splits: Splits) -> pl.LazyFrame:
    """Cut each held-out user's events at the last occurrence of their target."""
    held = _positives([*splits.valid, *splits.test])
    events = dataset.events()
    cuts = events.join(held, on=["user_id", "item_id"]).group_by("user_id").agg(cut=pl.col("position").max())
    found = cuts.collect()
    if len(found) != held.select(pl.col("user_id").n_unique()).collect().item():
        raise DataError(
            f"A validation or test target is not among the events of {dataset.info.name!r}; the examples "
            "were made from another dataset, make them anew."
        )
    return events.join(found.lazy(), on="user_id", how="left").filter(
        pl.col("cut").is_null() | (pl.col("position") < pl.col("cut"))
    )


def _around_impressions(dataset: Dataset, splits: Splits) -> pl.LazyFrame:
    held_out = [*splits.valid, *splits.test]
    held = _positives(held_out)
    events = dataset.events()
    if splits.valid_from is not None:
        events = events.filter(pl.col("timestamp").is_null() | (pl.col("timestamp") < splits.valid_from))
    others = events.join(held, on="user_id", how="anti").select(_COLUMNS)
    known = pl.concat([others, _first_histories(held_out)])
    clicks = _positives(splits.train).join(known, on=["user_id", "item_id"], how="anti")
    ends = known.group_by("user_id").agg(end=pl.col("position").max() + 1)
    clicks = clicks.join(ends, on="user_id", how="left").select(
        "user_id",
        "item_id",
        position=pl.col("end").fill_null(0) + pl.int_range(pl.len()).over("user_id"),
        timestamp="timestamp",
    )
    return pl.concat([known, clicks]).join(held, on=["user_id", "item_id"], how="anti")


def _first_histories(examples: Iterable[RankingExample]) -> pl.LazyFrame:
    """Return, as events, the history of each user's earliest example."""
    first: dict[str, RankingExample] = {}
    for example in examples:
        best = first.get(example.user_id)
        if best is None or _age(example) < _age(best):
            first[example.user_id] = example
    rows = [
        (user_id, item_id, position, None)
        for user_id, example in first.items()
        for position, item_id in enumerate(example.history)
    ]
    return pl.LazyFrame(rows, schema=EVENTS, orient="row")


def _age(example: RankingExample) -> tuple[float, int, str]:
    time = example.timestamp.timestamp() if example.timestamp is not None else 0.0
    return time, len(example.history), example.example_id


def _positives(examples: Iterable[RankingExample]) -> pl.LazyFrame:
    """Return user_id, item_id, timestamp of what was chosen, each pair once."""
    rows = [
        (example.user_id, item_id, example.timestamp)
        for example in examples
        for item_id, label in zip(example.candidates, example.labels, strict=True)
        if label
    ]
    schema = {name: EVENTS[name] for name in ("user_id", "item_id", "timestamp")}
    return pl.LazyFrame(rows, schema=schema, orient="row").unique(
        ["user_id", "item_id"], keep="first", maintain_order=True
    )
