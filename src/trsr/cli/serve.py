"""`trsr serve`: serve a model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    model_or_run: Annotated[
        Path | None, typer.Argument(help="Run folder, or model folder.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Dataset folder; the model's own by default.", show_default=False),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; other than loopback needs a key. [127.0.0.1]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 for any free one. [8000]")] = None,
    db: Annotated[
        Path | None,
        typer.Option(
            "--db", help="Database of users; serve.sqlite in MODEL_OR_RUN by default.", show_default=False
        ),
    ] = None,
    max_waiting: Annotated[
        int | None, typer.Option(help="Requests that may wait for the model; more are answered 503. [64]")
    ] = None,
    request_seconds: Annotated[
        float | None, typer.Option(help="Time limit of a request, then 503. [30]")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="Limit per key or address, then 429. [6000]")
    ] = None,
    forwarded_allow_ips: Annotated[
        str | None,
        typer.Option(help="Trusted proxies (X-Forwarded-... headers). [127.0.0.1,::1]", show_default=False),
    ] = None,
    log_texts: Annotated[
        bool | None, typer.Option("--log-texts", help="Log user ids and error messages too.")
    ] = None,
) -> None:
    """Serve recommendations over HTTP and update profiles from users' events.

    `trsr keys add` creates keys. Every option except --data and --db is also an environment variable:
    TRSR_PORT for --port.

    Example: trsr serve out/demo --port 8000
    """
    from trsr.errors import ConfigError, MissingExtraError

    try:
        import fastapi  # noqa: F401 - the first of several
        import pydantic_settings  # noqa: F401

        from trsr.serve.settings import load_settings
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "serve") from error

    if model_or_run is None:
        raise ConfigError(
            "Found no folder to serve; give a run folder or a model folder: `trsr serve out/demo`."
        )
    settings = load_settings(
        host=host,
        port=port,
        max_waiting=max_waiting,
        request_seconds=request_seconds,
        requests_per_minute=requests_per_minute,
        forwarded_allow_ips=forwarded_allow_ips,
        log_texts=log_texts,
    )
    from trsr.serve.app import listen, run_server
    from trsr.serve.database import read_keys
    from trsr.serve.loading import open_service

    database = db or model_or_run / "serve.sqlite"
    settings.check_closed(bool(settings.api_keys or read_keys(database)))

    def log(line: str) -> None:
        typer.echo(line, err=True)

    with listen(settings) as listening:  # before the slow loading: the port may be in use
        service = open_service(model_or_run, data, database, settings, log=log)
        run_server(service, settings, listening, log=log)
