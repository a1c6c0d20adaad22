"""Write a dataset folder, whole or not at all, for importers and for clean tables."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import polars as pl

from trsr.data.import_info import READABLE, REFERENCES, FileInfo, TimesInfo, advice, too_many
from trsr.data.schema import EVENTS, IMPRESSIONS, INFO_FILE, REJECTS, DatasetInfo
from trsr.errors import DataError, OutputError
from trsr.storage import atomic_write, file_sha256, left_by_the_dead, remove_folder, replace_folder

_MADE = frozenset({INFO_FILE, "items.parquet", "events.parquet", "impressions.parquet", "rejects.parquet"})
_LEFT_OUT = ("ratings_below_threshold", "rows_of_other_locales")
_OS_ERROR = re.compile(r"([^:\n]+) \(os error \d+\)")


class Spool:
    """A table that is written batch by batch and read back lazily, in the order of writing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self._files: list[Path] = []

    def append(self, frame: pl.DataFrame) -> None:
        """Write one batch; empty batches are skipped."""
        if frame.is_empty():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{len(self._files):06}.parquet"
        frame.write_parquet(file, compression="lz4")
        self._files.append(file)
        self.rows += len(frame)

    def batches(self) -> Iterator[pl.DataFrame]:
        """Yield the batches as they were written."""
        return map(pl.read_parquet, self._files)

    def scan(self, schema: pl.Schema | None = None) -> pl.LazyFrame:
        """Return all batches as one table; an empty one has the given schema."""
        if not self._files:
            return pl.LazyFrame(schema=schema)
        return pl.scan_parquet(self._files, glob=False)


