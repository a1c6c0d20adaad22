"""`trsr compare`: compare the rankers of several runs on the same examples."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

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
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the resampling.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare the rankers of one or more runs, user by user, with corrected p-values.

    Example: trsr compare out/with_profile out/without --ranker llm --metric mrr@10
    """
    from trsr.evaluation.compare_runs import compare_runs

    names = list(dict.fromkeys(metrics or DEFAULT_METRICS))
    result = compare_runs(runs, metrics=names, rankers=rankers or (), common=common, seed=seed)
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _print(result, pairs=pairs)


def _print(metrics: Mapping[str, Any], *, pairs: bool) -> None:
    """Print a table per metric: the best ranker, its lead over each other one, and a verdict."""
    from trsr.evaluation.statistics import NOTE, format_interval, format_number, format_p, leaderboards

    def cell(value: float | None, ends: Sequence[float | None]) -> str:
        interval = format_interval(ends)
        return f"{format_number(value)} [dim]({interval})[/dim]" if interval else format_number(value)

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    counts, left_out = metrics["counts"], metrics["protocol"]["examples_left_out"]
    if left_out:
        typer.echo(f"Only the {counts['examples']} examples that all runs share; left out: {left_out}.\n")
    console.print(f"{counts['users']} users, {counts['examples']} examples, 95 % intervals over users\n")
    for board in leaderboards(metrics):
        metric, best = board.metric, board.best
        if board.value is None:
            console.print(escape(board.sentence) + "\n")
            continue
        table = _table("ranker", metric, "best is ahead by", "corrected p", "effect", "verdict")
        interval = metrics["rankers"][best][metric]["ci95"]
        table.add_row(f"[bold]{escape(best)}[/bold]", cell(board.value, interval), "", "", "", "first")
        for one in board.competitors:
            table.add_row(
                escape(one.name),
                cell(one.value, metrics["rankers"][one.name][metric]["ci95"]),
                cell(one.ahead, (one.low, one.high)),
                format_p(one.p),
                format_number(one.effect_size, 2),
                f"[bold]{one.verdict}[/bold]" if one.beaten else one.verdict,
            )
        chance = format_number(metrics["protocol"]["chance"][metric])
        table.add_row("[dim]chance[/dim]", f"[dim]{chance}[/dim]")
        console.print(table)
        console.print(escape(board.sentence) + "\n")
        if pairs:
            table = _table("a, the better one", "b", f"{metric}: a - b", "p", "corrected p", "effect")
            for pair in metrics["comparisons"]:
                if pair["metric"] == metric:
                    table.add_row(
                        escape(pair["a"]),
                        escape(pair["b"]),
                        cell(pair["difference"], pair["ci95"]),
                        format_p(pair["p"]),
                        format_p(pair["p_holm"]),
                        format_number(pair["effect_size"], 2),
                    )
            console.print(table)
    console.print(f"[dim]{NOTE}[/dim]")


def _table(*columns: str) -> Table:
    table = Table()
    for number, column in enumerate(columns):
        is_text = number == 0 or column in {"b", "verdict"}
        table.add_column(column, justify="left" if is_text else "right", overflow="fold")
    return table
