"""The kinds of data that can be imported, and the report of an import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from trsr.data.amazon import AmazonM2Import, AmazonReviewsImport
from trsr.data.dataset import Dataset
from trsr.data.import_info import TimesInfo
from trsr.data.mind import MindImport
from trsr.data.movielens import MovieLensImport
from trsr.data.schema import DatasetInfo
from trsr.data.table import TableImport
from trsr.data.times import ORDER

ImportConfig = Annotated[
    MindImport | AmazonM2Import | AmazonReviewsImport | MovieLensImport | TableImport,
    Field(discriminator="kind"),
]
IMPORTERS = (MindImport, AmazonM2Import, AmazonReviewsImport, MovieLensImport, TableImport)


def import_warnings(info: DatasetInfo) -> list[str]:
    """Return the warnings about a dataset, one sentence each."""
    warnings = [] if info.times is None else _time_warnings(info.times, info.counts)
    for name, file in info.files.items():
        if file.references:
            warnings.append(
                f"{name}: {file.reference_share:.1%} of the references ({file.references:,}) are to items "
                "that the catalogue lacks; they are in rejects.parquet."
            )
    return warnings


def _time_warnings(times: TimesInfo, counts: Mapping[str, int]) -> list[str]:
    file, column = times.file, times.column
    if ORDER in times.forms:
        return [
            f"{file}: the numbers in {column} put each history in order but are no dates, so the events have "
            "no times; if they are dates, give their format with --time-format."
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
            f"name the time column with --timestamp (these look like times: {looks})"
            if looks
            else "if it has one, name it with --timestamp"
        )
        return [
            f"{file}: no time column was recognized, so each history is in the order of the file; {advice}."
        ]
    warnings = []
    if times.first.year <= 1970:
        warnings.append(
            f"{file}: the earliest time is {times.first:%Y-%m-%d}, often a missing time written as 0; "
            f"check {column}."
        )
    if times.missing and times.expected:
        n, users = counts.get("events_without_time", 0), counts.get("users_in_file_order", 0)
        warnings.append(
            f"{file}: {n:,} events have no time; their {users:,} users are in the order of the file."
            if n
            else f"{file}: {times.missing_share:.1%} of the entries ({times.missing:,}) have no time; events "
            "without one are rejected, --keep-untimed keeps them in the order of the file."
        )
    return warnings


def import_summary(dataset: Dataset) -> dict[str, object]:
    """Return the report of an import, ready for JSON."""
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
        missing = f"{times.missing_share:.1%} missing"
        if times.first is None or times.last is None:
            how = f"{times.column}, an order without dates" if times.forms else "none"
            lines.append(f"time: {how}; {missing}")
        else:
            lines.append(
                f"time: {times.column}, {times.first:%Y-%m-%d %H:%M:%S} to "
                f"{times.last:%Y-%m-%d %H:%M:%S} UTC, {missing} (read as {', '.join(times.forms)})"
            )
        if times.in_file_order:
            backwards = "are read from the file's end, as it runs newest first"
            lines.append(
                f"order in {times.file}: {times.in_file_order:,} events share their time with another "
                f"of their user; these {backwards if times.newest_first else 'keep its order'}"
            )
    for name, file in info.files.items():
        parts = [
            f"{file.rows:,} rows",
            *(f"{kind} from {column}" for kind, column in file.columns.items()),
        ]
        guessed = " (guessed; --encoding names another)" if file.encoding_guessed else ""
        parts += [file.encoding + guessed] if file.encoding else []
        parts += [f"delimiter {file.delimiter!r}"] if file.delimiter else []
        parts += ["fields in quotes"] if file.quotes else []
        parts += [f"sheet {file.sheet}"] if file.sheet else []
        parts += [f"{file.unreadable_share:.1%} unreadable"]
        parts += [f"{file.reference_share:.1%} to unknown items"] if file.references else []
        lines.append(f"read {name}: {', '.join(parts)}")
    return lines


def refused_lines(info: DatasetInfo) -> list[str]:
    """Return one line, with both shares, for each raw file with refused rows."""
    return [
        f"import of {name}: {file.unreadable_share:.1%} of the rows unreadable, "
        f"{file.reference_share:.1%} of the entries to unknown items"
        for name, file in info.files.items()
        if file.unreadable_share or file.reference_share
    ]
