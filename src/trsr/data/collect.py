"""What every importer does with its rows: keep each item once, and put events in order, on flat memory.

Importers bring frames with fixed columns; the rules for refusal stand here, so they are the same for all
kinds of data. Only item ids (and a hash each) are held in memory, never the interactions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from trsr.data.columns import clean_id, parse_times
from trsr.data.rawtables import RAW, ROW
from trsr.data.tables import TIME, DatasetWriter, Spool
from trsr.errors import DataError

RANGE_ROWS = 1_000_000  # events sorted at once
_HASH = "__hash__"  # of an item's texts; named so as not to meet a text field
_FIRST_HASH = "__first_hash__"


def refuse(writer: DatasetWriter, file: str, frame: pl.DataFrame, reason: str) -> None:
    """Reject all rows of a frame that has `ROW` and `RAW`."""
    writer.reject(file, frame.select(pl.col(ROW).alias("row"), pl.col(RAW).alias("raw")), reason)


def keep_or_refuse(
    writer: DatasetWriter, file: str, frame: pl.DataFrame, good: pl.Expr, reason: str
) -> pl.DataFrame:
    """Return the rows for which `good` is true; the others are rejected."""
    right = frame.select(good.fill_null(False)).to_series()
    if right.all():
        return frame
    refuse(writer, file, frame.filter(~right), reason)
    return frame.filter(right)


def at_least(writer: DatasetWriter, frame: pl.DataFrame, rating: str, threshold: float) -> pl.DataFrame:
    """Return the rows whose rating reaches the threshold or is missing; count the others."""
    frame = _single(frame, rating)
    below = (
        frame.select(pl.col(rating).cast(pl.Float64, strict=False) < threshold).to_series().fill_null(False)
    )
    writer.counts["ratings_below_threshold"] += int(below.sum())
    return frame.filter(~below)


def _single(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """Turn a list column into text where each list has one element; other lists become null."""
    lists = [pl.col(c) for c in columns if isinstance(frame.schema[c], pl.List)]
    return frame.with_columns(pl.when(c.list.len() == 1).then(c.list.first()) for c in lists)


class ItemCollector:
    """Takes items batch by batch; the first row of an id counts.

    A later row with the same text is folded (`counts["repeated_items"]`), one with another text is rejected.

    Raises:
        DataError: there is no text field, one is named twice, or one is called `item_id`.
    """

    def __init__(self, writer: DatasetWriter, file: str, text_fields: Sequence[str]) -> None:
        _check_fields(file, text_fields)
        self._writer = writer
        self._file = file
        self._fields = list(text_fields)
        self._known = pl.DataFrame(schema={"item_id": pl.String, _HASH: pl.UInt64})

    @property
    def ids(self) -> pl.DataFrame:
        """The ids taken so far: one column, `item_id`."""
        return self._known.select("item_id")

    def add(self, frame: pl.DataFrame) -> None:
        """Take a batch: `item_id`, the text fields (cleaned), `ROW`, `RAW`."""
        frame = _single(frame, "item_id").with_columns(clean_id("item_id").alias("item_id"))
        frame = keep_or_refuse(self._writer, self._file, frame, pl.col("item_id").is_not_null(), "no item id")
        frame = frame.with_columns(pl.struct(self._fields).hash().alias(_HASH))
        new = frame.join(self._known, on="item_id", how="anti", maintain_order="left")
        new = new.unique("item_id", keep="first", maintain_order=True)
        self._known = pl.concat([self._known, new.select("item_id", _HASH)])
        first = self._known.rename({_HASH: _FIRST_HASH})
        later = frame.join(new.select(ROW), on=ROW, how="anti", maintain_order="left").join(
            first, on="item_id", how="left", maintain_order="left"
        )
        other = later.filter(pl.col(_HASH) != pl.col(_FIRST_HASH))
        refuse(self._writer, self._file, other, "item id seen before with another text")
        self._writer.counts["repeated_items"] += len(later) - len(other)
        no_text = pl.all_horizontal(pl.col(self._fields).is_null())
        self._writer.counts["items_without_text"] += int(new.select(no_text.sum()).item())
        self._writer.items.append(new.select("item_id", *self._fields))


def _check_fields(file: str, text_fields: Sequence[str]) -> None:
    wrong = None
    if not text_fields:
        wrong = "no text field was named for its items"
    elif twice := [field for field in text_fields if list(text_fields).count(field) > 1]:
        wrong = f"the text field {twice[0]!r} was named twice"
    elif "item_id" in text_fields:
        wrong = "the text field 'item_id' was named, but ids are never text"
    if wrong:
        raise DataError(f"{file}: {wrong}; name each column of text once.")


class EventCollector:
    """Takes events in any order; `finish` writes them by user, oldest first.

    A user whose events all have a time is ordered by time, then by place in the file; any other user by place
    in the file alone.
    """

    def __init__(self, writer: DatasetWriter, file: str, item_ids: pl.DataFrame) -> None:
        self._writer = writer
        self._file = file
        self._items = item_ids
        self._spool = writer.spool("unordered_events")

    def add(self, frame: pl.DataFrame) -> None:
        """Take a batch: `user_id`, `item_id`, `timestamp` (text or null), `ROW`, `RAW`."""
        frame = _single(frame, "user_id", "item_id", "timestamp")
        frame = frame.with_columns(clean_id(c).alias(c) for c in ("user_id", "item_id", "timestamp"))
        frame = frame.with_columns(parse_times(frame["timestamp"]).alias("time"))
        for good, reason in (
            (pl.col("user_id").is_not_null(), "no user id"),
            (pl.col("item_id").is_not_null(), "no item id"),
            (pl.col("timestamp").is_null() | pl.col("time").is_not_null(), "time cannot be read"),
        ):
            frame = keep_or_refuse(self._writer, self._file, frame, good, reason)
        unknown = frame.join(self._items, on="item_id", how="anti", maintain_order="left")
        refuse(self._writer, self._file, unknown, "unknown item")
        frame = frame.join(self._items, on="item_id", how="semi", maintain_order="left")
        place = pl.int_range(self._spool.rows, self._spool.rows + len(frame), dtype=pl.Int64).alias("place")
        self._spool.append(frame.select("user_id", "item_id", pl.col("time").alias("timestamp"), place))

    def finish(self) -> None:
        """Order all events and give them to the writer."""
        timed = pl.col("timestamp").is_not_null().all().over("user_id")
        key = pl.when(timed).then("timestamp").alias("key")
        position = pl.int_range(pl.len(), dtype=pl.Int64).over("user_id").alias("position")
        for part in by_user_ranges(self._spool):
            rows = part.collect(engine="streaming").with_columns(key).sort("user_id", "key", "place")
            self._writer.events.append(
                rows.select("user_id", "item_id", position, pl.col("timestamp").cast(TIME))
            )


def by_user_ranges(spool: Spool, rows_at_once: int = RANGE_ROWS) -> Iterator[pl.LazyFrame]:
    """Yield a spooled table in parts of whole users, about `rows_at_once` rows each, in the order of user_id.

    The limits come from a regular sample of the rows, so that no list of all users is needed.
    """
    if not spool.rows:
        return
    table = spool.scan()
    n_parts = -(-spool.rows // rows_at_once)
    limits: list[str] = []
    if n_parts > 1:
        step = max(1, rows_at_once // 1000)
        sample = (
            table.select(pl.col("user_id").gather_every(step)).collect(engine="streaming")["user_id"].sort()
        )
        limits = (
            sample.gather_every(max(1, len(sample) // n_parts), offset=len(sample) // n_parts)
            .unique()
            .sort()
            .to_list()
        )
    user = pl.col("user_id")
    for low, high in zip([None, *limits], [*limits, None], strict=True):
        inside = pl.lit(True) if low is None else user >= low
        yield table.filter(inside if high is None else inside & (user < high))
