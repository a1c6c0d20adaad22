"""The dataset folder: what stands in it, how it is read, how it is written whole or not at all.

    dataset.json         DatasetInfo
    items.parquet        item_id, then one text column a field (null allowed)
    events.parquet       user_id, item_id, position (0 = oldest), timestamp (UTC or null), in that order
    impressions.parquet  optional: impression_id, user_id, timestamp, history, candidates, clicked
    rejects.parquet      file, row, reason, raw: every input row that was refused

What the raw files look like is left to the importers; what the texts mean, to `verbalize`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from trsr.data.import_info import READABLE, REFERENCES, FileInfo, TimesInfo, advice, too_many
from trsr.errors import DataError, OutputError
from trsr.storage import file_sha256, left_by_the_dead, remove_folder, replace_folder, write_whole
from trsr.types import History, Item

SCHEMA_VERSION = 1
INFO_FILE = "dataset.json"
TIME = pl.Datetime("us", "UTC")
EVENTS = pl.Schema(
    [("user_id", pl.String()), ("item_id", pl.String()), ("position", pl.Int64()), ("timestamp", TIME)]
)
IMPRESSIONS = pl.Schema(
    [
        ("impression_id", pl.String()),
        ("user_id", pl.String()),
        ("timestamp", TIME),
        ("history", pl.List(pl.String)),
        ("candidates", pl.List(pl.String)),
        ("clicked", pl.List(pl.Boolean)),
    ]
)
REJECTS = pl.Schema(
    [("file", pl.String()), ("row", pl.Int64()), ("reason", pl.String()), ("raw", pl.String())]
)
_MADE = frozenset({INFO_FILE, "items.parquet", "events.parquet", "impressions.parquet", "rejects.parquet"})
_LEFT_OUT = ("ratings_below_threshold", "rows_of_other_locales")
_OS_ERROR = re.compile(r"([^:\n]+) \(os error \d+\)")
_READ_ROWS = 200_000  # events read at once by `histories`


class DatasetInfo(BaseModel):
    """What `dataset.json` says about the folder.

    Attributes:
        name: Stands in reports.
        domain: "news", "products", "movies" or another word; chooses the prompt templates.
        text_fields: The text columns of items.parquet, in rendering order.
        category_fields: Those of them that hold categories, brands or genres; a value may be a list,
            separated by "|" or ", ".
        counts: Rows by table ("items", "events", "impressions", "rejects"), "users", and what an importer
            counted besides.
        sha256: Hex digest of each parquet file.
        source: Where the data came from, in words.
        times: What was found of times, where the data was imported.
        files: What was found of each raw file.
        schema_version: Version of this layout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    domain: str
    text_fields: list[str]
    category_fields: list[str]
    counts: dict[str, int]
    sha256: dict[str, str]
    source: str
    times: TimesInfo | None = None
    files: dict[str, FileInfo] = {}
    schema_version: int = SCHEMA_VERSION


def read_info(path: Path) -> DatasetInfo:
    """Read `dataset.json`.

    Raises:
        DataError: there is none, it does not parse, or it was written by a newer version.
    """
    file = path / INFO_FILE
    if not file.is_file():
        raise DataError(
            f"{path} has no {INFO_FILE}, so it is not a dataset folder; make one with `trsr import`."
        )
    try:
        raw = json.loads(file.read_bytes())
        version = raw.get("schema_version", SCHEMA_VERSION) if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise DataError(f"{file} has schema version {version}, newer than {SCHEMA_VERSION}; update trsr.")
        return DatasetInfo.model_validate(raw)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; check who may read it.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise DataError(f"{file} is damaged ({where}: {first['msg']}); import again.") from error
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); import again.") from error


def table_schemas(path: Path, info: DatasetInfo) -> dict[str, pl.Schema]:
    """Return the columns of each parquet file that the folder must have."""
    schemas = {
        "items.parquet": pl.Schema([(name, pl.String()) for name in ("item_id", *info.text_fields)]),
        "events.parquet": EVENTS,
        "rejects.parquet": REJECTS,
    }
    if (path / "impressions.parquet").is_file() or "impressions.parquet" in info.sha256:
        schemas["impressions.parquet"] = IMPRESSIONS
    return schemas


