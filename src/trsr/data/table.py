"""Any two tables: one of items, one of events, as CSV, TSV, JSON Lines or Parquet.

Columns are found by their usual names (`columns`) or named. Events stand one a row, or one user a row with a
list of items, oldest first, and perhaps a list of times beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from trsr.data import columns as names
from trsr.data.dataset import Dataset
from trsr.data.import_info import MAX_REJECTS, TimesInfo
from trsr.data.ingest import EventCollector, ItemCollector, item_rows, keep_or_refuse
from trsr.data.readers import JSON_SUFFIXES, RAW, ROW
from trsr.data.reading import RawFiles, TimeSettings
from trsr.data.times import MIDNIGHT, find_time_column, refuse_separate_clock, time_like_columns
from trsr.data.values import read_lists, separator_of
from trsr.data.writer import DatasetWriter
from trsr.errors import DataError


class TableImport(TimeSettings):
    """Options of `import_table` as a configuration carries them; None means: found by the usual names."""

    kind: Literal["table"] = "table"
    items: Path
    events: Path
    name: str | None = None
    domain: str = "general"
    text_fields: tuple[str, ...] | None = None
    category_fields: tuple[str, ...] | None = None
    items_columns: tuple[str, ...] | None = None
    events_columns: tuple[str, ...] | None = None
    item_id: str | None = None
    event_item_id: str | None = None
    user_id: str | None = None
    timestamp: str | None = None
    item_list: str | None = None
    quotes: bool | None = None


def import_table(
    items: str | Path,
    events: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    domain: str = "general",
    text_fields: Sequence[str] | None = None,
    category_fields: Sequence[str] | None = None,
    items_columns: Sequence[str] | None = None,
    events_columns: Sequence[str] | None = None,
    item_id: str | None = None,
    event_item_id: str | None = None,
    user_id: str | None = None,
    timestamp: str | None = None,
    item_list: str | None = None,
    quotes: bool | None = None,
    time_format: str | None = None,
    keep_untimed: bool = False,
    delimiter: str | None = None,
    encoding: str | None = None,
    max_rejects: float = MAX_REJECTS,
    overwrite: bool = False,
) -> Dataset:
    """Make a dataset folder from a table of items and a table of events.

    Args:
        items: The items file.
        events: The events file.
        out: The dataset folder to make.
        name: Stands in reports; the name of `out` by default.
        domain: "news", "products", "movies" or another word; chooses the prompt templates.
        text_fields: Columns of the items kept as text, in rendering order; by default all that are no ids or
            addresses.
        category_fields: Those of them that hold categories, brands or genres; by default found by name.
        items_columns: All column names of an items file without a header.
        events_columns: All column names of an events file without a header.
        item_id: Column of the item id in the items file.
        event_item_id: Column of the item id in the events file, one event a row.
        user_id: Column of the user id.
        timestamp: Column of the time, or of a list of times.
        item_list: Column of the list of items, one user a row.
        quotes: Whether CSV and TSV fields may stand in double quotes; by default in CSV, and in TSV
            where they do so throughout.
        time_format: How times are written (see `times.TimeReader`); by default what fits the whole column.
        keep_untimed: Keep events without a time where others have one; their users stay in the file's order.
        delimiter: What separates the fields of delimited files; found in their first lines by default.
        encoding: Encoding of text files; found in their first 4 MB by default.
        max_rejects: Largest share of a file's rows that may be unreadable, in [0, 1].
        overwrite: Replace an existing dataset at `out`.

    Raises:
        DataError: a file or a column is missing, or nothing could be read.
    """
    items, events, out = Path(items), Path(events), Path(out)
    wanted = _Wanted(item_id=event_item_id, user_id=user_id, timestamp=timestamp, item_list=item_list)
    with DatasetWriter(out, overwrite=overwrite) as writer:
        raw = RawFiles(writer, delimiter, encoding, max_rejects)
        collector: ItemCollector | None = None
        fields = None if text_fields is None else list(text_fields)
        for frame in raw.frames(items, columns=items_columns, quotes=quotes):
            column = names.require_column(
                items.name, frame.columns, "item id", names.ITEM_ID, item_id, "--item-id"
            )
            if collector is None:
                writer.file(items.name).columns["item id"] = names.chosen_of(
                    frame.columns, names.ITEM_ID, column
                )
                fields = _text_fields(items.name, frame, column, fields)
                collector = ItemCollector(writer, items.name, fields)
            collector.add(item_rows(writer, frame, column, fields or []))
        assert collector is not None  # a file without rows has raised
        assert fields is not None
        event_collector = EventCollector(
            writer,
            events.name,
            collector.ids,
            time_format=time_format,
            keep_untimed=keep_untimed,
            fixed_columns=not events.name.removesuffix(".gz").endswith(JSON_SUFFIXES),
        )
        separators: dict[str, str | None] = {}
        for frame in raw.frames(events, columns=events_columns, quotes=quotes):
            event_collector.add(_events(writer, event_collector.times, frame, wanted, separators))
        event_collector.finish()
        return writer.finish(
            name=name or out.name,
            domain=domain,
            text_fields=fields,
            category_fields=_category_fields(items.name, fields, category_fields),
            source=f"{items.name}, {events.name}",
        )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Columns of the events that were named; None for those to find."""

    item_id: str | None
    user_id: str | None
    timestamp: str | None
    item_list: str | None


