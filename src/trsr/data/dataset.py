"""The dataset folder: its layout, and `Dataset`, which reads it.

dataset.json         DatasetInfo
items.parquet        item_id, then one text column a field (null allowed)
events.parquet       user_id, item_id, position (0 = oldest), timestamp (UTC or null), in that order
impressions.parquet  optional: impression_id, user_id, timestamp, history, candidates, clicked
rejects.parquet      file, row, reason, raw: every input row that was refused
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from trsr.data.import_info import FileInfo, TimesInfo
from trsr.errors import ConfigError, DataError
from trsr.llm.models import cache_dir
from trsr.text import FieldCut, Tokenizer, field_cuts, verbalize_item
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
    """A dataset folder, opened for reading. Tables are lazy; only the catalogue is held in memory.

    Make one with `Dataset.from_tables`, or open a folder of `trsr import` with `Dataset.open`.

    Attributes:
        path: The folder.
        info: Names, domain, text fields and counts.
    """

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

    @classmethod
    def from_tables(
        cls, items: Any, events: Any = None, *, out: str | Path | None = None, **options: Any
    ) -> Dataset:
        """Make a dataset from a table of items and a table of events.

        Args:
            items: A file (CSV, TSV, JSON Lines, Parquet), or a pandas, polars, Arrow or Hugging Face table:
                an item id and text columns. A folder that holds `items.*` and `events.*` may stand for both.
            events: The same for events: user id, item id and time, one event per row.
            out: Folder of the dataset. By default it is in the cache folder (`TRSR_CACHE`) under a digest of
                its content, so the same tables give the same dataset.
            **options: Fields of `trsr.data.table.TableImport` (`name`, `domain`, `text_fields`, `user_id`,
                ...), or `overwrite`.

        Raises:
            DataError: a file or a column is missing, or nothing could be read.
            OutputError: the dataset cannot be written.
        """
        from trsr.data.table import TableImport

        home = Path(out) if out is not None else cache_dir() / "datasets"
        work = home.with_name(f".{home.name}.tables-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            if events is None:
                items, events = _tables_of(Path(items))
            files = _as_file(items, work / "items.parquet"), _as_file(events, work / "events.parquet")
            options = {
                "name": "tables" if out is None else None,
                "items": files[0],
                "events": files[1],
            } | options
            overwrite = options.pop("overwrite", False)
            dataset = TableImport.checked(**options).run(out or work / "dataset", overwrite=overwrite)
            return dataset if out is not None else cls.open(_keep(dataset, home))
        finally:
            shutil.rmtree(work, ignore_errors=True)

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

    def history(self, user_id: str) -> History:
        """Return one user's history, oldest first.

        Raises:
            DataError: there is no such user; names similar ones.
        """
        events = self.events().filter(pl.col("user_id") == user_id).select("item_id", "timestamp").collect()
        if events.is_empty():
            users = self.events().select(pl.col("user_id").unique()).collect()["user_id"].to_list()
            near = difflib.get_close_matches(user_id, users, 3)
            raise DataError(
                f"{self.path} has no user {user_id!r}; "
                + (f"did you mean {' or '.join(map(repr, near))}?" if near else "check the id.")
            )
        times = events["timestamp"].to_list()
        return History(user_id, tuple(events["item_id"]), None if None in times else tuple(times))

    def readable(self, history: History) -> History:
        """Return a history without its items that have no text, which no prompt can show."""
        catalogue = self.catalogue()
        return History(history.user_id, tuple(item for item in history.item_ids if catalogue[item].fields))

    def item_texts(
        self, fields: tuple[str, ...] | None, max_field_tokens: int, tokenizer: Tokenizer | None
    ) -> Callable[[str], str]:
        """Return a function from item id to item text that remembers what it made.

        Raises:
            ConfigError: a field is none of the dataset's.
        """
        self.check_fields(fields)
        catalogue = self.catalogue()

        @lru_cache(maxsize=200_000)
        def text(item_id: str) -> str:
            return verbalize_item(
                catalogue[item_id], fields=fields, max_field_tokens=max_field_tokens, tokenizer=tokenizer
            )

        return text

    def item_cuts(
        self, fields: tuple[str, ...] | None, max_field_tokens: int, tokenizer: Tokenizer | None
    ) -> Callable[[str], dict[str, FieldCut]]:
        """Return a function from item id to what the cap cuts from its fields."""
        catalogue = self.catalogue()

        @lru_cache(maxsize=200_000)
        def cuts(item_id: str) -> dict[str, FieldCut]:
            return field_cuts(
                catalogue[item_id], fields=fields, max_field_tokens=max_field_tokens, tokenizer=tokenizer
            )

        return cuts

    def check_fields(self, fields: tuple[str, ...] | None) -> None:
        """Refuse fields that the dataset does not have.

        Raises:
            ConfigError: naming them.
        """
        known = self.info.text_fields
        if unknown := [field for field in fields or () if field not in known]:
            raise ConfigError(
                f"The data set {self.info.name!r} has no text field {' and no '.join(map(repr, unknown))}; "
                f"choose from {', '.join(known)}."
            )


def _tables_of(folder: Path) -> tuple[Path, Path]:
    """Return the files `items.*` and `events.*` of a folder."""
    found = []
    for name in ("items", "events"):
        files = sorted(folder.glob(f"{name}.*")) if folder.is_dir() else []
        if len(files) != 1:
            raise DataError(f"{folder} has {len(files)} files {name}.*, expected one; name both tables.")
        found += files
    return found[0], found[1]


def _as_file(table: Any, file: Path) -> Path:
    """Return the path of a table; a frame is written to `file`."""
    if isinstance(table, str | Path):
        return Path(table)
    if isinstance(table, pl.LazyFrame):
        table = table.collect()
    elif type(table).__module__.startswith("pandas"):
        table = pl.from_pandas(table)
    elif hasattr(table, "to_polars"):  # a Hugging Face dataset
        table = table.to_polars()
    elif hasattr(table, "__arrow_c_stream__"):
        table = pl.DataFrame(table)
    if not isinstance(table, pl.DataFrame):
        raise DataError(
            f"Found a table of the type {type(table).__name__}; give a file, or a pandas, polars, Arrow or "
            "Hugging Face table."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(file)
    return file


def _keep(dataset: Dataset, home: Path) -> Path:
    """Move a new dataset to the folder of its content under `home`; return that folder."""
    content = dataset.info.model_dump_json(
        include={"name", "domain", "text_fields", "category_fields", "sha256"}
    )
    place = home / f"{dataset.info.name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    if not (place / INFO_FILE).is_file():
        home.mkdir(parents=True, exist_ok=True)
        dataset.path.rename(place)
    return place


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
