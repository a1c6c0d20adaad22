"""Lines to CSV records, with double quotes, and recovery after a broken one.

A quoted field may go on over several lines. Where a quote is never closed, a plain CSV reader swallows the
rest of the file into one field; here only the line where it opens is refused, and reading goes on after it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

DELIMITERS = (",", ";", "\t", "|", "::")
_MAX_RECORD = 4 * 2**20  # characters; a quote left open longer than this is taken for broken
csv.field_size_limit(2**31 - 1)  # the default refuses fields over 128 kB


@dataclass(frozen=True, slots=True)
class Record:
    """One record: `line` is its first line's place in the batch, `fields` is None for a broken quote."""

    line: int
    raw: str
    fields: list[str] | None


def split_line(text: str, separator: str, quotes: bool) -> list[str] | None:
    """Return the fields of one line, or None where a quote is not closed in it."""
    if not quotes or '"' not in text:
        return text.split(separator)
    return _parse(text, separator)


def find_delimiter(texts: Sequence[str], usual: str, quotes: bool, width: int | None) -> str:
    """Return the delimiter by which most of the first lines have as many fields as the header.

    Args:
        texts: The first lines.
        usual: The delimiter that the file's name promises; it stays unless another one fits better.
        quotes: Whether fields may stand in double quotes.
        width: Number of columns, where the file has no header.
    """
    best, best_share = usual, 0.0
    for delimiter in dict.fromkeys((usual, *DELIMITERS)):
        lines = [
            split_line(text, delimiter, quotes and len(delimiter) == 1) for text in texts if text.strip()
        ]
        fields = width or len((lines or [None])[0] or ())
        whole = [len(line) == fields for line in lines if line is not None]
        share = sum(whole) / len(whole) if whole and fields > 1 else 0.0
        if delimiter == usual and share >= 0.5:
            return usual
        if share > best_share:
            best, best_share = delimiter, share
    return best


def stand_in_quotes(texts: Sequence[str], separator: str) -> bool:
    """Return whether double quotes stand around the fields of these lines, and are no letters of a raw text.

    They do where there is a quoted field a line, or where each has a reason: a comma, a quote, the separator
    or a line break inside. At most one in twenty may be broken.
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


def split_records(texts: list[str], separator: str, width: int, *, final: bool) -> tuple[list[Record], int]:
    """Return the records of a batch of lines, and how many lines they used.

    Unless `final`, a record that is still open at the end of the batch is left for the next one.
    """
    records = []
    at = 0
    while at < len(texts):
        text = texts[at]
        if '"' not in text:
            if text.strip():
                records.append(Record(at, text, text.split(separator)))
            at += 1
            continue
        fields = _parse(text, separator)
        end = at + 1
        if fields is None and text.count('"') % 2:
            end, closed = _find_close(texts, at)
            if not closed and end == len(texts) and not final:
                break
            joined = "\n".join(texts[at:end])
            longer = _parse(joined, separator) if closed else None
            if longer is not None and len(longer) == width:
                fields, text = longer, joined
            else:
                end = at + 1
        records.append(Record(at, text, fields))
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


def _parse(text: str, separator: str) -> list[str] | None:
    try:
        rows = list(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None
