"""`trsr compare`: compare the rankers of several runs on the same examples."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import polars as pl

    from trsr.evaluate.per_example import PerExampleMetrics
    from trsr.evaluate.statistics import Leaderboard

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
    from trsr.evaluate.compare_runs import align_runs
    from trsr.evaluate.evaluation import summarise
    from trsr.evaluate.statistics import NOTE, leaderboards

    names = list(dict.fromkeys(metrics or DEFAULT_METRICS))
    found = align_runs(runs, rankers=rankers or (), common=common)
    protocol = {"runs": [path.as_posix() for path in runs], "examples_left_out": found.n_left_out}
    result = summarise(_measure(found.scores, names), protocol=protocol, compared=names, seed=seed)
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    if found.n_left_out:
        typer.echo(
            f"Only the {found.n_examples} examples that all runs share; left out: {found.n_left_out}.\n"
        )
    counts = result["counts"]
    console.print(f"{counts['users']} users, {counts['examples']} examples, 95 % intervals over users\n")
    for board in leaderboards(result):
        if board.value is not None:
            _print_board(console, board, result)
        console.print(escape(board.sentence) + "\n")
        if pairs and board.value is not None:
            _print_pairs(console, board.metric, result["comparisons"])
    console.print(f"[dim]{NOTE}[/dim]")


def _measure(scores: pl.DataFrame, names: Sequence[str]) -> PerExampleMetrics:
    """Compute the metrics, of probabilities only where every score is known.

    Raises:
        DataError: fewer than two rankers have a metric, or no example has a value.
    """
    import numpy as np
    import polars as pl

    from trsr.errors import DataError
    from trsr.evaluate.metrics import parse_metric
    from trsr.evaluate.per_example import measure

    metrics = [parse_metric(name) for name in names]
    with_score = scores.group_by("ranker").agg(pl.col("score").is_not_null().all()).filter("score")
    measured = measure(scores, metrics, probabilistic=with_score["ranker"].to_list())
    tables = measured.values.values()
    for name in names:
        if sum(name in table for table in tables) < 2:
            if name == "ece":
                raise DataError("Rankers cannot be compared on ece, which no single user has; name brier.")
            raise DataError(f"Fewer than two rankers have {name}, which needs a score; name another metric.")
    if all(np.isnan(table[name]).all() for table in tables for name in names if name in table):
        raise DataError(
            f"No example has a value of {' or '.join(names)}, so nothing can be compared: expected "
            "labels with a 1 for each chosen candidate, and a 0 for the others."
        )
    return measured


def _print_board(console: Console, board: Leaderboard, metrics: Mapping[str, Any]) -> None:
    """Print the best ranker of a metric and how far ahead of each other one it is."""
    from trsr.evaluate.statistics import p_value

    def value(name: str) -> str:
        entry = metrics["rankers"][name][board.metric]
        return _with_interval(entry["value"], entry["ci95"])

    columns = ("ranker", board.metric, "best is ahead by", "corrected p", "effect", "verdict")
    rows = [(f"[bold]{escape(board.best)}[/bold]", value(board.best), "", "", "", "first")]
    for one in board.competitors:
        ahead, effect = _with_interval(one.ahead, (one.low, one.high)), _number(one.effect_size, 2)
        verdict = f"[bold]{one.verdict}[/bold]" if one.beaten else one.verdict
        rows.append((escape(one.name), value(one.name), ahead, p_value(one.p), effect, verdict))
    chance = _number(metrics["protocol"]["chance"][board.metric])
    _print_table(console, columns, [*rows, ("[dim]chance[/dim]", f"[dim]{chance}[/dim]")])


def _print_pairs(console: Console, metric: str, comparisons: Sequence[Mapping[str, Any]]) -> None:
    """Print every pair of rankers on a metric, each with both p-values."""
    from trsr.evaluate.statistics import p_value

    columns = ("a, the better one", "b", f"{metric}: a - b", "p", "corrected p", "effect")
    rows = [
        (
            escape(pair["a"]),
            escape(pair["b"]),
            _with_interval(pair["difference"], pair["ci95"]),
            p_value(pair["p"]),
            p_value(pair["p_holm"]),
            _number(pair["effect_size"], 2),
        )
        for pair in comparisons
        if pair["metric"] == metric
    ]
    _print_table(console, columns, rows)


def _print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table()
    for number, column in enumerate(columns):
        is_text = number == 0 or column in {"b", "verdict"}
        table.add_column(column, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _number(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def _with_interval(value: float | None, ends: Sequence[float | None]) -> str:
    low, high = ends
    span = "" if low is None or high is None else f"({low:.3f} to {high:.3f})"
    return f"{_number(value)} [dim]{span}[/dim]"