def _check_schema(file: Path, schema: pl.Schema) -> None:
    try:
        found = pl.scan_parquet(file, glob=False).collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{file} is damaged ({said}); import again.") from error
    if wrong := [name for name, dtype in schema.items() if found.get(name) != dtype]:
        missing = " and ".join(f"{name!r} of the type {schema[name]}" for name in wrong)
        raise DataError(
            f"{file} has no column {missing}, which a dataset folder must have; "
            f"`trsr validate {file.parent}` tells more, or import again."
        )


class Dataset:
    """A dataset folder, opened for reading. Tables are lazy; only the catalogue is held in memory."""

    def __init__(self, path: Path, info: DatasetInfo) -> None:
        self.path = path
        self.info = info

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Open a folder; its files must be there with their columns, `trsr validate` checks their rows.

        Raises:
            DataError: the folder is missing, incomplete, damaged, or of a newer version.
        """
        path = Path(path)
        if not path.is_dir():
            raise DataError(f"There is no dataset folder {path}; make one with `trsr import`.")
        info = read_info(path)
        for file, schema in table_schemas(path, info).items():
            if not (path / file).is_file():
                raise DataError(f"{path} lacks {file}, which its {INFO_FILE} promises; import again.")
            _check_schema(path / file, schema)
        return cls(path, info)

    def items(self) -> pl.LazyFrame:
        """Return items.parquet: item_id and the text fields."""
        return pl.scan_parquet(self.path / "items.parquet", glob=False)

    def events(self) -> pl.LazyFrame:
        """Return events.parquet: user_id, item_id, position, timestamp; by user, then position."""
        return pl.scan_parquet(self.path / "events.parquet", glob=False)

    def impressions(self) -> pl.LazyFrame | None:
        """Return impressions.parquet as logged, or None where the data has none."""
        file = self.path / "impressions.parquet"
        return pl.scan_parquet(file, glob=False) if file.is_file() else None

    def rejects(self) -> pl.LazyFrame:
        """Return rejects.parquet: file, row (1 = first line), reason, raw."""
        return pl.scan_parquet(self.path / "rejects.parquet", glob=False)

    def rejects_by_reason(self) -> dict[str, int]:
        """Return how many rows were refused, by "file: reason", the most frequent first."""
        reasons = (
            self.rejects().group_by("file", "reason").len().sort("len", "file", descending=[True, False])
        )
        return {f"{file}: {reason}": n for file, reason, n in reasons.collect().iter_rows()}

    def catalogue(self) -> Mapping[str, Item]:
        """Return every item by its id, with its non-empty fields in rendering order; read once."""
        return self._catalogue

    @cached_property
    def _catalogue(self) -> dict[str, Item]:
        fields = self.info.text_fields
        table = self.items().select("item_id", *fields).collect()
        return {
            row[0]: Item(row[0], {field: text for field, text in zip(fields, row[1:], strict=True) if text})
            for row in table.iter_rows()
        }

    def histories(self, start: int = 0, stop: int | None = None) -> Iterator[History]:
        """Yield each user's history, oldest first, in the order of user_id; memory stays flat.

        `timestamps` is None unless every event of the user has one. With `start` and `stop` only these rows
        of the events are read; they have to be those of whole users.
        """
        n_rows = None if stop is None else stop - start
        events = self.events().select("user_id", "item_id", "timestamp").slice(start, n_rows)
        for batch in user_batches(events, _READ_ROWS):
            users = batch.group_by("user_id", maintain_order=True).agg(pl.all())
            for user, items, times in users.iter_rows():
                yield History(user, tuple(items), None if None in times else tuple(times))


def user_batches(events: pl.LazyFrame, rows: int) -> Iterator[pl.DataFrame]:
    """Yield a table that is in the order of user_id in frames of whole users, of about `rows` rows."""
    rest: list[pl.DataFrame] = []
    offset = 0
    while True:
        batch = events.slice(offset, rows).collect()
        offset += len(batch)
        table = pl.concat([*rest, batch])
        if len(batch) < rows:
            if len(table):
                yield table
            return
        # The last user of a batch may go on in the next one.
        users = table["user_id"].rle_id()
        whole = int((users < users[-1]).sum())
        if whole:
            yield table.head(whole)
        rest = [table.slice(whole)]


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
    """Makes a dataset folder beside its final place and moves it there when it is whole.

    Used as a context: leaving it without `finish` removes what was written, and a killed process leaves the
    folder at `path` as it was. An existing dataset is replaced only with `overwrite`, anything else never:
    files in its folder that no import makes, such as a summary store, go over into the new one.

    Attributes:
        counts: What an importer wants to tell beyond the number of rows.
        events: Rows of `EVENTS`, by user_id, then position.
        impressions: Rows of `IMPRESSIONS`; leave empty where the data has none.
        items: item_id and the text columns, each item once.
        max_rejects: Largest share of a raw file's rows that may be unreadable; None for no limit.
        times: What was found of times.
        files: What was found of each raw file.
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
            with contextlib.suppress(OSError):  # then it is left where it is
                old[0].rename(self.path)

    def _remove_leftovers(self) -> None:
        """Remove what killed imports to the same place have left: folders whose process is gone."""
        left = left_by_the_dead(self.path, "partial")
        if self.path.is_dir():  # else what was moved away is all there is
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
                f"Cannot write beside {self.path}: {error.strerror}; choose another --out."
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
        """Return a scratch table that vanishes at the end."""
        return Spool(self.work / "spool" / name)

    def file(self, name: str) -> FileInfo:
        """Return what is known of a raw file, to be added to."""
        return self.files.setdefault(name, FileInfo())

    def reject(
        self, file: str, rows: pl.DataFrame, reason: str | None = None, *, entries: bool = False
    ) -> None:
        """Note refused input: a frame with `row` and `raw`, and `reason` unless it is one for all.

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
    ) -> Dataset:
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
        return Dataset.open(self.path)

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
            raise DataError(f"{why}{self._keep_rejects()}; mend the file, or allow more with --max-rejects.")

    def _keep_rejects(self) -> str:
        """Write the refused rows beside the place of the dataset; return where, and what may help."""
        file = self.path.with_name(f"{self.path.name}.rejects.parquet")
        write_whole(file, self._rejects.scan(REJECTS).sink_parquet)
        return f"; the refused rows are in {file}{advice(self.reasons)}"

    def _move_into_place(self) -> None:
        if self.path.is_dir():
            old = self.work.with_name(self.work.name.replace(".partial-", ".old-"))
            replace_folder(self.path, self.work, old, made=_MADE)
        else:
            self.work.rename(self.path)


def _system_error(error: BaseException | None) -> str | None:
    """Return what the operating system said, also where polars has wrapped it; None for any other error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, pl.exceptions.PolarsError) and (said := _OS_ERROR.search(str(error))):
        return said[1].strip()
    return None


