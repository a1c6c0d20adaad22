"""Amazon-M2 (KDD Cup 2023): `products_train.csv` and `sessions_train.csv`, for one locale.

A session is a user: the file knows nobody beyond it. Its events are `prev_items` and then `next_item`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from trsr.data.collect import EventCollector, ItemCollector, item_rows, keep_or_refuse, single
from trsr.data.columns import Sought, find_column, require_column, require_columns
from trsr.data.import_info import MAX_REJECTS
from trsr.data.rawtables import RAW, ROW
from trsr.data.reading import RawFiles, TextSettings
from trsr.data.tables import Dataset, DatasetWriter
from trsr.data.values import clean_cell, read_lists, separator_of
from trsr.errors import DataError

TEXT_FIELDS = ("title", "price", "brand", "color", "size", "model", "material", "author", "desc")

LOCALE = Sought("locale", ("locale",))
PREVIOUS = Sought("earlier items", ("prev_items",))
NEXT = Sought("next item", ("next_item",))
NO_PRICE = "40000000.07"  # of products without a price


class AmazonM2Import(TextSettings):
    """Options of `import_amazon_m2` as a configuration carries them."""

    kind: Literal["amazon-m2"] = "amazon-m2"
    source: Path
    name: str = "amazon-m2"
    locale: str = "UK"
    products: str = "products_train.csv"
    sessions: str = "sessions_train.csv"


def import_amazon_m2(
    source: str | Path,
    out: str | Path,
    *,
    name: str = "amazon-m2",
    locale: str = "UK",
    products: str = "products_train.csv",
    sessions: str = "sessions_train.csv",
    delimiter: str | None = None,
    encoding: str | None = None,
    max_rejects: float = MAX_REJECTS,
    overwrite: bool = False,
) -> Dataset:
    """Make a dataset folder from one locale of Amazon-M2.

    Args:
        source: The folder that holds the two files.
        out: The dataset folder to make.
        name: Stands in reports.
        locale: "UK", "DE", "JP", "ES", "FR" or "IT"; rows of other locales are counted and left out.
        products: File of the products in `source`, plain or gz.
        sessions: File of the sessions in `source`, plain or gz.
        delimiter: What separates the fields of delimited files; found in their first lines by default.
        encoding: Encoding of text files; found in their first 4 MB by default.
        max_rejects: Largest share of a file's rows that may be unreadable, in [0, 1].
        overwrite: Replace an existing dataset at `out`.

    Raises:
        DataError: a file or a column is missing, or the locale has no rows.
    """
    source = Path(source)
    with DatasetWriter(out, overwrite=overwrite) as writer:
        raw = RawFiles(writer, delimiter, encoding, max_rejects)
        items = ItemCollector(writer, products, TEXT_FIELDS)
        for frame in raw.frames(source / products):
            item_id, _ = require_columns(products, frame.columns, Sought("item id", ("id",)), LOCALE)
            rows = _with_field_names(_of_locale(writer, products, frame, locale))
            items.add(item_rows(writer, _without_no_price(writer, rows), item_id, TEXT_FIELDS))
        if items.ids.is_empty():
            raise DataError(f"{products} has no product of the locale {locale!r}; choose another --locale.")
        events = EventCollector(writer, sessions, items.ids, fixed_columns=True)
        events.times.expected = False
        for frame in raw.frames(source / sessions):
            _add_sessions(writer, sessions, frame, locale, events)
        events.finish()
        return writer.finish(
            name=name,
            domain="products",
            text_fields=TEXT_FIELDS,
            category_fields=("brand",),
            source=f"Amazon-M2, locale {locale}: {source.name}/{products}, {source.name}/{sessions}",
        )


def _of_locale(writer: DatasetWriter, file: str, frame: pl.DataFrame, locale: str) -> pl.DataFrame:
    column = require_column(file, frame.columns, "locale", ("locale",))
    rows = single(frame, column).filter(pl.col(column).str.strip_chars() == locale)
    writer.counts["rows_of_other_locales"] += len(frame) - len(rows)
    return rows


def _with_field_names(frame: pl.DataFrame) -> pl.DataFrame:
    """Give the text columns the names in `TEXT_FIELDS`, in whatever case the file writes them."""
    found = {find_column(frame.columns, (field,)): field for field in TEXT_FIELDS}
    return frame.rename({column: field for column, field in found.items() if column is not None})


def _without_no_price(writer: DatasetWriter, frame: pl.DataFrame) -> pl.DataFrame:
    """Make the price null where it is the number that stands for "no price" in this data set."""
    if frame.schema.get("price") != pl.String:
        return frame
    none = (pl.col("price").str.strip_chars() == NO_PRICE).fill_null(False)
    if n := int(frame.select(none.sum()).item()):
        writer.counts["prices_that_say_missing"] += n
        frame = frame.with_columns(pl.when(~none).then("price").alias("price"))
    return frame


def _add_sessions(
    writer: DatasetWriter, file: str, frame: pl.DataFrame, locale: str, events: EventCollector
) -> None:
    previous, following, _ = require_columns(file, frame.columns, PREVIOUS, NEXT, LOCALE)
    frame = _of_locale(writer, file, frame, locale)
    lists = read_lists(frame[previous], separator_of(frame[previous]))
    frame = single(frame, following).with_columns(lists.alias(previous), clean_cell(following))
    good = pl.col(previous).is_not_null()
    frame = keep_or_refuse(writer, file, frame, good, "the list of items cannot be read")
    frame = keep_or_refuse(writer, file, frame, pl.col(previous).list.len() > 0, "no earlier items")
    frame = keep_or_refuse(writer, file, frame, pl.col(following).is_not_null(), "no next item")
    clicks = frame.select(
        ("session-" + pl.col(ROW).cast(pl.String)).alias("user_id"),
        pl.concat_list(previous, following).alias("item_id"),
        pl.lit(None, pl.String).alias("timestamp"),
        ROW,
    ).explode("item_id")
    events.add(clicks.with_columns(pl.col("item_id").alias(RAW)))
