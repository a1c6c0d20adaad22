"""Rows of a raw file (CSV, TSV, JSON Lines, Parquet or Excel) as frames of text columns, batch by batch.

A frame holds `ROW` (line number from 1), `RAW` (the row as it is in the file) and one column per field, of
type String or List(String). Rows that cannot be read are refused one by one with a reason.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from trsr.data import text_lines
from trsr.data.columns import plain_names
from trsr.data.import_info import FileInfo
from trsr.data.text_lines import RAW, ROW, Reject, raw_rows, read_lines
from trsr.errors import DataError, MissingExtraError

_FIELDS = "\x1ffields"
_PARQUET_ROWS = 50_000
_SNIFFED_LINES = 1000
_LINES_SEEN = 20  # to check that a file without a header is the right one
_DELIMITED = {
    **{".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t", ".psv": "|", ".dat": ","},
    **{".item": "|", ".data": "\t"},  # MovieLens 100k
}
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
# How MongoDB writes a value with its type in JSON: `{"$oid": "65a0"}` is the id 65a0.
_TYPED = {"$oid", "$date", "$numberInt", "$numberLong", "$numberDouble", "$numberDecimal", "$uuid"}
_EXCEL = (".xlsx", ".xlsm", ".xlsb", ".xls")
_EXCEL_DAY_0 = "^1899-12-3[01][T ]"  # before a time of day
_NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t"}


def read_frames(
    file: Path,
    reject: Reject,
    info: FileInfo,
    *,
    columns: Sequence[str] | None = None,
    quotes: bool | None = None,
    keep: Collection[str] | None = None,
) -> Iterator[pl.DataFrame]:
    """Yield a file's rows as frames; the suffix (before `.gz`) names the format.

    Args:
        file: The file.
        reject: Takes refused rows.
        info: Delimiter and encoding where they are known; the others are detected and filled in.
        columns: Names for a CSV or TSV file without a header line.
        quotes: Whether fields may be in double quotes; by default in CSV, and in a TSV of quoted fields.
        keep: JSON keys to read, in lower case; they are found in any case. All by default.

    Raises:
        DataError: missing or empty file, unknown suffix, or a header that cannot be used.
        MissingExtraError: an Excel file, and its reader is not installed.
    """
    suffix = Path(file.name.removesuffix(".gz")).suffix.lower()
    if columns is not None and suffix not in _DELIMITED:
        raise DataError(f"{file} has its own column names; give names only for a CSV or TSV file.")
    if suffix == ".parquet":
        yield from _read_parquet(file, reject)
    elif suffix in _EXCEL:
        yield from _read_excel(file, info)
    elif suffix in JSON_SUFFIXES:
        yield from _read_json(file, reject, keep, info)
    elif suffix in _DELIMITED:
        yield from _read_delimited(file, reject, info, _DELIMITED[suffix], columns, quotes)
    else:
        raise DataError(
            f"{file} has an unknown suffix; expected .csv, .tsv, .txt, .jsonl, .parquet or .xlsx "
            "(or .gz of text)."
        )


def _read_delimited(
    file: Path,
    reject: Reject,
    info: FileInfo,
    usual: str,
    columns: Sequence[str] | None,
    quotes: bool | None,
) -> Iterator[pl.DataFrame]:
    header = None if columns is None else _distinct(file, plain_names(columns))
    header_line: str | None = None
    pending: list[str] = []  # lines of a quoted field that continues in the next batch
    separator, quoted = usual, False
    for number, lines, last in read_lines(file, reject, info):
        first, texts = number - len(pending), pending + lines
        if number == 1:
            if texts and (found := re.fullmatch(r'"?sep=(.)"?', texts[0])):  # Excel's own first line
                info.delimiter, first, texts = info.delimiter or found[1], first + 1, texts[1:]
            separator = _delimiter(texts, info, usual, quotes is not False, header)
            if quotes is None:
                quotes = {usual, separator} != {"\t"} or text_lines.fields_are_quoted(texts, separator)
            quoted = quotes and len(separator) == 1
            info.quotes = quoted and separator == "\t"
        if header is None:
            header_line, header = _read_header(file, texts, separator, quoted)
            first, texts = first + 1, texts[1:]
        elif number == 1:
            _check_width(
                file, _split(texts[:_LINES_SEEN], 1, separator, quoted, header, last=False)[0], header
            )
            header_line = _unexpected_header(texts, header, separator, quoted)
        frame, pending = _split(texts, first, separator, quoted, header, last=last)
        frame = _refuse(frame, frame[_FIELDS].is_null(), "broken quote", reject)
        frame = _fit(frame, header, reject)
        if header_line is not None:  # files that were joined have header lines between their rows
            again = frame[RAW].str.strip_chars_start("\ufeff") == header_line
            frame = _refuse(frame, again, "the header line again", reject)
        yield frame


def _refuse(frame: pl.DataFrame, wrong: pl.Series, reason: str, reject: Reject) -> pl.DataFrame:
    """Return the rows that are not wrong; the others are refused."""
    if not wrong.any():
        return frame
    reject(frame.filter(wrong), reason)
    return frame.filter(~wrong)


def _delimiter(texts: list[str], info: FileInfo, usual: str, quotes: bool, header: list[str] | None) -> str:
    """Return the named delimiter, or detect it in the first lines and fill it in."""
    if info.delimiter is None:
        width = None if header is None else len(header)
        info.delimiter = text_lines.find_delimiter(texts[:_SNIFFED_LINES], usual, quotes, width)
    info.delimiter = _NAMED_DELIMITERS.get(info.delimiter, info.delimiter)
    if not info.delimiter or set(info.delimiter) & set('"\r\n'):
        raise DataError(f"The delimiter {info.delimiter!r} cannot be used; name one such as ';', '|' or tab.")
    return info.delimiter


def _read_header(file: Path, texts: list[str], separator: str, quoted: bool) -> tuple[str, list[str]]:
    if not (texts and texts[0].strip()):
        raise DataError(
            f"{file} has no readable header line; expected column names; if they are there, name "
            "the --encoding."
        )
    if texts[0].lstrip().startswith('{"'):
        raise DataError(f"{file} holds JSON; rename it to .jsonl.")
    names = text_lines.split_line(texts[0], separator, quoted)
    if names is None:
        raise DataError(f"{file} has a broken quote in its header line; mend that line.")
    return texts[0], _distinct(file, plain_names(names))


def _distinct(file: Path, names: list[str]) -> list[str]:
    if twice := sorted(name for name, n in Counter(names).items() if n > 1):
        raise DataError(
            f"{file} has more than one column called {' and '.join(map(repr, twice))}; "
            "rename all but one of them."
        )
    return names


def _split(
    texts: list[str], first: int, separator: str, quoted: bool, header: Sequence[str], *, last: bool
) -> tuple[pl.DataFrame, list[str]]:
    """Return lines as `ROW`, `RAW`, `_FIELDS` (null for a broken quote), and the lines of an open record."""
    if quoted and any('"' in line for line in texts):
        records, used = text_lines.split_records(texts, separator, len(header), final=last)
        rows = raw_rows([(first + line, raw) for line, raw, _ in records])
        return rows.with_columns(_lists([fields for *_, fields in records]).alias(_FIELDS)), texts[used:]
    raws = pl.Series(texts, dtype=pl.String)
    rows = pl.DataFrame({ROW: pl.int_range(first, first + len(texts), eager=True), RAW: raws})
    rows = rows.filter(pl.col(RAW).str.strip_chars() != "")
    return rows.with_columns(pl.col(RAW).str.split(separator).alias(_FIELDS)), []


def _is_fit(header: Sequence[str]) -> pl.Expr:
    """Return whether the fields fit the header.

    Spreadsheets leave out cells of columns without a name at the end, or add empty ones.
    """
    named = max((i for i, name in enumerate(header, start=1) if name != f"column_{i}"), default=len(header))
    n, beyond = pl.col(_FIELDS).list.len(), pl.col(_FIELDS).list.slice(len(header)).list.join("")
    return n.is_between(named, len(header)) | ((n > len(header)) & (beyond.str.strip_chars() == ""))


def _fit(frame: pl.DataFrame, header: list[str], reject: Reject) -> pl.DataFrame:
    if not frame.select((pl.col(_FIELDS).list.len() == len(header)).all()).item():
        wrong = frame.select(~_is_fit(header)).to_series()
        frame = _refuse(frame, wrong, "another number of columns than the header", reject)
    cells = [pl.col(_FIELDS).list.get(i, null_on_oob=True).alias(name) for i, name in enumerate(header)]
    return frame.select(ROW, RAW, *cells)


def _check_width(file: Path, frame: pl.DataFrame, header: Sequence[str]) -> None:
    """Refuse a file without a header if none of its first lines has the expected columns."""
    widths = frame[_FIELDS].drop_nulls().list.len()
    if len(widths) and not frame.select(_is_fit(header).any()).item():
        raise DataError(
            f"{file} has {Counter(widths).most_common(1)[0][0]} columns, expected {len(header)}: "
            f"{', '.join(header)}; check that it is the right file and that these are all of its columns."
        )


def _unexpected_header(
    texts: Sequence[str], header: Sequence[str], separator: str, quotes: bool
) -> str | None:
    """Return the first line of a file without a header if it is one: half of its fields are column names."""
    names = {name.lower() for name in header}
    fields = (texts and text_lines.split_line(texts[0], separator, quotes)) or []
    same = sum(field.strip().lower() in names for field in fields)
    return texts[0] if same * 2 >= max(2, len(header)) else None


def _read_json(
    file: Path, reject: Reject, keep: Collection[str] | None, info: FileInfo
) -> Iterator[pl.DataFrame]:
    keys: list[str] = []
    for first, texts, _ in read_lines(file, reject, info):
        if first == 1 and texts and texts[0].lstrip().startswith("["):
            raise DataError(f"{file} is one JSON list; expected JSON Lines: one object a line.")
        frame = _json_frame(file, first, texts, reject, keep)
        if frame.is_empty():
            continue
        # A key that a whole batch lacks is a null column there, not a missing one.
        lacking = [key for key in keys if key not in frame.columns]
        yield frame.with_columns(pl.lit(None, pl.String).alias(key) for key in lacking)
        keys.extend(key for key in frame.columns if key not in keys)
    if not keys:
        raise DataError(f"{file} holds no JSON object; expected JSON Lines: one object a line.")


def _json_frame(
    file: Path, first: int, texts: list[str], reject: Reject, keep: Collection[str] | None
) -> pl.DataFrame:
    rows: list[tuple[int, str]] = []
    columns: dict[str, list[str | list[str] | None]] = {}
    broken: list[tuple[int, str]] = []
    for row, text in enumerate(texts, start=first):
        if not text.strip():
            continue
        record = _record(text)
        if not isinstance(record, dict):
            broken.append((row, text))
            continue
        halves = "\\ud" in text or "\\uD" in text  # an escaped half of a surrogate pair may be inside
        for key, value in record.items():
            if keep is None or str(key).strip().lower() in keep:
                column = columns.setdefault(str(_plain(key, halves)), [])
                column.extend([None] * (len(rows) - len(column)))
                column.append(_plain(value, halves))
        rows.append((row, text))
    if broken:
        reject(raw_rows(broken), "not a JSON object")
    names = _distinct(file, plain_names(columns))
    series = {
        name: _column(values + [None] * (len(rows) - len(values)))
        for name, values in zip(names, columns.values(), strict=True)
    }
    return raw_rows(rows).with_columns(**series)


def _record(text: str) -> object:
    """Parse a line of JSON, or of the Python that the Amazon files of 2014 hold; None where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if not text.lstrip().startswith("{'"):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _plain(value: object, halves: bool) -> str | list[str] | None:
    """Turn a JSON value into a text or a flat list of texts; `halves` of surrogate pairs are replaced."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if halves else value
        case float():
            return None if math.isnan(value) else str(int(value) if value.is_integer() else value)
        case list():
            flat: list[str] = []
            for part in value:
                text = _plain(part, halves)
                flat.extend(text if isinstance(text, list) else ["" if text is None else text])
            return flat
        case dict() if len(value) == 1 and next(iter(value)) in _TYPED:
            return _plain(next(iter(value.values())), halves)
        case dict():
            parts = {key: _plain(part, halves) for key, part in value.items()}
            return [f"{key}: {', '.join(p) if isinstance(p, list) else p}" for key, p in parts.items() if p]
        case _:  # int, bool or null
            return None if value is None else str(value)


def _column(values: list[str | list[str] | None]) -> pl.Series:
    if any(isinstance(value, list) for value in values):
        return _lists([value if value is None or isinstance(value, list) else [value] for value in values])
    return pl.Series(values, dtype=pl.String)


def _lists(cells: list[list[str] | None]) -> pl.Series:
    """Return `pl.Series(cells)` in a third of its time: that makes a series of every list first."""
    rows = pl.Series([row for row, cell in enumerate(cells) for _ in cell or ()], dtype=pl.Int64)
    parts = pl.Series([part for cell in cells for part in cell or ()], dtype=pl.String)
    found = pl.DataFrame({"row": rows, "cell": parts}).group_by("row").agg("cell")
    missing = pl.Series([cell is None for cell in cells], dtype=pl.Boolean)
    table = pl.DataFrame({"row": pl.int_range(len(cells), eager=True), "missing": missing})
    table = table.join(found, on="row", how="left", maintain_order="left")
    return table.select(pl.when(~pl.col("missing")).then(pl.col("cell").fill_null([])))["cell"]


def _read_parquet(file: Path, reject: Reject) -> Iterator[pl.DataFrame]:
    if not file.is_file():
        raise DataError(f"There is no file {file}; check the path.")
    try:
        table = pl.scan_parquet(file, glob=False)
        found = table.collect_schema()
        names = _distinct(file, plain_names(found.names()))
        table = table.rename(dict(zip(found.names(), names, strict=True)))
        schema = table.collect_schema()
        rows = table.select(pl.len()).collect().item()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(file, "Parquet", error) from error
    if rows == 0:
        raise DataError(f"{file} is empty; expected at least one row: check that it is the right file.")
    in_bytes = [name for name, dtype in schema.items() if dtype in (pl.Binary, pl.List(pl.Binary))]
    size = max(1, min(_PARQUET_ROWS, rows * text_lines.BATCH_BYTES // max(1, file.stat().st_size)))
    for offset in range(0, rows, size):
        part = table.slice(offset, size).collect()
        frame = _as_text(part, offset + 1)
        broken = pl.repeat(False, len(part), eager=True)
        for name in in_bytes:
            broken |= part[name].map_elements(_is_broken, return_dtype=pl.Boolean).fill_null(False)
        yield _refuse(frame, broken, "not UTF-8", reject)


def _read_excel(file: Path, info: FileInfo) -> Iterator[pl.DataFrame]:
    """Yield the first sheet, whole: Excel's own limit is a million rows."""
    if not file.is_file():
        raise DataError(f"There is no file {file}; check the path.")
    try:
        import fastexcel
    except ImportError as error:
        raise MissingExtraError("fastexcel", "xlsx") from error
    try:
        sheets = fastexcel.read_excel(file).sheet_names
        info.sheet = f"{sheets[0]!r}, the first of {len(sheets)}"
        table = pl.read_excel(
            file, sheet_id=1, infer_schema_length=None, raise_if_empty=False, drop_empty_rows=False
        )
    except Exception as error:  # calamine has errors of its own
        raise _unreadable(file, "an Excel file", error) from error
    if table.is_empty():
        raise DataError(f"{file} is empty; expected at least one row in its first sheet.")
    table.columns = _distinct(file, plain_names(table.columns))
    table = table.rename({name: name.replace("__UNNAMED__", "column_") for name in table.columns})
    frame = _as_text(table, 2, pl.col(pl.String).str.replace(_EXCEL_DAY_0, ""))
    yield frame.filter(~pl.all_horizontal(pl.exclude(ROW, RAW).is_null()))


