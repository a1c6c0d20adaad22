"""Puts routes, gate, envelope and the page around a service: the ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI, Security
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from trsr.serve.auth import Keys
from trsr.serve.envelope import Envelope
from trsr.serve.gate import Gate, check_user_of_address
from trsr.serve.metrics import Metrics
from trsr.serve.problems import SCHEMA, answer_with_problems
from trsr.serve.routes_health import health_router
from trsr.serve.routes_items import items_router
from trsr.serve.routes_ranking import ranking_router
from trsr.serve.routes_users import users_router
from trsr.serve.service import Service
from trsr.serve.settings import Settings
from trsr.serve.web.assets import ASSETS
from trsr.serve.web.door import KEY_PATH, Door
from trsr.serve.web.pages import page_router

_DESCRIPTION = """
Recommendations from profiles that follow their users. Every refusal is problem JSON (RFC 9457) with a stable
`type`; an answer 429 or 503 says in `Retry-After` after how many seconds to try again.
"""


def create_app(service: Service, settings: Settings) -> FastAPI:
    """Return the application; it starts the service when it starts and closes it when it ends.

    Raises:
        ConfigError: other machines can reach it, and there are no keys.
    """
    keys = Keys(settings.api_keys, service.store.keys)
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
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    metrics = Metrics(service.facts)
    bearer = HTTPBearer(auto_error=False, description="Checked before anything else.")
    checks = [Security(bearer), Depends(check_user_of_address)]
    for router in (users_router(service), ranking_router(service), items_router(service)):
        app.include_router(router, dependencies=checks)
    app.include_router(health_router(service, metrics))
    app.include_router(page_router(service, keys), dependencies=checks[1:])
    answer_with_problems(app)
    # From the innermost outwards. The first one counts what is read; what is announced is seen at the gate.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    open_paths = frozenset({KEY_PATH, *(asset.path for asset in ASSETS.values())})
    app.add_middleware(Gate, settings=settings, keys=keys, open_paths=open_paths)
    app.add_middleware(Envelope, metrics=metrics, log_texts=settings.log_texts)
    app.add_middleware(Door)
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Add the schema of problems to the OpenAPI description."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        description = describe()
        description["components"]["schemas"]["Problem"] = SCHEMA
        return description

    app.openapi = openapi  # type: ignore[method-assign]
