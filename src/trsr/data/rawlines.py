"""Lines of a raw text file, plain or gzip, in batches: memory depends on the batch, not on the file.

Lines end at a line feed only (a description may hold U+2028). A line that is not UTF-8 is refused by itself,
and reading goes on. What a line means is left to `rawtables`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import polars as pl

from trsr.errors import DataError

BATCH_BYTES = 8 * 2**20
_BOM = b"\xef\xbb\xbf"

Reject = Callable[[str, pl.DataFrame, str], None]
"""Takes a file name, a frame of `row` and `raw`, and the reason: `DatasetWriter.reject`."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Consecutive lines: `first` is the number of the first (from 1), `last` says that the file ends here.

    A refused line stands as an empty text, so that the numbers hold.
    """

    first: int
    texts: list[str]
    last: bool


def reject_rows(rows: list[tuple[int, str]]) -> pl.DataFrame:
    """Return the frame of `row` and `raw` that a `Reject` takes."""
    return pl.DataFrame(rows, schema={"row": pl.Int64, "raw": pl.String}, orient="row")


def read_lines(file: Path, reject: Reject) -> Iterator[Lines]:
    """Yield a file's lines in batches of about 8 MB.

    Raises:
        DataError: the file is missing, cannot be read, is empty, or is a damaged gzip file.
    """
    first = 1
    rest = b""
    try:
        with _open(file) as stream:
            while chunk := stream.read(BATCH_BYTES):
                if first == 1 and not rest:
                    chunk = chunk.removeprefix(_BOM)
                head, newline, tail = chunk.rpartition(b"\n")
                if not newline:
                    rest += chunk
                    continue
                texts = _decode(file, rest + head, first, reject)
                rest = tail
                yield Lines(first, texts, last=False)
                first += len(texts)
    except FileNotFoundError as error:
        raise DataError(f"There is no file {file}; check the path.") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{file} is a damaged gzip file ({error}); fetch it again.") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error
    if first == 1 and not rest:
        raise DataError(f"{file} is empty; expected at least one row: check that it is the right file.")
    yield Lines(first, _decode(file, rest, first, reject) if rest else [], last=True)


def _open(file: Path) -> BinaryIO:
    # GzipFile is a BinaryIO in all that is used here; the type stubs do not say so.
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _decode(file: Path, block: bytes, first: int, reject: Reject) -> list[str]:
    try:
        return [line.removesuffix("\r") for line in block.decode().split("\n")]
    except UnicodeDecodeError:
        pass
    texts, refused = [], []
    for row, line in enumerate(block.split(b"\n"), start=first):
        try:
            texts.append(line.decode().removesuffix("\r"))
        except UnicodeDecodeError:
            texts.append("")
            refused.append((row, line.decode(errors="backslashreplace")))
    reject(file.name, reject_rows(refused), "not UTF-8")
    return texts