def _unreadable(file: Path, kind: str, error: Exception) -> DataError:
    reason = str(error).splitlines()[0].rstrip(".")
    return DataError(f"{file} cannot be read as {kind} ({reason}); check that it is the right file.")


def _as_text(table: pl.DataFrame, first: int, *changes: pl.Expr) -> pl.DataFrame:
    """Return the columns as text, or as flat lists of texts, with `ROW` from `first` and JSON as `RAW`."""
    texts = table.select(_text(name, dtype) for name, dtype in table.schema.items()).with_columns(*changes)
    row = pl.int_range(first, first + len(table), dtype=pl.Int64).alias(ROW)
    return texts.select(row, pl.struct(pl.all()).struct.json_encode().alias(RAW), pl.all())


def _text(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if isinstance(dtype, pl.Array):
        column = column.arr.to_list()
    elif not isinstance(dtype, pl.List):
        return _scalar(column, dtype).alias(name)
    inner = dtype.inner
    while isinstance(inner, pl.List | pl.Array):
        part = pl.element().arr.to_list() if isinstance(inner, pl.Array) else pl.element()
        column = column.list.eval(part.explode())
        inner = inner.inner
    return column.list.eval(_scalar(pl.element(), inner)).alias(name)


def _scalar(value: pl.Expr, dtype: object) -> pl.Expr:
    if isinstance(dtype, pl.Datetime | pl.Date | pl.Duration):
        return value.dt.to_string("iso")
    if isinstance(dtype, pl.Float32 | pl.Float64):
        value = value.fill_nan(None)
        whole = value.cast(pl.Int64, strict=False)
        return pl.when(whole == value).then(whole.cast(pl.String)).otherwise(value.cast(pl.String))
    if isinstance(dtype, pl.Struct):
        return value.map_elements(lambda v: json.dumps(v, default=str), return_dtype=pl.String)
    if isinstance(dtype, pl.Binary):
        return value.map_elements(lambda v: v.decode(errors="backslashreplace"), return_dtype=pl.String)
    return value.cast(pl.String)


def _is_broken(value: bytes | Iterable[bytes | None]) -> bool:
    """Return whether bytes, or one of a list of bytes, are not UTF-8."""
    try:
        for part in (value,) if isinstance(value, bytes) else value:
            (part or b"").decode()
    except UnicodeDecodeError:
        return True
    return False
