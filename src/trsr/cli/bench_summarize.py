"""`trsr bench summarize`: how fast each local engine writes summaries."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer


def bench_summarize(
    users: Annotated[int, typer.Option(min=1, help="Users, handed over all at once.")] = 16,
    in_flight: Annotated[
        int | None,
        typer.Option(min=1, help="Most calls an engine works on at the same time; its default if left out."),
    ] = None,
    calls: Annotated[int, typer.Option(min=1, max=20, help="Calls of a user, one after the other.")] = 4,
    engines: Annotated[
        str | None,
        typer.Option(help="transformers, llamacpp or both, comma-separated; the installed ones by default."),
    ] = None,
    model: Annotated[str, typer.Option(help="Model of the engines.")] = "smollm2-135m",
    single_users: Annotated[
        int, typer.Option(min=1, help="Users on which one prompt at a time is timed.")
    ] = 2,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON instead of an indented object.")
    ] = False,
) -> None:
    """Time the summaries of many users at once against one prompt at a time, on each engine.

    Example: trsr bench summarize --users 48 --in-flight 16 --engines transformers,llamacpp
    """
    from trsr.bench.summarizing import bench_summarize as measure

    kinds = [name.strip() for name in engines.split(",")] if engines else None
    with tempfile.TemporaryDirectory(prefix="trsr-bench-") as folder:
        result = measure(
            Path(folder) / "news",
            kinds,
            model,
            users=users,
            blocks=calls,
            single_users=single_users,
            in_flight=in_flight,
        )
    typer.echo(json.dumps(result, indent=None if as_json else 2))
