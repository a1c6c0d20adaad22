"""Looks for leaks in examples and in what is learned for them: anything from a target's place on.

Where a target stands is read from the dataset itself, not from the code that makes examples (`questions`) or
chooses what to fit on (`fitting`), so that a mistake in those is found here. Profiles are checked by
`pipeline.leakage`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from trsr.data.dataset import EVENTS, TIME, Dataset
from trsr.errors import DataError, LeakageError
from trsr.splitting.examples import Splits
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


@dataclass(frozen=True, slots=True)
class Checked:
    """How many rows were looked at, and what was found: a few words a leak."""

    n: int
    leaks: tuple[str, ...] = ()


def all_or_error(found: Mapping[str, Checked]) -> dict[str, int]:
    """Return how much was checked of each kind.

    Raises:
        LeakageError: a leak was found.
    """
    leaks = [leak for checked in found.values() for leak in checked.leaks]
    if leaks:
        raise LeakageError(
            f"{len(leaks)} leaks were found, the first: {leaks[0]}; expected only what came before each"
            " target, so no metric was written: make the run anew in another folder."
        )
    return {name: checked.n for name, checked in found.items()}


def history_leaks(dataset: Dataset, splits: Splits) -> Checked:
    """Look for history items that are not among the user's events strictly before the target.

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
    return Checked(
        len(examples),
        tuple(
            f"the history of the example {examples[number].example_id!r} has {item_id!r} from its target on"
            for number, item_id in bad.iter_rows()
        ),
    )


def split_leaks(splits: Splits) -> Checked:
    """Look for training or validation examples that are not before, or not apart from, what they prepare for.

    With a split in time every row is asked strictly before the first example of the later splits; else no
    user is in two splits. Both keep the target of a held-out example out of the rows that models are
    fine-tuned, tuned, calibrated or fused on.
    """
    leaks = []
    stages = (
        ("training", splits.train, [*splits.valid, *splits.test]),
        ("validation", splits.valid, splits.test),
    )
    for name, earlier, later in stages:
        times = [example.timestamp for example in later if example.timestamp is not None]
        if splits.valid_from is not None and times:
            start = min(times)
            bad = [e for e in earlier if e.timestamp is None or e.timestamp >= start]
            what = "asked no earlier than what it prepares for"
        else:
            users = {example.user_id for example in later}
            bad = [e for e in earlier if e.user_id in users]
            what = "of a user who is held out"
        leaks += [f"the {name} example {example.example_id!r} is {what}" for example in bad]
    return Checked(len(splits.train) + len(splits.valid), tuple(leaks))


def fit_leaks(dataset: Dataset, splits: Splits, fitted: pl.DataFrame) -> Checked:
    """Look for events that popularity and baselines learn from, and may not.

    - `sampled`: an event of a validation or test user at or after the position of their target.
    - `temporal`: an event at or after the first validation or test example.
    - `impressions`: the same where there are times; an item that its user is asked about; an event of a
      held-out user that is neither in the history logged with their first held-out impression nor a
      training click of theirs.

    Args:
        dataset: Where the targets' places are read from.
        splits: The examples.
        fitted: What is learned from: user_id, item_id, position, timestamp.
    """
    held = [*splits.valid, *splits.test]
    asked, rows = _asked(held), fitted.lazy()
    times = [example.timestamp for example in held if example.timestamp is not None]
    late = pl.lit(False)
    if splits.valid_from is not None and times:
        late = (pl.col("timestamp") >= min(times)).fill_null(False)
    match splits.description.get("protocol"):
        case "temporal":
            parts = [rows.filter(late | pl.col("timestamp").is_null())]
        case "impressions":
            parts = [rows.filter(late), *_beyond_impressions(dataset, splits, asked, rows)]
        case _:
            cuts = _places(dataset, asked).group_by("user_id").agg(cut=pl.col("cut").min())
            joined = rows.join(cuts, on="user_id")
            parts = [joined.filter(pl.col("cut").is_null() | (pl.col("position") >= pl.col("cut")))]
    bad = pl.concat(part.select("user_id", "item_id") for part in parts)
    found = bad.unique().sort("user_id", "item_id").collect()
    return Checked(
        len(fitted),
        tuple(
            f"what rankers learn from holds the event ({user_id!r}, {item_id!r}) from a held-out target on"
            for user_id, item_id in found.iter_rows()
        ),
    )


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
    """Return number, user_id, asked_at and `cut`: where the target stands last, or null.

    Of several targets the one that stands first, so that a history which reaches among them is found.
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


def _beyond_impressions(
    dataset: Dataset, splits: Splits, asked: pl.LazyFrame, rows: pl.LazyFrame
) -> list[pl.LazyFrame]:
    """Return events that were asked about, and those of held-out users from nowhere they may come from."""
    targets = asked.select("user_id", item_id="targets").explode("item_id")
    # Of the histories logged for a user the first one counts; without times nothing says which that is.
    first = pl.col("asked_at").is_null() | (pl.col("asked_at") == pl.col("asked_at").min().over("user_id"))
    logged = _logged(dataset, asked).filter(first).select("user_id", "item_id")
    clicks = _asked(splits.train).select("user_id", item_id="targets").explode("item_id")
    foreign = (
        rows.join(asked.select("user_id").unique(), on="user_id", how="semi")
        .join(logged, on=["user_id", "item_id"], how="anti")
        .join(clicks, on=["user_id", "item_id"], how="anti")
    )
    return [rows.join(targets, on=["user_id", "item_id"], how="semi"), foreign]
