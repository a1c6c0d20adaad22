"""Error responses: problem details (RFC 9457), each kind with a `type` that never changes.

The detail says what was found and what to do. It may repeat the caller's ids, never texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trsr.errors import (
    BudgetError,
    EngineError,
    NotErasedError,
    OutputError,
    OverloadedError,
    StoreError,
    TrsrError,
)

MEDIA_TYPE = "application/problem+json"
KEY_PATH = "/page/key"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of error; clients should check its `type`."""

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


class Problem(Exception):
    """An error response; `more` are further members, for example the ids of unknown items."""

    def __init__(self, kind: Kind, detail: str, *, retry_after: float | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.retry_after, self.more = kind, detail, retry_after, more


def is_page(path: str) -> bool:
    """Return whether an address belongs to the page, whose errors are HTML, and not to the API."""
    return path == "/" or path.startswith("/page/")


def from_error(error: TrsrError) -> Problem:
    """Return the problem for an error of the model or the database."""
    match error:
        case OverloadedError():
            return Problem(OVERLOADED, str(error), retry_after=error.retry_after)
        case BudgetError():
            return Problem(TOO_LONG, "The texts do not fit the model's prompt; send shorter ones.")
        case OutputError() | StoreError():
            reason = str(error.__cause__ or error).rstrip(".")  # without the file's path
            kind = STORAGE_FULL if "full" in reason else DATABASE_FAILED
            detail = f"Nothing was changed: {reason}. See the server's log."
            if isinstance(error, NotErasedError):
                kind, detail = NOT_ERASED, f"The user is deleted. {error}"
            return Problem(kind, detail, retry_after=5.0)
        case EngineError():
            if error.retryable:
                return Problem(OVERLOADED, "The model did not answer; try again.", retry_after=1.0)
            return Problem(MODEL_FAILED, str(error))
        case _:
            return Problem(INTERNAL, "The server failed; see its log for this request's id.")


SCHEMA = {
    "title": "Problem",
    "description": "Problem details, RFC 9457.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "Stable; one per kind of error."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was found and what to do."},
        "instance": {"type": "string", "description": "The request's id, also in the server's log."},
    },
}


def refusals(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """Describe an address's error responses for OpenAPI: the common ones and `kinds`."""
    described: dict[int | str, dict[str, Any]] = {}
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for kind in (BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, TOO_LARGE, INVALID, TOO_MANY_REQUESTS, *kinds):
        text = f"{kind.title} (`{kind.type}`)"
        if kind.status in described:
            text = f"{described[kind.status]['description']}; {text}"
        described[kind.status] = {"description": text, "content": content}
    return described
