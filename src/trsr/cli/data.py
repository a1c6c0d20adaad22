"""`trsr import` and `trsr validate`: raw files to a dataset folder, and the check of one."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from trsr.data.raw_file import ImportOptions

Out = Annotated[Path, typer.Option("--out", help="Dataset folder to make.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset at --out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class _Kinds(TyperGroup):
    """One command per kind of data, made when needed: the importers take long to load."""

    @property
    def commands(self) -> Any:
        return _commands()

    @commands.setter
    def commands(self, none: Any) -> None:
        pass


import_app = typer.Typer(
    name="import",
    cls=_Kinds,
    no_args_is_help=True,
    help="Make a dataset folder from raw files: `trsr import KIND SRC --out DIR`.",
)


@cache
def _commands() -> Any:
    from trsr.data.importers import IMPORTERS

    app = typer.Typer(rich_markup_mode="rich")
    for model in IMPORTERS:
        app.command(model.model_fields["kind"].default)(_command(model))
    return typer.main.get_group(app).commands


def _command(model: type[ImportOptions]) -> Callable[..., None]:
    """Return a command whose options are the fields of a model, its own ones before the common ones."""

    def command(out: Path, overwrite: bool, as_json: bool, **options: Any) -> None:
        _import(model, options, out, overwrite, as_json)

    names = [name for name in model.model_fields if name != "kind"]
    names.sort(key=lambda name: name not in model.__annotations__)
    parameters = [
        _parameter("out", Out, inspect.Parameter.empty),
        *(_parameter(name, *_option(name, model.model_fields[name])) for name in names),
        _parameter("overwrite", Overwrite, False),
        _parameter("as_json", AsJson, False),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = model.__doc__
    return command


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)


def _option(name: str, field: FieldInfo) -> tuple[Any, Any]:
    """Return the annotation and the default of the command's parameter for a field of a model."""
    kind: Any = field.annotation
    default: Any = inspect.Parameter.empty if field.is_required() else field.default
    if name == "source":
        return Annotated[kind, typer.Argument(help=field.description, show_default=False)], default
    if "tuple" in str(kind):  # names, divided at commas
        kind, default = str | None, ",".join(default or ()) or None
    flag = [f"--{name.replace('_', '-')}"] if kind is bool else []  # without its opposite, `--no-...`
    show = not field.is_required()
    return Annotated[kind, typer.Option(*flag, help=field.description, show_default=show)], default


def _import(
    model: type[ImportOptions], options: dict[str, Any], out: Path, overwrite: bool, as_json: bool
) -> None:
    from rich.console import Console

    from trsr.data.dataset import Dataset
    from trsr.data.importers import import_summary, import_warnings, summary_lines

    config = model.checked(**options)
    kind = model.model_fields["kind"].default
    with Console(file=sys.stderr).status(f"Importing {kind} ..."):  # silent unless a terminal
        dataset = Dataset.open(config.run(out, overwrite=overwrite))
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


def validate(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset folder.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Check a dataset folder and print every problem with its file and row; exit code 2 if there is one.

    Example: trsr validate data/mind
    """
    from trsr.data.importers import import_warnings, refused_lines
    from trsr.data.schema import DatasetInfo, read_info
    from trsr.data.validate import validate_dataset
    from trsr.errors import DataError

    info: DatasetInfo | None = None
    with suppress(DataError):  # reported below with the other problems
        info = read_info(path)
    warnings = [] if info is None else import_warnings(info)
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
            "warnings": warnings,
        }
        typer.echo(json.dumps(report, indent=2))
        if problems:
            raise typer.Exit(2)
        return
    n_problems = 0
    for problem in validate_dataset(path):
        typer.echo(str(problem))
        n_problems += 1
    for line in [] if info is None else [*refused_lines(info), *(f"WARNING: {each}" for each in warnings)]:
        typer.echo(line)
    if n_problems:
        typer.echo(f"{path}: {n_problems:,} problem{'s' if n_problems > 1 else ''}.", err=True)
        raise typer.Exit(2)
    but = f" in the files, but {len(warnings)} warning{'s' if len(warnings) > 1 else ''}" if warnings else ""
    typer.echo(f"{path}: no problem found{but}.")