def _text_fields(file: str, frame: pl.DataFrame, item_id: str, named: list[str] | None) -> list[str]:
    if named is None:
        named = names.guess_text_fields(frame.columns, [item_id])
        if not named:
            raise DataError(f"{file} has no column that looks like text; name them with --text-fields.")
    sought = (
        names.Sought(f"text field {field}", (), field, "--text-fields") for field in dict.fromkeys(named)
    )
    names.require_columns(file, frame.columns, *sought)
    return named


def _category_fields(file: str, text_fields: list[str], named: Sequence[str] | None) -> Sequence[str]:
    if named is None:
        return names.guess_category_fields(text_fields)
    if unknown := [field for field in named if field not in text_fields]:
        raise DataError(
            f"{file}: the category field {' and '.join(map(repr, unknown))} is none of the text fields "
            f"({', '.join(text_fields)}); name some of these with --category-fields."
        )
    return named


def _events(
    writer: DatasetWriter,
    times_info: TimesInfo,
    frame: pl.DataFrame,
    wanted: _Wanted,
    separators: dict[str, str | None],
) -> pl.DataFrame:
    """Return one event a row: user_id, item_id, timestamp (text or null), `ROW`, `RAW`.

    `separators` holds what divides the lists of a column, once a batch has shown it.
    """
    file, found = times_info.file, frame.columns
    user_column = names.find_column(found, names.USER_ID, wanted.user_id)
    # A file with one event a row may have a column called "history" too; "id" alone says nothing about items:
    # beside other columns it numbers the events.
    one_a_row = wanted.item_id or (wanted.item_list is None and names.find_column(found, names.ITEM_ID[:-1]))
    item_list = None if one_a_row else names.find_column(found, names.ITEM_LIST, wanted.item_list)
    if wanted.item_list is not None and item_list is None:
        names.require_column(file, found, "list of items", (), wanted.item_list, "--item-list")
    user = names.Sought("user id", names.USER_ID, wanted.user_id, "--user-id")
    if item_list is not None:
        (user_id,) = names.require_columns(file, found, user)
        chosen = {"user id": names.chosen_of(found, names.USER_ID, user_id), "list of items": item_list}
        writer.file(file).columns |= chosen
        times = _times(times_info, frame, wanted.timestamp, user_id)
        rows = frame.select(pl.col(user_id).alias("user_id"), item_list, times.alias("timestamp"), ROW, RAW)
        rows = rows.rename({item_list: "item_id"})
        return _one_a_row(writer, file, rows, separators)
    usual = tuple(name for name in names.ITEM_ID if name != user_column)
    others = (c for c in found if c.isprintable() and c not in {user_column, wanted.timestamp})
    if any(c.lower() != "id" and find_time_column(file, [c]) is None for c in others):
        usual = tuple(name for name in usual if name != "id")
    item = names.Sought("item id or list of items", usual, wanted.item_id, "--event-item-id or --item-list")
    user_id, item_id = names.require_columns(file, found, user, item)
    chosen = {
        "user id": names.chosen_of(found, names.USER_ID, user_id),
        "item id": names.chosen_of(found, usual, item_id),
    }
    writer.file(file).columns |= chosen
    times = _times(times_info, frame, wanted.timestamp, user_id)
    return frame.select(
        pl.col(user_id).alias("user_id"), pl.col(item_id).alias("item_id"), times.alias("timestamp"), ROW, RAW
    )


