"""Tables for people: metrics with their intervals on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

SHOWN = ("recall@3", "recall@5", "recall@10", "mrr@10", "ndcg@10", "auc", "logloss")


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print one row a ranker, each value with its 95 % interval below."""
    rankers = metrics["rankers"]
    chance = metrics["protocol"].get("chance", {})
    names = [name for name in SHOWN if any(name in values for values in rankers.values())]
    counts = metrics["counts"]
    table = Table(
        title=f"{counts['users']} test users, {counts['candidates']} candidates in all, 95 % intervals over users",
        title_justify="left",
    )
    table.add_column("ranker")
    for name in names:
        table.add_column(name, justify="right")
    if chance:
        table.add_row("[dim]chance[/dim]", *(_number(chance.get(name)) for name in names))
    for ranker, values in rankers.items():
        table.add_row(ranker, *(_cell(values.get(name)) for name in names))
    Console().print(table)


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return ""
    low, high = entry["ci95"]
    return f"{_number(entry['value'])}\n[dim]{_number(low)}-{_number(high)}[/dim]"


def _number(value: float | None) -> str:
    """Return three decimals without the leading zero, as the field prints metrics."""
    return "" if value is None else f"{value:.3f}".replace("0.", ".", 1)
