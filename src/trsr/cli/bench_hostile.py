"""`trsr bench hostile`: what items can do that want to speak to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def bench_hostile(
    model_or_run: Annotated[Path, typer.Argument(help="Run folder, or model folder.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Dataset folder; a run's own by default.", show_default=False),
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="Items that are made hostile.")] = 50,
    users: Annotated[int, typer.Option(min=1, help="Users for whom, in turn.")] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON instead of an indented object.")
    ] = False,
) -> None:
    """Measure how hostile items move scores, beside harmless ones of the same length.

    Example: trsr bench hostile out/demo --items 50
    """
    from trsr.bench.hostile import bench_hostile as measure

    result = measure(model_or_run, data, items=items, users=users)
    typer.echo(json.dumps(result, indent=None if as_json else 2))
