"""`trsr bench summarize`: how fast each local engine writes summaries."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer


def bench_summarize(
    users: Annotated[int, typer.Option(min=1, help="Users in flight.")] = 16,
    blocks: Annotated[int, typer.Option(min=1, max=20, help="Calls of a user, one after the other.")] = 3,
    engines: Annotated[
        str | None, typer.Option(help="Comma-separated; by default the installed ones of these two.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model of both engines.")] = "smollm2-135m",
    single_users: Annotated[
        int, typer.Option(min=1, help="Users timed one prompt at a time; the rest is multiplied.")
    ] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON object on one line.")] = False,
) -> None:
    """Measure the summaries of many users at once, beside one prompt at a time on the same engine.

    Example: trsr bench summarize --users 16 --engines transformers,llamacpp --json
    """
    from trsr.pipeline.progress import bar
    from trsr.pipeline.summary_bench import (
        faster_engine,
        installed_engines,
        measure_engine,
        news_workload,
        open_local,
    )

    kinds = installed_engines() if engines is None else [name.strip() for name in engines.split(",")]
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="trsr-bench-") as folder, bar("Measuring") as shown:
        workload = news_workload(Path(folder) / "news", users, blocks)
        for done, kind in enumerate(kinds):
            shown.update(done, len(kinds), kind)
            engine = open_local(kind, model)
            try:
                measured[kind] = measure_engine(engine, workload, min(single_users, users))
            finally:
                engine.close()
    result = {
        "benchmark": "summarize",
        "users": users,
        "block_size": 5,
        "calls_per_user": blocks,
        "single_is": f"{single_users} of {users} users timed one prompt at a time, multiplied",
        "engines": measured,
        "faster_engine": faster_engine(measured),
    }
    typer.echo(json.dumps(result, indent=None if as_json else 2))
