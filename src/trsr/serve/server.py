"""Runs the application in uvicorn, on a socket that is opened before anything slow begins."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import uvicorn

from trsr.errors import OutputError
from trsr.serve.app import create_app
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
            log_config=None,
            access_log=False,  # the envelope writes one line a request, without ids of users
            server_header=False,
            forwarded_allow_ips=settings.forwarded_allow_ips,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=settings.stop_seconds,
        )
    )


def run_server(
    service: Service, settings: Settings, listening: socket.socket, say: Callable[[str], None]
) -> None:
    """Serve until a signal says stop."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("trsr").setLevel(logging.INFO)
    host, port = listening.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    say(f"Serving {service.model_name} at http://{name}:{port}: a page, and an API (GET /openapi.json).")
    make_server(service, settings).run(sockets=[listening])
