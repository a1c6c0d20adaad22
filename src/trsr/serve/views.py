"""Values that the page shows, read from the service and cut to readable lengths, and their HTML.

Unknown users and items raise `Problem`; a model without time for a ranking raises `OverloadedError`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlencode
from uuid import uuid4

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response

from trsr.serve.ranking_service import RecommendRequest, UserContext
from trsr.serve.schemas import (
    KEY_PATH,
    MEDIA_TYPE,
    UNAUTHORIZED,
    BlockOut,
    NotesOut,
    Problem,
    ProfileOut,
    UserOut,
    is_page,
)
from trsr.serve.service import Service
from trsr.summarize.counted import field_values, word_changes
from trsr.templating import sanitize_line
from trsr.types import RankedItem

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # `no-referrer` would hide the origin of forms, which POST requests are checked by.
    "Referrer-Policy": "same-origin",
    # One address gives a whole page, or a part for htmx.
    "Vary": "HX-Request, Cookie",
    "Cache-Control": "no-store",
}
MAX_TITLE = 140
MAX_FIELD = 1_200
MAX_VERSIONS = 20
"""Number of listed versions of a profile, the newest."""
N_SHOWN = 10
_FULL_BARS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_SMALL = 0.005
"""Margin differences below this are shown as 0.00."""

Change = tuple[list[str], list[str]]
"""Words added and words removed since the previous text."""


@dataclass(frozen=True, slots=True)
class ItemView:
    """An item: its title, its categories, and its other texts."""

    item_id: str
    title: str
    kinds: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]


class BlockView(NamedTuple):
    """A block with its items and their times; `change` is None at the first summary."""

    block: BlockOut
    items: list[tuple[ItemView, datetime | None]]
    change: Change | None


class ProfileView(NamedTuple):
    """The current profile, and the newest versions with their changes, newest first.

    `state`: `current` covers the whole history; `updating` has a pending update; `failing` has one that
    failed and will be retried; `behind` has none although there are newer events.
    """

    reader: UserContext
    n_attempts: int
    state: Literal["current", "updating", "failing", "behind"]
    versions: list[tuple[ProfileOut, Change]]
    n_versions: int

    @property
    def seen(self) -> str:
        """An identifier of the displayed state."""
        return f"{self.reader.version or 0}.{len(self.reader.history)}.{self.n_attempts}.{self.state}"


class UserView(NamedTuple):
    """A user's page; blocks newest first."""

    notes: NotesOut | None
    profile: ProfileView
    blocks: list[BlockView]
    method: str


class Reason(NamedTuple):
    """A part of the prompt and its effect on the margin (logits); `width` of its bar is 0 to 50."""

    text: str
    moved: float
    width: float


class Why(NamedTuple):
    """Effects on a score of sentences and recent items, each left out in turn."""

    item: ItemView
    notes: list[Reason]
    sentences: list[Reason]
    recent: list[Reason]


class Row(NamedTuple):
    """A ranked item; `move` is its rise in rank since the previous ranking, None for a new item."""

    item: ItemView
    ranked: RankedItem
    move: int | None
    why: Why | None


class RankingView(NamedTuple):
    """The best items; `full` is the score of a full bar."""

    rows: list[Row]
    full: float
    calibrated: bool
    moved: bool
    reader: UserContext


class Comparison(NamedTuple):
    """Candidates ranked with the current and the counted profile; `agree` are among the best of both."""

    readers: tuple[UserContext, UserContext]
    pairs: list[tuple[ItemView, tuple[RankedItem, RankedItem]]]
    n_candidates: int
    n_best: int
    agree: int
    full: float


def item_view(service: Service, item_id: str) -> ItemView:
    """Return an item for display; a deleted item has only its id."""
    item = service.catalogue.items.get(item_id)
    if item is None:
        return ItemView(item_id, item_id, (), ())
    title = sanitize_line(item.fields.get(service.summarizer.title_field or "", ""))
    if not title:
        title = sanitize_line(next(iter(item.fields.values()), "")) or item_id
    kinds = field_values(item, service.summarizer.category_fields)[:3]
    fields = tuple((name, clipped(text, MAX_FIELD)) for name, text in item.fields.items())
    return ItemView(item_id, clipped(title, MAX_TITLE), tuple(clipped(kind, 40) for kind in kinds), fields)


