"""Checks of a dataset folder: every problem with its file and row; only ids are held in memory.

Importers refuse bad rows themselves; this is for folders that other programs made or changed, and for damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from trsr.data.dataset import user_batches
from trsr.data.schema import EVENTS, IMPRESSIONS, INFO_FILE, DatasetInfo, read_info, table_schemas
from trsr.errors import DataError
from trsr.storage import file_sha256

_ROWS = 200_000  # rows checked at once
_ROW = "\x1frow"  # no file's own column can be called so by chance
_UNREADABLE = "cannot be used: "
_ITEMS, _EVENTS, _IMPRESSIONS = "items.parquet", "events.parquet", "impressions.parquet"


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem and its place: `row` counts from 1, None for the whole file."""

    file: str
    row: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.row is None else f', row {self.row}'}: {self.message}"


def validate_dataset(path: str | Path) -> Iterator[Problem]:
    """Yield every problem of a dataset folder.

    Raises:
        DataError: there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"There is no dataset folder {path}; make one with `trsr import`.")
    try:
        info = read_info(path)
    except DataError as error:
        yield Problem(INFO_FILE, None, str(error))
        return
    if extra := [field for field in info.category_fields if field not in info.text_fields]:
        names = " and ".join(map(repr, extra))
        yield Problem(INFO_FILE, None, f"the category field {names} is not among the text fields")
    tables = {}
    for file, schema in table_schemas(path, info).items():
        problems = [Problem(file, None, message) for message in _check_file(path / file, schema, info)]
        yield from problems
        if not any(problem.message.startswith(_UNREADABLE) for problem in problems):
            tables[file] = pl.scan_parquet(path / file, glob=False)
    items = tables[_ITEMS].select("item_id").collect() if _ITEMS in tables else None
    if items is not None:
        yield from _check_items(items)
    if _EVENTS in tables:
        yield from _check_events(tables[_EVENTS].select(EVENTS.names()), items)
    if _IMPRESSIONS in tables:
        yield from _check_impressions(tables[_IMPRESSIONS].select(IMPRESSIONS.names()))


def _check_file(file: Path, schema: pl.Schema, info: DatasetInfo) -> Iterator[str]:
    """Yield the problems of a file as a whole."""
    if not file.is_file():
        yield f"{_UNREADABLE}the file is missing"
        return
    digest = info.sha256.get(file.name)
    try:
        if digest != file_sha256(file):
            expected = "has no sha256" if digest is None else "has another sha256"
            yield f"{INFO_FILE} {expected} for it: it was changed after the import"
        table = pl.scan_parquet(file, glob=False)
        found = table.collect_schema()
        rows = table.select(pl.len()).collect().item()
    except OSError as error:
        yield f"{_UNREADABLE}{error.strerror or str(error).splitlines()[0]}"
        return
    except pl.exceptions.PolarsError as error:
        yield f"{_UNREADABLE}it is no parquet file ({str(error).splitlines()[0]})"
        return
    for name, dtype in schema.items():
        if name not in found:
            yield f"{_UNREADABLE}it lacks the column {name}"
        elif found[name] != dtype:
            yield f"{_UNREADABLE}{name} has the type {found[name]}, expected {dtype}"
    expected_rows = info.counts.get(file.stem)
    if expected_rows != rows:
        counted = "does not count them" if expected_rows is None else f"says {expected_rows}"
        yield f"it has {rows} rows, {INFO_FILE} {counted}"


def _found(rows: pl.DataFrame, file: str, wrong: pl.Expr, message: str) -> Iterator[Problem]:
    for row in rows.filter(wrong)[_ROW]:
        yield Problem(file, row, message)


def _is_empty(column: str) -> pl.Expr:
    return pl.col(column).is_null() | (pl.col(column) == "")


def _check_items(items: pl.DataFrame) -> Iterator[Problem]:
    rows = items.with_row_index(_ROW, offset=1)
    yield from _found(rows, _ITEMS, _is_empty("item_id"), "the item id is empty")
    yield from _found(rows, _ITEMS, ~pl.col("item_id").is_first_distinct(), "the item id was seen before")


def _check_events(events: pl.LazyFrame, items: pl.DataFrame | None) -> Iterator[Problem]:
    user, position, time = pl.col("user_id"), pl.col("position"), pl.col("timestamp")
    expected = (position.shift() + 1).over("user_id").fill_null(0)
    timed = time.is_not_null().all().over("user_id")
    last_user = ""
    for batch in user_batches(events.with_row_index(_ROW, offset=1), _ROWS):
        previous = batch["user_id"].shift(fill_value=last_user).alias("previous")
        last_user = batch["user_id"][-1] or ""
        rows = batch.with_columns(
            previous,
            misplaced=position.is_null() | (position != expected),
            early=timed & (time.shift() > time).over("user_id"),
        )
        for wrong, message in (
            (_is_empty("user_id"), "the user id is empty"),
            (user < pl.col("previous"), "the users are not in order"),
            (pl.col("misplaced"), "the position does not follow the one before (0, 1, 2, ... per user)"),
            (pl.col("early"), "the time is earlier than the previous event's"),
        ):
            yield from _found(rows, _EVENTS, wrong, message)
        if items is not None:
            unknown = batch.join(items, on="item_id", how="anti", maintain_order="left")
            yield from _found(unknown, _EVENTS, pl.lit(True), "the item is not in items.parquet")


def _check_impressions(table: pl.LazyFrame) -> Iterator[Problem]:
    candidates, clicked = pl.col("candidates").list.len(), pl.col("clicked").list.len()
    gaps = pl.any_horizontal(pl.col("candidates", "clicked").list.eval(pl.element().is_null()).list.any())
    seen: set[str] = set()
    rows = table.with_row_index(_ROW, offset=1)
    offset = 0
    while len(batch := rows.slice(offset, _ROWS).collect()):
        offset += len(batch)
        for wrong, message in (
            (_is_empty("impression_id"), "the impression id is empty"),
            (_is_empty("user_id"), "the user id is empty"),
            (candidates.fill_null(0) == 0, "there are no candidates"),
            (gaps, "a candidate or its click is empty"),
            (candidates != clicked, "there are not as many clicks as candidates"),
        ):
            yield from _found(batch, _IMPRESSIONS, wrong, message)
        for row, name in batch.select(_ROW, "impression_id").drop_nulls().iter_rows():
            if name in seen:
                yield Problem(_IMPRESSIONS, row, "the impression id was seen before")
            seen.add(name)
