"""For those who run the server: is it alive, is it ready, what does it do."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from trsr.serve.metrics import Metrics
from trsr.serve.problems import NOT_READY, Problem, refusals
from trsr.serve.schemas import Health
from trsr.serve.service import Service


def health_router(service: Service, metrics: Metrics) -> APIRouter:
    """Return `/healthz`, `/readyz` and `/metrics`; the first two need no key."""
    router = APIRouter(tags=["operation"])

    @router.get("/healthz")
    async def health() -> Health:
        """Say that the process answers."""
        return Health()

    @router.get("/readyz", responses=refusals(NOT_READY))
    def ready() -> Health:
        """Say that the model, the store and the updates of profiles work."""
        if reason := service.why_not_ready():
            raise Problem(NOT_READY, reason, retry_after=5.0)
        return Health()

    @router.get(
        "/metrics",
        response_class=Response,
        responses={**refusals(), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def read_metrics() -> Response:
        """Return numbers for Prometheus."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router
