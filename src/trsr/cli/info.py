"""`trsr env`: what this installation consists of."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def env(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Print versions, machine and source commit, for bug reports and result files.

    Example: trsr env --json
    """
    from trsr.pipeline.folder import environment

    facts = environment()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name:12} {shown}")
