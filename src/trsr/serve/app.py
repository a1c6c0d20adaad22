"""The ASGI application around a service, and the server that runs it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from trsr.errors import (
    BudgetError,
    EngineError,
    NotErasedError,
    OutputError,
    OverloadedError,
    StoreError,
    TrsrError,
)
from trsr.serve import middleware, routes
from trsr.serve.database import read_keys
from trsr.serve.middleware import Metrics
from trsr.serve.pages import page_router
from trsr.serve.schemas import (
    BAD_REQUEST,
    DATABASE_FAILED,
    INTERNAL,
    INVALID,
    KEY_PATH,
    METHOD_NOT_ALLOWED,
    MODEL_FAILED,
    NOT_ERASED,
    NOT_FOUND,
    NOT_READY,
    OVERLOADED,
    REQUEST_TIMEOUT,
    STORAGE_FULL,
    TOO_LARGE,
    TOO_LONG,
    Problem,
)
from trsr.serve.service import Service
from trsr.serve.settings import Keys, Settings
from trsr.serve.views import ASSETS, problem_response

logger = logging.getLogger("trsr.serve")

_DESCRIPTION = """
Recommendations from user profiles that are updated from events. Every error is problem JSON (RFC 9457) with a
stable `type`; responses 429 and 503 have a `Retry-After` header in seconds.
"""
_BY_STATUS = {
    kind.status: kind
    for kind in (BAD_REQUEST, NOT_FOUND, METHOD_NOT_ALLOWED, REQUEST_TIMEOUT, TOO_LARGE, INTERNAL, NOT_READY)
}
_PROBLEM = {
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


def create_app(service: Service, settings: Settings) -> FastAPI:
    """Return the application; its lifespan starts and closes the service.

    Raises:
        ConfigError: other machines can reach the host, and there are no keys.
    """
    keys = Keys(settings.api_keys, partial(read_keys, service.store.path))
    settings.check_closed(bool(keys))

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.close)

    app = FastAPI(
        title="trsr",
        version=version("trsr"),
        description=_DESCRIPTION.strip(),
        lifespan=life,
        docs_url=None,  # these pages load scripts from other sites
        redoc_url=None,
        redirect_slashes=False,
    )
    metrics = Metrics(service.facts)
    bearer = HTTPBearer(auto_error=False, description="Checked before the body is read.")
    checks = [Security(bearer), Depends(middleware.check_user_of_address)]
    for make_router in (routes.users_router, routes.ranking_router, routes.items_router):
        app.include_router(make_router(service), dependencies=checks)
    app.include_router(routes.health_router(service, metrics))
    app.include_router(page_router(service, keys), dependencies=checks[1:])
    _answer_with_problems(app)
    # From the innermost outwards. The first counts the bytes read; AccessControl checks a declared length.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    open_paths = frozenset({KEY_PATH, *(asset.path for asset in ASSETS.values())})
    app.add_middleware(middleware.AccessControl, settings=settings, keys=keys, open_paths=open_paths)
    app.add_middleware(middleware.RequestContext, metrics=metrics, log_texts=settings.log_texts)
    describe = app.openapi

    def describe_with_problems() -> dict[str, Any]:
        description = describe()
        description["components"]["schemas"]["Problem"] = _PROBLEM
        return description

    app.openapi = describe_with_problems  # type: ignore[method-assign]
    return app


def _from_error(error: TrsrError) -> Problem:
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


def _invalid(error: RequestValidationError, content_type: str) -> Problem:
    """List the invalid parts and why, without repeating the sent values."""
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
        return Problem(BAD_REQUEST, "The content type is not JSON; send `Content-Type: application/json`.")
    return Problem(INVALID, f"{first['at']}: {first['problem']}.", errors=errors)


def _answer_with_problems(app: FastAPI) -> None:
    """Answer every error with problem JSON."""

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
        problem = _from_error(error)
        if problem.kind is INTERNAL:
            raise error  # a bug: `RequestContext` logs it
        if problem.kind.status >= 500 and problem.kind is not OVERLOADED:
            logger.error("%s", error)
        return problem_response(problem, request.scope)


def listen(settings: Settings) -> socket.socket:
    """Open the listening socket.

    Raises:
        OutputError: the address or the port is not available.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise OutputError(
            f"The server cannot listen at {settings.host} port {settings.port} ({error.strerror or error}); "
            "choose another with --host and --port."
        ) from error


def make_server(service: Service, settings: Settings) -> uvicorn.Server:
    """Return a server that on SIGINT and SIGTERM finishes open requests, then closes the service."""
    return uvicorn.Server(
        uvicorn.Config(
            create_app(service, settings),
            http=_protocol(settings),
            log_config=None,
            access_log=False,  # `RequestContext` logs requests, without user ids
            server_header=False,
            forwarded_allow_ips=settings.forwarded_allow_ips,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=settings.stop_seconds,
        )
    )


def _protocol(settings: Settings) -> type[H11Protocol]:
    """Return uvicorn's protocol with a limit on connections and on the seconds until a request begins."""

    class Bounded(H11Protocol):
        waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                transport.abort()
            self.wait()

        def on_response_complete(self) -> None:
            self.wait()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.waiting:
                self.waiting.cancel()
            super().connection_lost(exc)

        def wait(self) -> None:
            """Close the connection unless the next request begins in time."""
            if self.waiting:
                self.waiting.cancel()
            self.waiting = self.loop.call_later(settings.request_seconds, self.end, self.cycle)

        def end(self, before: object) -> None:
            if self.cycle is before:
                self.timeout_keep_alive_handler()

    return Bounded


def run_server(
    service: Service, settings: Settings, listening: socket.socket, log: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM."""
    handler = logging.StreamHandler()
    handler.addFilter(middleware.name_request)
    line = "%(asctime)s %(levelname)s %(name)s %(request)s %(message)s"
    logging.basicConfig(level=logging.WARNING, format=line, handlers=[handler])
    logging.getLogger("trsr").setLevel(logging.INFO)
    host, port = listening.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    log(f"Serving {service.model_name} at http://{name}:{port}: a page, and an API (GET /openapi.json).")
    make_server(service, settings).run(sockets=[listening])
