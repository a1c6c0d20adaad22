"""The usual names of columns in recommendation data, and how a column is found or its absence explained.

Importers ask for a meaning ("the item id"); this module knows how the field's data sets call it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import polars as pl

from trsr.errors import DataError

ITEM_ID = (
    "item_id",
    "item",
    "itemId",
    "parent_asin",
    "asin",
    "news_id",
    "movieId",
    "movie_id",
    "product_id",
    "id",
)
USER_ID = ("user_id", "user", "userId", "reviewerID", "uid", "session_id", "visitorid")
ITEM_LIST = ("items", "item_ids", "history", "prev_items", "sequence")
CATEGORIES = (
    "category",
    "categories",
    "subcategory",
    "main_category",
    "genres",
    "genre",
    "brand",
    "store",
    "author",
)
# Columns that are no text for a reader: ids, addresses, machine annotations.
_NO_TEXT = re.compile(r"(^|_)(id|ids|asin|url|uri|link|image|images|entities)$|Id$|ID$|URL", re.ASCII)
_MISSING = ("", "nan", "NaN")


def find_column(columns: Sequence[str], usual: Sequence[str], named: str | None = None) -> str | None:
    """Return the column that was named, else the first usual name in any case, else None."""
    if named is not None:
        return named if named in columns else None
    lower = {column.lower(): column for column in reversed(columns)}
    return next((lower[name.lower()] for name in usual if name.lower() in lower), None)


def require_column(
    file: str,
    columns: Sequence[str],
    meaning: str,
    usual: Sequence[str],
    named: str | None = None,
    option: str | None = None,
) -> str:
    """Return the column with this meaning.

    Args:
        file: Name of the file, for the error.
        columns: What the file has.
        meaning: What is looked for, in words.
        usual: Names it may have.
        named: The name that the user gave, if any; then no other will do.
        option: The option by which a user can name the column, if there is one.

    Raises:
        DataError: there is none; the sentence says what was looked for and what the file has.
    """
    column = find_column(columns, usual, named)
    if column is not None:
        return column
    found = ", ".join(c for c in columns if not c.startswith("__")) or "none"
    looked_for = repr(named) if named is not None else ", ".join(usual)
    advice = f"name one with {option}" if option else "check that it is the right file"
    raise DataError(
        f"{file} has no column for the {meaning} (looked for {looked_for}; found {found}); {advice}."
    )


def guess_text_fields(columns: Iterable[str], without: Iterable[str]) -> list[str]:
    """Return the columns that look like text for a reader: all but ids, addresses and those in `without`."""
    skip = set(without)
    return [c for c in columns if c not in skip and not c.startswith("__") and not _NO_TEXT.search(c)]


def guess_category_fields(text_fields: Iterable[str]) -> list[str]:
    """Return those text fields whose name says that they hold categories, brands or the like."""
    return [field for field in text_fields if field.lower() in CATEGORIES]


def clean_id(column: str) -> pl.Expr:
    """Return an id without white space around it; null where there is none."""
    text = pl.col(column).str.strip_chars()
    return pl.when(text.is_in(_MISSING)).then(None).otherwise(text)


def clean_texts(frame: pl.DataFrame, fields: Iterable[str]) -> list[pl.Expr]:
    """Return the text fields of a frame: no white space around them, null for missing, empty and NaN.

    A list is joined with blanks, or with "|" where the name of the field says that it holds categories.
    """
    return [_clean_text(field, frame.schema.get(field)) for field in fields]


def _clean_text(column: str, dtype: pl.DataType | None) -> pl.Expr:
    if dtype is None:
        return pl.lit(None, pl.String).alias(column)
    text = pl.col(column)
    if isinstance(dtype, pl.List):
        parts = text.list.eval(pl.element().str.strip_chars())
        text = parts.list.eval(pl.element().filter(pl.element().is_not_null() & (pl.element() != "")))
        text = text.list.join("|" if column.lower() in CATEGORIES else " ")
    text = text.cast(pl.String).str.strip_chars()
    return pl.when(text.is_in(_MISSING)).then(None).otherwise(text).alias(column)


def split_list(column: str, dtype: pl.DataType) -> pl.Expr:
    """Return a list column; a text such as `a b c`, `a|b`, `['a' 'b']` or `["a", "b"]` is taken apart."""
    if isinstance(dtype, pl.List):
        return pl.col(column)
    return pl.col(column).str.extract_all(r"[^\s,|\[\]'\"]+")


def split_times(column: str, dtype: pl.DataType) -> pl.Expr:
    """Return a list column of times; a text is taken apart at commas and `|`, as times may hold blanks."""
    if isinstance(dtype, pl.List):
        return pl.col(column)
    return pl.col(column).str.extract_all(r"[^,|\[\]'\"]+").list.eval(pl.element().str.strip_chars())
