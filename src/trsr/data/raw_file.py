"""The options of every importer, and one raw file of an import: its rows, and which of them are refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import polars as pl
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trsr.data.import_info import MAX_REJECTS, FileInfo
from trsr.data.readers import read_frames
from trsr.data.text_lines import RAW, ROW
from trsr.data.values import clean_ids
from trsr.data.writer import DatasetWriter
from trsr.errors import DataError


def option(description: str, default: Any = None, **limits: Any) -> Any:
    """Return a field of a model; the description is the help of its option on the command line."""
    return Field(default=default, description=description, **limits)


def _names(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(",") if name.strip())


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
"""Names of columns; a text is divided at its commas."""


class ImportOptions(BaseModel):
    """Options of every importer; the subclasses are the kinds of data, and the commands of `trsr import`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    delimiter: str | None = option("Between fields: ';', '|', tab ...; found by default.")
    encoding: str | None = option("Of text files: utf-8, utf-16, cp1252 ...; found by default.")
    max_rejects: float = option(
        "Largest share of a file's rows that may be unreadable, 0 to 1.", MAX_REJECTS, ge=0, le=1
    )

    @classmethod
    def checked(cls, **options: Any) -> Self:
        """Return the options.

        Raises:
            DataError: one is missing, unknown, or has a value that cannot be used.
        """
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            where, message = ".".join(map(str, first["loc"])), first["msg"][:1].lower() + first["msg"][1:]
            raise DataError(f"Found {where} = {first['input']!r}; {message}.") from error

    def run(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Make a dataset folder at `out`.

        Raises:
            DataError: a file or a column is missing, nothing could be read, or `out` is in the way.
            OutputError: `out` cannot be written.
        """
        with DatasetWriter(out, overwrite=overwrite) as writer:
            writer.max_rejects = self.max_rejects
            return self.read(writer)

    def read(self, writer: DatasetWriter) -> Path:
        """Read the raw files into the writer, and finish it."""
        raise NotImplementedError


class TimedOptions(ImportOptions):
    """Options of importers whose events have times."""

    time_format: str | None = option(
        "How times are written: day-first, month-first, year-first, epoch-s (-ms, -us, -ns, "
        "-days), excel, or a pattern such as '%d.%m.%Y %H:%M'; found by default where only one form fits."
    )
    keep_untimed: bool = option("Keep events without a time; their users stay in the file's order.", False)


class RatedOptions(TimedOptions):
    """Options of importers whose events have ratings."""

    min_rating: float | None = option("Leave out lower ratings; they are counted.", allow_inf_nan=False)


class RawFile:
    """A raw file of an import: its rows, the refused ones, and counts of changes."""

    def __init__(self, writer: DatasetWriter, path: Path, options: ImportOptions) -> None:
        self.path = path
        self.name = path.name
        self.writer = writer
        self.options = options

    @property
    def info(self) -> FileInfo:
        """Facts about the file; reading them lists the file in `dataset.json`."""
        return self.writer.file(self.name)

    def frames(
        self,
        *,
        columns: Sequence[str] | None = None,
        quotes: bool | None = None,
        keep: Collection[str] | None = None,
        delimiter: str | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Yield the rows as `read_frames` does; `delimiter` is this file's, if known.

        Raises:
            DataError: there is no row.
        """
        info = self.info
        info.delimiter, info.encoding = delimiter or self.options.delimiter, self.options.encoding
        frames = read_frames(self.path, self.refuse, info, columns=columns, quotes=quotes, keep=keep)
        rows, refused = 0, info.unreadable
        for frame in frames:
            rows += info.unreadable - refused + len(frame)
            info.encoding_guessed = self.options.encoding is None and info.encoding == "cp1252"
            yield frame
            refused = info.unreadable  # the importer refuses rows too
        rows += info.unreadable - refused
        info.rows += rows
        if not rows:
            raise DataError(
                f"{self.path} has no row below its header; expected at least one: check that it is the "
                "whole file."
            )

    def frames_again(self, *, columns: Sequence[str], quotes: bool | None = None) -> Iterator[pl.DataFrame]:
        """Yield the rows of a file that was read before, without refusing any again."""
        yield from read_frames(self.path, lambda *_: None, self.info, columns=columns, quotes=quotes)

    def refuse(self, frame: pl.DataFrame, reason: str, *, entries: bool = False) -> None:
        """Reject all rows of a frame that has `ROW` and `RAW`; with `entries` they are parts of rows."""
        rows = frame.select(pl.col(ROW).alias("row"), pl.col(RAW).alias("raw"))
        self.writer.reject(self.name, rows, reason, entries=entries)

    def keep(self, frame: pl.DataFrame, good: pl.Expr, reason: str, *, entries: bool = False) -> pl.DataFrame:
        """Return the rows for which `good` is true; the others are rejected."""
        right = frame.select(good.fill_null(False)).to_series()
        if right.all():
            return frame
        self.refuse(frame.filter(~right), reason, entries=entries)
        return frame.filter(right)

    def count(self, name: str, n: int) -> None:
        """Add to a count that appears only if it is above 0."""
        if n:
            self.writer.counts[name] += n

    def clean_ids(self, frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
        """Return the frame with clean ids: see `values.clean_ids`."""
        frame, n_floats = clean_ids(frame, *columns)
        self.count("ids_written_as_floats", n_floats)
        return frame
