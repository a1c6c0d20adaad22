"""Checks of a dataset folder: every problem with its file and row; only ids are held in memory.

What an importer refuses never gets here; this is for folders made or changed by other hands, and for damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from trsr.data.dataset import (
    EVENTS,
    IMPRESSIONS,
    INFO_FILE,
    DatasetInfo,
    read_info,
    table_schemas,
    user_batches,
)
from trsr.errors import DataError
from trsr.storage import file_sha256

_ROWS = 200_000  # rows checked at once
_ROW = "\x1frow"  # no file's own column can be called so by chance


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where: `row` counts from 1 and is None where the whole file is meant."""

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
    extra = [field for field in info.category_fields if field not in info.text_fields]
    if extra:
        yield Problem(
            INFO_FILE,
            None,
            f"the category field {' and '.join(map(repr, extra))} is not among the text fields",
        )
    readable = []
    for file, schema in table_schemas(path, info).items():
        problems = list(_check_file(path, file, schema, info))
        yield from problems
        if not any(problem.message.startswith(_UNREADABLE) for problem in problems):
            readable.append(file)
    yield from _check_rows(path, readable)


_UNREADABLE = "cannot be used"


def imported_info(path: Path) -> DatasetInfo | None:
    """Return what the import of a folder noted, or None where `dataset.json` cannot be read."""
    try:
        return read_info(path)
    except DataError:
        return None


def _check_file(path: Path, file: str, schema: pl.Schema, info: DatasetInfo) -> Iterator[Problem]:
    if not (path / file).is_file():
        yield Problem(file, None, f"{_UNREADABLE}: the file is missing")
        return
    digest = info.sha256.get(file)
    try:
        if digest != file_sha256(path / file):
            expected = "has no sha256" if digest is None else "has another sha256"
            yield Problem(file, None, f"{INFO_FILE} {expected} for it: it was changed after the import")
        table = pl.scan_parquet(path / file, glob=False)
        found = table.collect_schema()
        rows = table.select(pl.len()).collect().item()
    except OSError as error:
        yield Problem(file, None, f"{_UNREADABLE}: {error.strerror or str(error).splitlines()[0]}")
        return
    except pl.exceptions.PolarsError as error:
        yield Problem(file, None, f"{_UNREADABLE}: it is no parquet file ({str(error).splitlines()[0]})")
        return
    for name, dtype in schema.items():
        if name not in found:
            yield Problem(file, None, f"{_UNREADABLE}: it lacks the column {name}")
        elif found[name] != dtype:
            yield Problem(file, None, f"{_UNREADABLE}: {name} has the type {found[name]}, expected {dtype}")
    expected_rows = info.counts.get(file.removesuffix(".parquet"))
    if expected_rows != rows:
        said = "does not count them" if expected_rows is None else f"says {expected_rows}"
        yield Problem(file, None, f"it has {rows} rows, {INFO_FILE} {said}")


def _check_rows(path: Path, readable: list[str]) -> Iterator[Problem]:
    items = None
    if "items.parquet" in readable:
        items = pl.scan_parquet(path / "items.parquet", glob=False).select("item_id").collect()
        rows = items.with_row_index(_ROW, offset=1)
        item_id = pl.col("item_id")
        yield from _found(rows, "items.parquet", item_id.is_null() | (item_id == ""), "the item id is empty")
        yield from _found(rows, "items.parquet", ~item_id.is_first_distinct(), "the item id was seen before")
    if "events.parquet" in readable:
        events = pl.scan_parquet(path / "events.parquet", glob=False).select(EVENTS.names())
        events = events.with_row_index(_ROW, offset=1)
        last_user = ""
        for batch in user_batches(events, _ROWS):
            yield from _check_events(batch, items, last_user)
            last_user = batch["user_id"][-1] or ""
    if "impressions.parquet" in readable:
        impressions = pl.scan_parquet(path / "impressions.parquet", glob=False)
        yield from _check_impressions(impressions.select(IMPRESSIONS.names()))


def _check_events(batch: pl.DataFrame, items: pl.DataFrame | None, last_user: str) -> Iterator[Problem]:
    file = "events.parquet"
    user, position, time = pl.col("user_id"), pl.col("position"), pl.col("timestamp")
    batch = batch.with_columns(
        user.shift(fill_value=last_user).alias("previous_user"),
        (position.shift() + 1).over("user_id").fill_null(0).alias("expected"),
        (time.shift() > time).over("user_id").alias("back"),
        time.is_not_null().all().over("user_id").alias("timed"),
    )
    yield from _found(batch, file, user.is_null() | (user == ""), "the user id is empty")
    yield from _found(batch, file, user < pl.col("previous_user"), "the users are not in order")
    wrong = position.is_null() | (position != pl.col("expected"))
    yield from _found(batch, file, wrong, "the position does not follow the one before (0, 1, 2, ... a user)")
    yield from _found(
        batch, file, pl.col("timed") & pl.col("back"), "the time lies before that of the event before"
    )
    if items is not None:
        unknown = batch.join(items, on="item_id", how="anti", maintain_order="left")
        yield from _found(unknown, file, pl.lit(True), "the item is not in items.parquet")


def _check_impressions(table: pl.LazyFrame) -> Iterator[Problem]:
    file = "impressions.parquet"
    candidates, clicked = pl.col("candidates").list.len(), pl.col("clicked").list.len()
    seen: set[str] = set()
    rows = table.with_row_index(_ROW, offset=1)
    offset = 0
    while len(batch := rows.slice(offset, _ROWS).collect()):
        offset += len(batch)
        for name in ("impression_id", "user_id"):
            empty = pl.col(name).is_null() | (pl.col(name) == "")
            yield from _found(batch, file, empty, f"the {name.replace('_', ' ')} is empty")
        yield from _found(batch, file, candidates.fill_null(0) == 0, "there are no candidates")
        gaps = pl.any_horizontal(pl.col("candidates", "clicked").list.eval(pl.element().is_null()).list.any())
        yield from _found(batch, file, gaps, "a candidate or its click is empty")
        yield from _found(batch, file, candidates != clicked, "there are not as many clicks as candidates")
        for row, name in batch.select(_ROW, "impression_id").drop_nulls().iter_rows():
            if name in seen:
                yield Problem(file, row, "the impression id was seen before")
            seen.add(name)


def _found(rows: pl.DataFrame, file: str, wrong: pl.Expr, message: str) -> Iterator[Problem]:
    for row in rows.filter(wrong)[_ROW]:
        yield Problem(file, row, message)
