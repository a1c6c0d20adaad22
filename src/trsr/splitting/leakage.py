"""Checks that no example has seen its target or anything after it.

The checks read the position of a target from the dataset itself, not from the code that makes examples.
`experiment.leakage` checks the files that a run made from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from trsr.data.dataset import Dataset
from trsr.data.schema import TIME
from trsr.splitting.split import Split
from trsr.types import RankingExample

_QUESTIONS = pl.Schema(
    [
        ("number", pl.UInt32()),
        ("example_id", pl.String()),
        ("user_id", pl.String()),
        ("time", TIME),
        ("history", pl.List(pl.String)),
        ("targets", pl.List(pl.String)),
    ]
)


def history_leaks(split: Split) -> list[str]:
    """Describe history items that are not among the user's events strictly before the target.

    - `sampled`: before the position of the target's last occurrence, of several targets the first of these,
      and not later than the example's time.
    - `temporal`: before the example's time.
    - `impressions`: in the history that was logged with the impression.

    An item that occurs more often in a history than before its target is a leak too.
    """
    examples = [*split.train, *split.valid, *split.test]
    questions = _questions(examples)
    match split.protocol.kind:
        case "impressions":
            before = _logged(split.dataset, questions)
        case "temporal":
            events = split.dataset.events().join(questions.select("number", "user_id", "time"), on="user_id")
            before = events.filter(pl.col("timestamp") < pl.col("time"))
        case _:
            events = split.dataset.events().join(_places(split.dataset, questions), on="user_id")
            late = pl.col("timestamp") > pl.col("time")  # null, and so not late, without times
            before = events.filter((pl.col("position") < pl.col("cut")) & ~late.fill_null(False))
    allowed = before.group_by("number", "item_id").agg(n_before=pl.len())
    used = questions.select("number", item_id="history").explode("item_id").drop_nulls()
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


def split_leaks(split: Split) -> list[str]:
    """Describe training and validation examples that overlap with the later splits in time or users.

    With a split in time every example is strictly before the first one of the later splits; otherwise no user
    is in two split.
    """
    leaks = []
    for name, earlier, later in (
        ("training", split.train, [*split.valid, *split.test]),
        ("validation", split.valid, split.test),
    ):
        times = [example.timestamp for example in later if example.timestamp is not None]
        if split.valid_from is not None and times:
            start = min(times)
            bad = [e for e in earlier if e.timestamp is None or e.timestamp >= start]
            problem = "no earlier than the examples it prepares for"
        else:
            users = {example.user_id for example in later}
            bad = [e for e in earlier if e.user_id in users]
            problem = "of a user who is held out"
        leaks += [f"the {name} example {example.example_id!r} is {problem}" for example in bad]
    return leaks


def _questions(examples: Sequence[RankingExample]) -> pl.LazyFrame:
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
    return pl.LazyFrame(rows, schema=_QUESTIONS, orient="row")


def _places(dataset: Dataset, questions: pl.LazyFrame) -> pl.LazyFrame:
    """Return number, user_id, time and `cut`: the last position of the target, or null.

    Of several targets the first counts, which finds a history that reaches between them.
    """
    targets = questions.select("number", "user_id", "time", item_id="targets").explode("item_id")
    places = dataset.events().select("user_id", "item_id", "position")
    return (
        targets.join(places, on=["user_id", "item_id"], how="left")
        .group_by("number", "user_id", "time", "item_id")
        .agg(place=pl.col("position").max())
        .group_by("number", "user_id", "time")
        .agg(cut=pl.col("place").min())
    )


def _logged(dataset: Dataset, questions: pl.LazyFrame) -> pl.LazyFrame:
    """Return number, user_id and item_id of the history that was logged with each impression."""
    impressions = dataset.impressions()
    if impressions is None:
        return pl.LazyFrame(schema={"number": pl.UInt32, "user_id": pl.String, "item_id": pl.String})
    logged = impressions.select("user_id", example_id="impression_id", item_id="history")
    names = questions.select("number", "example_id", "user_id", "time")
    rows = names.join(logged, on=["example_id", "user_id"]).explode("item_id")
    return rows.drop_nulls("item_id")
