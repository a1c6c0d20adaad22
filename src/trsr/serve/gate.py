"""Who is let in: before a request's body is read or any route is chosen.

Every address needs a key where keys are set, so that no route can be forgotten; only `OPEN` ones do not, and
those the page needs before it has a key (its looks, and the form that takes the key).
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from trsr.serve.auth import Keys
from trsr.serve.batching import CALLER
from trsr.serve.limits import RateLimit
from trsr.serve.problems import (
    BAD_REQUEST,
    TOO_LARGE,
    TOO_MANY_REQUESTS,
    UNAUTHORIZED,
    WRONG_HOST,
    Problem,
    problem_response,
)
from trsr.serve.settings import Settings

OPEN = frozenset({"/healthz", "/readyz"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Gate:
    """ASGI middleware that asks for the key, counts requests and looks at the announced size."""

    def __init__(self, app: ASGIApp, settings: Settings, open_paths: frozenset[str] = frozenset()) -> None:
        self.app = app
        self._open = OPEN | open_paths
        self._keys = Keys(settings.api_keys)
        self._rate = RateLimit(settings.requests_per_minute)
        self._max_body_bytes = settings.max_body_bytes
        self._names = _LOCAL_NAMES | {settings.host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in self._open:
            try:
                self._check(scope, Headers(scope=scope))
            except Problem as problem:
                await problem_response(problem, scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        # Replaced by U+FFFD, different ids would be one.
        if not _is_utf8(scope.get("raw_path", b"")) or not _is_utf8(scope["query_string"]):
            raise Problem(BAD_REQUEST, "The address holds bytes that are no UTF-8; encode it as UTF-8.")
        # A page of another site can make a browser call this machine under a name of its own (DNS rebinding).
        if not self._keys and _host_name(headers.get("host", "")) not in self._names:
            raise Problem(WRONG_HOST, "Without keys the server answers only as localhost or 127.0.0.1.")
        caller = self._keys.caller(headers.get("authorization", ""))
        address = scope["client"][0] if scope.get("client") else "unknown"
        if wait := self._rate.seconds_to_wait(caller or address):
            raise Problem(TOO_MANY_REQUESTS, "Ask less often.", retry_after=wait)
        if self._keys and caller is None:
            raise Problem(UNAUTHORIZED, "Send `Authorization: Bearer KEY` with a key that the server knows.")
        scope["state"]["caller"] = caller or address
        CALLER.set(caller or address)
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 15 or int(length) > self._max_body_bytes):
            raise Problem(TOO_LARGE, f"The body has {length} bytes, at most {self._max_body_bytes} are read.")


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
