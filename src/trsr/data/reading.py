"""How an import reads its raw files, and what is remembered of each: all importers use `RawFiles`.

Also the limit on what may be refused, and what an import says of itself when it is done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from trsr.data.dataset import Dataset, DatasetInfo
from trsr.data.import_info import MAX_REJECTS, TimesInfo
from trsr.data.readers import read_frames
from trsr.data.text_lines import TextFormat
from trsr.data.times import ORDER
from trsr.data.writer import DatasetWriter
from trsr.errors import DataError


class TextSettings(BaseModel):
    """Options of every importer, as a configuration carries them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    delimiter: str | None = None
    encoding: str | None = None
    max_rejects: float = Field(MAX_REJECTS, ge=0, le=1)


class TimeSettings(TextSettings):
    """Options of importers whose events have times."""

    time_format: str | None = None
    keep_untimed: bool = False


class RawFiles:
    """Reads the raw files of one import, and notes in the writer how each is written and how long it is."""

    def __init__(
        self, writer: DatasetWriter, delimiter: str | None, encoding: str | None, max_rejects: float
    ) -> None:
        """Raise DataError if `max_rejects` is no share."""
        if not 0 <= max_rejects <= 1:
            raise DataError(
                f"The largest share of rejects is {max_rejects}; expected 0 to 1 (--max-rejects)."
            )
        writer.max_rejects = max_rejects
        self._writer = writer
        self._delimiter = delimiter
        self._encoding = encoding

    def frames(
        self,
        file: Path,
        *,
        columns: Sequence[str] | None = None,
        quotes: bool | None = None,
        keep: Collection[str] | None = None,
        delimiter: str | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Yield a file's rows as `read_frames` does; `delimiter` is that of this file, if it is known."""
        text = TextFormat(delimiter or self._delimiter, self._encoding)
        found = self._writer.file(file.name)
        frames = read_frames(file, self._writer.reject, columns=columns, quotes=quotes, keep=keep, text=text)
        rows = 0
        while True:
            refused = found.unreadable
            frame = next(frames, None)
            rows += found.unreadable - refused + (0 if frame is None else len(frame))
            if frame is None:
                break
            found.delimiter, found.encoding, found.sheet = text.delimiter, text.encoding, text.sheet
            found.encoding_guessed = self._encoding is None and text.encoding == "cp1252"
            found.quotes = text.quotes
            yield frame
        found.rows += rows
        if not rows:
            raise DataError(
                f"{file} has no row below its header; expected at least one: check that it is the whole file."
            )

    def frames_again(
        self, file: Path, *, columns: Sequence[str], quotes: bool | None = None
    ) -> Iterator[pl.DataFrame]:
        """Yield the rows of a file that was read before; what is refused now was refused then."""
        found = self._writer.file(file.name)
        text = TextFormat(found.delimiter, found.encoding)
        yield from read_frames(file, lambda *_: None, columns=columns, quotes=quotes, text=text)


def _time_warnings(times: TimesInfo, counts: Mapping[str, int]) -> list[str]:
    file, column = times.file, times.column
    if ORDER in times.forms:
        return [
            f"{file}: the numbers in {column} put each history in order but are no dates, so the events have "
            "no times; if they are dates, say how they are written with --time-format."
        ]
    if times.first is None:
        if not times.expected:
            return []
        if column is not None:
            return [
                f"{file}: the time column {column} is empty, so each history is in the order of the file."
            ]
        looks = ", ".join(times.looks_like_time)
        advice = (
            "name the time column with --timestamp" if looks else "if it has one, name it with --timestamp"
        )
        return [
            f"{file}: no time column was recognized, so each history is in the order of the file; {advice}"
            + (f" (these look like times: {looks})." if looks else ".")
        ]
    said = []
    if times.first.year <= 1970:
        said.append(
            f"{file}: the earliest time is {times.first:%Y-%m-%d}, often a missing time written as 0; "
            f"check {column}."
        )
    if times.missing and times.expected:
        n, users = counts.get("events_without_time", 0), counts.get("users_in_file_order", 0)
        said.append(
            f"{file}: {n:,} events have no time; their {users:,} users are in the order of the file."
            if n
            else f"{file}: {times.missing_share:.1%} of the entries ({times.missing:,}) have no time; events "
            "without one are rejected, --keep-untimed keeps them in the order of the file."
        )
    return said


def import_warnings(info: DatasetInfo) -> list[str]:
    """Return what a user should know before they use the dataset, a sentence each."""
    said = [] if info.times is None else _time_warnings(info.times, info.counts)
    for name, file in info.files.items():
        if file.references:
            share = file.reference_share
            said.append(
                f"{name}: {share:.1%} of the references ({file.references:,}) are to items that the "
                "catalogue lacks; they are in rejects.parquet."
            )
    return said


def import_summary(dataset: Dataset) -> dict[str, object]:
    """Return what an import did, ready for JSON."""
    info, times = dataset.info, dataset.info.times
    return {
        "path": str(dataset.path),
        "name": info.name,
        "domain": info.domain,
        "text_fields": info.text_fields,
        "category_fields": info.category_fields,
        "counts": info.counts,
        "rejects": dataset.rejects_by_reason(),
        "times": None
        if times is None
        else times.model_dump(mode="json") | {"missing_share": times.missing_share},
        "files": {name: file.summary() for name, file in info.files.items()},
        "warnings": import_warnings(info),
    }


def summary_lines(info: DatasetInfo) -> list[str]:
    """Return the lines of an import's summary on its times and files."""
    lines = []
    if (times := info.times) is not None:
        if times.first is None or times.last is None:
            how = f"{times.column}, an order without dates; " if times.forms else "none; "
            lines.append(f"time: {how}{times.missing_share:.1%} missing")
        else:
            forms = ", ".join(times.forms)
            lines.append(
                f"time: {times.column}, {times.first:%Y-%m-%d %H:%M:%S} to "
                f"{times.last:%Y-%m-%d %H:%M:%S} UTC, {times.missing_share:.1%} missing (read as {forms})"
            )
        if times.in_file_order:
            how = (
                "are read from the file's end, as it runs newest first"
                if times.newest_first
                else "keep its order"
            )
            lines.append(
                f"order in {times.file}: {times.in_file_order:,} events share their time with another "
                f"of their user; these {how}"
            )
    return lines + reading_lines(info)


def refused_lines(info: DatasetInfo) -> list[str]:
    """Return a line on each raw file of which the import refused something: both shares."""
    return [
        f"import of {name}: {file.unreadable_share:.1%} of the rows unreadable, "
        f"{file.reference_share:.1%} of the entries to unknown items"
        for name, file in info.files.items()
        if file.unreadable_share or file.reference_share
    ]


def reading_lines(info: DatasetInfo) -> list[str]:
    """Return a line on each raw file: how it was read, and the shares of it that were refused."""
    lines = []
    for name, file in info.files.items():
        how = [f"{file.rows:,} rows", *(f"{what} from {column}" for what, column in file.columns.items())]
        guessed = " (guessed; --encoding names another)" if file.encoding_guessed else ""
        how += [file.encoding + guessed] if file.encoding else []
        how += [f"delimiter {file.delimiter!r}"] if file.delimiter else []
        how += ["fields in quotes"] if file.quotes else []
        how += [f"sheet {file.sheet}"] if file.sheet else []
        how += [f"{file.unreadable_share:.1%} unreadable"]
        how += [f"{file.reference_share:.1%} to unknown items"] if file.references else []
        lines.append(f"read {name}: {', '.join(how)}")
    return lines
