"""The usual names of columns in recommendation data: how a column is found, or its absence explained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trsr.data.values import CATEGORIES
from trsr.errors import DataError

ITEM_ID = (
    *("item_id", "item", "itemId", "parent_asin", "asin", "news_id", "movieId", "movie_id", "product_id"),
    "id",
)
USER_ID = (
    *("user_id", "user", "userId", "reviewerID", "uid", "customer_id", "customerId", "visitorid"),
    *("visitor_id", "session_id"),
)
ITEM_LIST = ("items", "item_ids", "history", "prev_items", "sequence")
# Columns that are no text for a reader: ids, addresses, machine annotations, row numbers of exporters.
_NO_TEXT = re.compile(
    r"(^|_)(id|ids|asin|url|uri|link|image|images|entities)$|Id$|ID$|URL"
    r"|^(Unnamed: \d+|column_\d+|index|level_\d+|__index_level_\d+__|rownames)$",
    re.ASCII,
)


def find_column(columns: Sequence[str], usual: Sequence[str], named: str | None = None) -> str | None:
    """Return the column that was named, else the first usual name, else the first in another case, else None.

    Raises:
        DataError: several columns are such a name in other cases, so that none can be chosen.
    """
    if named is not None:
        return named if named in columns else None
    for name in usual:
        alike = [column for column in columns if column.lower() == name.lower()]
        if name in alike or len(alike) == 1:
            return name if name in alike else alike[0]
        if alike:
            raise DataError(
                f"The columns {' and '.join(map(repr, alike))} differ in case only, and each could be the "
                f"{name}; name the one that is meant, or rename the other."
            )
    return None


def chosen_of(columns: Sequence[str], usual: Sequence[str], column: str) -> str:
    """Return the column that was chosen, with the others in words that have a usual name too."""
    names = {name.lower() for name in usual}
    others = [other for other in columns if other.lower() in names and other != column]
    return f"{column} (not {' or '.join(others)})" if others else column


@dataclass(frozen=True, slots=True)
class Sought:
    """A column to find: what it holds, its usual names, the name the user gave, the option to name it."""

    meaning: str
    usual: Sequence[str] = ()
    named: str | None = None  # then no other will do
    option: str | None = None


def require_columns(
    file: str, columns: Sequence[str], *sought: Sought, unread: Iterable[str] = ()
) -> list[str]:
    """Return the columns with these meanings; `unread` names others that the file has.

    Raises:
        DataError: some are missing; the sentence says which ones, what was looked for and what the file has.
    """
    found = [find_column(columns, one.usual, one.named) for one in sought]
    missing = [one for one, column in zip(sought, found, strict=True) if column is None]
    if not missing:
        return [column for column in found if column is not None]
    there = ", ".join(c for c in dict.fromkeys([*columns, *unread]) if c.isprintable()) or "none"
    names = [repr(one.named) if one.named is not None else ", ".join(one.usual) for one in missing]
    said = [f"for the {one.meaning} (looked for {name}" for one, name in zip(missing, names, strict=True)]
    options = [one.option for one in missing if one.option]
    advice = f"name {'one' if len(missing) == 1 else 'them'} with {' and '.join(options)}"
    raise DataError(
        f"{file} has no column "
        + (f"{said[0]}; found {there})" if len(said) == 1 else f"{') and none '.join(said)}); found {there}")
        + f"; {advice if options else 'check that it is the right file'}."
    )


def plain_names(names: Iterable[str]) -> list[str]:
    """Return column names without invisible characters, and none that polars reads as a pattern.

    A column without a name is called by its place, `column_3`. No name can be one of this package's own,
    which hold a control character.
    """
    plain = []
    for place, name in enumerate(names, start=1):
        seen = "".join(c for c in name if c.isprintable()).strip()
        if seen.startswith("^") and seen.endswith("$"):
            seen = seen.strip("^$").strip()
        plain.append(f"column_{place}" if seen in {"", "*"} else seen)
    return plain


def guess_text_fields(columns: Iterable[str], item_id: str) -> list[str]:
    """Return the columns that look like text for a reader: all but ids, addresses and row numbers."""
    return [c for c in columns if c != item_id and c.isprintable() and not _NO_TEXT.search(c)]


def guess_category_fields(text_fields: Iterable[str]) -> list[str]:
    """Return those text fields whose name says that they hold categories, brands or the like."""
    return [field for field in text_fields if field.lower() in CATEGORIES]
