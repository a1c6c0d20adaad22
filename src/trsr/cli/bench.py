"""`trsr bench`: each command compares one part with the naive way and prints one JSON object."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trsr.errors import InputError

app = typer.Typer(name="bench", no_args_is_help=True, help="Measure speed and memory; prints JSON.")

Model = Annotated[str, typer.Option(help="The embedded model, a hub id or a local folder.")]
PrefixTokens = Annotated[int, typer.Option(min=1, help="Tokens that a user's candidates share.")]
CandidateTokens = Annotated[int, typer.Option(min=1, help="Tokens of each candidate.")]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs; medians are reported.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON instead of an indented object.")]


def _print(result: dict[str, Any], as_json: bool = False) -> None:
    typer.echo(json.dumps(result, indent=None if as_json else 2))


@app.command("score")
def bench_score(
    model: Model = "smollm2-135m",
    users: Annotated[int, typer.Option(min=1, help="Users scored in one call.")] = 1,
    prefix_tokens: PrefixTokens = 455,
    candidate_tokens: CandidateTokens = 50,
    candidates: Annotated[
        str, typer.Option(help="Candidates per user; several counts, comma-separated, measure growth.")
    ] = "21",
    max_batch_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a forward pass.")] = 4096,
    slow_candidates: Annotated[
        int, typer.Option(min=0, help="Candidates on which the slow ways are timed; 0 leaves them out.")
    ] = 5,
    repeats: Repeats = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    sharing: Annotated[
        Literal["auto", "rows", "padded", "separate"], typer.Option(help="How prefixes are shared.")
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Time ranking against the released code's way and against one candidate at a time.

    Example: trsr bench score --prefix-tokens 455 --candidate-tokens 50 --candidates 21
    """
    try:
        counts = [int(count) for count in candidates.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise InputError(f"--candidates: found {candidates!r}, expected numbers from 1, such as 21,84,336.")
    from trsr.bench.models import bench_score as measure

    result = measure(
        model,
        users=users,
        prefix_tokens=prefix_tokens,
        candidate_tokens=candidate_tokens,
        candidates=counts,
        max_batch_tokens=max_batch_tokens,
        repeats=repeats,
        slow_candidates=slow_candidates,
        device=device,
        dtype=dtype,
        sharing=sharing,
    )
    _print(result, as_json)


@app.command("train")
def bench_train(
    model: Model = "smollm2-135m",
    users: Annotated[int, typer.Option(min=1, help="Users of one forward pass.")] = 1,
    prefix_tokens: PrefixTokens = 455,
    candidate_tokens: CandidateTokens = 50,
    candidates: Annotated[int, typer.Option(min=2, help="Candidates per user, one of them chosen.")] = 5,
    repeats: Repeats = 5,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Time a LoRA training step, packed, against each candidate as a sequence of its own.

    Example: trsr bench train --candidates 5
    """
    from trsr.bench.models import bench_train as measure

    result = measure(
        model,
        users=users,
        prefix_tokens=prefix_tokens,
        candidate_tokens=candidate_tokens,
        candidates=candidates,
        repeats=repeats,
        device=device,
        dtype=dtype,
    )
    _print(result, as_json)


@app.command("summarize")
def bench_summarize(
    users: Annotated[int, typer.Option(min=1, help="Users, submitted all at once.")] = 16,
    in_flight: Annotated[
        int | None,
        typer.Option(min=1, help="Most calls an engine works on at the same time; its default if left out."),
    ] = None,
    calls: Annotated[int, typer.Option(min=1, max=20, help="Calls per user, one after the other.")] = 4,
    engines: Annotated[
        str | None,
        typer.Option(help="transformers, llamacpp or both, comma-separated; the installed ones by default."),
    ] = None,
    model: Model = "smollm2-135m",
    single_users: Annotated[
        int, typer.Option(min=1, help="Users on which one prompt at a time is timed.")
    ] = 2,
    as_json: AsJson = False,
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
    _print(result, as_json)


@app.command("import")
def bench_import(
    rows: Annotated[int, typer.Option(min=1, help="History positions in behaviors.tsv.")] = 1_000_000,
) -> None:
    """Measure `trsr import mind` on synthetic files against a plain Python script, each in a fresh process.

    Example: trsr bench import --rows 1000000
    """
    from trsr.bench.data import bench_import as measure

    _print(measure(rows))
