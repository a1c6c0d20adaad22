"""Amazon-M2 (sessions of one locale), and Amazon reviews of 2018 and 2023 (reviews and metadata).

Review texts are left out: users write them after the purchase.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from trsr.data.columns import Sought, find_column, require_columns
from trsr.data.ingest import EventCollector, ItemCollector, single
from trsr.data.raw_file import ImportOptions, RatedOptions, RawFile, option
from trsr.data.text_lines import RAW, ROW
from trsr.data.values import clean_cell, read_lists, separator_of
from trsr.data.writer import DatasetWriter
from trsr.errors import DataError

M2_TEXT_FIELDS = ("title", "price", "brand", "color", "size", "model", "material", "author", "desc")
_LOCALE = Sought("locale", ("locale",))
_M2_ITEM = Sought("item id", ("id",))
_PREVIOUS = Sought("earlier items", ("prev_items",))
_NEXT = Sought("next item", ("next_item",))
_NO_PRICE = "40000000.07"  # of products without a price


class AmazonM2Import(ImportOptions):
    """Import one locale of Amazon-M2: products_train.csv and sessions_train.csv.

    Example: trsr import amazon-m2 kddcup2023 --locale UK --out data/m2-uk
    """

    kind: Literal["amazon-m2"] = "amazon-m2"
    source: Path = Field(description="Folder that holds the raw files.")
    locale: str = option("UK, DE, JP, ES, FR or IT; other rows are left out.", "UK")
    name: str = option("Name in reports.", "amazon-m2")
    products: str = option("Products file in SOURCE.", "products_train.csv")
    sessions: str = option("Sessions file in SOURCE.", "sessions_train.csv")

    def read(self, writer: DatasetWriter) -> Path:
        """Read the products and the sessions of the locale."""
        products = RawFile(writer, self.source / self.products, self)
        sessions = RawFile(writer, self.source / self.sessions, self)
        items = ItemCollector(products, M2_TEXT_FIELDS)
        for frame in products.frames():
            item_id, _ = require_columns(products.name, frame.columns, _M2_ITEM, _LOCALE)
            found = {find_column(frame.columns, (field,)): field for field in M2_TEXT_FIELDS}
            names = {column: field for column, field in found.items() if column is not None}
            rows = self._of_locale(products, frame).rename(names)
            none = pl.col("price").str.strip_chars() == _NO_PRICE
            items.add(_blank(products, rows, "price", none, "prices_that_say_missing"), item_id)
        if items.ids.is_empty():
            raise DataError(
                f"{products.name} has no product of the locale {self.locale!r}; choose another --locale."
            )
        events = EventCollector(sessions, items.ids, fixed_columns=True)
        events.times.expected = False
        for frame in sessions.frames():
            events.add(self._sessions(sessions, frame))
        events.finish()
        folder = self.source.name
        return writer.finish(
            name=self.name,
            domain="products",
            text_fields=M2_TEXT_FIELDS,
            category_fields=("brand",),
            source=f"Amazon-M2, locale {self.locale}: {folder}/{self.products}, {folder}/{self.sessions}",
        )

    def _of_locale(self, file: RawFile, frame: pl.DataFrame) -> pl.DataFrame:
        (column,) = require_columns(file.name, frame.columns, _LOCALE)
        rows = single(frame, column).filter(pl.col(column).str.strip_chars() == self.locale)
        file.writer.counts["rows_of_other_locales"] += len(frame) - len(rows)
        return rows

    def _sessions(self, file: RawFile, frame: pl.DataFrame) -> pl.DataFrame:
        """Return one click per row; a session is a user."""
        previous, following, _ = require_columns(file.name, frame.columns, _PREVIOUS, _NEXT, _LOCALE)
        frame = self._of_locale(file, frame)
        lists = read_lists(frame[previous], separator_of(frame[previous]))
        frame = single(frame, following).with_columns(lists.alias(previous), clean_cell(following))
        for good, reason in (
            (pl.col(previous).is_not_null(), "the list of items cannot be read"),
            (pl.col(previous).list.len() > 0, "no earlier items"),
            (pl.col(following).is_not_null(), "no next item"),
        ):
            frame = file.keep(frame, good, reason)
        clicks = frame.select(
            ROW,
            user_id="session-" + pl.col(ROW).cast(pl.String),
            item_id=pl.concat_list(previous, following),
            timestamp=pl.lit(None, pl.String),
        ).explode("item_id")
        return clicks.with_columns(pl.col("item_id").alias(RAW))


def _blank(file: RawFile, frame: pl.DataFrame, column: str, none: pl.Expr, count: str) -> pl.DataFrame:
    """Make texts of a column null where `none` is true, and count them as `count`."""
    if frame.schema.get(column) != pl.String:
        return frame
    none = none.fill_null(False)
    file.count(count, int(frame.select(none.sum()).item()))
    return frame.with_columns(pl.when(~none).then(column).alias(column))


_ITEM = Sought("item id", ("parent_asin", "asin"))
_USER = Sought("user id", ("user_id", "reviewerID"))
_TIME = Sought("time", ("timestamp", "sort_timestamp", "unixReviewTime"))
_RATING = Sought("rating", ("rating", "overall"))
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


class AmazonReviewsImport(RatedOptions):
    """Import Amazon reviews of 2018 or 2023: reviews and metadata as JSON Lines, plain or gz.

    Example: trsr import amazon-reviews Office_Products --min-rating 4 --out data/office
    """

    kind: Literal["amazon-reviews"] = "amazon-reviews"
    source: Path = Field(description="Folder that holds the raw files.")
    name: str = option("Name in reports.", "amazon-reviews")
    reviews: str | None = option("Review file in SOURCE; found automatically if it is the only one.")
    metadata: str | None = option("Metadata file in SOURCE; found by its name, meta* or *_meta_*.")

    def read(self, writer: DatasetWriter) -> Path:
        """Read the metadata and the reviews."""
        review_file = self._pick(self.reviews, "reviews")
        meta_file = self._pick(self.metadata, "metadata")
        metadata, reviews = RawFile(writer, meta_file, self), RawFile(writer, review_file, self)
        items = ItemCollector(metadata, list(TEXT_FIELDS))
        wanted = {*_ITEM.usual, *(key for keys in TEXT_FIELDS.values() for key in keys)}
        for frame in metadata.frames(keep=wanted):
            (item_id,) = require_columns(metadata.name, frame.columns, _ITEM, unread=_first_keys(frame))
            script = pl.col("title").str.contains("getTime()", literal=True)  # of the page, in files of 2018
            rows = _blank(metadata, frame, "title", script, "titles_that_were_scripts")
            columns = {field: find_column(frame.columns, names) for field, names in TEXT_FIELDS.items()}
            texts = {field: column for field, column in columns.items() if column is not None}
            items.add(rows.select(ROW, RAW, item_id=item_id, **texts))
        events = EventCollector(reviews, items.ids)
        sought = (_USER, _ITEM, _TIME, _RATING)
        for frame in reviews.frames(keep={key.lower() for one in sought for key in one.usual}):
            events.add_rated(frame, sought, _first_keys(frame))
        events.finish()
        return writer.finish(
            name=self.name,
            domain="products",
            text_fields=list(TEXT_FIELDS),
            category_fields=("categories", "brand"),
            source=f"Amazon reviews: {metadata.name}, {reviews.name}",
        )

    def _pick(self, named: str | None, what: Literal["reviews", "metadata"]) -> Path:
        """Return the file that was named, or the only JSON file (else Parquet or CSV file) of the kind."""
        if named is not None:
            return self.source / named
        if not self.source.is_dir():
            raise DataError(
                f"There is no folder {self.source}; expected one with the review and the metadata file."
            )
        names = sorted(file.name for file in self.source.iterdir())
        named_so = [name for name in names if _is_metadata(name) == (what == "metadata")]
        files = [name for name in named_so if name.endswith(_JSON)]
        files = files or [name for name in named_so if name.endswith(_OTHER)]
        if len(files) != 1:
            found = ", ".join(files) or "none"
            raise DataError(
                f"{self.source} should hold one {what} file (found {found}); name it with --{what}."
            )
        return self.source / files[0]


def _is_metadata(name: str) -> bool:
    return name.lower().startswith("meta") or "_meta_" in name.lower()


def _first_keys(frame: pl.DataFrame) -> list[str]:
    """Return all keys of the first record, read or not, for an error message."""
    try:
        return list(json.loads(str(frame[RAW].first())))
    except (ValueError, TypeError):
        return []