class DatasetWriter:
    """Write a dataset folder next to its target and move it there when it is complete.

    Used as a context: leaving it without `finish` removes the written files, and a killed process leaves the
    folder at `path` unchanged. An existing dataset is replaced only with `overwrite`, anything else never:
    files in its folder that no import makes, such as a summary store, move to the new one.

    Attributes:
        counts: Further counts of an importer.
        events: Rows of `EVENTS`, by user_id, then position.
        impressions: Rows of `IMPRESSIONS`; leave empty where the data has none.
        items: item_id and the text columns, each item once.
        max_rejects: Largest share of a raw file's rows that may be unreadable; None for no limit.
        times: Facts about the times.
        files: Facts about each raw file.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link at the target
        self._overwrite = overwrite
        self.work = self.path.parent / f".{self.path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
        self.counts: Counter[str] = Counter()
        self.items = Spool(self.work / "spool" / "items")
        self.events = Spool(self.work / "spool" / "events")
        self.impressions = Spool(self.work / "spool" / "impressions")
        self._rejects = Spool(self.work / "spool" / "rejects")
        self.reasons: Counter[str] = Counter()
        self.max_rejects: float | None = None
        self.times: TimesInfo | None = None
        self.files: dict[str, FileInfo] = {}

    def _check_target(self, overwrite: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path} is a file, a folder was expected; choose another --out.")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not overwrite:
            raise DataError(f"{self.path} exists and is not empty; choose another --out or add --overwrite.")
        if not (self.path / INFO_FILE).is_file():
            raise DataError(f"{self.path} is no dataset folder and is left alone; choose another --out.")

    def _put_back(self) -> None:
        """Put a dataset back that a killed import has moved away and not yet replaced."""
        if not os.path.lexists(self.path) and len(old := left_by_the_dead(self.path, "old")) == 1:
            with contextlib.suppress(OSError):  # then it stays where it is
                old[0].rename(self.path)

    def _remove_leftovers(self) -> None:
        """Remove the folders that killed imports to the same path have left."""
        left = left_by_the_dead(self.path, "partial")
        if self.path.is_dir():  # else the moved folder is the only copy
            left += left_by_the_dead(self.path, "old")
        for folder in left:
            remove_folder(folder)

    def __enter__(self) -> DatasetWriter:
        try:
            self._put_back()
            self._check_target(self._overwrite)
            self._remove_leftovers()
            self.work.mkdir(parents=True)
        except OSError as error:
            raise OutputError(
                f"Cannot write next to {self.path}: {error.strerror}; choose another --out."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        if why := _system_error(error):
            raise OutputError(
                f"Writing {self.path} failed: {why}; nothing was changed there, "
                "free some space or choose another --out."
            ) from error

    def spool(self, name: str) -> Spool:
        """Return a temporary table, removed at the end."""
        return Spool(self.work / "spool" / name)

    def file(self, name: str) -> FileInfo:
        """Return the facts about a raw file, to add to."""
        return self.files.setdefault(name, FileInfo())

    def reject(
        self, file: str, rows: pl.DataFrame, reason: str | None = None, *, entries: bool = False
    ) -> None:
        """Record refused input: a frame with `row` and `raw`, and `reason` unless all rows share one.

        With `entries` these are events, of which a row can hold several.
        """
        if rows.is_empty():
            return
        if reason in REFERENCES:
            self.file(file).references += len(rows)
        elif reason is not None and reason not in READABLE and entries:
            self.file(file).unreadable_entries += len(rows)
        elif reason is not None and reason not in READABLE:
            self.file(file).unreadable += rows["row"].n_unique()
        if reason is not None:
            rows = rows.with_columns(pl.lit(reason).alias("reason"))
        rows = rows.select(pl.lit(file).alias("file"), "row", "reason", "raw").cast(REJECTS)
        self.reasons.update({f"{file}: {why}": n for why, n in rows.group_by("reason").len().iter_rows()})
        self._rejects.append(rows)

    def finish(
        self,
        *,
        name: str,
        domain: str,
        text_fields: Sequence[str],
        category_fields: Sequence[str],
        source: str,
    ) -> Path:
        """Write the tables and `dataset.json`, then move the folder to its place.

        Raises:
            DataError: no item or no event was accepted, or more of a file was refused than is allowed.
        """
        self._check_content()
        self._check_rejects()
        items = pl.Schema([("item_id", pl.String()), *((field, pl.String()) for field in text_fields)])
        tables = {"items": (self.items, items), "events": (self.events, EVENTS)}
        if self.impressions.rows:
            tables["impressions"] = (self.impressions, IMPRESSIONS)
        tables["rejects"] = (self._rejects, REJECTS)
        for table, (spool, schema) in tables.items():
            columns = spool.scan(schema).select(schema.names()).cast(schema)
            columns.sink_parquet(self.work / f"{table}.parquet", row_group_size=100_000)
        rows = {table: spool.rows for table, (spool, _) in tables.items()}
        users = pl.scan_parquet(self.work / "events.parquet", glob=False).select(pl.n_unique("user_id"))
        rows["users"] = users.collect(engine="streaming").item()
        shutil.rmtree(self.work / "spool")
        info = DatasetInfo(
            name=name,
            domain=domain,
            text_fields=list(text_fields),
            category_fields=[field for field in category_fields if field in text_fields],
            counts=rows | dict(self.counts),
            sha256={f"{table}.parquet": file_sha256(self.work / f"{table}.parquet") for table in tables},
            source=source,
            times=self.times,
            files=self.files,
        )
        (self.work / INFO_FILE).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
        self._move_into_place()
        return self.path

    def _check_content(self) -> None:
        why = [f"{self.counts[what]:,} {what.replace('_', ' ')}" for what in _LEFT_OUT if self.counts[what]]
        if refused := ", ".join(f"{n} for {reason!r}" for reason, n in self.reasons.most_common(3)):
            why.append(f"{self.reasons.total()} rows were refused: {refused}{self._keep_rejects()}")
        because = f" ({', '.join(why)})" if why else ""
        for what, rows in (("item", self.items.rows), ("event", self.events.rows or self.impressions.rows)):
            if not rows:
                raise DataError(f"No {what} could be read{because}; check the {what}s file and its columns.")

    def _check_rejects(self) -> None:
        if self.max_rejects is not None and (why := too_many(self.files, self.reasons, self.max_rejects)):
            raise DataError(
                f"{why}{self._keep_rejects()}; correct the file, or allow more with --max-rejects."
            )

    def _keep_rejects(self) -> str:
        """Write the refused rows next to the dataset's path; return the file and advice."""
        file = self.path.with_name(f"{self.path.name}.rejects.parquet")
        atomic_write(file, self._rejects.scan(REJECTS).sink_parquet)
        return f"; the refused rows are in {file}{advice(self.reasons)}"

    def _move_into_place(self) -> None:
        if self.path.is_dir():
            old = self.work.with_name(self.work.name.replace(".partial-", ".old-"))
            replace_folder(self.path, self.work, old, made=_MADE)
        else:
            self.work.rename(self.path)


def _system_error(error: BaseException | None) -> str | None:
    """Return the operating system's message, also from within a polars error; None for any other error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, pl.exceptions.PolarsError) and (found := _OS_ERROR.search(str(error))):
        return found[1].strip()
    return None
