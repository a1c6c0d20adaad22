"""Runs the application in uvicorn, on a socket that is opened before anything slow begins."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from trsr.errors import OutputError
from trsr.serve.app import create_app
from trsr.serve.envelope import name_request
from trsr.serve.service import Service
from trsr.serve.settings import Settings


def listen(settings: Settings) -> socket.socket:
    """Open the socket.

    Raises:
        OutputError: the address or the port cannot be had.
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
    """Return a server that ends in order on SIGINT and SIGTERM: open requests first, then the service."""
    return uvicorn.Server(
        uvicorn.Config(
            create_app(service, settings),
            http=_protocol(settings),
            log_config=None,
            access_log=False,  # the envelope writes one line a request, without ids of users
            server_header=False,
            forwarded_allow_ips=settings.forwarded_allow_ips,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=settings.stop_seconds,
        )
    )


def _protocol(settings: Settings) -> type[H11Protocol]:
    """Return uvicorn's protocol, bounded in connections and in the time that a request's headers take."""

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
            """Close the connection unless a next request begins in time."""
            if self.waiting:
                self.waiting.cancel()
            self.waiting = self.loop.call_later(settings.request_seconds, self.end, self.cycle)

        def end(self, before: object) -> None:
            if self.cycle is before:
                self.timeout_keep_alive_handler()

    return Bounded


def run_server(
    service: Service, settings: Settings, listening: socket.socket, say: Callable[[str], None]
) -> None:
    """Serve until a signal says stop."""
    handler = logging.StreamHandler()
    handler.addFilter(name_request)
    line = "%(asctime)s %(levelname)s %(name)s %(request)s %(message)s"
    logging.basicConfig(level=logging.WARNING, format=line, handlers=[handler])
    logging.getLogger("trsr").setLevel(logging.INFO)
    host, port = listening.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    say(f"Serving {service.model_name} at http://{name}:{port}: a page, and an API (GET /openapi.json).")
    make_server(service, settings).run(sockets=[listening])