def _times(info: TimesInfo, frame: pl.DataFrame, named: str | None, user_id: str) -> pl.Expr:
    """Return the time of each row: the column that was named or found, or two columns joined."""
    found = frame.columns
    if named is None:
        rest = [column for column in found if column != user_id]
        named = find_time_column(info.file, rest)
        if named is not None and info.n == 0:  # the first frame tells enough
            refuse_separate_clock(info.file, frame, named)
    if named is None:
        if info.n == 0:
            info.looks_like_time = time_like_columns(frame, [user_id])
        return pl.lit(None, pl.String)
    info.column = named
    parts = [named] if named in found else [part.strip() for part in named.split(",")]
    for part in parts:
        names.require_column(info.file, found, "time", (), part, "--timestamp")
    if len(parts) == 1:
        return pl.col(named)
    return pl.concat_str(pl.col(parts[0]).str.replace(MIDNIGHT, ""), *parts[1:], separator=" ")


def _one_a_row(
    writer: DatasetWriter, file: str, rows: pl.DataFrame, separators: dict[str, str | None]
) -> pl.DataFrame:
    rows = _lists(writer, file, rows, "item_id", separators)
    rows = keep_or_refuse(writer, file, rows, pl.col("item_id").list.len() > 0, "no items in the list")
    timed = rows["timestamp"].is_not_null().any()
    if not timed:
        rows = rows.with_columns(pl.lit(None, pl.String).alias("timestamp"))
    else:
        rows = _lists(writer, file, rows, "timestamp", separators)
        n_times = pl.col("timestamp").list.len()
        good = (n_times == 0) | (n_times == pl.col("item_id").list.len())
        rows = keep_or_refuse(writer, file, rows, good, "another number of times than of items")
        empty = pl.col("item_id").list.eval(pl.lit(None, pl.String))
        rows = rows.with_columns(pl.when(n_times == 0).then(empty).otherwise("timestamp").alias("timestamp"))
    rows = rows.explode(["item_id", "timestamp"] if timed else ["item_id"])
    entry = pl.concat_str("item_id", "timestamp", separator=" ", ignore_nulls=True).alias(RAW)
    return rows.with_columns(pl.col("timestamp").cast(pl.String), entry)


def _lists(
    writer: DatasetWriter, file: str, rows: pl.DataFrame, column: str, separators: dict[str, str | None]
) -> pl.DataFrame:
    """Return the rows with a column read as lists; a cell that opens like a list and is none is refused."""
    times = column == "timestamp"
    if column not in separators:
        separators[column] = separator_of(rows[column], times=times)
    rows = rows.with_columns(read_lists(rows[column], separators[column], times=times).alias(column))
    what = "the list of times cannot be read" if times else "the list of items cannot be read"
    return keep_or_refuse(writer, file, rows, pl.col(column).is_not_null(), what)
