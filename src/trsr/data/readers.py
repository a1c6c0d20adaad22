"""Rows of a raw file (CSV, TSV, JSON Lines, Parquet or Excel) as frames of text columns, batch by batch.

A frame holds `ROW` (line number from 1), `RAW` (the row as it stood in the file) and one column a field, of
type String or List(String). Rows that cannot be read are refused one by one with a reason. Which columns
matter is left to `columns` and the importers.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from trsr.data import text_lines
from trsr.data.columns import plain_names
from trsr.data.text_lines import BATCH_BYTES, Lines, Reject, TextFormat, read_lines, reject_rows
from trsr.errors import DataError, MissingExtraError

ROW = "\x1frow"  # no column of a file can be called so (`columns.plain_names`)
RAW = "\x1fraw"
WRONG_WIDTH = "another number of columns than the header"
_PARQUET_ROWS = 50_000
_SNIFFED_LINES = 1000
_LINES_SEEN = 20  # of a file without a header, to tell whether it is the right one
_DELIMITED = {
    ".csv": ",",
    ".tsv": "\t",
    ".tab": "\t",
    ".txt": "\t",
    ".psv": "|",
    ".dat": ",",
    ".item": "|",  # MovieLens 100k
    ".data": "\t",
}
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
# How MongoDB writes a value with its type in JSON: `{"$oid": "65a0"}` is the id 65a0.
_TYPED = {"$oid", "$date", "$numberInt", "$numberLong", "$numberDouble", "$numberDecimal", "$uuid"}
_EXCEL = (".xlsx", ".xlsm", ".xlsb", ".xls")
_EXCEL_DAY_0 = "^1899-12-3[01][T ]"  # stands before a time of day
_NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t"}


def read_frames(
    file: Path,
    reject: Reject,
    *,
    columns: Sequence[str] | None = None,
    quotes: bool | None = None,
    keep: Collection[str] | None = None,
    text: TextFormat | None = None,
) -> Iterator[pl.DataFrame]:
    """Yield a file's rows as frames; the suffix (before `.gz`) names the format.

    Args:
        file: The file.
        reject: Takes refused rows.
        columns: Names for a CSV or TSV file without a header line.
        quotes: Whether fields may stand in double quotes; by default in CSV, and in TSV where
            they do so throughout.
        keep: JSON keys to read, in lower case; they are found in any case. All by default.
        text: Delimiter and encoding where they are known; what is None is found out and filled in.

    Raises:
        DataError: missing or empty file, unknown suffix, or a header that cannot be used.
        MissingExtraError: an Excel file without what reads it.
    """
    suffix = Path(file.name.removesuffix(".gz")).suffix.lower()
    text = TextFormat() if text is None else text
    if columns is not None and suffix not in _DELIMITED:
        raise DataError(f"{file} brings its own column names; give names only for a CSV or TSV file.")
    if suffix == ".parquet":
        yield from _read_parquet(file, reject)
    elif suffix in _EXCEL:
        yield from _read_excel(file, text)
    elif suffix in JSON_SUFFIXES:
        yield from _read_json(file, reject, keep, text)
    elif suffix in _DELIMITED:
        yield from _read_delimited(file, reject, text, _DELIMITED[suffix], columns, quotes)
    else:
        raise DataError(
            f"{file} has an unknown suffix; expected .csv, .tsv, .txt, .jsonl, .parquet or .xlsx "
            "(or .gz of text)."
        )


def _read_delimited(
    file: Path,
    reject: Reject,
    text: TextFormat,
    usual: str,
    columns: Sequence[str] | None,
    quotes: bool | None,
) -> Iterator[pl.DataFrame]:
    header = None if columns is None else _header(file, list(columns))
    header_line: str | None = None
    pending: list[str] = []  # lines of a quoted field that goes on in the next batch
    separator, quoted = usual, False
    for lines in read_lines(file, reject, text):
        first, texts = lines.first - len(pending), pending + lines.texts
        pending = []
        if lines.first == 1:
            if texts and (said := re.fullmatch(r'"?sep=(.)"?', texts[0])):  # Excel's own first line
                text.delimiter, first, texts = text.delimiter or said[1], first + 1, texts[1:]
            separator = _delimiter(texts, text, usual, quotes is not False, header)
            if quotes is None:
                quotes = {usual, separator} != {"\t"} or text_lines.stand_in_quotes(texts, separator)
            quoted = quotes and len(separator) == 1
            text.quotes = quoted and separator == "\t"
        if header is None:
            if not (texts and texts[0].strip()):
                raise DataError(
                    f"{file} has no readable header line; expected column names; if they are there, name "
                    "the --encoding."
                )
            header_line = texts[0]
            if header_line.lstrip().startswith('{"'):
                raise DataError(f"{file} holds JSON; rename it to .jsonl.")
            header = _header(file, text_lines.split_line(header_line, separator, quoted))
            first, texts = first + 1, texts[1:]
        elif lines.first == 1:
            _check_width(file, texts, header, separator, quotes=quoted)
            header_line = _unexpected_header(texts, header, separator, quoted)
        if quoted and any('"' in line for line in texts):
            records, used = text_lines.split_records(texts, separator, len(header), final=lines.last)
            pending = texts[used:]
            frame = _quoted_frame(file, records, first, header, reject)
        else:
            frame = _plain_frame(file, texts, first, header, separator, reject=reject)
        yield _without_headers(file, frame, header_line, reject)


def _delimiter(texts: list[str], text: TextFormat, usual: str, quotes: bool, header: list[str] | None) -> str:
    """Return the delimiter that was named, or find it in the first lines; it is filled in."""
    if text.delimiter is None:
        width = None if header is None else len(header)
        text.delimiter = text_lines.find_delimiter(texts[:_SNIFFED_LINES], usual, quotes, width)
    text.delimiter = _NAMED_DELIMITERS.get(text.delimiter, text.delimiter)
    if not text.delimiter or set(text.delimiter) & set('"\r\n'):
        raise DataError(f"The delimiter {text.delimiter!r} cannot be used; name one such as ';', '|' or tab.")
    return text.delimiter


def _header(file: Path, names: list[str] | None) -> list[str]:
    if names is None:
        raise DataError(f"{file} has a broken quote in its header line; mend that line.")
    return _distinct(file, plain_names(names))


def _distinct(file: Path, names: list[str]) -> list[str]:
    if twice := sorted(name for name, n in Counter(names).items() if n > 1):
        raise DataError(
            f"{file} has more than one column called {' and '.join(map(repr, twice))}; "
            "rename all but one of them."
        )
    return names


def _check_width(
    file: Path, texts: Sequence[str], header: Sequence[str], separator: str, *, quotes: bool
) -> None:
    """Refuse a file without a header of which no line has the columns that are expected."""
    seen = list(texts[:_LINES_SEEN])
    if quotes:
        records, _ = text_lines.split_records(seen, separator, len(header), final=False)
        lines = [record.fields for record in records]
    else:
        lines = [text.split(separator) for text in seen if text.strip()]
    widths = Counter(len(_fitted(line, header)) for line in lines if line is not None)
    if widths and len(header) not in widths:
        raise DataError(
            f"{file} has {widths.most_common(1)[0][0]} columns, expected {len(header)}: {', '.join(header)}; "
            "check that it is the right file and that these are all of its columns."
        )


def _unexpected_header(
    texts: Sequence[str], header: Sequence[str], separator: str, quotes: bool
) -> str | None:
    """Return the first line of a file without a header if it is one: half of its fields are column names."""
    names = {name.lower() for name in header}
    fields = (texts and text_lines.split_line(texts[0], separator, quotes)) or []
    same = sum(field.strip().lower() in names for field in fields)
    return texts[0] if same * 2 >= max(2, len(header)) else None


def _n_named(header: Sequence[str]) -> int:
    """Return the number of columns up to the last with a name: spreadsheets have empty columns at the end."""
    return max((i for i, name in enumerate(header, start=1) if name != f"column_{i}"), default=len(header))


def _fitted(fields: list[str], header: Sequence[str]) -> list[str]:
    """Cut empty cells beyond the last column, and add those that a column without a name lacks."""
    if len(fields) > len(header) and not any(map(str.strip, fields[len(header) :])):
        return fields[: len(header)]
    if _n_named(header) <= len(fields) < len(header):
        return fields + [""] * (len(header) - len(fields))
    return fields


def _without_headers(
    file: Path, frame: pl.DataFrame, header_line: str | None, reject: Reject
) -> pl.DataFrame:
    """Refuse header lines that stand between the rows, as in files that were joined."""
    if header_line is None:
        return frame
    again = frame[RAW].str.strip_chars_start("\ufeff") == header_line
    if not again.any():
        return frame
    reject(file.name, _refused(frame.filter(again)), "the header line again")
    return frame.filter(~again)


def _plain_frame(
    file: Path, texts: list[str], first: int, header: list[str], separator: str, *, reject: Reject
) -> pl.DataFrame:
    frame = pl.DataFrame(
        {ROW: pl.int_range(first, first + len(texts), eager=True), RAW: pl.Series(texts, dtype=pl.String)}
    )
    frame = frame.filter(pl.col(RAW).str.strip_chars() != "")
    frame = frame.with_columns(pl.col(RAW).str.split(separator).alias("fields"))
    right = pl.col("fields").list.len() == len(header)
    if not frame.select(right.all()).item():
        n, empty = pl.col("fields").list.len(), pl.col("fields").list.slice(len(header)).list.join("")
        right = n.is_between(_n_named(header), len(header)) | (
            (n > len(header)) & (empty.str.strip_chars() == "")
        )
        reject(file.name, _refused(frame.filter(~right)), WRONG_WIDTH)
        frame = frame.filter(right)
    cells = [pl.col("fields").list.get(i, null_on_oob=True).alias(name) for i, name in enumerate(header)]
    return frame.select(ROW, RAW, *cells)


def _quoted_frame(
    file: Path, records: list[text_lines.Record], first: int, header: list[str], reject: Reject
) -> pl.DataFrame:
    broken = [(first + r.line, r.raw) for r in records if r.fields is None]
    reject(file.name, reject_rows(broken), "broken quote")
    whole = [replace(r, fields=_fitted(r.fields, header)) for r in records if r.fields is not None]
    right = [r for r in whole if len(r.fields or ()) == len(header)]
    if len(right) < len(whole):
        wrong = [(first + r.line, r.raw) for r in whole if len(r.fields or ()) != len(header)]
        reject(file.name, reject_rows(wrong), WRONG_WIDTH)
    values = list(zip(*[r.fields or () for r in right], strict=True)) or [()] * len(header)
    columns = {name: pl.Series(column, dtype=pl.String) for name, column in zip(header, values, strict=True)}
    rows = pl.Series([first + r.line for r in right], dtype=pl.Int64)
    return pl.DataFrame({ROW: rows, RAW: pl.Series([r.raw for r in right], dtype=pl.String), **columns})


def _refused(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame of `row` and `raw` that a `Reject` takes."""
    return frame.select(pl.col(ROW).alias("row"), pl.col(RAW).alias("raw"))


