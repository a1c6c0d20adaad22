"""Who is let in: before a request's body is read or any route is chosen.

Every address needs a key where there are keys, and one that `_needed` does not name needs the scope `admin`:
no route can be forgotten. Only `OPEN` ones need none, and those the page needs before it has a session (its
looks, and the form that takes the key). Which users a key reaches is checked where their ids are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trsr.serve.auth import ADMIN, EVENTS, NO_KEY, RANK, Key, Keys
from trsr.serve.batching import CALLER
from trsr.serve.limits import RateLimit
from trsr.serve.problems import (
    BAD_REQUEST,
    FORBIDDEN,
    TOO_LARGE,
    TOO_MANY_REQUESTS,
    UNAUTHORIZED,
    WRONG_HOST,
    Problem,
    problem_response,
)
from trsr.serve.settings import Settings

OPEN = frozenset({"/healthz", "/readyz"})
OF_PAGE = (EVENTS, RANK)
"""The scopes that the page needs."""
_RANKING = frozenset({"/v1/rerank", "/v2/rerank", "/v1/recommend"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Gate:
    """ASGI middleware that asks for the key, counts requests, and bounds the size and the time of bodies."""

    def __init__(
        self, app: ASGIApp, settings: Settings, keys: Keys, open_paths: frozenset[str] = frozenset()
    ) -> None:
        self.app = app
        self._open = OPEN | open_paths
        self._keys = keys
        self._rate = RateLimit(settings.requests_per_minute)
        self._max_body_bytes = settings.max_body_bytes
        self._seconds = settings.request_seconds
        self._names = _LOCAL_NAMES | {settings.host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
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
        # Replaced by U+FFFD, different ids would be one.
        if not _is_utf8(scope.get("raw_path", b"")) or not _is_utf8(scope["query_string"]):
            raise Problem(BAD_REQUEST, "The address holds bytes that are no UTF-8; encode it as UTF-8.")
        # A page of another site can make a browser call this machine under a name of its own (DNS rebinding).
        if not self._keys and _host_name(headers.get("host", "")) not in self._names:
            raise Problem(WRONG_HOST, "Without keys the server answers only as localhost or 127.0.0.1.")
        session = scope["state"].get("session")
        key = self._keys.session(session) if session else self._keys.bearer(headers.get("authorization", ""))
        address = scope["client"][0] if scope.get("client") else "unknown"
        caller = key.name if key else address
        if wait := self._rate.seconds_to_wait(caller):
            raise Problem(TOO_MANY_REQUESTS, "Ask less often.", retry_after=wait)
        if self._keys:
            check_key(key, _needed(scope["path"]))
        scope["state"] |= {"caller": caller, "key": key or NO_KEY}
        CALLER.set(caller)
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 15 or int(length) > self._max_body_bytes):
            raise Problem(TOO_LARGE, f"The body has {length} bytes, at most {self._max_body_bytes} are read.")


def _in_time(receive: Receive, seconds: float) -> Receive:
    """Return a `receive` that gives up a body which is not complete after some seconds."""
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
    """Return a valid key that has the scopes.

    Raises:
        Problem: the key is unknown or expired, or lacks a scope.
    """
    if key is None:
        raise Problem(UNAUTHORIZED, "No key of this server was given; send `Authorization: Bearer KEY`.")
    if key.expired:
        raise Problem(UNAUTHORIZED, f"The key {key.name!r} expired at {key.expiry}; get a new one.")
    if missing := key.missing(needed):
        has = ", ".join(sorted(key.scopes))
        raise Problem(
            FORBIDDEN, f"This needs the scope {', '.join(missing)}; the key {key.name!r} has {has}."
        )
    return key


def check_user(request: Request, *user_ids: str) -> None:
    """Refuse users that the caller's key does not reach, whether they exist or not.

    Raises:
        Problem: an id does not begin as the key's users do.
    """
    key: Key = request.state.key
    if not all(user_id.startswith(key.user_prefix) for user_id in user_ids):
        raise Problem(
            FORBIDDEN, f"The key {key.name!r} reaches only users whose ids begin with {key.user_prefix!r}."
        )


async def check_user_of_address(request: Request) -> None:
    """Do the same for the users whom an address names: a dependency of routers."""
    named = [*request.query_params.getlist("user"), request.path_params.get("user_id")]
    check_user(request, *filter(None, named))


def _needed(path: str) -> tuple[str, ...]:
    """Return the scopes that an address needs."""
    if path in _RANKING:
        return (RANK,)
    if path == "/v1/users" or path.startswith("/v1/users/"):
        return (EVENTS,)
    if path == "/" or path.startswith("/page/"):
        return OF_PAGE
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
