"""Any two tables: one of items, one of events, as CSV, TSV, JSON Lines, Parquet or Excel.

Columns are found by their usual names (`columns`) or named. Events are one per row, or one user per row with
a list of items, oldest first, and perhaps a list of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from trsr.data import columns as names
from trsr.data.columns import (
    MIDNIGHT,
    Sought,
    find_column,
    find_time_column,
    refuse_separate_clock,
    require_columns,
    time_like_columns,
)
from trsr.data.ingest import EventCollector, ItemCollector
from trsr.data.raw_file import Names, RawFile, TimedOptions, option
from trsr.data.readers import JSON_SUFFIXES
from trsr.data.text_lines import RAW, ROW
from trsr.data.values import read_lists, separator_of
from trsr.data.writer import DatasetWriter
from trsr.errors import DataError


class TableImport(TimedOptions):
    """Import any two tables; columns are found by their usual names or named here.

    Example: trsr import table --items items.jsonl --events sequences.jsonl --domain products --out data/mine
    """

    kind: Literal["table"] = "table"
    items: Path = Field(description="Items: CSV, TSV, JSONL, Parquet or Excel.")
    events: Path = Field(description="Events: one per row, or one list per user.")
    name: str | None = option("Name in reports; the folder's by default.")
    domain: str = option("news, products, movies, or another word.", "general")
    text_fields: Names | None = option("Text columns of the items, in rendering order: a,b,c.")
    category_fields: Names | None = option("Text fields that hold categories: a,b.")
    items_columns: Names | None = option("Column names of a headerless items file.")
    events_columns: Names | None = option("Column names of a headerless events file.")
    item_id: str | None = option("Item id column of the items.")
    event_item_id: str | None = option("Item id column of the events.")
    user_id: str | None = option("User id column.")
    timestamp: str | None = option("Column of the time or of the list of times; DATE,TIME joins two columns.")
    item_list: str | None = option("Column of the list of items.")
    quotes: bool | None = option("Fields may be quoted; found by default.")

    def read(self, writer: DatasetWriter) -> Path:
        """Read the items and the events."""
        items, events = RawFile(writer, self.items, self), RawFile(writer, self.events, self)
        item_id = Sought("item id", names.ITEM_ID, self.item_id, "--item-id")
        collector: ItemCollector | None = None
        fields: list[str] = []
        for frame in items.frames(columns=self.items_columns, quotes=self.quotes):
            (column,) = require_columns(items.name, frame.columns, item_id)
            if collector is None:
                chosen = names.chosen_of(frame.columns, names.ITEM_ID, column)
                items.info.columns["item id"] = chosen
                fields = self._text_fields(frame.columns, column)
                collector = ItemCollector(items, fields)
            collector.add(frame, column)
        assert collector is not None  # a file without rows has raised
        fixed = not events.name.removesuffix(".gz").endswith(JSON_SUFFIXES)
        histories = EventCollector(events, collector.ids, fixed_columns=fixed)
        separators: dict[str, str | None] = {}
        for frame in events.frames(columns=self.events_columns, quotes=self.quotes):
            histories.add(self._events(events, histories, frame, separators))
        histories.finish()
        return writer.finish(
            name=self.name or writer.path.name,
            domain=self.domain,
            text_fields=fields,
            category_fields=self._category_fields(fields),
            source=f"{items.name}, {events.name}",
        )

    def _text_fields(self, columns: Sequence[str], item_id: str) -> list[str]:
        fields = self.text_fields
        if fields is None and not (fields := tuple(names.guess_text_fields(columns, item_id))):
            raise DataError(
                f"{self.items.name} has no column that looks like text; name them with --text-fields."
            )
        for_each = dict.fromkeys(fields or ())
        sought = (Sought(f"text field {field}", (), field, "--text-fields") for field in for_each)
        require_columns(self.items.name, columns, *sought)
        return list(fields or ())

    def _category_fields(self, text_fields: list[str]) -> Sequence[str]:
        if self.category_fields is None:
            return names.guess_category_fields(text_fields)
        if unknown := [field for field in self.category_fields if field not in text_fields]:
            raise DataError(
                f"{self.items.name}: the category field {' and '.join(map(repr, unknown))} is none of the "
                f"text fields ({', '.join(text_fields)}); name some of these with --category-fields."
            )
        return self.category_fields

    def _events(
        self,
        file: RawFile,
        histories: EventCollector,
        frame: pl.DataFrame,
        separators: dict[str, str | None],
    ) -> pl.DataFrame:
        """Return one event per row: user_id, item_id, timestamp (text or null), `ROW`, `RAW`.

        `separators` keeps the separator of a column's lists, once a batch has shown it.
        """
        found = frame.columns
        user = Sought("user id", names.USER_ID, self.user_id, "--user-id")
        item_list = self._item_list(file.name, found)
        if item_list is not None:
            (user_id,), item_id = require_columns(file.name, found, user), item_list
            chosen = {"user id": names.chosen_of(found, names.USER_ID, user_id), "list of items": item_list}
        else:
            usual = self._usual_item_ids(file.name, found)
            item = Sought(
                "item id or list of items", usual, self.event_item_id, "--event-item-id or --item-list"
            )
            user_id, item_id = require_columns(file.name, found, user, item)
            chosen = {
                "user id": names.chosen_of(found, names.USER_ID, user_id),
                "item id": names.chosen_of(found, usual, item_id),
            }
        file.info.columns |= chosen
        times = self._times(histories, frame, user_id)
        rows = frame.select(ROW, RAW, user_id=user_id, item_id=item_id, timestamp=times)
        return rows if item_list is None else _one_per_row(file, rows, separators)

    def _item_list(self, file: str, columns: Sequence[str]) -> str | None:
        """Return the column of lists of items, or None where events are one per row.

        Such a file may have a column called "history" too; a column "id" alone need not be the item id.
        """
        if self.event_item_id or (self.item_list is None and find_column(columns, names.ITEM_ID[:-1])):
            return None
        found = find_column(columns, names.ITEM_LIST, self.item_list)
        if self.item_list is not None and found is None:
            require_columns(file, columns, Sought("list of items", (), self.item_list, "--item-list"))
        return found

    def _usual_item_ids(self, file: str, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the names that an item id may have; with other columns, "id" numbers the events."""
        user_id = find_column(columns, names.USER_ID, self.user_id)
        others = (c for c in columns if c.isprintable() and c not in {user_id, self.timestamp})
        numbered = any(c.lower() != "id" and find_time_column(file, [c]) is None for c in others)
        return tuple(name for name in names.ITEM_ID if name != user_id and not (numbered and name == "id"))

    def _times(self, histories: EventCollector, frame: pl.DataFrame, user_id: str) -> pl.Expr:
        """Return the time of each row: the column that was named or found, or two columns joined."""
        info, columns, named = histories.times, frame.columns, self.timestamp
        if named is None:
            named = find_time_column(info.file, [column for column in columns if column != user_id])
            if named is not None and info.n == 0:  # the first frame is enough
                refuse_separate_clock(info.file, frame, named)
        if named is None:
            if info.n == 0:
                info.looks_like_time = time_like_columns(frame, [user_id])
            return pl.lit(None, pl.String)
        info.column = named
        parts = [named] if named in columns else [part.strip() for part in named.split(",")]
        for part in parts:
            require_columns(info.file, columns, Sought("time", (), part, "--timestamp"))
        if len(parts) == 1:
            return pl.col(named)
        return pl.concat_str(pl.col(parts[0]).str.replace(MIDNIGHT, ""), *parts[1:], separator=" ")


