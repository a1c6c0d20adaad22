"""Between a browser and the page: the session in a cookie, and refusals that people can read.

The gate behind it asks for a key in a header. A browser has a session in a cookie that no script can read and
no other site can send. The gate hears of it only for the page's own addresses: a cookie never opens the JSON
addresses. Whatever refuses a page's request says so in problem JSON; here it becomes HTML.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trsr.serve.problems import MEDIA_TYPE, UNAUTHORIZED
from trsr.serve.web.rendering import HEADERS, render

COOKIE = "trsr_session"
KEY_PATH = "/page/key"
PREFIX = "/page/"
_REPLACED = {"content-type", "content-length", "www-authenticate", *(name.lower() for name in HEADERS)}


class Door:
    """ASGI middleware around the page's addresses; all others pass unchanged."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its session, and its refusal back as HTML."""
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path == "/" or path.startswith(PREFIX)):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        session = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if session and "authorization" not in headers:
            scope = {**scope, "state": {**scope.get("state", {}), "session": session}}
        start: Message | None = None
        body = b""

        async def send_html(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                if Headers(raw=message["headers"]).get("content-type", "").startswith(MEDIA_TYPE):
                    start = message  # held back until its body is there
                    return
            elif start is not None and message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    answer = _as_html(scope, start, json.loads(body), bool(session))
                    await answer(scope, receive, send)
                return
            await send(message)

        await self.app(scope, receive, send_html)


def _as_html(scope: Scope, start: Message, problem: dict[str, Any], had_session: bool) -> HTMLResponse:
    """Return a refusal as a page, or as a notice where htmx asked for a part of one."""
    asked, given = Headers(scope=scope), MutableHeaders(raw=list(start["headers"]))
    part = asked.get("hx-request") == "true"
    kept = {name: value for name, value in given.items() if name not in _REPLACED}
    if part and scope["method"] != "GET":  # what was typed stays; the notice has a place of its own
        kept |= {"HX-Retarget": "#notices", "HX-Reswap": "innerHTML"}
    values = {
        "problem": problem,
        "retry_after": given.get("retry-after"),
        "may_retry": scope["method"] == "GET",
        "wrong_key": scope["path"] == KEY_PATH,
        "ended": had_session,
        "has_keys": False,
        "model": None,
        "query": "",
    }
    if part:
        return render("part_problem.html", values, start["status"], kept)
    page = "key.html" if problem["type"] == UNAUTHORIZED.type else "problem.html"
    return render(page, values, start["status"], kept)