def user_view(service: Service, user_id: str) -> UserView:
    """Return the content of a user's page, without rankings."""
    user = service.user(user_id)
    blocks, before = [], None
    for block in user.blocks:
        events = user.history[block.start : block.start + len(block.item_ids)]
        items = [(item_view(service, event.item_id), event.timestamp) for event in events]
        change = None if None in (before, block.summary) else word_changes(str(before), str(block.summary))
        blocks.append(BlockView(block, items, change))
        before = before if block.summary is None else block.summary
    method = service.summarizer.config.method
    return UserView(user.notes, _profile_view(service, user), blocks[::-1], method)


def _profile_view(service: Service, user: UserOut) -> ProfileView:
    reader, update = service.reader(user.user_id), service.store.update_of(user.user_id)
    state: Literal["current", "updating", "failing", "behind"] = "current"
    if update is not None:
        state = "failing" if update.n_attempts else "updating"
    elif service.summarizer.config.method != "none" and (
        user.profile is None or user.profile.n_items < len(user.history)
    ):
        state = "behind"
    before = ["", *(version.text for version in user.versions)]
    newest = list(zip(before, user.versions, strict=False))[-MAX_VERSIONS:]
    versions = [(version, word_changes(text, version.text)) for text, version in reversed(newest)]
    return ProfileView(reader, update.n_attempts if update else 0, state, versions, len(user.versions))


async def ranking_view(
    service: Service, user_id: str, before: Sequence[str] = (), explain: str | None = None
) -> RankingView:
    """Rank for a user; `before` are the items of the previous ranking, best first."""
    reader, results, _ = await service.recommend(user_id, RecommendRequest(top_n=N_SHOWN))
    why = await why_view(service, user_id, explain) if explain else None
    rows = [
        Row(
            item_view(service, one.item_id),
            one,
            before.index(one.item_id) + 1 - one.rank if one.item_id in before else None,
            why if one.item_id == explain else None,
        )
        for one in results
    ]
    moved = bool(before) and any(row.move != 0 for row in rows)
    return RankingView(rows, _full(results), service.calibrated, moved, reader)


def retrieved_view(service: Service, user_id: str) -> list[ItemView]:
    """Return the items that the model would rank for a user, in the order of retrieval."""
    found = service.ranker.retrieved(service.reader(user_id), RecommendRequest(top_n=N_SHOWN))
    return [item_view(service, item_id) for item_id in found[:N_SHOWN]]


async def why_view(service: Service, user_id: str, item_id: str) -> Why:
    """Explain the score of one item."""
    wish = RecommendRequest(candidates=(item_id,), top_n=1, explain=True)
    _, (one,), _ = await service.recommend(user_id, wish)
    assert one.explanation is not None
    parts = one.explanation
    everything = (*parts.without_item, *parts.without_note, *parts.without_sentence)
    most = max((abs(moved) for _, moved in everything), default=0.0)

    def reason(text: str, moved: float) -> Reason:
        return Reason(clipped(text, 400), moved, round(50 * abs(moved) / most if most >= _SMALL else 0.0, 1))

    return Why(
        item_view(service, item_id),
        [reason(*part) for part in parts.without_note],
        [reason(*part) for part in parts.without_sentence],
        [reason(item_view(service, name).title, moved) for name, moved in reversed(parts.without_item)],
    )


async def comparison_view(service: Service, user_id: str) -> Comparison:
    """Rank a user's candidates with the current profile and with a counted one.

    Both prompts have the notes.
    """
    wish = RecommendRequest(top_n=max(N_SHOWN, service.ranker.n_ranked))
    reader, results, _ = await service.recommend(user_id, wish)
    candidates = tuple(one.item_id for one in results)
    # A history without a user gets a counted profile.
    bare = await run_in_threadpool(service.reader, reader.history)
    counted = replace(bare, notes=reader.notes)
    by_counts, _ = await service.ranker.recommend(
        counted, RecommendRequest(candidates=candidates, top_n=len(candidates))
    )
    other = {one.item_id: one for one in by_counts}
    pairs = [(one, other[one.item_id]) for one in results]
    return Comparison(
        readers=(reader, counted),
        pairs=[
            (item_view(service, one.item_id), (one, two))
            for one, two in pairs
            if min(one.rank, two.rank) <= N_SHOWN
        ],
        n_candidates=len(candidates),
        n_best=min(N_SHOWN, len(candidates)),
        agree=sum(max(one.rank, two.rank) <= N_SHOWN for one, two in pairs),
        full=_full([*results, *by_counts]),
    )