def _read_json(
    file: Path, reject: Reject, keep: Collection[str] | None, text: TextFormat
) -> Iterator[pl.DataFrame]:
    keys: list[str] = []
    for lines in read_lines(file, reject, text):
        if lines.first == 1 and lines.texts and lines.texts[0].lstrip().startswith("["):
            raise DataError(f"{file} is one JSON list; expected JSON Lines: one object a line.")
        frame = _json_frame(file, lines, reject, keep)
        if frame.is_empty():
            continue
        # A key that a whole batch lacks is a null column there, not a missing one.
        yield frame.with_columns(
            pl.lit(None, pl.String).alias(key) for key in keys if key not in frame.columns
        )
        keys.extend(key for key in frame.columns if key not in keys)
    if not keys:
        raise DataError(f"{file} holds no JSON object; expected JSON Lines: one object a line.")


def _json_frame(file: Path, lines: Lines, reject: Reject, keep: Collection[str] | None) -> pl.DataFrame:
    rows: list[int] = []
    raws: list[str] = []
    columns: dict[str, list[str | list[str] | None]] = {}
    broken: list[tuple[int, str]] = []
    for row, text in enumerate(lines.texts, start=lines.first):
        if not text.strip():
            continue
        record = _record(text)
        if not isinstance(record, dict):
            broken.append((row, text))
            continue
        clean = "\\ud" in text or "\\uD" in text  # an escaped half of a surrogate pair may be inside
        for key, value in record.items():
            if keep is None or str(key).strip().lower() in keep:
                column = columns.setdefault(str(_plain(key, clean)), [])
                column.extend([None] * (len(rows) - len(column)))
                column.append(_plain(value, clean))
        rows.append(row)
        raws.append(text)
    reject(file.name, reject_rows(broken), "not a JSON object")
    names = _distinct(file, plain_names(columns))
    series = {
        name: _column(values + [None] * (len(rows) - len(values)))
        for name, values in zip(names, columns.values(), strict=True)
    }
    return pl.DataFrame(
        {ROW: pl.Series(rows, dtype=pl.Int64), RAW: pl.Series(raws, dtype=pl.String), **series}
    )


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


