"""Shared steps of all importers: keep each item once, put events in order.

Memory stays flat: only item ids (and a hash each) are held in it, never the interactions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import polars as pl

from trsr.data.columns import Sought, require_columns
from trsr.data.import_info import TimesInfo
from trsr.data.raw_file import RatedOptions, RawFile, TimedOptions
from trsr.data.schema import TIME
from trsr.data.text_lines import RAW, ROW
from trsr.data.times import UNREADABLE, TimeReader
from trsr.data.values import (
    ID_RULE,
    MARKERS,
    clean_cell,
    clean_texts,
    is_id,
    join_written_lists,
    parse_rating,
)
from trsr.data.writer import Spool
from trsr.errors import DataError

RANGE_ROWS = 1_000_000  # events sorted at once
# Names with a control character: no column of a file can have them (`columns.plain_names`).
_HASH = "\x1fhash"  # of an item's texts
_FIRST_HASH = "\x1ffirst hash"
_TEXT, _RATING = "\x1frating text", "\x1frating"
_ENTITY = r"&(?:[a-zA-Z]{2,8}|#[0-9]{1,6}|#x[0-9a-fA-F]{1,5});"


def single(frame: pl.DataFrame, *columns: str, others: bool = False) -> pl.DataFrame:
    """Turn a list column into text where each list has one element.

    Longer lists become null, or with `others` a text that is no value and so is refused.
    """
    for column in columns:
        if isinstance(frame.schema[column], pl.List):
            parts = pl.col(column)
            longer = (pl.lit("[") + parts.list.join(", ", ignore_nulls=True) + "]") if others else None
            one = pl.when(parts.list.len() == 1).then(parts.list.first())
            frame = frame.with_columns(one.when(parts.list.len() > 1).then(longer))
    return frame


class ItemCollector:
    """Takes items batch by batch; the first row of an id counts.

    A later row with the same text is folded (`counts["repeated_items"]`), one with another text is rejected.

    Raises:
        DataError: there is no text field, one is named twice, or one is called `item_id`.
    """

    def __init__(self, file: RawFile, text_fields: Sequence[str]) -> None:
        _check_fields(file.name, text_fields)
        self._file = file
        self._fields = list(text_fields)
        self._known = pl.DataFrame(schema={"item_id": pl.String, _HASH: pl.UInt64})

    @property
    def ids(self) -> pl.DataFrame:
        """The ids taken so far: one column, `item_id`."""
        return self._known.select("item_id")

    def add(self, frame: pl.DataFrame, item_id: str = "item_id") -> None:
        """Add a batch: a column with the id, columns with the names of the text fields, `ROW`, `RAW`."""
        file, counts = self._file, self._file.writer.counts
        frame = file.clean_ids(single(self._clean(frame, item_id), "item_id"), "item_id")
        frame = file.keep(frame, pl.col("item_id").is_not_null(), "no item id")
        frame = file.keep(frame, is_id("item_id"), f"item id with {ID_RULE}")
        frame = frame.with_columns(pl.struct(self._fields).hash().alias(_HASH))
        new = frame.join(self._known, on="item_id", how="anti", maintain_order="left")
        new = new.unique("item_id", keep="first", maintain_order=True)
        self._known = pl.concat([self._known, new.select("item_id", _HASH)])
        first = self._known.rename({_HASH: _FIRST_HASH})
        later = frame.join(new.select(ROW), on=ROW, how="anti", maintain_order="left").join(
            first, on="item_id", how="left", maintain_order="left"
        )
        other = later.filter(pl.col(_HASH) != pl.col(_FIRST_HASH))
        file.refuse(other, "item id seen before with another text")
        counts["repeated_items"] += len(later) - len(other)
        no_text = pl.all_horizontal(pl.col(self._fields).is_null())
        counts["items_without_text"] += int(new.select(no_text.sum()).item())
        file.writer.items.append(new.select("item_id", *self._fields))

    def _clean(self, frame: pl.DataFrame, item_id: str) -> pl.DataFrame:
        """Return `item_id`, the cleaned text fields, `ROW`, `RAW`, and count the changes.

        Entities of HTML stay, and are counted too.
        """
        frame, n_lists = join_written_lists(frame, self._fields)
        self._file.count("texts_written_as_lists", n_lists)
        texts = [pl.col(f) for f in self._fields if frame.schema.get(f) == pl.String]
        if texts:
            missing = pl.sum_horizontal(text.str.strip_chars().is_in(MARKERS).sum() for text in texts)
            entities = pl.sum_horizontal(text.str.contains(_ENTITY).sum() for text in texts)
            n_missing, n_entities = frame.select(missing, entities.alias("entities")).row(0)
            self._file.count("texts_that_say_missing", n_missing)
            self._file.count("texts_with_html_entities", n_entities)
        return frame.select(pl.col(item_id).alias("item_id"), ROW, RAW, *clean_texts(frame, self._fields))


def _check_fields(file: str, text_fields: Sequence[str]) -> None:
    wrong = None
    if not text_fields:
        wrong = "no text field was named for its items"
    elif twice := [field for field in text_fields if list(text_fields).count(field) > 1]:
        wrong = f"the text field {' and '.join(map(repr, dict.fromkeys(twice)))} was named twice"
    elif "item_id" in text_fields:
        wrong = "the text field 'item_id' was named, but ids are never text"
    if wrong:
        raise DataError(f"{file}: {wrong}; name each column of text once.")


class EventCollector:
    """Takes events in any order; `finish` writes them by user, oldest first.

    Users are ordered by time (or by numbers that are no times), then by place in the file, from its end where
    the file runs newest first; without any times, by place in the file alone.
    Events without a time, where others have one, are rejected, or kept with `keep_untimed`; their users then
    stay in the order of the file.

    Attributes:
        times: Facts about the times; an importer names the column in it.
    """

    def __init__(self, file: RawFile, item_ids: pl.DataFrame, *, fixed_columns: bool = False) -> None:
        """Collect the events of `file`; with `fixed_columns` a file without a time column stays so."""
        self._file = file
        self._writer = file.writer
        self._items = item_ids
        self._fixed_columns = fixed_columns
        options = file.options
        self._keep_untimed = isinstance(options, TimedOptions) and options.keep_untimed
        self._format = options.time_format if isinstance(options, TimedOptions) else None
        self._reader: TimeReader | None = None
        self._n_kept = 0
        self._grows = False  # whether a user's times were seen to grow along the file
        self._spool = self._writer.spool("unordered_events")
        self._open = self._writer.spool("events_of_open_times")
        self._untimed = self._writer.spool("events_without_time")
        self.times = self._writer.times = TimesInfo(file=file.name)

    def add_rated(
        self,
        frame: pl.DataFrame,
        columns: tuple[Sought, Sought, Sought, Sought],
        unread: Sequence[str] = (),
    ) -> None:
        """Add a batch of ratings; the columns are user, item, time and rating.

        With a threshold, lower and missing ratings are counted, ratings that are no number are rejected.
        """
        options = self._file.options
        min_rating = options.min_rating if isinstance(options, RatedOptions) else None
        sought = columns[:3] if min_rating is None else columns
        user, item, time, *rated = require_columns(self._file.name, frame.columns, *sought, unread=unread)
        self.times.column = time
        if min_rating is not None:
            frame = self._at_least(frame, rated[0], min_rating)
        self.add(frame.select(ROW, RAW, user_id=user, item_id=item, timestamp=time))

    def _at_least(self, frame: pl.DataFrame, rating: str, threshold: float) -> pl.DataFrame:
        frame = single(frame, rating, others=True)
        texts = frame.select(clean_cell(rating).alias(_TEXT))
        frame = frame.with_columns(texts.select(_TEXT, parse_rating(pl.col(_TEXT)).alias(_RATING)))
        good = pl.col(_TEXT).is_null() | pl.col(_RATING).is_not_null()
        frame = self._file.keep(frame, good, "rating cannot be read")
        below = (frame[_RATING] < threshold).fill_null(False)
        self._writer.counts["ratings_below_threshold"] += int(below.sum())
        self._file.count("rows_without_rating", frame[_TEXT].null_count())
        return frame.filter(~below).drop(_TEXT, _RATING)

    def add(self, frame: pl.DataFrame) -> None:
        """Add a batch: `user_id`, `item_id`, `timestamp` (text or null), `ROW`, `RAW`."""
        frame = single(single(frame, "user_id", "item_id"), "timestamp", others=True)
        frame = self._file.clean_ids(frame, "user_id", "item_id").with_columns(clean_cell("timestamp"))
        self._file.info.entries += len(frame)
        self.times.n += len(frame)
        self.times.missing += frame["timestamp"].null_count()
        times, later = self._times().read(frame["timestamp"])
        frame = frame.with_columns(times.alias("time"), later.alias("later"))
        missing = pl.col("timestamp").is_null()
        for good, reason in (
            (pl.col("user_id").is_not_null(), "no user id"),
            (pl.col("item_id").is_not_null(), "no item id"),
            (is_id("user_id"), f"user id with {ID_RULE}"),
            (missing | pl.col("later") | pl.col("time").is_not_null(), UNREADABLE),
        ):
            frame = self._file.keep(frame, good, reason, entries=True)
        unknown = frame.join(self._items, on="item_id", how="anti", maintain_order="left")
        self._file.refuse(unknown, "unknown item")
        frame = frame.join(self._items, on="item_id", how="semi", maintain_order="left")
        place = pl.int_range(self._n_kept, self._n_kept + len(frame), dtype=pl.Int64).alias("place")
        self._n_kept += len(frame)
        frame = frame.with_columns(place)
        if self._fixed_columns and self.times.column is None:
            self._append(frame)
            return
        self._append(frame.filter(pl.col("time").is_not_null()))
        self._open.append(frame.filter("later"))
        self._untimed.append(frame.filter(missing))

    def _times(self) -> TimeReader:
        if self._reader is None:
            self._reader = TimeReader(self._file.name, self.times.column or "timestamp", self._format)
        return self._reader

    def _append(self, frame: pl.DataFrame) -> None:
        """Spool events whose times are read."""
        times = frame["time"].drop_nulls()
        if len(times):
            first, last = times.min(), times.max()
            assert isinstance(first, datetime)
            assert isinstance(last, datetime)
            self.times.first = min(first, self.times.first or first)
            self.times.last = max(last, self.times.last or last)
        if not self._grows:
            same_user = pl.col("user_id") == pl.col("user_id").shift()
            later = same_user & (pl.col("time") > pl.col("time").shift())
            self._grows = bool(frame.select(later.any()).item())
        self._spool.append(frame.select("user_id", "item_id", pl.col("time").alias("timestamp"), "place"))

    def _runs_newest_first(self) -> bool:
        """Return whether no user's times grow along the file, and some fall."""
        falls = False
        steps = pl.col("timestamp").dt.epoch("us").diff().over("user_id")
        for part in () if self._grows else by_user_ranges(self._spool):
            found = part.collect(engine="streaming").sort("place").select(steps)["timestamp"]
            if (found > 0).any():
                return False
            falls |= bool((found < 0).any())
        return falls

    def finish(self) -> None:
        """Order all events and pass them to the writer.

        Raises:
            DataError: the times of the column can be read in more than one way.
        """
        reader = self._times()
        reader.decide()
        for batch in self._open.batches():
            times, _ = reader.read(batch["timestamp"], final=True)
            read = batch.with_columns(times.alias("time"))
            self._append(self._file.keep(read, pl.col("time").is_not_null(), UNREADABLE, entries=True))
        self.times.forms = dict(reader.forms)
        any_time = self.times.first is not None
        if any_time and self._keep_untimed:
            self._writer.counts["events_without_time"] += self._untimed.rows
        if reader.order_only:
            self.times.first = self.times.last = None
        for batch in self._untimed.batches():
            keep = pl.repeat(self._keep_untimed or not any_time, pl.len())
            self._append(self._file.keep(batch, keep, "no time", entries=True))
        self._write(any_time, reader.order_only)

    def _write(self, any_time: bool, order_only: bool) -> None:
        timed = pl.col("timestamp").is_not_null().all().over("user_id")
        key = pl.when(timed).then("timestamp").alias("key")
        position = pl.int_range(pl.len(), dtype=pl.Int64).over("user_id").alias("position")
        time = (pl.lit(None) if order_only else pl.col("timestamp")).cast(TIME).alias("timestamp")
        place = pl.col("place")
        if reverse := any_time and self._runs_newest_first():
            place = pl.when(pl.col("key").is_null()).then(place).otherwise(-place)
        for part in by_user_ranges(self._spool):
            rows = part.collect(engine="streaming").with_columns(key).sort("user_id", "key", place)
            rows = self._fold_repeats(rows)
            again = (pl.col("user_id") == pl.col("user_id").shift()) & (
                pl.col("key") == pl.col("key").shift()
            )
            self.times.in_file_order += int(rows.select((again | again.shift(-1)).sum()).item())
            self.times.newest_first = reverse and self.times.in_file_order > 0
            if any_time and self._keep_untimed:
                in_order = rows.filter(pl.col("key").is_null())["user_id"].n_unique()
                self._writer.counts["users_in_file_order"] += in_order
            self._writer.events.append(rows.select("user_id", "item_id", position, time))

    def _fold_repeats(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return each event once: the same user, item and time again is the same event sent twice.

        Without a time it may be a second one, and stays.
        """
        if rows["timestamp"].null_count() == len(rows):
            return rows
        first = pl.struct("user_id", "item_id", "timestamp").is_first_distinct()
        once = rows.filter(pl.col("timestamp").is_null() | first)
        self._file.count("repeated_events", len(rows) - len(once))
        return once


def by_user_ranges(spool: Spool, rows_at_once: int = RANGE_ROWS) -> Iterator[pl.LazyFrame]:
    """Yield a spooled table in parts of whole users, about `rows_at_once` rows each, in the order of user_id.

    The limits come from a regular sample of the rows: no list of all users is needed.
    """
    if not spool.rows:
        return
    table = spool.scan()
    n_parts = -(-spool.rows // rows_at_once)
    limits: list[str] = []
    if n_parts > 1:
        users = table.select(pl.col("user_id").gather_every(max(1, rows_at_once // 1000)))
        sample = users.collect(engine="streaming")["user_id"].sort()
        step = max(1, len(sample) // n_parts)
        limits = sample.gather_every(step, offset=len(sample) // n_parts).unique().sort().to_list()
    user = pl.col("user_id")
    for low, high in zip([None, *limits], [*limits, None], strict=True):
        inside = pl.lit(True) if low is None else user >= low
        yield table.filter(inside if high is None else inside & (user < high))
