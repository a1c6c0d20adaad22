"""Amazon-M2 (KDD Cup 2023): `products_train.csv` and `sessions_train.csv`, for one locale.

A session is a user: the file knows nobody beyond it. Its events are `prev_items` and then `next_item`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from trsr.data.collect import EventCollector, ItemCollector, keep_or_refuse
from trsr.data.columns import clean_id, clean_texts, require_column, split_list
from trsr.data.import_info import MAX_REJECTS
from trsr.data.rawtables import RAW, ROW
from trsr.data.reading import RawFiles, TextSettings
from trsr.data.tables import Dataset, DatasetWriter
from trsr.errors import DataError

TEXT_FIELDS = ("title", "price", "brand", "color", "size", "model", "material", "author", "desc")


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
            item_id = require_column(products, frame.columns, "item id", ("id",))
            rows = _of_locale(writer, products, frame, locale)
            items.add(
                rows.select(pl.col(item_id).alias("item_id"), ROW, RAW, *clean_texts(rows, TEXT_FIELDS))
            )
        if items.ids.is_empty():
            raise DataError(f"{products} has no product of the locale {locale!r}; choose another --locale.")
        events = EventCollector(writer, sessions, items.ids, fixed_columns=True)
        events.times.expected = False
        for frame in raw.frames(source / sessions):
            _add_sessions(writer, sessions, _of_locale(writer, sessions, frame, locale), events)
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
    rows = frame.filter(pl.col(column).str.strip_chars() == locale)
    writer.counts["rows_of_other_locales"] += len(frame) - len(rows)
    return rows


def _add_sessions(writer: DatasetWriter, file: str, frame: pl.DataFrame, events: EventCollector) -> None:
    previous = require_column(file, frame.columns, "earlier items", ("prev_items",))
    following = require_column(file, frame.columns, "next item", ("next_item",))
    frame = frame.with_columns(
        split_list(previous, frame.schema[previous]).alias(previous), clean_id(following).alias(following)
    )
    frame = keep_or_refuse(writer, file, frame, pl.col(previous).list.len() > 0, "no earlier items")
    frame = keep_or_refuse(writer, file, frame, pl.col(following).is_not_null(), "no next item")
    clicks = frame.select(
        ("session-" + pl.col(ROW).cast(pl.String)).alias("user_id"),
        pl.concat_list(previous, following).alias("item_id"),
        pl.lit(None, pl.String).alias("timestamp"),
        ROW,
    ).explode("item_id")
    events.add(clicks.with_columns(pl.col("item_id").alias(RAW)))
