"""For those who run the server: is it alive, is it ready, what does it do."""

from __future__ import annotations

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from trsr.serve.metrics import Metrics
from trsr.serve.problems import NOT_READY, refusals
from trsr.serve.readiness import Readiness
from trsr.serve.schemas import Health, Ready
from trsr.serve.service import Service


def health_router(service: Service, metrics: Metrics) -> APIRouter:
    """Return `/healthz`, `/readyz` and `/metrics`; the first two need no key."""
    router = APIRouter(tags=["operation"])
    readiness = Readiness(service)
    one = CapacityLimiter(1)

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz")
    async def health() -> Health:
        """Say that the process answers."""
        return Health()

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses=refusals(NOT_READY))
    async def ready() -> Ready:
        """Say that the database can be written and read, that the model answers, and what profiles wait for.

        The model is probed unless it has answered within the last minute. A refusal names the `part` that
        does not work: `database`, `model` or `profiles`.
        """
        return await to_thread.run_sync(readiness.check, limiter=one)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={**refusals(), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def read_metrics() -> Response:
        """Return numbers for Prometheus."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router