def _one_per_row(file: RawFile, rows: pl.DataFrame, separators: dict[str, str | None]) -> pl.DataFrame:
    """Turn rows of one user with lists into rows of one event."""
    rows = _read_lists(file, rows, "item_id", separators)
    rows = file.keep(rows, pl.col("item_id").list.len() > 0, "no items in the list")
    timed = rows["timestamp"].is_not_null().any()
    if not timed:
        rows = rows.with_columns(pl.lit(None, pl.String).alias("timestamp"))
    else:
        rows = _read_lists(file, rows, "timestamp", separators)
        n_times = pl.col("timestamp").list.len()
        good = (n_times == 0) | (n_times == pl.col("item_id").list.len())
        rows = file.keep(rows, good, "another number of times than of items")
        empty = pl.col("item_id").list.eval(pl.lit(None, pl.String))
        rows = rows.with_columns(pl.when(n_times == 0).then(empty).otherwise("timestamp").alias("timestamp"))
    rows = rows.explode(["item_id", "timestamp"] if timed else ["item_id"])
    entry = pl.concat_str("item_id", "timestamp", separator=" ", ignore_nulls=True).alias(RAW)
    return rows.with_columns(pl.col("timestamp").cast(pl.String), entry)


def _read_lists(
    file: RawFile, rows: pl.DataFrame, column: str, separators: dict[str, str | None]
) -> pl.DataFrame:
    """Return the rows with a column read as lists; a cell that opens like a list but is none is refused."""
    times = column == "timestamp"
    if column not in separators:
        separators[column] = separator_of(rows[column], times=times)
    rows = rows.with_columns(read_lists(rows[column], separators[column], times=times).alias(column))
    reason = "the list of times cannot be read" if times else "the list of items cannot be read"
    return file.keep(rows, pl.col(column).is_not_null(), reason)
