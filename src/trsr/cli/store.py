"""`trsr store`: what a store of summaries holds, moving it to another database, and cleaning it.

`store_app` holds one command each; the work is done in `trsr.summarize`.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trsr.summarize.rows import Store

store_app = typer.Typer(
    name="store",
    no_args_is_help=True,
    help="Look after a store of summaries: `trsr store stats RUN/summaries.sqlite`.",
)

PLACE = "A SQLite file or postgresql://USER:$PASSWORD@HOST/DATABASE; $NAME is an environment variable."
Place = Annotated[str, typer.Argument(metavar="STORE", help=PLACE, show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SECONDS_A_DAY = 86_400


@store_app.command("stats")
def show_stats(place: Place, as_json: AsJson = False) -> None:
    """Count texts, failed calls, tokens and seconds by model and template.

    Example: trsr store stats out/demo/summaries.sqlite
    """
    with _open(place) as store:
        parts, n_bytes = store.parts(), store.n_bytes()
    names = ("n_texts", "n_failed", "n_prompt_tokens", "n_generated_tokens", "seconds")
    totals = {name: sum(getattr(part, name) for part in parts) for name in names}
    if as_json:
        typer.echo(json.dumps({"bytes": n_bytes, **totals, "parts": [part._asdict() for part in parts]}))
        return
    for part in parts:
        typer.echo(f"{part.model}, template {part.template_hash[:12]}")
        typer.echo(f"  texts: {part.n_texts:,}, failed: {part.n_failed:,}, attempts: {part.n_attempts:,}")
        typer.echo(f"  tokens read: {part.n_prompt_tokens:,}, written: {part.n_generated_tokens:,}")
        typer.echo(f"  seconds: {part.seconds:,.0f}, from {_day(part.first)} to {_day(part.last)}")
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
    from trsr.summarize.stores import write_rows

    with _open(place) as store:
        n_rows = write_rows(file, store.rows())
    _say({"rows": n_rows, "file": str(file)}, as_json)


@store_app.command("import")
def import_store(
    source: Annotated[
        str, typer.Argument(help="A Parquet file made by `export`, or another store.", show_default=False)
    ],
    place: Place,
    as_json: AsJson = False,
) -> None:
    """Add the rows of a Parquet file or another store; texts that are there stay, so it can be repeated.

    Example: trsr store import out/demo/summaries.sqlite 'postgresql://trsr:$PASSWORD@db.example/trsr'
    """
    from trsr.summarize.places import redacted, resolved
    from trsr.summarize.stores import open_store, read_rows

    with open_store(resolved(place)) as store:
        if source.endswith(".parquet"):
            n_new = store.add(read_rows(Path(source)))
        else:
            with _open(source) as other:
                n_new = store.add(other.rows())
    _say({"new rows": n_new, "store": redacted(resolved(place))}, as_json)


@store_app.command("gc")
def collect_garbage(
    place: Place,
    failed: Annotated[bool, typer.Option("--failed", help="Failed calls only.")] = False,
    model: Annotated[str | None, typer.Option(help="Rows of this model id (see `stats`) only.")] = None,
    template: Annotated[str | None, typer.Option(help="Rows of this template hash only.")] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Rows older than so many days only.")
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove them; without it they are counted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Count, or with --delete remove, the rows that all the given options name; they can be paid for again.

    Example: trsr store gc out/demo/summaries.sqlite --failed --older-than 30 --delete
    """
    from trsr.errors import ConfigError
    from trsr.summarize.rows import Choice

    before = None if older_than is None else time.time() - older_than * SECONDS_A_DAY
    choice = Choice(failed, model, template, before)
    if choice == Choice():
        raise ConfigError(
            "Nothing says which rows are garbage; give --failed, --model, --template or --older-than."
        )
    with _open(place) as store:
        n_rows = store.remove(choice) if delete else store.count(choice)
        n_bytes = store.n_bytes()
    _say({"removed" if delete else "would be removed": n_rows, "bytes now": n_bytes}, as_json)


def _open(place: str) -> Store:
    """Open a store that is there already; a name with a typing mistake must not make a new file.

    Raises:
        DataError: there is no such file.
    """
    from trsr.errors import DataError
    from trsr.summarize.places import is_database, resolved
    from trsr.summarize.stores import open_store

    found = resolved(place)
    if not is_database(found) and not Path(found).is_file():
        raise DataError(f"There is no summary store {found}; check the path.")
    return open_store(found)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _say(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({name.replace(" ", "_"): value for name, value in facts.items()}))
        return
    typer.echo(
        ", ".join(
            f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}"
            for name, value in facts.items()
        )
    )
