"""Facts about the raw files of an import, kept in `dataset.json`, and how many rows it may refuse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict

MAX_REJECTS = 0.05
# Rejects for these reasons do not count as unreadable rows; references are counted apart.
REFERENCES = (
    "unknown item",
    "history entry without a news row",
    "tags of an unknown film",
    "overview of an unknown film",
    "no film has this tmdb id",
)
READABLE = (
    "item id seen before with another text",
    "impression id seen before",
    "second overview of the film",
    "the header line again",
    "no items in the list",
    "no earlier items",
    "no time",
)
_ADVICE = {
    ": time cannot be read": "give the format of the times with --time-format",
    ": not UTF-8": "name the encoding with --encoding",
    ": another number of columns than the header": "name the delimiter with --delimiter",
}


class TimesInfo(BaseModel):
    """Facts about the times in the raw files."""

    model_config = ConfigDict(extra="forbid")

    file: str
    column: str | None = None  # None where none was recognized
    forms: dict[str, int] = {}  # number of times by the form in which they were read
    first: datetime | None = None
    last: datetime | None = None
    n: int = 0  # entries read
    missing: int = 0  # ... without a time
    in_file_order: int = 0  # events at the time of another one of their user, arranged by the file's order
    newest_first: bool = False  # whether that order was read from the end of the file: its times never grow
    looks_like_time: list[str] = []  # without a time column: columns that could be one
    expected: bool = True  # whether the events of this kind of data have times

    @property
    def missing_share(self) -> float:
        """Share of the entries without a time."""
        return self.missing / max(1, self.n)


class FileInfo(BaseModel):
    """Facts about a raw file, filled in while it is read."""

    model_config = ConfigDict(extra="forbid")

    rows: int = 0  # without the header
    unreadable: int = 0  # rows refused for any reason but references and repeats
    entries: int = 0  # events in it, where it holds any
    unreadable_entries: int = 0  # ... that were refused by themselves
    references: int = 0  # ... refused because the catalogue lacks their item
    encoding: str | None = None
    encoding_guessed: bool = False  # from a few bytes that UTF-8 cannot hold
    delimiter: str | None = None
    quotes: bool = False  # whether the fields of a tab file are in quotes
    sheet: str | None = None  # the one that was read of an Excel file
    columns: dict[str, str] = {}  # the columns that were found for the ids, by their meaning

    @property
    def unreadable_share(self) -> float:
        """Share of the rows, and of the entries in them, that could not be read."""
        return min(1.0, self.unreadable / max(1, self.rows) + self.unreadable_entries / max(1, self.entries))

    @property
    def reference_share(self) -> float:
        """Share of the entries whose item the catalogue lacks."""
        return self.references / max(1, self.entries)

    def summary(self) -> dict[str, object]:
        """Return the counts and both shares, ready for JSON."""
        shares = {"unreadable_share": self.unreadable_share, "reference_share": self.reference_share}
        return self.model_dump() | shares


def too_many(files: Mapping[str, FileInfo], reasons: Mapping[str, int], limit: float) -> str | None:
    """Return a message if a larger share of a file than `limit` is unreadable, else None.

    Args:
        files: Facts about each file, by name.
        reasons: Number of rejects by "file: reason".
        limit: A share, in [0, 1].
    """
    for name, file in files.items():
        if file.unreadable_share > limit:
            mine = {r.removeprefix(f"{name}: "): n for r, n in reasons.items() if r.startswith(f"{name}: ")}
            counted = {reason: n for reason, n in mine.items() if reason not in (*REFERENCES, *READABLE)}
            refused = ", ".join(f"{n} for {reason!r}" for reason, n in counted.items())
            return (
                f"{name}: {file.unreadable_share:.1%} of the rows cannot be used ({refused}), more than the "
                f"{limit:.1%} allowed"
            )
    return None


def advice(reasons: Iterable[str]) -> str:
    """Return advice against rejects for these reasons, each after a semicolon."""
    texts = {text: None for reason in reasons for end, text in _ADVICE.items() if reason.endswith(end)}
    return "".join(f"; {text}" for text in texts)
