"""Refusals: problem details (RFC 9457), each kind with a `type` that never changes, and HTML for the page.

A problem says what was found and what to do. It repeats ids that the caller sent, never texts.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response

from trsr.errors import (
    BudgetError,
    EngineError,
    NotErasedError,
    OutputError,
    OverloadedError,
    StoreError,
    TrsrError,
)
from trsr.serve.rendering import render

logger = logging.getLogger("trsr.serve")

MEDIA_TYPE = "application/problem+json"
KEY_PATH = "/page/key"


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of refusal; `type` is what programs should look at."""

    name: str
    status: int
    title: str

    @property
    def type(self) -> str:
        """The URI that names this kind."""
        return f"urn:trsr:problem:{self.name}"


BAD_REQUEST = Kind("bad-request", 400, "The request cannot be read")
WRONG_HOST = Kind("wrong-host", 400, "The server is not known by this name")
UNAUTHORIZED = Kind("unauthorized", 401, "A key is needed")
FORBIDDEN = Kind("forbidden", 403, "The key does not allow this")
WRONG_ORIGIN = Kind("wrong-origin", 403, "The request comes from another site")
NOT_FOUND = Kind("not-found", 404, "There is no such address")
UNKNOWN_USER = Kind("unknown-user", 404, "The user is not known")
UNKNOWN_ITEM = Kind("unknown-item", 404, "The item is not known")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "The address does not do this")
REQUEST_TIMEOUT = Kind("request-timeout", 408, "The request did not arrive in time")
TOO_LARGE = Kind("too-large", 413, "The request is too large")
INVALID = Kind("invalid-request", 422, "The request is not as described")
UNKNOWN_ITEMS = Kind("unknown-items", 422, "The catalogue does not have these items")
UNKNOWN_FIELDS = Kind("unknown-fields", 422, "The items do not have these fields")
UNKNOWN_MODEL = Kind("unknown-model", 422, "This model is not served")
TOO_LONG = Kind("too-long", 422, "The texts do not fit the model's prompt")
TOO_MANY_REQUESTS = Kind("too-many-requests", 429, "Too many requests")
INTERNAL = Kind("internal", 500, "The server failed")
MODEL_FAILED = Kind("model-failed", 500, "The model gives no usable answer")
OVERLOADED = Kind("overloaded", 503, "The server is busy")
DATABASE_FAILED = Kind("database-failed", 503, "The database does not work")
NOT_ERASED = Kind("not-erased", 503, "The deletion is not finished")
STORAGE_FULL = Kind("storage-full", 507, "The server's disk is full")
NOT_READY = Kind("not-ready", 503, "The server is not ready")
_BY_STATUS = {
    kind.status: kind
    for kind in (BAD_REQUEST, NOT_FOUND, METHOD_NOT_ALLOWED, REQUEST_TIMEOUT, TOO_LARGE, INTERNAL, NOT_READY)
}


