"""`trsr plan`: what an experiment, or a shop of many users, will ask of its models, before it is paid for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

TokensPerSecond = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="Tokens that one machine reads and writes in a second, all prompts together "
        "(`trsr bench summarize` measures it).",
    ),
]
PricePerMillion = Annotated[
    float | None, typer.Option(min=0, help="Money for a million tokens, read or written.")
]
Within = Annotated[
    float, typer.Option(min=0.01, help="Hours in which it shall be done; says how many machines it takes.")
]


def plan(
    config: Annotated[Path, typer.Argument(help="YAML file; see configs/.", show_default=False)],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change one setting: a.b=value. Can be repeated.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Dataset folder, in place of the configured data.", show_default=False)
    ] = None,
    users: Annotated[
        int | None, typer.Option(min=1, help="A shop of so many users, in place of the experiment's.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="transformers, llamacpp, fake, openai, vllm or sglang; by default as configured."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Count with this model's tokenizer; by default the engine's model.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Texts in this store cost nothing; by default the setting `store`.")
    ] = None,
    daily_events: Annotated[
        float | None, typer.Option(min=0, help="New events of a user a day; by default as in the data.")
    ] = None,
    tokens_per_second: TokensPerSecond = None,
    price_per_million: PricePerMillion = None,
    within: Within = 24.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count the calls and tokens of every stage, and say what they take: hours, machines, money, disk.

    Example: trsr plan configs/demo.yaml --users 10_000_000 --engine vllm --tokens-per-second 20000
    --price-per-million 0.05
    """
    from trsr.config import load_config
    from trsr.pipeline.costs import Rates
    from trsr.pipeline.plan_report import plan_experiment, render
    from trsr.summarize.places import resolved

    if data is not None:
        changes = [*(changes or ()), f"data={json.dumps({'kind': 'folder', 'path': str(data)})}"]
    chosen = load_config(config, changes or ())
    facts = plan_experiment(
        chosen,
        rates=Rates(tokens_per_second, price_per_million, within),
        engine=engine,
        tokenizer=tokenizer,
        store=resolved(store) if store is not None else chosen.store,
        n_users=users,
        events_a_day=daily_events,
    )
    typer.echo(json.dumps(facts) if as_json else render(facts))
