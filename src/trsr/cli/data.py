"""`trsr import` and `trsr validate`: raw files to a dataset folder, and the check of one.

`import_app` holds one command a kind of data; the work is done in `trsr.data`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trsr.data.importers import ImportConfig

import_app = typer.Typer(
    name="import",
    no_args_is_help=True,
    help="Make a dataset folder from raw files: `trsr import KIND SRC --out DIR`.",
)

Source = Annotated[Path, typer.Argument(help="Folder that holds the raw files.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", help="Dataset folder to make.", show_default=False)]
Name = Annotated[str | None, typer.Option("--name", help="Name in reports; by default the kind's own.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset at --out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _checked_rating(value: float | None) -> float | None:
    from trsr.data.ingest import check_threshold

    check_threshold(value)
    return value


MinRating = Annotated[
    float | None,
    typer.Option("--min-rating", callback=_checked_rating, help="Leave out lower ratings; they are counted."),
]

Delimiter = Annotated[
    str | None, typer.Option("--delimiter", help="Between fields: ';', '|', tab ...; found by default.")
]
Encoding = Annotated[
    str | None, typer.Option("--encoding", help="Of text files: utf-8, utf-16, cp1252 ...; found by default.")
]
MaxRejects = Annotated[
    float,
    typer.Option(
        "--max-rejects", min=0, max=1, help="Largest share of a file's rows that may be unreadable."
    ),
]
TimeFormat = Annotated[
    str | None,
    typer.Option(
        "--time-format",
        help="How times are written: day-first, month-first, year-first, epoch-s (-ms, -us, -ns, -days), "
        "excel, or a pattern such as '%d.%m.%Y %H:%M'; found by default where only one form fits.",
    ),
]
KeepUntimed = Annotated[
    bool,
    typer.Option("--keep-untimed", help="Keep events without a time; their users stay in the file's order."),
]


@import_app.command("mind")
def import_mind(
    source: Source,
    out: Out,
    name: Name = None,
    news: Annotated[str, typer.Option(help="News file in SRC.")] = "news.tsv",
    behaviors: Annotated[str, typer.Option(help="Impressions file in SRC.")] = "behaviors.tsv",
    time_format: TimeFormat = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    max_rejects: MaxRejects = 0.05,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Import Microsoft News: news.tsv and behaviors.tsv, impressions kept as logged.

    Example: trsr import mind MINDsmall_train --out data/mind
    """
    from trsr.data.mind import MindImport

    config = MindImport(
        source=source,
        name=name or "mind",
        news=news,
        behaviors=behaviors,
        time_format=time_format,
        delimiter=delimiter,
        encoding=encoding,
        max_rejects=max_rejects,
    )
    _import(config, out, overwrite, as_json)


