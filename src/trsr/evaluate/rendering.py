"""The report's templates and how numbers and foreign texts are written in them.

HTML is escaped by Jinja, markdown by the filter `md`; no text of an item, a user or a model is trusted.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).parent / "templates"
NOTHING = "–"


@cache
def templates() -> jinja2.Environment:
    """Return the environment of `report.html.j2` (autoescaped) and `report.md.j2`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plain": _plain,
        "short": _short,
        "number": number,
        "count": count,
        "duration": duration,
        "md": _markdown,
        "fenced": _fenced,
    }
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with a fixed count of decimals; a dash for None."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def count(value: int | None) -> str:
    """Write a whole number with thousands separators; a dash for None."""
    return NOTHING if value is None else f"{value:,}"


def duration(seconds: float) -> str:
    """Write seconds in the two largest fitting units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _plain(value: object) -> str:
    """Write a value of a configuration or of a count as words."""
    match value:
        case None:
            text = NOTHING
        case bool():
            text = "yes" if value else "no"
        case int() if abs(value) >= 10_000:
            text = f"{value:,}"
        case float():
            text = f"{value:.4g}"
        case Mapping():
            text = ", ".join(f"{key}: {_plain(part)}" for key, part in value.items())
        case list() | tuple():
            text = ", ".join(_plain(part) for part in value)
        case _:
            text = str(value)
    return text


def _short(text: str, limit: int = 400) -> str:
    """Cut a foreign text, without control characters and marks that turn the reading direction."""
    cut = text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
    return "".join(c for c in cut if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def _markdown(value: object) -> str:
    """Make a text harmless inside a markdown table, list or quotation."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!])", r"\\\1", " ".join(str(value).split()))


def _fenced(text: str, language: str) -> str:
    """Put a text into a code block that it cannot close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"
