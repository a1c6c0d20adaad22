"""`trsr bench serve`: what a running server costs beside the engine inside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def bench_serve(
    model_or_run: Annotated[Path, typer.Argument(help="Run folder, or model folder.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Dataset folder; a run's own by default.", show_default=False),
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Users who ask, again and again.")] = 50,
    seconds: Annotated[
        float, typer.Option(min=1, help="Of load: half from one client, half from several.")
    ] = 30,
    clients: Annotated[int, typer.Option(min=2, help="How many are several.")] = 8,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates of a request.")] = 20,
    catalogue: Annotated[
        int, typer.Option(min=0, help="Items of a catalogue into which others are put; 0 for none.")
    ] = 100_000,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON instead of an indented object.")
    ] = False,
) -> None:
    """Time requests to `trsr serve` in a process of its own against the engine's own time for them.

    Example: trsr bench serve out/demo --users 50 --seconds 30
    """
    from trsr.bench.serving import bench_serve as measure

    result = measure(
        model_or_run,
        data,
        users=users,
        seconds=seconds,
        clients=clients,
        candidates=candidates,
        catalogue=catalogue,
    )
    typer.echo(json.dumps(result, indent=None if as_json else 2))
