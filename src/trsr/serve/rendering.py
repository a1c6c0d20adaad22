"""The page's templates, style sheet, script and icon."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import uuid4

import jinja2
from starlette.responses import HTMLResponse

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # With `no-referrer` browsers would hide the origin of a form, which posts are checked by.
    "Referrer-Policy": "same-origin",
    # The same address is a whole page, or a part of one for htmx.
    "Vary": "HX-Request, Cookie",
    "Cache-Control": "no-store",
}


class Asset(NamedTuple):
    """A file as it is served; its path holds a hash of the content, so that browsers may keep it for good."""

    path: str
    content: bytes
    media_type: str


def _asset(name: str, media_type: str) -> Asset:
    content = (Path(__file__).with_name("static") / name).read_bytes()
    return Asset(f"/page/static/{hashlib.sha256(content).hexdigest()[:16]}/{name}", content, media_type)


ASSETS = {
    "page.css": _asset("page.css", "text/css; charset=utf-8"),
    "htmx.min.js": _asset("htmx.min.js", "text/javascript; charset=utf-8"),
    "icon.svg": _asset("icon.svg", "image/svg+xml"),
}


def link(path: str, **query: object) -> str:
    """Return an address with its query; what is None or False is left out."""
    given = {k: "1" if v is True else v for k, v in query.items() if v is not None and v is not False}
    return f"{path}?{urlencode(given)}" if given else path


def clipped(text: str, n: int) -> str:
    """Return at most `n` letters of a text, with a mark where it was cut."""
    return text if len(text) <= n else text[: n - 1].rstrip() + "…"


def _date(time: datetime) -> str:
    return f"{time.astimezone(UTC):%d %b %Y, %H:%M}".lstrip("0")


def _percent(score: float) -> str:
    """Return a share as people read it: `63 %`, `4.2 %`, `< 0.1 %`."""
    if score < 0.001:
        return "< 0.1 %"
    return f"{100 * score:.1f} %" if score < 0.0995 else f"{100 * score:.0f} %"


def _signed(value: float) -> str:
    """Return a number with a proper sign: `+0.42`, `−1.30`, `0.00`."""
    text = f"{abs(value):.2f}"
    return text if text == "0.00" else ("+" if value > 0 else "−") + text


def _count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _new_event_id() -> str:
    """Return an id for the next event; a form that is sent twice counts once."""
    return f"page:{uuid4()}"


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("trsr.serve"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(date=_date, percent=_percent, signed=_signed, clipped=clipped)
_ENVIRONMENT.globals.update(
    link=link,
    count=_count,
    new_event_id=_new_event_id,
    assets={name: asset.path for name, asset in ASSETS.items()},
)


def render(
    template: str, values: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> HTMLResponse:
    """Return a template filled with values, as an answer with the page's security headers."""
    html = _ENVIRONMENT.get_template(template).render(values)
    return HTMLResponse(html, status, headers={**PAGE_HEADERS, **(headers or {})})
