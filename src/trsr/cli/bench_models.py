"""`trsr bench score` and `trsr bench train`: one reading of the shared prefix against the usual ways."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from trsr.errors import InputError

_Model = Annotated[str, typer.Option(help="The embedded model, a hub id or a local folder.")]
_Prefix = Annotated[int, typer.Option(min=1, help="Tokens that a user's candidates share.")]
_Candidate = Annotated[int, typer.Option(min=1, help="Tokens of each candidate.")]
_Repeats = Annotated[int, typer.Option(min=1, help="Timed runs; medians are reported.")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
_Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
_Json = Annotated[bool, typer.Option("--json", help="One line of JSON instead of an indented object.")]


def bench_score(
    model: _Model = "smollm2-135m",
    users: Annotated[int, typer.Option(min=1, help="Users scored in one call.")] = 1,
    prefix_tokens: _Prefix = 455,
    candidate_tokens: _Candidate = 50,
    candidates: Annotated[
        str, typer.Option(help="Candidates a user; several counts, comma-separated, measure growth.")
    ] = "21",
    max_batch_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a forward pass.")] = 4096,
    slow_candidates: Annotated[
        int, typer.Option(min=0, help="Candidates on which the slow ways are timed; 0 leaves them out.")
    ] = 5,
    repeats: _Repeats = 5,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    sharing: Annotated[
        Literal["auto", "rows", "padded", "blocks", "separate"], typer.Option(help="How prefixes are shared.")
    ] = "auto",
    as_json: _Json = False,
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
    from trsr.bench.scoring import bench_score as measure

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
    typer.echo(json.dumps(result, indent=None if as_json else 2))


def bench_train(
    model: _Model = "smollm2-135m",
    users: Annotated[int, typer.Option(min=1, help="Users of one forward pass.")] = 1,
    prefix_tokens: _Prefix = 455,
    candidate_tokens: _Candidate = 50,
    candidates: Annotated[int, typer.Option(min=2, help="Candidates a user, the chosen one included.")] = 5,
    repeats: _Repeats = 5,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    as_json: _Json = False,
) -> None:
    """Time a LoRA training step, packed, against each candidate as a sequence of its own.

    Example: trsr bench train --candidates 5
    """
    from trsr.bench.training import bench_train as measure

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
    typer.echo(json.dumps(result, indent=None if as_json else 2))