def _plain(value: object, clean: bool) -> str | list[str] | None:
    """Turn a JSON value into a text or a flat list of texts."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if clean else value
        case float():
            return None if math.isnan(value) else str(int(value) if value.is_integer() else value)
        case list():
            flat: list[str] = []
            for part in value:
                text = _plain(part, clean)
                flat.extend(text if isinstance(text, list) else ["" if text is None else text])
            return flat
        case dict() if len(value) == 1 and next(iter(value)) in _TYPED:
            return _plain(next(iter(value.values())), clean)
        case dict():
            parts = {key: _plain(part, clean) for key, part in value.items()}
            return [f"{key}: {', '.join(p) if isinstance(p, list) else p}" for key, p in parts.items() if p]
        case _:  # int, bool or null
            return None if value is None else str(value)


def _column(values: list[str | list[str] | None]) -> pl.Series:
    if any(isinstance(value, list) for value in values):
        return _lists([value if value is None or isinstance(value, list) else [value] for value in values])
    return pl.Series(values, dtype=pl.String)


def _lists(cells: list[list[str] | None]) -> pl.Series:
    """Return `pl.Series(cells)` in a seventh of its time: that makes a series of every list first."""
    rows = pl.Series([row for row, cell in enumerate(cells) for _ in cell or ()], dtype=pl.Int64)
    parts = pl.Series([part for cell in cells for part in cell or ()], dtype=pl.String)
    found = pl.DataFrame({"row": rows, "cell": parts}).group_by("row").agg("cell")
    table = pl.DataFrame(
        {"row": pl.int_range(len(cells), eager=True), "missing": [cell is None for cell in cells]}
    ).join(found, on="row", how="left", maintain_order="left")
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
        said = str(error).splitlines()[0].rstrip(".")
        raise DataError(
            f"{file} cannot be read as Parquet ({said}); check that it is the right file."
        ) from error
    if rows == 0:
        raise DataError(f"{file} is empty; expected at least one row: check that it is the right file.")
    columns = [_text(name, dtype) for name, dtype in schema.items()]
    in_bytes = [name for name, dtype in schema.items() if dtype in (pl.Binary, pl.List(pl.Binary))]
    size = max(1, min(_PARQUET_ROWS, rows * BATCH_BYTES // max(1, file.stat().st_size)))
    for offset in range(0, rows, size):
        part = table.slice(offset, size).collect()
        texts = part.select(columns)
        row = pl.int_range(offset + 1, offset + 1 + len(part), dtype=pl.Int64).alias(ROW)
        frame = texts.select(row, pl.struct(pl.all()).struct.json_encode().alias(RAW), pl.all())
        broken = pl.repeat(False, len(part), eager=True)
        for name in in_bytes:
            broken |= part[name].map_elements(_is_broken, return_dtype=pl.Boolean).fill_null(False)
        reject(file.name, _refused(frame.filter(broken)), "not UTF-8")
        yield frame.filter(~broken)


def _read_excel(file: Path, text: TextFormat) -> Iterator[pl.DataFrame]:
    """Yield the first sheet, whole: Excel's own limit is a million rows."""
    if not file.is_file():
        raise DataError(f"There is no file {file}; check the path.")
    try:
        import fastexcel
    except ImportError as error:
        raise MissingExtraError("fastexcel", "xlsx") from error
    try:
        sheets = fastexcel.read_excel(file).sheet_names
        text.sheet = f"{sheets[0]!r}, the first of {len(sheets)}"
        table = pl.read_excel(
            file, sheet_id=1, infer_schema_length=None, raise_if_empty=False, drop_empty_rows=False
        )
    except Exception as error:  # calamine has errors of its own
        said = str(error).splitlines()[0].rstrip(".")
        raise DataError(
            f"{file} cannot be read as an Excel file ({said}); check that it is the right file."
        ) from error
    if table.is_empty():
        raise DataError(f"{file} is empty; expected at least one row in its first sheet.")
    table.columns = _distinct(file, plain_names(table.columns))
    texts = table.select(_text(name, dtype) for name, dtype in table.schema.items())
    texts = texts.with_columns(pl.col(pl.String).str.replace(_EXCEL_DAY_0, ""))
    texts = texts.rename({name: name.replace("__UNNAMED__", "column_") for name in texts.columns})
    row = pl.int_range(2, 2 + len(table), dtype=pl.Int64).alias(ROW)
    frame = texts.select(row, pl.struct(pl.all()).struct.json_encode().alias(RAW), pl.all())
    yield frame.filter(~pl.all_horizontal(pl.exclude(ROW, RAW).is_null()))


def _text(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return a Parquet column as text, or as a flat list of texts; times are written in ISO 8601."""
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
