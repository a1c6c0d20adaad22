"""ASGI middleware around every request: its id, headers, log line and metrics, and access control.

Access is checked before the body is read or a route is chosen. If the server has keys, every address needs
one; an address that `_needed_scopes` does not list needs the scope `admin`. Whether a key may reach a user is
checked where the user's id is read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import traceback
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from urllib.parse import unquote_to_bytes

import anyio
from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trsr.serve import schemas
from trsr.serve.model_queue import CALLER
from trsr.serve.schemas import Problem, is_page
from trsr.serve.settings import ADMIN, EVENTS, NO_KEY, RANK, Key, Keys, Settings
from trsr.serve.views import problem_response

logger = logging.getLogger("trsr.serve")

COOKIE = "trsr_session"
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
PAGE_SCOPES = (EVENTS, RANK)
"""The scopes that the page needs."""
REQUEST: ContextVar[str] = ContextVar("request", default="-")
"""The id of the current request."""
SECURITY_HEADERS = {
    # For JSON responses; pages set their own policy, no wider than 'self'.
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
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_CALLERS = 10_000
_BURST_SECONDS = 10.0
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


def name_request(record: logging.LogRecord) -> bool:
    """Add the request's id to a log record: a handler's filter, for `%(request)s` in its format."""
    record.request = REQUEST.get()
    return True


class Metrics:
    """The Prometheus metrics of one server.

    Args:
        facts: Returns the values of queue, store and updater; names that end in `_total` are counters.
    """

    def __init__(self, facts: Callable[[], Mapping[str, float]]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "trsr_requests", "Answered requests.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "trsr_request_seconds",
            "From a request's first byte to its response's last.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(_FactsCollector(facts))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request; `route` is the path template."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _FactsCollector(Collector):
    def __init__(self, facts: Callable[[], Mapping[str, float]]) -> None:
        self._facts = facts

    def describe(self) -> list[Metric]:
        return []  # else registering reads the facts before the server has started

    def collect(self) -> Iterator[Metric]:
        for name, value in sorted(self._facts().items()):
            words = name.removesuffix("_total").replace("_", " ")
            if name.endswith("_total"):
                yield CounterMetricFamily(f"trsr_{name}", f"Counted so far: {words}.", value)
            else:
                yield GaugeMetricFamily(f"trsr_{name}", f"Now: {words}.", value)


class RequestContext:
    """Adds an id, security headers, metrics and a log line to every request; catches unexpected errors."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log_texts: bool) -> None:
        self.app = app
        self._metrics = metrics
        self._log_texts = log_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; an unexpected error is answered 500."""
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

        async def send_with_headers(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-ID"] = request_id
            await send(message)

        try:
            await _while_present(self.app, scope, receive, send_with_headers, lambda: answered)
        except Exception as error:
            # The traceback without the message, which may contain users' texts.
            frames = "".join(traceback.format_tb(error.__traceback__))
            message = f": {error}" if self._log_texts else ""
            logger.error("Failed with %s%s\n%s", type(error).__name__, message, frames)
            if answered:
                raise
            problem = Problem(schemas.INTERNAL, "The server failed; see its log for this request's id.")
            await problem_response(problem, scope)(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path_format", "unmatched")
            self._metrics.observe(scope["method"], route, status, seconds)
            line = {
                "request": request_id,
                "caller": scope["state"].get("caller"),
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 1),
            }
            logger.info(json.dumps(line | ({"path": scope["path"]} if self._log_texts else {})))


async def _while_present(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, answered: Callable[[], bool]
) -> None:
    """Run an application; cancel it if the client disconnects before the response has begun."""
    # Reads no more of a body than the application takes.
    messages: asyncio.Queue[Message] = asyncio.Queue(1)
    wanted = asyncio.Event()
    if "expect" not in Headers(scope=scope):  # else the first `receive` requests a body that may be refused
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

    # An anyio scope waits for its threads, so their number stays within the limit.
    with anyio.CancelScope() as present:
        watching = asyncio.ensure_future(watch())
        try:
            await app(scope, take, send)
        finally:
            watching.cancel()


class RateLimit:
    """A token bucket per caller: `per_minute` requests on average, in bursts of up to ten seconds' worth.

    Memory is bounded: the least recent callers are dropped first. Not thread-safe.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_minute / 60.0
        self._burst = max(1.0, self._rate * _BURST_SECONDS)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def seconds_to_wait(self, caller: str) -> float:
        """Count a request of `caller`; return 0 if it is allowed, else the seconds until it would be."""
        now = self._clock()
        left, then = self._buckets.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        allowed = left >= 1.0
        self._buckets[caller] = (left - 1.0 if allowed else left, now)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._rate


