"""What every answer has around it: an id, security headers, a line in the log, and its place in the metrics.

The log has ids of requests, routes and times, but neither ids of users nor texts, unless asked for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable
from contextvars import ContextVar

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trsr.serve.metrics import Metrics
from trsr.serve.problems import INTERNAL, Problem, problem_response

logger = logging.getLogger("trsr.serve")

REQUEST: ContextVar[str] = ContextVar("request", default="-")
"""The id of the request that is being answered."""

SECURITY_HEADERS = {
    # An answer in JSON needs nothing; a page sets a policy of its own, no wider than 'self'.
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENT_LEFT = 499
_UNMATCHED = "unmatched"


def name_request(record: logging.LogRecord) -> bool:
    """Add the request's id to a line of the log: a filter of a handler, for `%(request)s` in its format."""
    record.request = REQUEST.get()
    return True


class Envelope:
    """ASGI middleware around everything else; an error that nobody expected becomes a problem here."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log_texts: bool) -> None:
        self.app = app
        self._metrics = metrics
        self._log_texts = log_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        REQUEST.set(request_id)
        began = time.perf_counter()
        status = _CLIENT_LEFT
        answered = False

        async def send_in_envelope(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-ID"] = request_id
            await send(message)

        try:
            await _while_present(self.app, scope, receive, send_in_envelope, lambda: answered)
        except Exception as error:
            self._log_error(error)
            if answered:
                raise
            problem = Problem(INTERNAL, "The server failed; its log says more under this request's id.")
            await problem_response(problem, scope)(scope, receive, send_in_envelope)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path_format", _UNMATCHED)
            self._metrics.observe(scope["method"], route, status, seconds)
            self._log_request(scope, route, status, seconds)

    def _log_request(self, scope: Scope, route: str, status: int, seconds: float) -> None:
        state = scope["state"]
        line = {
            "request": state["request_id"],
            "caller": state.get("caller"),
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 1),
        }
        if self._log_texts:
            line["path"] = scope["path"]
        logger.info(json.dumps(line))

    def _log_error(self, error: Exception) -> None:
        """Log where an error came from; what it says may hold texts of people."""
        frames = "".join(traceback.format_tb(error.__traceback__))
        said = f": {error}" if self._log_texts else ""
        logger.error("Failed with %s%s\n%s", type(error).__name__, said, frames)


async def _while_present(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, answered: Callable[[], bool]
) -> None:
    """Run an application; give it up when the client leaves before the answer has begun."""
    # No more of a body is read than the application takes.
    messages: asyncio.Queue[Message] = asyncio.Queue(1)
    wanted = asyncio.Event()
    if "expect" not in Headers(scope=scope):  # else the first `receive` asks for a body that may be refused
        wanted.set()

    async def watch() -> None:
        await wanted.wait()
        while (message := await receive())["type"] != "http.disconnect":
            await messages.put(message)
        if not answered():
            present.cancel()
        await messages.put(message)

    async def take() -> Message:
        wanted.set()
        return {"type": "http.disconnect"} if watching.done() and messages.empty() else await messages.get()

    # A scope of anyio's: threads are waited for, so that there are never more of them than may be.
    with anyio.CancelScope() as present:
        watching = asyncio.ensure_future(watch())
        try:
            await app(scope, take, send)
        finally:
            watching.cancel()
