"""`trsr compare`: the rankers of several runs against one another, on the same examples."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from trsr.evaluate.leaderboard import Standing

DEFAULT_METRICS = ("recall@3", "mrr@10", "auc")
WIDTH = 100  # where the output is no terminal


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, or files like their scores.parquet.", show_default=False),
    ],
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", help=f"Compare on this; can be repeated. Usually {', '.join(DEFAULT_METRICS)}."
        ),
    ] = None,
    rankers: Annotated[
        list[str] | None, typer.Option("--ranker", help="Only this ranker; can be repeated.")
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="Compare on the examples that all runs share.")
    ] = False,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Show every pair, not only the best ranker's.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the resampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare the rankers of one or more runs, user by user, with corrected p-values.

    Example: trsr compare out/with_profile out/without --ranker llm --metric mrr@10
    """
    import numpy as np
    import polars as pl

    from trsr.errors import DataError
    from trsr.evaluate.compare_runs import side_by_side
    from trsr.evaluate.evaluation import summarise
    from trsr.evaluate.metrics import parse_metric
    from trsr.evaluate.per_example import measure

    names = list(dict.fromkeys(metrics or DEFAULT_METRICS))
    wanted = [parse_metric(name) for name in names]
    found = side_by_side(runs, rankers=rankers or (), common=common)
    with_score = found.scores.group_by("ranker").agg(pl.col("score").is_not_null().all()).filter("score")
    measured = measure(found.scores, wanted, probabilistic=with_score["ranker"].to_list())
    for name in names:
        if sum(name in values for values in measured.values.values()) < 2:
            if name == "ece":
                raise DataError("Rankers cannot be compared on ece, which no single user has; name brier.")
            raise DataError(f"Fewer than two rankers have {name}, which needs a score; name another metric.")
    if all(
        np.isnan(values[name]).all()
        for name in names
        for values in measured.values.values()
        if name in values
    ):
        raise DataError(
            f"No example has a value of {' or '.join(names)}, so nothing can be compared: expected "
            "labels with a 1 for each chosen candidate, and unchosen ones beside it."
        )
    protocol = {"runs": [path.as_posix() for path in runs], "examples_left_out": found.n_left_out}
    result = summarise(measured, protocol=protocol, compared=names, seed=seed)
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    if found.n_left_out:
        typer.echo(
            f"Only the {found.n_examples} examples that all runs share; left out: {found.n_left_out}.\n"
        )
    _print(result, pairs=pairs)


def _print(metrics: Mapping[str, Any], *, pairs: bool) -> None:
    """Print one table a metric, each with its verdict in words."""
    from rich.console import Console
    from rich.markup import escape

    from trsr.evaluate.leaderboard import NOTE, standings

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    counts = metrics["counts"]
    console.print(f"{counts['users']} users, {counts['examples']} examples, 95 % intervals over users\n")
    for standing in standings(metrics):
        if standing.value is not None:
            chance = metrics["protocol"]["chance"][standing.metric]
            console.print(_table(standing, metrics["rankers"], chance))
        console.print(escape(standing.sentence) + "\n")
        if pairs and standing.value is not None:
            console.print(_pairs_table(standing.metric, metrics["comparisons"]))
    console.print(f"[dim]{NOTE}[/dim]")


def _table(standing: Standing, rankers: Mapping[str, Any], chance: float | None) -> Table:
    """Return the best ranker of a metric and how far ahead of each other one it is."""
    from rich.text import Text

    from trsr.evaluate.leaderboard import p_value

    table = _empty_table("ranker", standing.metric, "best is ahead by", "corrected p", "effect", "verdict")

    def value(name: str) -> str:
        entry = rankers[name][standing.metric]
        return f"{_number(entry['value'])} [dim]{_span(*entry['ci95'])}[/dim]"

    table.add_row(Text(standing.best, style="bold"), value(standing.best), "", "", "", "first")
    for rival in standing.rivals:
        table.add_row(
            Text(rival.name),
            value(rival.name),
            f"{_number(rival.ahead)} [dim]{_span(rival.low, rival.high)}[/dim]",
            p_value(rival.p),
            _number(rival.effect_size, 2),
            f"[bold]{rival.verdict}[/bold]" if rival.beaten else rival.verdict,
        )
    table.add_row("[dim]chance[/dim]", f"[dim]{_number(chance)}[/dim]")
    return table


def _pairs_table(metric: str, comparisons: Sequence[Mapping[str, Any]]) -> Table:
    """Return every pair of rankers on a metric, each with both p-values."""
    from rich.text import Text

    from trsr.evaluate.leaderboard import p_value

    table = _empty_table("a, the better one", "b", f"{metric}: a - b", "p", "corrected p", "effect")
    for pair in comparisons:
        if pair["metric"] == metric:
            table.add_row(
                Text(pair["a"]),
                Text(pair["b"]),
                f"{_number(pair['difference'])} [dim]{_span(*pair['ci95'])}[/dim]",
                p_value(pair["p"]),
                p_value(pair["p_holm"]),
                _number(pair["effect_size"], 2),
            )
    return table


def _empty_table(*columns: str) -> Table:
    from rich.table import Table

    table = Table()
    for number, column in enumerate(columns):
        text = number == 0 or column in {"b", "verdict"}
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    return table


def _number(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"({low:.3f} to {high:.3f})"
