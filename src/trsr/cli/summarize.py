"""`trsr summarize`: profiles for every user of a dataset folder."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trsr.cli.experiment import (
    AsJson,
    Concurrency,
    GpusPerWorker,
    PricePerMillion,
    Runner,
    TokensPerSecond,
    Within,
)

if TYPE_CHECKING:
    from trsr.summarize.store import Store

store_app = typer.Typer(
    name="store",
    no_args_is_help=True,
    help="Inspect and maintain a store of summaries: `trsr store stats RUN/summaries.sqlite`.",
)

PLACE = "A SQLite file or postgresql://USER:$PASSWORD@HOST/DATABASE; $NAME is an environment variable."
Place = Annotated[str, typer.Argument(metavar="STORE", help=PLACE, show_default=False)]
SECONDS_A_DAY = 86_400


@store_app.command("stats")
def show_stats(place: Place, as_json: AsJson = False) -> None:
    """Count texts, failed calls, tokens and seconds by model and template.

    Example: trsr store stats out/demo/summaries.sqlite
    """
    with _open(place) as store:
        parts, n_bytes = store.stats(), store.n_bytes()
    names = ("n_texts", "n_failed", "n_prompt_tokens", "n_generated_tokens", "seconds")
    totals = {name: sum(getattr(part, name) for part in parts) for name in names}
    if as_json:
        typer.echo(json.dumps({"bytes": n_bytes, **totals, "parts": [part._asdict() for part in parts]}))
        return
    for part in parts:
        first, last = (f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}" for seconds in part[-2:])
        typer.echo(f"{part.model}, template {part.template_hash[:12]}")
        typer.echo(f"  texts: {part.n_texts:,}, failed: {part.n_failed:,}, attempts: {part.n_attempts:,}")
        typer.echo(f"  tokens read: {part.n_prompt_tokens:,}, written: {part.n_generated_tokens:,}")
        typer.echo(f"  seconds: {part.seconds:,.0f}, from {first} to {last}")
    typer.echo(f"All: {totals['n_texts']:,} texts, {totals['n_failed']:,} failed, {n_bytes:,} bytes")


@store_app.command("export")
def export_store(
    place: Place,
    file: Annotated[Path, typer.Argument(help="Parquet file to make.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Write every row of a store to a Parquet file.

    Example: trsr store export out/demo/summaries.sqlite summaries.parquet
    """
    from trsr.summarize.export import write_rows

    with _open(place) as store:
        n_rows = write_rows(file, store.rows())
    _say({"rows": n_rows, "file": str(file)}, as_json)


@store_app.command("import")
def import_store(
    source: Annotated[str, typer.Argument(help="A Parquet file of `export`, or another store.")],
    place: Place,
    as_json: AsJson = False,
) -> None:
    """Add the rows of a Parquet file or another store; existing texts are kept, so it can be repeated.

    Example: trsr store import out/demo/summaries.sqlite 'postgresql://trsr:$PASSWORD@db.example/trsr'
    """
    from trsr.summarize.export import read_rows
    from trsr.summarize.store import open_store
    from trsr.summarize.store_url import hide_password, resolve_store_url

    with open_store(resolve_store_url(place)) as store:
        if source.endswith(".parquet"):
            n_new = store.add(read_rows(Path(source)))
        else:
            with _open(source) as other:
                n_new = store.add(other.rows())
    _say({"new rows": n_new, "store": hide_password(resolve_store_url(place))}, as_json)


@store_app.command("gc")
def collect_garbage(
    place: Place,
    failed: Annotated[bool, typer.Option("--failed", help="Failed calls only.")] = False,
    model: Annotated[str | None, typer.Option(help="Rows of this model id (see `stats`) only.")] = None,
    template: Annotated[str, typer.Option(help="Rows of this template hash only.", show_default=False)] = "",
    older_than: Annotated[float | None, typer.Option(min=0, help="Rows older than N days only.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them, not only count.")] = False,
    as_json: AsJson = False,
) -> None:
    """Count, or with --delete remove, the rows that match all given options.

    Removed texts have to be paid for again.

    Example: trsr store gc out/demo/summaries.sqlite --failed --older-than 30 --delete
    """
    from trsr.errors import ConfigError
    from trsr.summarize.store import RowFilter

    before = inf if older_than is None else time() - older_than * SECONDS_A_DAY
    chosen = RowFilter(failed, model, template, before)
    if chosen == RowFilter():
        raise ConfigError("No rows are selected; give --failed, --model, --template or --older-than.")
    with _open(place) as store:
        n_rows = store.remove(chosen) if delete else store.count(chosen)
        n_bytes = store.n_bytes()
    _say({"removed" if delete else "would be removed": n_rows, "bytes now": n_bytes}, as_json)


