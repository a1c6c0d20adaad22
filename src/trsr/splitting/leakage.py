"""The events that rankers may learn from, and checks that examples have seen nothing from their target on.

The checks read the position of a target from the dataset itself, not from the code that makes examples.
`experiment.leakage` checks what a run has made of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

from trsr.data.dataset import Dataset
from trsr.data.schema import EVENTS, TIME
from trsr.errors import DataError
from trsr.splitting.examples import Splits
from trsr.types import RankingExample

_COLUMNS = EVENTS.names()


def training_events(dataset: Dataset, splits: Splits) -> pl.DataFrame:
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
            "were made from another dataset, make them again."
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


_ASKED = pl.Schema(
    [
        ("number", pl.UInt32()),
        ("example_id", pl.String()),
        ("user_id", pl.String()),
        ("asked_at", TIME),
        ("history", pl.List(pl.String)),
        ("targets", pl.List(pl.String)),
    ]
)


def history_leaks(dataset: Dataset, splits: Splits) -> list[str]:
    """Describe history items that are not among the user's events strictly before the target.

    - `sampled`: before the position of the target's last occurrence, of several targets the first of these,
      and not later than the example's time.
    - `temporal`: before the example's time.
    - `impressions`: in the history that was logged with the impression.

    An item that occurs more often in a history than before its target is a leak too.
    """
    examples = [*splits.train, *splits.valid, *splits.test]
    asked = _asked(examples)
    match splits.description.get("protocol"):
        case "impressions":
            before = _logged(dataset, asked)
        case "temporal":
            events = dataset.events().join(asked.select("number", "user_id", "asked_at"), on="user_id")
            before = events.filter(pl.col("timestamp") < pl.col("asked_at"))
        case _:
            events = dataset.events().join(_places(dataset, asked), on="user_id")
            late = pl.col("timestamp") > pl.col("asked_at")  # null, and so not late, without times
            before = events.filter((pl.col("position") < pl.col("cut")) & ~late.fill_null(False))
    allowed = before.group_by("number", "item_id").agg(n_before=pl.len())
    used = asked.select("number", item_id="history").explode("item_id").drop_nulls()
    bad = (
        used.group_by("number", "item_id")
        .agg(n=pl.len())
        .join(allowed, on=["number", "item_id"], how="left")
        .filter(pl.col("n") > pl.col("n_before").fill_null(0))
        .select("number", "item_id")
        .sort("number", "item_id")
        .collect()
    )
    return [
        f"the history of the example {examples[number].example_id!r} has {item_id!r} from its target on"
        for number, item_id in bad.iter_rows()
    ]


def split_leaks(splits: Splits) -> list[str]:
    """Describe training or validation examples that are not before, or not apart from, the later splits.

    With a split in time every example is strictly before the first one of the later splits; otherwise no user
    is in two splits.
    """
    leaks = []
    for name, earlier, later in (
        ("training", splits.train, [*splits.valid, *splits.test]),
        ("validation", splits.valid, splits.test),
    ):
        times = [example.timestamp for example in later if example.timestamp is not None]
        if splits.valid_from is not None and times:
            start = min(times)
            bad = [e for e in earlier if e.timestamp is None or e.timestamp >= start]
            what = "no earlier than what it prepares for"
        else:
            users = {example.user_id for example in later}
            bad = [e for e in earlier if e.user_id in users]
            what = "of a user who is held out"
        leaks += [f"the {name} example {example.example_id!r} is {what}" for example in bad]
    return leaks


def _asked(examples: Sequence[RankingExample]) -> pl.LazyFrame:
    rows = [
        (
            number,
            example.example_id,
            example.user_id,
            example.timestamp,
            list(example.history),
            [item for item, label in zip(example.candidates, example.labels, strict=True) if label],
        )
        for number, example in enumerate(examples)
    ]
    return pl.LazyFrame(rows, schema=_ASKED, orient="row")


def _places(dataset: Dataset, asked: pl.LazyFrame) -> pl.LazyFrame:
    """Return number, user_id, asked_at and `cut`: the last position of the target, or null.

    Of several targets the first: a history which reaches among them is found.
    """
    targets = asked.select("number", "user_id", "asked_at", item_id="targets").explode("item_id")
    places = dataset.events().select("user_id", "item_id", "position")
    return (
        targets.join(places, on=["user_id", "item_id"], how="left")
        .group_by("number", "user_id", "asked_at", "item_id")
        .agg(place=pl.col("position").max())
        .group_by("number", "user_id", "asked_at")
        .agg(cut=pl.col("place").min())
    )


def _logged(dataset: Dataset, asked: pl.LazyFrame) -> pl.LazyFrame:
    """Return number, user_id and item_id of what was logged as history with each impression asked."""
    impressions = dataset.impressions()
    if impressions is None:
        return pl.LazyFrame(schema={"number": pl.UInt32, "user_id": pl.String, "item_id": pl.String})
    logged = impressions.select("user_id", example_id="impression_id", item_id="history")
    names = asked.select("number", "example_id", "user_id", "asked_at")
    rows = names.join(logged, on=["example_id", "user_id"]).explode("item_id")
    return rows.drop_nulls("item_id")
