"""The page's templates, and what it loads besides: one style sheet, one script, one icon, all from here.

An address holds a hash of the content, so that browsers may keep it for good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.responses import HTMLResponse

_FOLDER = Path(__file__).with_name("static")
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
ASSET_HEADERS = {"Cache-Control": "public, max-age=31536000, immutable"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is served at `path`."""

    path: str
    content: bytes
    media_type: str


def _load(name: str) -> Asset:
    content = (_FOLDER / name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Asset(f"/page/static/{digest}/{name}", content, _TYPES[Path(name).suffix])


ASSETS = {name: _load(name) for name in ("page.css", "htmx.min.js", "icon.svg")}


HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # With `no-referrer` browsers would hide the origin of a form, which posts are checked by.
    "Referrer-Policy": "same-origin",
    # The same address is a whole page, or a part of one for htmx.
    "Vary": "HX-Request, Cookie",
    "Cache-Control": "no-store",
}


def _date(time: datetime | None) -> str:
    return f"{time.astimezone(UTC):%d %b %Y, %H:%M}".lstrip("0") if time else ""


def _percent(score: float) -> str:
    """Return a share as people read it: `63 %`, `4.2 %`, `< 0.1 %`."""
    if score < 0.001:
        return "< 0.1 %"
    return f"{100 * score:.1f} %" if score < 0.0995 else f"{100 * score:.0f} %"


def _signed(value: float) -> str:
    """Return a number with a proper sign: `+0.42`, `−1.30`, `0.00`."""
    text = f"{abs(value):.2f}"
    return text if text == "0.00" else ("+" if value > 0 else "−") + text


def link(path: str, **query: object) -> str:
    """Return an address with its query; what is None or False is left out."""
    given = {k: "1" if v is True else v for k, v in query.items() if v is not None and v is not False}
    return f"{path}?{urlencode(given)}" if given else path


def _count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("trsr.serve"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(date=_date, percent=_percent, signed=_signed)
_ENVIRONMENT.globals.update(
    link=link, count=_count, assets={name: asset.path for name, asset in ASSETS.items()}
)


def render(
    template: str, values: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> HTMLResponse:
    """Return a template filled with values, as an answer with the page's security headers."""
    html = _ENVIRONMENT.get_template(template).render(values)
    return HTMLResponse(html, status, headers={**HEADERS, **(headers or {})})
