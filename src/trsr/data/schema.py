"""The layout of a dataset folder: the columns of its tables, and `dataset.json`.

dataset.json         DatasetInfo
items.parquet        item_id, then one text column per field (null allowed)
events.parquet       user_id, item_id, position (0 = oldest), timestamp (UTC or null), in that order
impressions.parquet  optional: impression_id, user_id, timestamp, history, candidates, clicked
rejects.parquet      file, row, reason, raw: every input row that was refused
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from trsr.data.import_info import FileInfo, TimesInfo
from trsr.errors import DataError

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


class DatasetInfo(BaseModel):
    """The content of `dataset.json`.

    Attributes:
        name: Shown in reports.
        domain: "news", "products", "movies" or another word; chooses the prompt templates.
        text_fields: The text columns of items.parquet, in rendering order.
        category_fields: The text fields that hold categories, brands or genres; a value may be a list,
            separated by "|" or ", ".
        counts: Rows by table ("items", "events", "impressions", "rejects"), "users", and other counts
            of an importer.
        sha256: Hex digest of each parquet file.
        source: Where the data came from, in words.
        times: Facts about the times, for imported data.
        files: Facts about each raw file.
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
