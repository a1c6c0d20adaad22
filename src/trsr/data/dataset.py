"""Make, open and read a dataset folder (its layout is in `schema`)."""

from __future__ import annotations

import difflib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from trsr.data.schema import EVENTS, IMPRESSIONS, INFO_FILE, DatasetInfo, read_info, table_schemas
from trsr.data.table import TableImport
from trsr.data.writer import DatasetWriter
from trsr.errors import ConfigError, DataError
from trsr.llm.models import cache_dir
from trsr.text import FieldCut, Tokenizer, field_cuts, verbalize_item
from trsr.types import History, Item

_READ_ROWS = 200_000  # events read at once by `histories`


def _check_schema(file: Path, schema: pl.Schema) -> None:
    try:
        found = pl.scan_parquet(file, glob=False).collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        message = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{file} is damaged ({message}); import again.") from error
    if wrong := [name for name, dtype in schema.items() if found.get(name) != dtype]:
        missing = " and ".join(f"{name!r} of the type {schema[name]}" for name in wrong)
        raise DataError(
            f"{file} has no column {missing}, which a dataset folder must have; "
            f"`trsr validate {file.parent}` lists every problem, or import again."
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
                an item id and text columns. A folder with `items.*` and `events.*` can be given for both.
            events: The same for events: user id, item id and time, one event per row.
            out: Folder of the dataset. By default it is in the cache folder (`TRSR_CACHE`) under a digest of
                its content, so the same tables give the same dataset.
            **options: Fields of `trsr.data.table.TableImport` (`name`, `domain`, `text_fields`, `user_id`,
                ...), or `overwrite`.

        Raises:
            DataError: a file or a column is missing, or nothing could be read.
            OutputError: the dataset cannot be written.
        """
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
            importer = TableImport.checked(**options)
            if out is not None:
                return cls.open(importer.run(out, overwrite=overwrite))
            return cls.open(_keep(cls.open(importer.run(work / "dataset")), home))
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
        of the events are read; they must belong to whole users.
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
        """Return a cached function from item id to item text.

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
        """Return a cached function from item id to the cuts that the cap makes in its fields."""
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
    """Yield a table in user_id order as frames of whole users, of about `rows` rows each."""
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
        # The last user of a batch may continue in the next one.
        users = table["user_id"].rle_id()
        whole = int((users < users[-1]).sum())
        if whole:
            yield table.head(whole)
        rest = [table.slice(whole)]


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
    """Write tables that are already in the shape of a dataset folder (see `schema`).

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
        folder = writer.finish(
            name=name,
            domain=domain,
            text_fields=text_fields,
            category_fields=category_fields,
            source=source,
        )
    return Dataset.open(folder)
