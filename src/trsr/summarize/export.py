"""Export the rows of a summary store to a Parquet file, and import them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import polars as pl
from polars.io.plugins import register_io_source

from trsr.errors import DataError
from trsr.storage import atomic_write
from trsr.summarize.store import StoredCall

SCHEMA = pl.Schema(
    {
        "key": pl.String(),
        "text": pl.String(),
        "error": pl.String(),
        "model": pl.String(),
        "template_hash": pl.String(),
        "item_ids": pl.List(pl.String),
        "n_prompt_tokens": pl.Int64(),
        "n_generated_tokens": pl.Int64(),
        "seconds": pl.Float64(),
        "n_attempts": pl.Int64(),
        "created_at": pl.Float64(),
    }
)
"""The columns of a store as a Parquet file: the item ids are a list."""
ROWS_AT_ONCE = 20_000


def write_rows(file: Path, rows: Iterable[StoredCall]) -> int:
    """Write rows as a Parquet file in one move, and return how many; memory stays flat.

    Raises:
        OutputError: the file cannot be written.
    """
    waiting, n_rows = iter(rows), 0
    failed: list[Exception] = []

    def frames(*_: object) -> Iterator[pl.DataFrame]:
        nonlocal n_rows
        try:
            while page := list(islice(waiting, ROWS_AT_ONCE)):
                n_rows += len(page)
                yield pl.DataFrame([call[:-1] for call in page], schema=SCHEMA, orient="row")
        except Exception as error:  # raised later: polars would return while a thread still makes the file
            failed.append(error)

    def write(partial: Path) -> None:
        register_io_source(frames, schema=SCHEMA).sink_parquet(partial)
        if failed:
            raise failed[0]

    atomic_write(file, write)
    return n_rows


def read_rows(file: Path) -> Iterator[StoredCall]:
    """Yield the rows of a Parquet file that `write_rows` made; memory stays flat.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        table = pl.scan_parquet(file, glob=False)
        found = table.collect_schema()
        if dict(found) != dict(SCHEMA):
            raise DataError(
                f"{file} has the columns {', '.join(found)}, expected those of an exported store "
                f"({', '.join(SCHEMA)}); make it with `trsr store export`."
            )
        for page in table.select(SCHEMA.names()).collect_batches(
            chunk_size=ROWS_AT_ONCE, maintain_order=True
        ):
            for values in page.iter_rows():
                row = StoredCall(*values)
                if (row.text is None) == (row.error is None):
                    raise DataError(
                        f"{file}, key {row.key}: expected a text or an error; name an exported store."
                    )
                yield row._replace(item_ids=tuple(row.item_ids))
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(
            f"{file} cannot be read as Parquet ({reason}); export it again, or name another file."
        ) from error