class Problem(Exception):
    """A refusal; `more` are members of its own, for example the ids of unknown items."""

    def __init__(self, kind: Kind, detail: str, *, retry_after: float | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.retry_after, self.more = kind, detail, retry_after, more


def is_page(path: str) -> bool:
    """Return whether an address is of the page, whose refusals are HTML, or of the API."""
    return path == "/" or path.startswith("/page/")


def problem_response(
    problem: Problem, scope: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    """Return the answer for a problem; `scope` is the request's, whose id names the occurrence."""
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
    # ASCII only: what the caller sent may hold halves of surrogate pairs, which UTF-8 does not have.
    body = json.dumps({**content, **problem.more})
    return Response(body, status_code=kind.status, media_type=MEDIA_TYPE, headers=sent)


def _html_response(problem: dict[str, Any], scope: Mapping[str, Any], headers: dict[str, str]) -> Response:
    """Return a refusal as a page, or as a notice where htmx requested a part of one."""
    is_part = Headers(raw=scope["headers"]).get("hx-request") == "true"
    if is_part and scope["method"] != "GET":  # what was typed stays; the notice has a place of its own
        headers |= {"HX-Retarget": "#notices", "HX-Reswap": "innerHTML"}
    values = {
        "problem": problem,
        "retry_after": headers.get("Retry-After"),
        "may_retry": scope["method"] == "GET",
        "wrong_key": scope["path"] == KEY_PATH,
        "ended": "session" in scope["state"],
        "has_keys": False,
        "model": None,
        "query": "",
    }
    page = "key.html" if problem["type"] == UNAUTHORIZED.type else "problem.html"
    return render("part_problem.html" if is_part else page, values, problem["status"], headers)


def from_error(error: TrsrError) -> Problem:
    """Return the problem for an error of the model or the database."""
    match error:
        case OverloadedError():
            return Problem(OVERLOADED, str(error), retry_after=error.retry_after)
        case BudgetError():
            return Problem(TOO_LONG, "The texts do not fit the model's prompt; send shorter ones.")
        case OutputError() | StoreError():
            reason = str(error.__cause__ or error).rstrip(".")  # without the path of the file
            kind = STORAGE_FULL if "full" in reason else DATABASE_FAILED
            detail = f"Nothing was changed: {reason}. The server's log says more."
            if isinstance(error, NotErasedError):
                kind, detail = NOT_ERASED, f"The user is deleted. {error}"
            return Problem(kind, detail, retry_after=5.0)
        case EngineError():
            if error.retryable:
                return Problem(OVERLOADED, "The model did not answer; try again.", retry_after=1.0)
            return Problem(MODEL_FAILED, str(error))
        case _:
            return Problem(INTERNAL, "The server failed; its log says more under this request's id.")


def _invalid(error: RequestValidationError, content_type: str) -> Problem:
    """Say which parts are wrong and why, without repeating what was sent."""
    found = error.errors()
    errors = [
        {
            "at": "/".join(str(part) for part in entry["loc"])[:500],
            "problem": str(entry["msg"]).removeprefix("Value error, ")[:500],
        }
        for entry in found[:20]
    ]
    first = errors[0]
    if any(entry["type"] == "json_invalid" for entry in found):
        return Problem(BAD_REQUEST, f"The body is not JSON (at character {found[0]['loc'][-1]}).")
    if first["at"] == "body" and "json" not in content_type.lower():
        return Problem(BAD_REQUEST, "The body is not said to be JSON; send `Content-Type: application/json`.")
    return Problem(INVALID, f"{first['at']}: {first['problem']}.", errors=errors)


def answer_with_problems(app: FastAPI) -> None:
    """Let `app` answer every refusal with problem JSON."""

    @app.exception_handler(Problem)
    async def _on_problem(request: Request, problem: Problem) -> Response:
        return problem_response(problem, request.scope)

    @app.exception_handler(RequestValidationError)
    async def _on_invalid(request: Request, error: RequestValidationError) -> Response:
        problem = _invalid(error, request.headers.get("content-type", ""))
        return problem_response(problem, request.scope)

    @app.exception_handler(HTTPException)
    async def _on_status(request: Request, error: HTTPException) -> Response:
        kind = _BY_STATUS.get(error.status_code, BAD_REQUEST if error.status_code < 500 else INTERNAL)
        return problem_response(Problem(kind, f"{error.detail}."), request.scope, error.headers)

    @app.exception_handler(TrsrError)
    async def _on_error(request: Request, error: TrsrError) -> Response:
        problem = from_error(error)
        if problem.kind is INTERNAL:
            raise error  # a fault of ours: `RequestContext` logs it
        if problem.kind.status >= 500 and problem.kind is not OVERLOADED:
            logger.error("%s", error)
        return problem_response(problem, request.scope)


SCHEMA = {
    "title": "Problem",
    "description": "Problem details, RFC 9457.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "Stable; one for each kind of refusal."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was found and what to do."},
        "instance": {"type": "string", "description": "Names the request, as the server's log does."},
    },
}


def refusals(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """Describe, for OpenAPI, what an address may refuse with, after what every address may."""
    described: dict[int | str, dict[str, Any]] = {}
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for kind in (BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, TOO_LARGE, INVALID, TOO_MANY_REQUESTS, *kinds):
        text = f"{kind.title} (`{kind.type}`)"
        if kind.status in described:
            text = f"{described[kind.status]['description']}; {text}"
        described[kind.status] = {"description": text, "content": content}
    return described