@import_app.command("amazon-m2")
def import_amazon_m2(
    source: Source,
    out: Out,
    locale: Annotated[str, typer.Option(help="UK, DE, JP, ES, FR or IT.")] = "UK",
    name: Name = None,
    products: Annotated[str, typer.Option(help="Products file in SRC.")] = "products_train.csv",
    sessions: Annotated[str, typer.Option(help="Sessions file in SRC.")] = "sessions_train.csv",
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    max_rejects: MaxRejects = 0.05,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Import one locale of Amazon-M2: products_train.csv and sessions_train.csv.

    Example: trsr import amazon-m2 kddcup2023 --locale UK --out data/m2-uk
    """
    from trsr.data.amazon import AmazonM2Import

    config = AmazonM2Import(
        source=source,
        name=name or "amazon-m2",
        locale=locale,
        products=products,
        sessions=sessions,
        delimiter=delimiter,
        encoding=encoding,
        max_rejects=max_rejects,
    )
    _import(config, out, overwrite, as_json)


@import_app.command("amazon-reviews")
def import_amazon_reviews(
    source: Source,
    out: Out,
    name: Name = None,
    reviews: Annotated[str | None, typer.Option(help="Review file in SRC; found by itself if alone.")] = None,
    metadata: Annotated[
        str | None, typer.Option(help="Metadata file in SRC; found by its name meta*.")
    ] = None,
    min_rating: MinRating = None,
    time_format: TimeFormat = None,
    keep_untimed: KeepUntimed = False,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    max_rejects: MaxRejects = 0.05,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Import Amazon reviews of 2018 or 2023: reviews and metadata as JSON Lines, plain or gz.

    Example: trsr import amazon-reviews Office_Products --min-rating 4 --out data/office
    """
    from trsr.data.amazon import AmazonReviewsImport

    config = AmazonReviewsImport(
        source=source,
        name=name or "amazon-reviews",
        reviews=reviews,
        metadata=metadata,
        min_rating=min_rating,
        time_format=time_format,
        keep_untimed=keep_untimed,
        delimiter=delimiter,
        encoding=encoding,
        max_rejects=max_rejects,
    )
    _import(config, out, overwrite, as_json)


@import_app.command("movielens")
def import_movielens(
    source: Source,
    out: Out,
    name: Name = None,
    min_rating: MinRating = None,
    tags: Annotated[bool, typer.Option("--tags", help="Add the films' tags as a text field.")] = False,
    overviews: Annotated[Path | None, typer.Option(help="File with overviews by movieId or tmdb_id.")] = None,
    time_format: TimeFormat = None,
    keep_untimed: KeepUntimed = False,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    max_rejects: MaxRejects = 0.05,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Import MovieLens: movies.csv and ratings.csv, with overviews joined from a file of yours.

    Example: trsr import movielens ml-latest-small --overviews overviews.csv --out data/movies
    """
    from trsr.data.movielens import MovieLensImport

    config = MovieLensImport(
        source=source,
        name=name or "movielens",
        min_rating=min_rating,
        tags=tags,
        overviews=overviews,
        time_format=time_format,
        keep_untimed=keep_untimed,
        delimiter=delimiter,
        encoding=encoding,
        max_rejects=max_rejects,
    )
    _import(config, out, overwrite, as_json)


@import_app.command("table")
def import_table(
    items: Annotated[
        Path, typer.Option(help="Items: CSV, TSV, JSONL, Parquet or Excel.", show_default=False)
    ],
    events: Annotated[Path, typer.Option(help="Events, one a row or one list a user.", show_default=False)],
    out: Out,
    name: Name = None,
    domain: Annotated[str, typer.Option(help="news, products, movies, or another word.")] = "general",
    text_fields: Annotated[str | None, typer.Option(help="Text columns of the items: a,b,c.")] = None,
    category_fields: Annotated[str | None, typer.Option(help="Those that hold categories: a,b.")] = None,
    items_columns: Annotated[
        str | None, typer.Option(help="Column names of a headerless items file.")
    ] = None,
    events_columns: Annotated[
        str | None, typer.Option(help="Column names of a headerless events file.")
    ] = None,
    item_id: Annotated[str | None, typer.Option(help="Item id column of the items.")] = None,
    event_item_id: Annotated[str | None, typer.Option(help="Item id column of the events.")] = None,
    user_id: Annotated[str | None, typer.Option(help="User id column.")] = None,
    timestamp: Annotated[
        str | None,
        typer.Option(help="Column of the time or of the list of times; DATE,TIME joins two columns."),
    ] = None,
    item_list: Annotated[str | None, typer.Option(help="Column of the list of items.")] = None,
    quotes: Annotated[bool | None, typer.Option(help="Fields may be quoted; found by default.")] = None,
    time_format: TimeFormat = None,
    keep_untimed: KeepUntimed = False,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    max_rejects: MaxRejects = 0.05,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Import any two tables; columns are found by their usual names or named here.

    Example: trsr import table --items items.jsonl --events sequences.jsonl --domain products --out data/mine
    """
    from trsr.data.table import TableImport

    config = TableImport(
        items=items,
        events=events,
        name=name,
        domain=domain,
        text_fields=_names(text_fields),
        category_fields=_names(category_fields),
        items_columns=_names(items_columns),
        events_columns=_names(events_columns),
        item_id=item_id,
        event_item_id=event_item_id,
        user_id=user_id,
        timestamp=timestamp,
        item_list=item_list,
        quotes=quotes,
        time_format=time_format,
        keep_untimed=keep_untimed,
        delimiter=delimiter,
        encoding=encoding,
        max_rejects=max_rejects,
    )
    _import(config, out, overwrite, as_json)


def validate(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset folder.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Check a dataset folder and print every problem with its file and row; exit code 2 if there is one.

    Example: trsr validate data/mind
    """
    from trsr.data.reading import import_warnings, refused_lines
    from trsr.data.validate import imported_info, validate_dataset

    info = imported_info(path)
    if as_json:
        problems = [
            {"file": problem.file, "row": problem.row, "problem": problem.message}
            for problem in validate_dataset(path)
        ]
        files = {} if info is None else info.files
        report = {
            "path": str(path),
            "valid": not problems,
            "problems": problems,
            "files": {name: file.summary() for name, file in files.items()},
            "warnings": [] if info is None else import_warnings(info),
        }
        typer.echo(json.dumps(report, indent=2))
        if problems:
            raise typer.Exit(2)
        return
    count = 0
    for count, problem in enumerate(validate_dataset(path), start=1):  # noqa: B007 - used below
        typer.echo(str(problem))
    warnings = [] if info is None else import_warnings(info)
    for line in [] if info is None else [*refused_lines(info), *(f"WARNING: {each}" for each in warnings)]:
        typer.echo(line)
    if count:
        typer.echo(f"{path}: {count:,} problem{'s' if count > 1 else ''}.", err=True)
        raise typer.Exit(2)
    but = f" in the files, but {len(warnings)} warning{'s' if len(warnings) > 1 else ''}" if warnings else ""
    typer.echo(f"{path}: no problem found{but}.")


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _import(config: ImportConfig, out: Path, overwrite: bool, as_json: bool) -> None:
    from rich.console import Console

    from trsr.data.importers import run_import
    from trsr.data.reading import import_summary, import_warnings, summary_lines

    with Console(file=sys.stderr).status(f"Importing {config.kind} ..."):  # silent unless a terminal
        dataset = run_import(config, out, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(import_summary(dataset), indent=2))
        return
    info = dataset.info
    typer.echo(f"{out}: {info.name}, {info.domain}")
    typer.echo(f"  text fields: {', '.join(info.text_fields)}")
    for what, count in info.counts.items():
        if what != "rejects":
            typer.echo(f"  {what.replace('_', ' ')}: {count:,}")
    for line in summary_lines(info):
        typer.echo(f"  {line}")
    typer.echo(f"  rejects: {info.counts['rejects']:,}")
    for reason, count in dataset.rejects_by_reason().items():
        typer.echo(f"    {reason}: {count:,}")
    for sentence in import_warnings(info):
        typer.echo(f"  WARNING: {sentence}")
