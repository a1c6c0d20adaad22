"""Examples survive being written and read, and half-written files never stand in their place."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from trsr.errors import DataError, OutputError
from trsr.splitting.examples import Splits, read_examples, read_splits, write_examples, write_splits
from trsr.types import RankingExample

EXAMPLES = [
    RankingExample("e1", "u1", ("a", "b"), ("c", "d"), (0, 1), datetime(2026, 3, 1, 12, tzinfo=UTC)),
    RankingExample("e2", "u2", (), ("d",), (1,)),
]


@pytest.mark.parametrize("examples", [EXAMPLES, []])
def test_examples_are_read_as_they_were_written(tmp_path: Path, examples: list[RankingExample]) -> None:
    write_examples(tmp_path / "new" / "train.parquet", examples)
    assert read_examples(tmp_path / "new" / "train.parquet") == examples
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["train.parquet"]


def test_splits_are_read_as_they_were_written(tmp_path: Path) -> None:
    splits = Splits(
        EXAMPLES[:1],
        [],
        EXAMPLES[1:],
        {"n": 2, "rate": 0.5},
        {"valid_from": "2026-02-01T00:00:00+00:00"},
        ("Mind.",),
    )
    write_splits(tmp_path, splits)
    assert read_splits(tmp_path) == splits
    assert read_splits(tmp_path).valid_from == datetime(2026, 2, 1, tzinfo=UTC)


def test_wrong_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "broken.parquet")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="has the columns a"):
        read_examples(tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"splits\.json"):
        read_splits(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_output_error_and_keeps_what_stood_there(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match="cannot be written"):
        write_examples(tmp_path / "file" / "train.parquet", EXAMPLES)
    assert (tmp_path / "file").read_text() == "kept"