def _full(results: Sequence[RankedItem]) -> float:
    """Return the score of a full bar: the smallest of `_FULL_BARS` that holds all scores."""
    most = max((one.score for one in results), default=1.0)
    return next(full for full in _FULL_BARS if most <= full or full == 1.0)


# Rendering


class Asset(NamedTuple):
    """A static file; its path has a hash of the content, so browsers may cache it for ever."""

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
    """Return an address with its query, without values that are None or False."""
    given = {k: "1" if v is True else v for k, v in query.items() if v is not None and v is not False}
    return f"{path}?{urlencode(given)}" if given else path


def clipped(text: str, n: int) -> str:
    """Return at most `n` characters of a text, with an ellipsis if it was cut."""
    return text if len(text) <= n else text[: n - 1].rstrip() + "…"


def _date(time: datetime) -> str:
    return f"{time.astimezone(UTC):%d %b %Y, %H:%M}".lstrip("0")


def _percent(score: float) -> str:
    """Format a share: `63 %`, `4.2 %`, `< 0.1 %`."""
    if score < 0.001:
        return "< 0.1 %"
    return f"{100 * score:.1f} %" if score < 0.0995 else f"{100 * score:.0f} %"


def _signed(value: float) -> str:
    """Format a number with its sign: `+0.42`, `−1.30`, `0.00`."""
    text = f"{abs(value):.2f}"
    return text if text == "0.00" else ("+" if value > 0 else "−") + text


def _count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _new_event_id() -> str:
    """Return an id for an event, so that a form sent twice counts once."""
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
    page: str, values: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> HTMLResponse:
    """Return a page, the template of this name, with the page's security headers."""
    html = _ENVIRONMENT.get_template(f"{page}.html").render(values)
    return HTMLResponse(html, status, headers={**PAGE_HEADERS, **(headers or {})})


def render_part(
    part: str, values: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> HTMLResponse:
    """Return a part of a page, the macro of this name in `parts.html`, with the page's security headers."""
    html = getattr(_ENVIRONMENT.get_template("parts.html").module, part)(**values)
    return HTMLResponse(html, status, headers={**PAGE_HEADERS, **(headers or {})})


def problem_response(
    problem: Problem, scope: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response for a problem: JSON, or HTML for the page; `scope` is the request's."""
    kind = problem.kind
    content = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": problem.detail}
    if request_id := scope.get("state", {}).get("request_id"):
        content["instance"] = f"urn:trsr:request:{request_id}"
    sent = dict(headers or {})
    if problem.retry_after is not None:
        sent["Retry-After"] = str(max(1, math.ceil(problem.retry_after)))
    if is_page(scope["path"]):
        return _html_response(content, scope, sent)
    if kind is UNAUTHORIZED:
        sent["WWW-Authenticate"] = "Bearer"
    # ASCII only: ids may have halves of surrogate pairs, which UTF-8 cannot encode.
    body = json.dumps({**content, **problem.more})
    return Response(body, status_code=kind.status, media_type=MEDIA_TYPE, headers=sent)


def _html_response(problem: dict[str, Any], scope: Mapping[str, Any], headers: dict[str, str]) -> Response:
    """Return a problem as a page, or as a notice if htmx requested a part."""
    status, is_get = problem["status"], scope["method"] == "GET"
    if Headers(raw=scope["headers"]).get("hx-request") == "true":
        if not is_get:  # the typed text stays; the notice has a place of its own
            headers |= {"HX-Retarget": "#notices", "HX-Reswap": "innerHTML"}
        return render_part("problem", {"problem": problem, "may_retry": is_get}, status, headers)
    values: dict[str, Any] = {"has_keys": False, "model": None}
    if problem["type"] == UNAUTHORIZED.type:
        values |= {"wrong_key": scope["path"] == KEY_PATH, "ended": "session" in scope["state"]}
        return render("key", values, status, headers)
    values |= {"problem": problem, "retry_after": headers.get("Retry-After"), "may_retry": is_get}
    return render("problem", values, status, headers)
