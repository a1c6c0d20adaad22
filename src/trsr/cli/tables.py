"""Tables for people: metrics with their intervals on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

# Of the measures of probabilities ece is the one a person can read; logloss and brier stand in the report.
SHOWN = ("recall@1", "recall@3", "recall@10", "mrr@5", "mrr@10", "auc", "ece")
N_SHOWN = 6


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print one row a ranker, best first, each value with its 95 % interval below."""
    rankers = metrics["rankers"]
    chance = metrics["protocol"].get("chance", {})
    names = [name for name in SHOWN if any(name in values for values in rankers.values())][-N_SHOWN:]
    counts = metrics["counts"]
    table = Table(
        title=f"{counts['users']} test users, {counts['candidates']} candidates, 95 % intervals over users",
        title_justify="left",
    )
    table.add_column("ranker", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    if chance:
        table.add_row("[dim]chance[/dim]", *(_number(chance.get(name)) for name in names))
    order = sorted(rankers, key=lambda ranker: -(rankers[ranker]["auc"]["value"] or 0.0))
    for ranker in order:
        table.add_row(ranker, *(_cell(rankers[ranker].get(name)) for name in names))
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    console.print(table)
    if n := counts.get("targets_in_history"):
        from trsr.evaluate.views import targets_note

        console.print(targets_note(n, counts["examples"]), markup=False)


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return ""
    low, high = (_number(bound, 2) for bound in entry["ci95"])
    return f"{_number(entry['value'])}\n[dim]{low}-{high}[/dim]"


def _number(value: float | None, decimals: int = 3) -> str:
    """Return a number without the leading zero, as the field prints metrics."""
    if value is None:
        return ""
    text = f"{value:.{decimals}f}"
    return text.removeprefix("0") if text.startswith("0.") else text
