r"""The meaning of a cell: missing or not, an id, a text, a rating, a list; one rule for every importer.

A cell that holds nothing but a marker of `MISSING`, white space apart, is missing everywhere. The
markers are the ones of `pandas.read_csv`, with `\N` of SQL and `NaT`; another spelling
("Null", "none") is a value. A user who is really called "NA" is refused as a row without a user.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable

import polars as pl

CATEGORIES = (
    *("category", "categories", "subcategory", "main_category", "genres", "genre", "brand", "store"),
    "author",
)
MARKERS = (
    *("nan", "NaN", "-nan", "-NaN", "NaT", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    *("None", "null", "NULL", "NA", "<NA>", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "\\N"),
)
MISSING = ("", *MARKERS)
# White space, and the two invisible characters that joined files and web pages leave around an id.
_AROUND_ID = "".join(c for c in map(chr, range(0x3001)) if c.isspace()) + "\u200b\ufeff"
MAX_ID = 256  # characters
# Control characters, line separators, marks that turn the direction of text, and the sign for lost bytes.
_NOT_IN_ID = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffd]"
ID_RULE = (
    f"characters that ids may not have (control or direction marks, U+FFFD, more than {MAX_ID}, '.' or '..')"
)
_FLOAT_ID = r"^(-?(?:0|[1-9][0-9]*))\.0+$"
_COMMA_NUMBER = r"^([+-]?[0-9]+),([0-9]+)$"
_QUOTED = r"""(?:'[^'"\\]*'|"[^'"\\]*")"""
# A list whose parts are all quoted, with no quote or backslash inside: no part can be cut wrongly.
_QUOTED_LIST = rf"^\[\s*{_QUOTED}(?:(?:\s*,\s*|\s+){_QUOTED})*\s*\]$"
_OPENS_LIST = r"""^[\[({'"]"""
_NUMBERS = r"^\s*[0-9.eE+]+(?:\s+[0-9.eE+]+)*\s*$"
_QUOTES = ("'", '"')
_CLOSED_BY = {"[": "]", "(": ")", "{": "}"}
_PART = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|%s)(\s*,\s*|\s+|\Z)"""
_ITEM_PART = re.compile(_PART % r"""[^\s,'"\[\](){}]+""", re.DOTALL)
_TIME_PART = re.compile(_PART % r"""[^,'"\[\](){}]+""", re.DOTALL)


def clean_cell(column: str) -> pl.Expr:
    """Return a text without white space around it; null where it is missing."""
    text = pl.col(column).cast(pl.String).str.strip_chars()
    return pl.when(text.is_in(MISSING)).then(None).otherwise(text).alias(column)


def id_fault(text: str) -> str | None:
    """Return the fault of a new id of a user, an item or an event, or None."""
    if not text or text != text.strip(_AROUND_ID):
        return "the id is empty or has a blank at an end; leave the blank out"
    if len(text) > MAX_ID:
        return f"the id has {len(text)} characters, at most {MAX_ID} are allowed"
    if text in (".", ".."):
        return f"the id {text!r} cannot be part of a URL; choose another"
    if found := re.search(f"{_NOT_IN_ID}|[\ud800-\udfff]", text):
        kind = "the sign for bytes that are not UTF-8" if found[0] == "\ufffd" else "an invisible character"
        return f"the id holds U+{ord(found[0]):04X}, {kind}; choose another"
    return None


def is_id(column: str) -> pl.Expr:
    """Return whether the texts of a column are ids by the rule of `id_fault`; null where they are missing."""
    text = pl.col(column)
    plain = ~text.str.contains(_NOT_IN_ID) & (text == text.str.strip_chars(_AROUND_ID))
    return plain & text.str.len_chars().is_between(1, MAX_ID) & ~text.is_in([".", ".."])


def clean_ids(frame: pl.DataFrame, *columns: str) -> tuple[pl.DataFrame, int]:
    """Clean columns of ids (null where missing, `862.0` is `862`, `007` stays), and count those floats."""
    texts = [pl.col(column).cast(pl.String).str.strip_chars(_AROUND_ID) for column in columns]
    frame = frame.with_columns(pl.when(~text.is_in(MISSING)).then(text) for text in texts)
    n_floats = 0
    for column in columns:
        if frame.select(
            (pl.col(column).str.ends_with("0") & pl.col(column).str.contains(".0", literal=True)).any()
        ).item():
            floats = pl.col(column).str.contains(_FLOAT_ID)
            n_floats += int(frame.select(floats.sum()).item())
            frame = frame.with_columns(pl.col(column).str.replace(_FLOAT_ID, "$1"))
    return frame, n_floats


def clean_texts(frame: pl.DataFrame, fields: Iterable[str]) -> list[pl.Expr]:
    """Return the text fields of a frame: no white space around them, null where missing.

    A list is joined with blanks, or with "|" in a field whose name is one of `CATEGORIES`.
    """
    return [_clean_text(field, frame.schema.get(field)) for field in fields]


def _clean_text(column: str, dtype: pl.DataType | None) -> pl.Expr:
    if dtype is None:
        return pl.lit(None, pl.String).alias(column)
    if not isinstance(dtype, pl.List):
        return clean_cell(column)
    parts = pl.col(column).list.eval(pl.element().cast(pl.String).str.strip_chars())
    text = parts.list.eval(pl.element().filter(~pl.element().is_in(MISSING))).list.join(_between(column))
    return pl.when(text.is_in(MISSING)).then(None).otherwise(text).alias(column)


def _between(field: str) -> str:
    return "|" if field.lower() in CATEGORIES else " "


def join_written_lists(frame: pl.DataFrame, fields: Iterable[str]) -> tuple[pl.DataFrame, int]:
    """Join texts that are whole lists of quoted parts, as `clean_texts` joins lists, and count them."""
    n_lists = 0
    for field in fields:
        if frame.schema.get(field) != pl.String or not frame[field].str.starts_with("[").any():
            continue
        text = frame[field].str.strip_chars()
        written = (text.str.contains(_QUOTED_LIST) | text.str.contains(r"^\[\s*\]$")).fill_null(False)
        parts = text.str.extract_all(_QUOTED).list.eval(pl.element().str.strip_chars("'\"").str.strip_chars())
        joined = parts.list.eval(pl.element().filter(~pl.element().is_in(MISSING))).list.join(_between(field))
        frame = frame.with_columns(joined.zip_with(written, frame[field]).alias(field))
        n_lists += int(written.sum())
    return frame, n_lists


def parse_rating(text: pl.Expr) -> pl.Expr:
    """Return a rating as a number, `3,5` as 3.5; null where the text is no finite number."""
    number = text.str.replace(_COMMA_NUMBER, "$1.$2").cast(pl.Float64, strict=False)
    return pl.when(number.is_finite()).then(number)


def separator_of(cells: pl.Series, *, times: bool = False) -> str | None:
    """Return the separator of a column's lists without brackets: `|`, `;`, `,` or None for blanks."""
    if isinstance(cells.dtype, pl.List):
        return None
    texts = cells.str.strip_chars()
    plain = texts.filter(~texts.str.contains(_OPENS_LIST) & ~texts.is_in(MISSING))
    usual = (mark for mark in "|;," if plain.str.contains(mark, literal=True).any())
    return next(usual, "," if times and not plain.str.contains(_NUMBERS).all() else None)


def read_lists(cells: pl.Series, separator: str | None = None, *, times: bool = False) -> pl.Series:
    """Read a column of lists: of JSON, Python, numpy (`['a' 'b']`) or Postgres, or parts between separators.

    Nothing inside quotes is cut. A cell that opens like a list must be one to its end.

    Args:
        cells: Texts, or lists already.
        separator: Divides lists without brackets; None for white space.
        times: Parts without quotes may hold blanks.

    Returns:
        Lists of texts: empty for a missing cell, null for one that opens like a list and is none.
    """
    if isinstance(cells.dtype, pl.List):
        return cells.fill_null([])
    text = pl.col("cell").str.strip_chars()
    missing = text.is_null() | text.is_in(MISSING)
    quoted = text.str.extract_all(_QUOTED).list.eval(pl.element().str.strip_chars("'\""))
    plain = text.str.extract_all(r"\S+") if separator is None else text.str.split(separator)
    plain = plain.list.eval(pl.element().str.strip_chars()).list.eval(pl.element().filter(pl.element() != ""))
    whole = pl.when(missing).then(pl.lit([], pl.List(pl.String))).when(text.str.contains(_QUOTED_LIST))
    read = whole.then(quoted).when(~text.str.contains(_OPENS_LIST)).then(plain)
    parts = cells.to_frame("cell").select(read).to_series()
    left = parts.is_null()
    if not left.any():
        return parts
    pairs = zip(cells, left, strict=True)
    parsed = [parse_list(cell, times=times) if opens else None for cell, opens in pairs]
    return pl.Series(parsed, dtype=pl.List(pl.String)).zip_with(left, parts)


def parse_list(cell: str, *, times: bool = False) -> list[str] | None:
    """Parse one list in brackets, or of quoted parts.

    None where it is none, or where numpy has left out its middle (`...`).
    """
    cell = cell.strip()
    if cell[:1] in _QUOTES:
        cell = f"[{cell}]"
    if len(cell) < 2 or _CLOSED_BY.get(cell[0]) != cell[-1]:
        return None
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, list):
        return _flat(value)
    inside = cell[1:-1].strip()
    times = times and not re.match(_NUMBERS, inside)  # numpy's numbers have blanks between them
    parts: list[str] = []
    commas: set[bool] = set()
    at = 0
    while at < len(inside):
        found = (_TIME_PART if times else _ITEM_PART).match(inside, at)
        if found is None or found[1].strip() == "...":
            return None
        parts.append(_unquoted(found[1]))
        at = found.end()
        if at < len(inside):
            commas.add("," in found[2])
    return None if len(commas) > 1 else parts


def _flat(values: list[object]) -> list[str] | None:
    """Turn JSON values into a flat list of texts; None where an object is among them."""
    parts: list[str] = []
    for value in values:
        if isinstance(value, dict):
            return None
        if isinstance(value, list):
            inner = _flat(value)
            if inner is None:
                return None
            parts += inner
        else:
            parts.append("" if value is None else str(value))
    return parts


def _unquoted(part: str) -> str:
    if part[0] not in _QUOTES:
        return part.strip()
    try:
        return str(ast.literal_eval(part))
    except (ValueError, SyntaxError):
        return part[1:-1]
