"""`trsr summarize`: profiles for every user of a dataset folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trsr.cli.options import Concurrency, GpusPerWorker, Runner
from trsr.cli.plan import PricePerMillion, TokensPerSecond, Within


def summarize(
    data: Annotated[Path, typer.Argument(help="Dataset folder (see `trsr import`).", show_default=False)],
    method: Annotated[str, typer.Option(help="none, counted, hierarchical or recurrent.")] = "recurrent",
    engine: Annotated[
        str,
        typer.Option(
            help="transformers (the faster local one, on GPUs and in batches on CPUs: see "
            "`trsr bench summarize`), llamacpp, openai or fake."
        ),
    ] = "transformers",
    model: Annotated[
        str | None, typer.Option(help="Model of the engine; the embedded one by default.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="Server of the openai engine.")] = None,
    block_size: Annotated[int, typer.Option(help="Items in a block.")] = 5,
    grounded: Annotated[
        bool, typer.Option("--grounded", help="Hold summaries to phrases of the items; for small models.")
    ] = False,
    grammar: Annotated[
        str | None,
        typer.Option(help="What the openai engine's server is: llama.cpp, vllm or sglang; for --grounded."),
    ] = None,
    in_flight: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most prompts that an engine works on at the same time. With 1, llamacpp's texts do not "
            "depend on other prompts.",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="Summary store: a file (DATA/summaries.sqlite by default) or "
            "postgresql://USER:$PASSWORD@HOST/DATABASE; $NAME is an environment variable."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many users.")] = None,
    show: Annotated[str | None, typer.Option(help="Only this user, with every block and summary.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count calls and tokens; ask no model (see `trsr plan`).")
    ] = False,
    runner: Runner = "local",
    concurrency: Concurrency = None,
    gpus_per_worker: GpusPerWorker = None,
    tokens_per_second: TokensPerSecond = None,
    price_per_million: PricePerMillion = None,
    within: Within = 24.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write the preference profile of every user; what the store knows costs nothing.

    Example: trsr summarize data/mind --method recurrent --engine llamacpp --limit 100
    """
    from trsr.batch.runner import choose_runner
    from trsr.errors import ConfigError
    from trsr.pipeline.dataset_profiles import (
        describe_fold,
        settings,
        summarize_dataset,
        summarize_dataset_on_ray,
    )
    from trsr.summarize.places import resolved

    chosen = settings(method, engine, model, base_url, block_size, grounded, grammar, in_flight)
    cluster = choose_runner(runner, concurrency, gpus_per_worker)
    if cluster is not None and show is not None:
        raise ConfigError("--show reads one user in this process; leave --runner ray out.")
    place = None if store is None else resolved(store)
    if dry_run:
        from trsr.pipeline.costs import Rates
        from trsr.pipeline.plan_report import plan_dataset, render

        rates = Rates(tokens_per_second, price_per_million, within)
        plan = plan_dataset(data, chosen, place or data / "summaries.sqlite", limit, show, rates)
        typer.echo(json.dumps(plan) if as_json else render(plan))
        return
    if cluster is not None:
        _print(summarize_dataset_on_ray(data, chosen, place, limit, cluster), as_json)
        return
    result = summarize_dataset(data, chosen, place, limit, show)
    if show is not None and not as_json:
        (fold,), (profile,) = result.written.folds, result.written.profiles
        typer.echo(describe_fold(fold, result.summariser, profile.text))
    else:
        _print(result.written.facts(), as_json)


def _print(facts: dict[str, int | float], as_json: bool) -> None:
    """Print counts."""
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        typer.echo(f"{name}: {value}")
