"""Examples as files: one parquet file a split, and `splits.json` for what is said about them.

Files appear whole or not at all: each is written beside its place and then moved there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from trsr.data.examples import Splits
from trsr.data.files import write_whole
from trsr.data.questions import SPLITS
from trsr.data.tables import TIME
from trsr.errors import DataError
from trsr.types import RankingExample

EXAMPLES = pl.Schema(
    {
        "example_id": pl.String(),
        "user_id": pl.String(),
        "history": pl.List(pl.String),
        "candidates": pl.List(pl.String),
        "labels": pl.List(pl.Int8),
        "timestamp": TIME,
    }
)


def write_examples(path: str | Path, examples: Sequence[RankingExample]) -> None:
    """Write examples as parquet, in their order.

    Raises:
        OutputError: the file cannot be written; what stood there before is kept.
    """
    columns = {name: [getattr(example, name) for example in examples] for name in EXAMPLES.names()}
    frame = pl.DataFrame(columns, schema=EXAMPLES)
    write_whole(Path(path), frame.write_parquet)


def read_examples(path: str | Path) -> list[RankingExample]:
    """Read what `write_examples` wrote.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    try:
        frame = pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path} cannot be read as examples ({_first_line(error)}); make them anew."
        ) from error
    if frame.schema != EXAMPLES:
        raise DataError(
            f"{path} has the columns {', '.join(frame.columns)}, but examples have {', '.join(EXAMPLES)}; "
            "make them anew."
        )
    return [
        RankingExample(name, user_id, tuple(history), tuple(candidates), tuple(labels), timestamp)
        for name, user_id, history, candidates, labels, timestamp in frame.iter_rows()
    ]


def write_splits(folder: str | Path, splits: Splits) -> None:
    """Write `train.parquet`, `valid.parquet`, `test.parquet`, and last `splits.json`.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    for split in SPLITS:
        write_examples(folder / f"{split}.parquet", splits.of(split))
    said = {"counts": splits.counts, "description": splits.description, "warnings": splits.warnings}
    text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / "splits.json", lambda file: file.write_text(text, encoding="utf-8"))


def read_splits(folder: str | Path) -> Splits:
    """Read what `write_splits` wrote.

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = Path(folder)
    try:
        said = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
        counts, description, warnings = said["counts"], said["description"], tuple(said["warnings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}/splits.json cannot be read ({_first_line(error)}); make the examples anew."
        ) from error
    train, valid, test = (read_examples(folder / f"{split}.parquet") for split in SPLITS)
    return Splits(train, valid, test, counts, description, warnings)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
