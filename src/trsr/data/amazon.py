"""Amazon reviews of 2018 and 2023: one file of reviews, one of metadata, JSON Lines, plain or gz.

Both years are read with the same names looked up in turn; 2023 joins on `parent_asin`. What a review says is
left out: it is written after the purchase, about the item, by one user.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from trsr.data.columns import Sought, find_column, require_column, require_columns
from trsr.data.dataset import Dataset
from trsr.data.import_info import MAX_REJECTS
from trsr.data.ingest import (
    EventCollector,
    ItemCollector,
    at_least,
    check_threshold,
    item_rows,
    keep_or_refuse,
    single,
)
from trsr.data.readers import RAW, ROW
from trsr.data.reading import RawFiles, TextSettings, TimeSettings
from trsr.data.values import clean_cell, read_lists, separator_of
from trsr.data.writer import DatasetWriter
from trsr.errors import DataError

M2_TEXT_FIELDS = ("title", "price", "brand", "color", "size", "model", "material", "author", "desc")

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
        items = ItemCollector(writer, products, M2_TEXT_FIELDS)
        for frame in raw.frames(source / products):
            item_id, _ = require_columns(products, frame.columns, Sought("item id", ("id",)), LOCALE)
            rows = _with_field_names(_of_locale(writer, products, frame, locale))
            items.add(item_rows(writer, _without_no_price(writer, rows), item_id, M2_TEXT_FIELDS))
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
            text_fields=M2_TEXT_FIELDS,
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
    found = {find_column(frame.columns, (field,)): field for field in M2_TEXT_FIELDS}
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


ITEM = Sought("item id", ("parent_asin", "asin"))
USER = Sought("user id", ("user_id", "reviewerID"))
TIME = Sought("time", ("timestamp", "sort_timestamp", "unixReviewTime"))
RATING = Sought("rating", ("rating", "overall"))
# Field -> the names it has in 2018 and 2023.
TEXT_FIELDS = {
    "title": ("title",),
    "brand": ("brand", "store"),
    "categories": ("categories", "category"),
    "price": ("price",),
    "features": ("features", "feature"),
    "description": ("description",),
}

_JSON = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_OTHER = (".parquet", ".csv", ".csv.gz")  # forms of 2023 on the Hugging Face hub


class AmazonReviewsImport(TimeSettings):
    """Options of `import_amazon_reviews` as a configuration carries them."""

    kind: Literal["amazon-reviews"] = "amazon-reviews"
    source: Path
    name: str = "amazon-reviews"
    reviews: str | None = None
    metadata: str | None = None
    min_rating: float | None = Field(default=None, allow_inf_nan=False)


def import_amazon_reviews(
    source: str | Path,
    out: str | Path,
    *,
    name: str = "amazon-reviews",
    reviews: str | None = None,
    metadata: str | None = None,
    min_rating: float | None = None,
    time_format: str | None = None,
    keep_untimed: bool = False,
    delimiter: str | None = None,
    encoding: str | None = None,
    max_rejects: float = MAX_REJECTS,
    overwrite: bool = False,
) -> Dataset:
    """Make a dataset folder from a folder with a review file and a metadata file.

    Args:
        source: The folder.
        out: The dataset folder to make.
        name: Stands in reports.
        reviews: The review file in `source`; by default the only JSON file (without any: Parquet or CSV file)
            not called "meta..." or "..._meta_...".
        metadata: The metadata file in `source`; by default the only such file that is called so.
        min_rating: Reviews with fewer stars are counted and left out; None keeps all.
        time_format: How times are written (see `times.TimeReader`); by default what fits the whole column.
        keep_untimed: Keep events without a time where others have one; their users stay in the file's order.
        delimiter: What separates the fields of delimited files; found in their first lines by default.
        encoding: Encoding of text files; found in their first 4 MB by default.
        max_rejects: Largest share of a file's rows that may be unreadable, in [0, 1].
        overwrite: Replace an existing dataset at `out`.

    Raises:
        DataError: a file or a key is missing, several files could be meant, or nothing could be read.
    """
    check_threshold(min_rating)
    source = Path(source)
    review_file = _pick(source, reviews, "reviews", meta=False)
    meta_file = _pick(source, metadata, "metadata", meta=True)
    with DatasetWriter(out, overwrite=overwrite) as writer:
        raw = RawFiles(writer, delimiter, encoding, max_rejects)
        items = ItemCollector(writer, meta_file.name, list(TEXT_FIELDS))
        wanted = {*ITEM.usual, *(key for keys in TEXT_FIELDS.values() for key in keys)}
        for frame in raw.frames(meta_file, keep=wanted):
            items.add(_items(writer, meta_file.name, frame))
        events = EventCollector(
            writer, review_file.name, items.ids, time_format=time_format, keep_untimed=keep_untimed
        )
        keys = {key.lower() for one in (ITEM, USER, TIME, RATING) for key in one.usual}
        for frame in raw.frames(review_file, keep=keys):
            events.times.column = find_column(frame.columns, TIME.usual)
            events.add(_reviews(writer, review_file.name, frame, min_rating))
        events.finish()
        return writer.finish(
            name=name,
            domain="products",
            text_fields=list(TEXT_FIELDS),
            category_fields=("categories", "brand"),
            source=f"Amazon reviews: {meta_file.name}, {review_file.name}",
        )


def _pick(source: Path, named: str | None, what: str, *, meta: bool) -> Path:
    if named is not None:
        return source / named
    if not source.is_dir():
        raise DataError(f"There is no folder {source}; expected one with the review and the metadata file.")
    named_so = [f for f in sorted(source.iterdir()) if _is_metadata(f.name) == meta]
    files = [f for f in named_so if f.name.endswith(_JSON)] or [
        f for f in named_so if f.name.endswith(_OTHER)
    ]
    if len(files) != 1:
        found = ", ".join(f.name for f in files) or "none"
        raise DataError(f"{source} should hold one {what} file (found {found}); name it with --{what}.")
    return files[0]


def _is_metadata(name: str) -> bool:
    return name.lower().startswith("meta") or "_meta_" in name.lower()


def _require(file: str, frame: pl.DataFrame, *sought: Sought) -> list[str]:
    """Find columns; where some are missing, the error names all keys of the first record, read or not."""
    try:
        keys = list(json.loads(str(frame[RAW].first())))
    except (ValueError, TypeError):
        keys = []
    return require_columns(file, frame.columns, *sought, unread=keys)


def _items(writer: DatasetWriter, file: str, frame: pl.DataFrame) -> pl.DataFrame:
    (item_id,) = _require(file, frame, ITEM)
    columns = {field: find_column(frame.columns, names) for field, names in TEXT_FIELDS.items()}
    frame = _without_scripts(writer, frame)
    named = frame.select(
        pl.col(item_id).alias("item_id"),
        ROW,
        RAW,
        *(pl.col(column).alias(field) for field, column in columns.items() if column is not None),
    )
    return item_rows(writer, named, "item_id", list(TEXT_FIELDS))


def _without_scripts(writer: DatasetWriter, frame: pl.DataFrame) -> pl.DataFrame:
    """Make titles null that are a script of the page, as some are in the files of 2018, and count them."""
    if frame.schema.get("title") != pl.String:
        return frame
    script = pl.col("title").str.contains("getTime()", literal=True).fill_null(False)
    if n := int(frame.select(script.sum()).item()):
        writer.counts["titles_that_were_scripts"] += n
        frame = frame.with_columns(pl.when(~script).then("title").alias("title"))
    return frame


def _reviews(writer: DatasetWriter, file: str, frame: pl.DataFrame, min_rating: float | None) -> pl.DataFrame:
    sought = (ITEM, USER, TIME) if min_rating is None else (ITEM, USER, TIME, RATING)
    item_id, user_id, time, *rating = _require(file, frame, *sought)
    if min_rating is not None:
        frame = at_least(writer, file, frame, rating[0], min_rating)
    return frame.select(
        pl.col(user_id).alias("user_id"),
        pl.col(item_id).alias("item_id"),
        pl.col(time).alias("timestamp"),
        ROW,
        RAW,
    )
