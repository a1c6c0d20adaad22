"""Find columns of recommendation data by their usual names, or explain their absence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from trsr.data.times import TimeReader
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
        DataError: several columns are such a name in other cases, and none can be chosen.
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
                f"{name}; name one of them, or rename the other."
            )
    return None


def chosen_of(columns: Sequence[str], usual: Sequence[str], column: str) -> str:
    """Return the column that was chosen, with the others in words that have a usual name too."""
    names = {name.lower() for name in usual}
    others = [other for other in columns if other.lower() in names and other != column]
    return f"{column} (not {' or '.join(others)})" if others else column


@dataclass(frozen=True, slots=True)
class Sought:
    """A column to find: its meaning, its usual names, the name the user gave, the option to name it."""

    meaning: str
    usual: Sequence[str] = ()
    named: str | None = None  # then no other will do
    option: str | None = None


def require_columns(
    file: str, columns: Sequence[str], *sought: Sought, unread: Iterable[str] = ()
) -> list[str]:
    """Return the columns with these meanings; `unread` names others that the file has.

    Raises:
        DataError: some are missing; the message names them, the names looked for and the columns of the file.
    """
    found = [find_column(columns, one.usual, one.named) for one in sought]
    missing = [one for one, column in zip(sought, found, strict=True) if column is None]
    if not missing:
        return [column for column in found if column is not None]
    there = ", ".join(c for c in dict.fromkeys([*columns, *unread]) if c.isprintable()) or "none"
    names = [repr(one.named) if one.named is not None else ", ".join(one.usual) for one in missing]
    missed = [f"for the {one.meaning} (looked for {name}" for one, name in zip(missing, names, strict=True)]
    options = [one.option for one in missing if one.option]
    advice = f"name {'one' if len(missing) == 1 else 'them'} with {' and '.join(options)}"
    raise DataError(
        f"{file} has no column "
        + (
            f"{missed[0]}; found {there})"
            if len(missed) == 1
            else f"{') and none '.join(missed)}); found {there}"
        )
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
    """Return the text fields that by name hold categories, brands or the like."""
    return [field for field in text_fields if field.lower() in CATEGORIES]


# Names of a time column, in lower case, letters and digits only; the first group that a file has decides.
_ACT = (
    "event|order|purchase|purchased|transaction|trans|txn|sale|sales|invoice|click|clicked|view|viewed|visit|"
    "session|"
    "interaction|action|activity|rating|rated|review|reviewed|unixreview|watch|watched|play|played|read|listen|"
    "listened|request|server|log|logged|hit|impression|checkin|comment|post|posted|submit|submitted|submission|"
    "ordered|placed|bought|sold|occurred|happened|received|booking|booked|payment|paid|basket|cart|unix|utc|local"
)
_CLOCKS = (
    "timestamp|timestamps|time|times|datetime|datetimes|dt|date|dates|day|at|on|ts|tstamp|epoch|timeutc|tsutc"
)
_TIME_NAMES = tuple(
    re.compile(f"^(?:{names})$")
    for names in (
        "timestamps?",
        "unixreviewtime",
        f"(?:{_ACT}){{1,2}}(?:{_CLOCKS})(?:ms|us|ns|s|utc|local|gmt)?",
        "datetimes?|dateandtime|dateheure|timestampms|timestamputc|tsms|tss|ts|tstamp|epoch|epochms|unixtimestamps?|unixtime|utctime|timeutc|tdat",
        "times?|dates?|datum|zeitpunkt|fecha",
        f"(?:creat|insert|add|record|ingest|captur|sent|collect)(?:e|ed|ion)?(?:{_CLOCKS})|created(?:utc)?|date(?:created|added)|(?:start|begin)(?:{_CLOCKS})|sessionstart",
        f"(?:publish|publication|pub|release|updat|modif|modifi|chang|last[a-z]+)(?:e|ed|ion)?(?:{_CLOCKS})|updated|modified|published",
    )
)
_LOOKS_NAMED = re.compile(
    r"time|date(?!d?base)|datum|fecha|zeit|heure|stamp|epoch|(?:_|^)(?:ts|at|dt)(?:_|$)|[a-z]At$|Ts$|(?:_|^)(?:year|month|day)"
    r"(?:_|$)",
    re.IGNORECASE,
)

_TIME_OF_DAY = r"^\s*(?:[01]?\d|2[0-3]):[0-5]\d(?::\d{2}(?:[.,]\d+)?)?\s*(?:[AaPp]\.?[Mm]\.?)?\s*$"
_DURATION = re.compile("durat|dauer|dur[ée]e|elapsed|dwell|length|spent|runtime|laufzeit", re.IGNORECASE)
MIDNIGHT = r"[T ]00:00(?::00(?:\.0+)?)?$"  # the end of a date in a column that holds times too


def find_time_column(file: str, columns: Sequence[str], option: str = "--timestamp") -> str | None:
    """Return the column that by its name holds the time of an event, or None.

    Raises:
        DataError: two names are equally good.
    """
    plain = {c: re.sub(r"[\W_]+", "", c).lower() for c in columns if c.isprintable()}
    for pattern in _TIME_NAMES:
        found = [c for c, name in plain.items() if pattern.match(name)]
        if len(found) > 1:
            date = next((c for c in found if plain[c].endswith("date")), None)
            clock = next(
                (c for c in found if date and plain[c] == plain[date].removesuffix("date") + "time"), None
            )
            join = f", or {option} {date},{clock} to join the two" if clock else ""
            raise DataError(
                f"{file} has several columns that can be the time ({', '.join(found)}); name one with "
                f"{option}{join}."
            )
        if found:
            return found[0]
    return None


def refuse_separate_clock(file: str, frame: pl.DataFrame, date: str, option: str = "--timestamp") -> None:
    """Refuse a column of dates where another column holds times of day, which would be lost silently.

    Raises:
        DataError: there is such a column.
    """
    texts = {c: frame[c].drop_nulls().head(50) for c in frame.columns if frame.schema[c] == pl.String}
    if date not in texts or texts[date].str.replace(MIDNIGHT, "").str.contains(r"\d:\d|\dT\d").any():
        return
    for column, cells in texts.items():
        if not column.isprintable() or _DURATION.search(column):
            continue
        if len(cells) and cells.str.contains(_TIME_OF_DAY).all():
            raise DataError(
                f"{file} has dates in {date} and times of day in {column}; name {option} {date},{column} to "
                f"join the two, or {option} {date} for the date alone."
            )


def time_like_columns(frame: pl.DataFrame, without: Iterable[str | None] = ()) -> list[str]:
    """Return the columns of a frame that by their name or their first values look like times."""
    skip = set(without)
    found = []
    for column, dtype in frame.schema.items():
        if column in skip or not column.isprintable() or dtype != pl.String:
            continue
        texts = frame[column].drop_nulls().head(50)
        if len(texts) and (_LOOKS_NAMED.search(column) or _mostly_times(texts)):
            found.append(column)
    return found


def _mostly_times(texts: pl.Series) -> bool:
    digits = texts.filter(texts.str.contains(r"[0-9]{8}|[0-9].*[-/.: ].*[0-9]"))  # else it is none for sure
    if len(digits) <= len(texts) * 0.9:
        return False
    times, later = TimeReader("", "").read(digits)
    dates = times.is_not_null() | (later & digits.cast(pl.Float64, strict=False).is_null())
    return int(dates.sum()) > len(texts) * 0.9