class AccessControl:
    """Checks keys, limits request rates, and limits the size and duration of bodies."""

    def __init__(
        self, app: ASGIApp, settings: Settings, keys: Keys, open_paths: frozenset[str] = frozenset()
    ) -> None:
        self.app = app
        self._open = OPEN_PATHS | open_paths
        self._keys = keys
        self._rate = RateLimit(settings.requests_per_minute)
        self._max_body_bytes = settings.max_body_bytes
        self._seconds = settings.request_seconds
        self._names = _LOCAL_NAMES | {settings.host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        if scope["type"] == "http" and scope["path"] in self._open:
            scope["state"]["key"] = NO_KEY
        elif scope["type"] == "http":
            try:
                self._check(scope, Headers(scope=scope))
            except Problem as problem:
                await problem_response(problem, scope)(scope, receive, send)
                return
        await self.app(scope, _in_time(receive, self._seconds), send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        # Decoding would replace them by U+FFFD and make different ids equal.
        if not _is_utf8(scope.get("raw_path", b"")) or not _is_utf8(scope["query_string"]):
            raise Problem(
                schemas.BAD_REQUEST, "The address has bytes that are not UTF-8; encode it as UTF-8."
            )
        # Against DNS rebinding: another site's page calls this machine under that site's host name.
        if not self._keys and _host_name(headers.get("host", "")) not in self._names:
            raise Problem(
                schemas.WRONG_HOST, "Without keys the server answers only as localhost or 127.0.0.1."
            )
        authorization = headers.get("authorization")
        session = cookie_parser(headers.get("cookie", "")).get(COOKIE) if is_page(scope["path"]) else None
        if session and authorization is None:
            scope["state"]["session"] = session
            key = self._keys.session(session)
        else:
            key = self._keys.bearer(authorization or "")
        address = scope["client"][0] if scope.get("client") else "unknown"
        caller = key.name if key else address
        if wait := self._rate.seconds_to_wait(caller):
            raise Problem(schemas.TOO_MANY_REQUESTS, "Send fewer requests per minute.", retry_after=wait)
        if self._keys:
            check_key(key, _needed_scopes(scope["path"]))
        scope["state"] |= {"caller": caller, "key": key or NO_KEY}
        CALLER.set(caller)
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 15 or int(length) > self._max_body_bytes):
            message = f"The body has {length} bytes; send at most {self._max_body_bytes}."
            raise Problem(schemas.TOO_LARGE, message)


def _in_time(receive: Receive, seconds: float) -> Receive:
    """Return a `receive` that refuses a body which is not complete after `seconds`."""
    ends: float | None = asyncio.get_running_loop().time() + seconds

    async def receive_in_time() -> Message:
        nonlocal ends
        try:
            async with asyncio.timeout_at(ends):
                message = await receive()
        except TimeoutError as error:
            detail = f"The body was not complete after {seconds:g} seconds; send it faster"
            raise HTTPException(408, detail, {"Connection": "close"}) from error
        if not message.get("more_body", False):
            ends = None
        return message

    return receive_in_time


def check_key(key: Key | None, needed: Iterable[str]) -> Key:
    """Return `key` if it is valid and has the needed scopes.

    Raises:
        Problem: the key is unknown or expired, or lacks a scope.
    """
    if key is None:
        raise Problem(schemas.UNAUTHORIZED, "The request has no valid key; send `Authorization: Bearer KEY`.")
    if key.expired:
        raise Problem(schemas.UNAUTHORIZED, f"The key {key.name!r} expired at {key.expiry}; use a new one.")
    if missing := key.missing(needed):
        has = ", ".join(sorted(key.scopes))
        message = f"This needs the scope {', '.join(missing)}; the key {key.name!r} has {has}."
        raise Problem(schemas.FORBIDDEN, message)
    return key


def check_user(request: Request, *user_ids: str) -> None:
    """Refuse users that the caller's key does not reach, existing or not.

    Raises:
        Problem: an id does not begin with the key's prefix.
    """
    key: Key = request.state.key
    if not all(user_id.startswith(key.user_prefix) for user_id in user_ids):
        message = f"The key {key.name!r} reaches only users whose ids begin with {key.user_prefix!r}."
        raise Problem(schemas.FORBIDDEN, message)


async def check_user_of_address(request: Request) -> None:
    """Check the users in an address, as `check_user` does: a dependency of routers."""
    named = [*request.query_params.getlist("user"), request.path_params.get("user_id")]
    check_user(request, *filter(None, named))


def _needed_scopes(path: str) -> tuple[str, ...]:
    if path in ("/v1/rerank", "/v2/rerank", "/v1/recommend"):
        return (RANK,)
    if path == "/v1/users" or path.startswith("/v1/users/"):
        return (EVENTS,)
    if is_page(path):
        return PAGE_SCOPES
    return () if path == "/openapi.json" else (ADMIN,)


def _is_utf8(encoded: bytes) -> bool:
    try:
        unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        return False
    return True


def _host_name(host: str) -> str:
    """Return the name in a `Host` header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
