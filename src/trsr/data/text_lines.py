"""Lines of a raw text file, plain or gzip, in batches, and how a line is cut into fields.

The encoding is named, or found in the first 4 MB. Lines end at a line feed only (a description may hold
U+2028), or at a carriage return where these 4 MB have no line feed.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import polars as pl

from trsr.data.import_info import FileInfo
from trsr.errors import DataError

# Columns of every frame of raw rows; no column of a file can be called so (`columns.plain_names`).
ROW, RAW = "\x1frow", "\x1fraw"
BATCH_BYTES = 8 * 2**20
_SAMPLE_BYTES = 4 * 2**20
_DELIMITERS = (",", ";", "\t", "|", "::")
_MAX_RECORD = 4 * 2**20  # characters; a quote left open longer than this counts as broken
csv.field_size_limit(2**31 - 1)  # the default refuses fields over 128 kB

_BOM = b"\xef\xbb\xbf"
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_NO_TEXT = {
    b"PAR1\x15": "Parquet; rename it to .parquet",
    b"PK\x03\x04": "a zip archive; unpack it, or rename it to .xlsx if it is an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; rename it to .xls",
    b"SQLite format 3": "an SQLite database; export its tables as CSV",
    b"\x1f\x8b": "gzip data inside of gzip data; unpack it once",
    b"BZh91AY": "bzip2 data; unpack it",
    b"\xfd7zXZ": "xz data; unpack it",
    b"\x28\xb5\x2f\xfd": "zstd data; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Obj\x01": "Avro; export it as Parquet",
    b"%PDF-": "a PDF; export its tables as CSV",
}
_NOT_CP1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d\xff]")  # of no letter, or none in use
_HIGH = re.compile(rb"[\x80-\xff]+")
_BROKEN = "\udcff"  # undecodable bytes; not UTF-8 either, so the line is refused
codecs.register_error("trsr-broken", lambda error: (_BROKEN, getattr(error, "end", 0)))

Reject = Callable[[pl.DataFrame, str], None]
"""Takes a frame with `ROW` and `RAW`, and the reason for refusing its rows."""


def raw_rows(rows: list[tuple[int, str]]) -> pl.DataFrame:
    """Return a frame of `ROW` and `RAW`."""
    numbers, raws = zip(*rows, strict=True) if rows else ((), ())
    return pl.DataFrame({ROW: pl.Series(numbers, dtype=pl.Int64), RAW: pl.Series(raws, dtype=pl.String)})


def read_lines(file: Path, reject: Reject, info: FileInfo) -> Iterator[tuple[int, list[str], bool]]:
    """Yield batches of about 8 MB: the number of the first line, the lines, whether the file ends here.

    A line that cannot be decoded is refused, and is an empty text in its batch. Fills in `info.encoding`.

    Raises:
        DataError: the file is missing, cannot be read, is empty, holds no text, or is a damaged gzip file, or
            there is no such encoding.
    """
    first = 1
    rest = b""
    try:
        with _open(file) as stream:
            for chunk in _utf8_chunks(file, stream, info):
                head, newline, tail = chunk.rpartition(b"\n")
                if not newline:
                    rest += chunk
                    continue
                texts = _decode(rest + head, first, reject, info)
                rest = tail
                yield first, texts, False
                first += len(texts)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"There is no file {file}; check the path.") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{file} is a damaged gzip file ({error}); fetch it again, or take .gz off its name if "
            "it is plain text."
        ) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error
    if first == 1 and not rest:
        raise DataError(f"{file} is empty; expected at least one row: check that it is the right file.")
    yield first, _decode(rest, first, reject, info) if rest else [], True


def _open(file: Path) -> BinaryIO:
    if not file.exists() and (packed := file.with_name(f"{file.name}.gz")).is_file():
        file = packed
    stream = file.open("rb")
    if file.suffix == ".gz" or stream.peek(2)[:2] == b"\x1f\x8b":  # gzip under any name
        stream.close()
        # GzipFile is a BinaryIO in all that is used here; the type stubs do not know.
        return gzip.open(file, "rb")  # type: ignore[return-value]
    return stream


def _utf8_chunks(file: Path, stream: BinaryIO, info: FileInfo) -> Iterator[bytes]:
    """Yield a file as UTF-8 without a byte order mark, its lines ended by line feeds."""
    sample = stream.read(_SAMPLE_BYTES)
    if kind := next((kind for mark, kind in _NO_TEXT.items() if sample.startswith(mark)), None):
        raise DataError(f"{file} is no text but holds {kind}.")
    info.encoding = _known(info.encoding) if info.encoding else _find_encoding(sample)
    recode = None
    if info.encoding != "utf-8":
        recode = codecs.getincrementaldecoder(info.encoding)("trsr-broken")
    first, cr_only = True, False
    while sample:
        if recode is not None:
            sample = recode.decode(sample).encode("utf-8", "surrogatepass")
        if first:
            sample = sample.removeprefix(_BOM)
            first, cr_only = False, b"\r" in sample and b"\n" not in sample
        for start in range(0, len(sample), BATCH_BYTES):
            chunk = sample[start : start + BATCH_BYTES]
            yield chunk.replace(b"\r", b"\n") if cr_only else chunk
        sample = stream.read(BATCH_BYTES)
    if recode is not None:
        yield recode.decode(b"", final=True).encode("utf-8", "surrogatepass")


def _known(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        b"x".decode(name, "replace")
    except (LookupError, ValueError) as error:
        raise DataError(
            f"There is no text encoding {encoding!r}; name one such as utf-8, utf-16 or cp1252."
        ) from error
    return "utf-8" if name == "utf-8-sig" else name


def _find_encoding(sample: bytes) -> str:
    """Return the encoding of the first bytes of a file; where nothing fits better, UTF-8."""
    for mark, encoding in _MARKS:
        if sample.startswith(mark):
            return encoding
    start = sample[:1000]
    if (zeros := start.count(0)) > len(start) / 4:  # most letters of UTF-16 have a zero next to them
        return "utf-16-le" if start[1::2].count(0) * 2 > zeros else "utf-16-be"
    lines = sample.split(b"\n")[: None if len(sample) < _SAMPLE_BYTES else -1]
    lines = [line for line in lines if not line.isascii()]
    if any(_is_utf8(line) for line in lines):
        return "utf-8"
    high = [run for line in lines for run in _HIGH.findall(line)]
    # In western words a letter outside ASCII is alone; other scripts have long runs of such bytes.
    long_runs = sum(len(run) for run in high if len(run) > 2)
    looks_western = high and long_runs * 10 <= sum(map(len, high)) and not any(map(_NOT_CP1252.search, lines))
    return "cp1252" if looks_western else "utf-8"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decode(block: bytes, first: int, reject: Reject, info: FileInfo) -> list[str]:
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
    reject(raw_rows(refused), f"not {(info.encoding or 'utf-8').upper()}")
    return texts


def split_line(text: str, separator: str, quotes: bool) -> list[str] | None:
    """Return the fields of one line, or None where a quote is not closed in it."""
    if not quotes or '"' not in text:
        return text.split(separator)
    try:
        rows = list(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def find_delimiter(texts: Sequence[str], usual: str, quotes: bool, width: int | None) -> str:
    """Return the delimiter by which most of the first lines have as many fields as the header.

    Args:
        texts: The first lines.
        usual: The delimiter that the file's suffix promises; it stays unless another one fits better.
        quotes: Whether fields may be in double quotes.
        width: Number of columns, where the file has no header.
    """
    best, best_share = usual, 0.0
    for delimiter in dict.fromkeys((usual, *_DELIMITERS)):
        quoted = quotes and len(delimiter) == 1
        lines = [split_line(text, delimiter, quoted) for text in texts if text.strip()]
        fields = width or len((lines or [None])[0] or ())
        whole = [len(line) == fields for line in lines if line is not None]
        share = sum(whole) / len(whole) if whole and fields > 1 else 0.0
        if delimiter == usual and share >= 0.5:
            return usual
        if share > best_share:
            best, best_share = delimiter, share
    return best


def fields_are_quoted(texts: Sequence[str], separator: str) -> bool:
    """Return whether double quotes in these lines enclose fields, and are no letters of a raw text.

    They do where there is a quoted field per line, or where each has a reason: a comma, a quote, the
    separator or a line break inside. At most one in twenty may be broken.
    """
    mark = re.escape(separator)
    field = re.compile(rf'(?:^|{mark})"(?:([^"]*(?:""[^"]*)*)"(?={mark}|$))?', re.MULTILINE)
    fields = [found[1] for found in field.finditer("\n".join(text for text in texts if '"' in text))]
    whole = [
        inside for inside in fields if inside is not None and not ("\n" in inside and separator in inside)
    ]
    if not whole or (len(fields) - len(whole)) * 20 > len(whole):
        return False
    reasons = (",", '"', "\n", separator)
    return len(whole) >= len(texts) or all(any(map(inside.__contains__, reasons)) for inside in whole)


Record = tuple[int, str, list[str] | None]
"""Place of its first line in the batch, text, and fields; None where a quote is broken."""


def split_records(texts: list[str], separator: str, width: int, *, final: bool) -> tuple[list[Record], int]:
    """Return the records of a batch of lines, and how many lines they used.

    Unless `final`, a record that is still open at the end of the batch is left for the next one.
    """
    records: list[Record] = []
    at = 0
    while at < len(texts):
        text = texts[at]
        fields = split_line(text, separator, True)
        end = at + 1
        if fields is None and text.count('"') % 2:
            end, closed = _find_close(texts, at)
            if not closed and end == len(texts) and not final:
                break
            joined = "\n".join(texts[at:end])
            longer = split_line(joined, separator, True) if closed else None
            if longer is not None and len(longer) == width:
                fields, text = longer, joined
            else:
                end = at + 1
        if text.strip():
            records.append((at, text, fields))
        at = end
    return records, at


def _find_close(texts: list[str], start: int) -> tuple[int, bool]:
    """Return the end of the record that opens at line `start`, and whether its quote is closed there."""
    size = len(texts[start])
    for at in range(start + 1, len(texts)):
        size += len(texts[at])
        if texts[at].count('"') % 2:
            return at + 1, True
        if size > _MAX_RECORD:
            return at, False
    return len(texts), False
