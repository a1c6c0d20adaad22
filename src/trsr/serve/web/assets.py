"""What the page loads besides itself: one style sheet, one script, one icon, all from this package.

An address holds a hash of the content, so that browsers may keep it for good.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).with_name("static")
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
HEADERS = {"Cache-Control": "public, max-age=31536000, immutable"}


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