def write_dataset(
    path: str | Path,
    *,
    name: str,
    domain: str,
    text_fields: Sequence[str],
    category_fields: Sequence[str],
    items: pl.DataFrame | pl.LazyFrame,
    events: pl.DataFrame | pl.LazyFrame,
    impressions: pl.DataFrame | pl.LazyFrame | None = None,
    rejects: pl.DataFrame | pl.LazyFrame | None = None,
    source: str,
    overwrite: bool = False,
) -> Dataset:
    """Write tables that are already in the shape of a dataset folder (see the module's text).

    Events are put in order of user_id and position. A lazy table is read in one go; an importer that must
    keep its memory flat uses `DatasetWriter` instead.

    Raises:
        DataError: the folder exists and is not empty, or there is no item or event.
        OutputError: the folder cannot be written.
    """
    with DatasetWriter(path, overwrite=overwrite) as writer:
        writer.items.append(items.lazy().select("item_id", *text_fields).collect())
        ordered = events.lazy().select(EVENTS.names()).cast(EVENTS).sort("user_id", "position")
        writer.events.append(ordered.collect())
        if impressions is not None:
            writer.impressions.append(impressions.lazy().select(IMPRESSIONS.names()).collect())
        if rejects is not None:
            for (file,), rows in rejects.lazy().collect().group_by("file", maintain_order=True):
                writer.reject(str(file), rows)
        return writer.finish(
            name=name,
            domain=domain,
            text_fields=text_fields,
            category_fields=category_fields,
            source=source,
        )