def _open(place: str) -> Store:
    """Open an existing store; a mistyped name must not make a new file.

    Raises:
        DataError: there is no such file.
    """
    from trsr.errors import DataError
    from trsr.summarize.store import open_store
    from trsr.summarize.store_url import is_database_url, resolve_store_url

    found = resolve_store_url(place)
    if not is_database_url(found) and not Path(found).is_file():
        raise DataError(f"There is no summary store {found}; check the path.")
    return open_store(found)


def _say(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({name.replace(" ", "_"): value for name, value in facts.items()}))
        return
    shown = (f"{value:,}" if isinstance(value, int) else str(value) for value in facts.values())
    typer.echo(", ".join(map("{}: {}".format, facts, shown)))


ENGINES = (
    "transformers (the faster local one, on GPUs and in batches on CPUs: see `trsr bench summarize`), "
    "llamacpp, openai or fake."
)
GROUNDED = "Build summaries from phrases of the items only; for small models."
GRAMMAR = "Kind of the openai engine's server: llama.cpp, vllm or sglang; for --grounded."
IN_FLIGHT = "Most prompts processed at once. With 1, llamacpp's texts do not depend on other prompts."
DRY_RUN = "Count calls and tokens without a model (see `trsr plan`)."


def summarize(
    data: Annotated[Path, typer.Argument(help="Dataset folder (see `trsr import`).", show_default=False)],
    method: Annotated[str, typer.Option(help="none, counted, hierarchical or recurrent.")] = "recurrent",
    engine: Annotated[str, typer.Option(help=ENGINES)] = "transformers",
    model: Annotated[str | None, typer.Option(help="Its model; the embedded one by default.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Server of the openai engine.")] = None,
    block_size: Annotated[int, typer.Option(help="Items in a block.")] = 5,
    grounded: Annotated[bool, typer.Option("--grounded", help=GROUNDED)] = False,
    grammar: Annotated[str | None, typer.Option(help=GRAMMAR)] = None,
    in_flight: Annotated[int | None, typer.Option(min=1, help=IN_FLIGHT)] = None,
    store: Annotated[str | None, typer.Option(help=f"DATA/summaries.sqlite by default. {PLACE}")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N users.")] = None,
    show: Annotated[str | None, typer.Option(help="Only this user, with every block and summary.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)] = False,
    runner: Runner = "local",
    concurrency: Concurrency = None,
    gpus_per_worker: GpusPerWorker = None,
    tokens_per_second: TokensPerSecond = None,
    price_per_million: PricePerMillion = None,
    within: Within = 24.0,
    as_json: AsJson = False,
) -> None:
    """Write the preference profile of every user; texts in the store cost nothing.

    Example: trsr summarize data/mind --method recurrent --engine llamacpp --limit 100
    """
    from trsr.errors import ConfigError
    from trsr.experiment.dataset_profiles import (
        describe_plan,
        settings,
        summarize_dataset,
        summarize_dataset_on_ray,
    )
    from trsr.experiment.ray import choose_runner
    from trsr.summarize.store_url import resolve_store_url

    chosen = settings(method, engine, model, base_url, block_size, grounded, grammar, in_flight)
    cluster = choose_runner(runner, concurrency, gpus_per_worker)
    if cluster is not None and show is not None:
        raise ConfigError("--show summarizes one user in this process; leave --runner ray out.")
    place = None if store is None else resolve_store_url(store)
    if dry_run:
        from trsr.experiment.cost_plan import Rates, plan_dataset, render

        rates = Rates(tokens_per_second, price_per_million, within)
        plan = plan_dataset(data, chosen, place or data / "summaries.sqlite", limit, show, rates)
        typer.echo(json.dumps(plan) if as_json else render(plan))
        return
    if cluster is not None:
        facts = summarize_dataset_on_ray(data, chosen, place, limit, cluster)
    else:
        result = summarize_dataset(data, chosen, place, limit, show)
        facts = result.written.facts()
    if show is not None and not as_json:
        (user_plan,), (profile,) = result.written.plans, result.written.profiles
        typer.echo(describe_plan(user_plan, result.summarizer, profile.text))
    elif as_json:
        typer.echo(json.dumps(facts))
    else:
        typer.echo("\n".join(map("{}: {}".format, facts, facts.values())))
