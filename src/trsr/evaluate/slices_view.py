"""The report's section on slices: a metric by history, target and interests, and what the profile adds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from trsr.errors import MissingExtraError
from trsr.evaluate.plots import N_SERIES_COLORS, Bar, slice_plot
from trsr.evaluate.rendering import count, number
from trsr.evaluate.standings import ALPHA, p_value

TITLES = {
    "history_length": "Length of the history",
    "target": "Cold and warm targets",
    "interest": "Long-term and recent-shift users",
}
AXES = {"history_length": "items in the history", "target": "target", "interest": "users"}


def slice_views(
    metrics: Mapping[str, Any], ordered: Sequence[str], metric: str, drawn: Sequence[str]
) -> list[dict[str, Any]]:
    """Return what the templates show: one entry a way to cut that has at least two slices.

    Args:
        metrics: The content of `metrics.json`.
        ordered: The rankers, best first.
        metric: What is tabled.
        drawn: What is drawn.
    """
    rules: Mapping[str, str] = metrics["protocol"].get("slices", {})
    return [
        {
            "title": TITLES[way],
            "rule": _sentence(rules.get(way, ""), parts, metrics["counts"]["examples"]),
            "metric": metric,
            "names": [part["name"] for part in parts],
            "rows": [
                {"name": name, "cells": [_cell(part["rankers"][name].get(metric)) for part in parts]}
                for name in ordered
            ],
            "examples": [count(part["examples"]) for part in parts],
            "effects": _effects(parts),
            "plots": _plots(way, parts, ordered, drawn),
        }
        for way, parts in metrics.get("slices", {}).items()
        if way in TITLES and len(parts) > 1
    ]


def _sentence(rule: str, parts: Sequence[Mapping[str, Any]], n_examples: int) -> str:
    """Say the rule, and how many examples are in no slice."""
    left_out = n_examples - sum(part["examples"] for part in parts)
    text = f"{rule[:1].upper()}{rule[1:]}."
    return f"{text} {count(left_out)} examples are in neither." if left_out else text


def _cell(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    if entry is None:
        return {"value": number(None), "interval": "", "apart": False}
    low, high = entry["ci95"]
    interval = "" if low is None else f"{low:.3f} to {high:.3f}"
    return {"value": number(entry["value"]), "interval": interval, "apart": False}


def _effects(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the table of differences on every slice, None where no pair was compared."""
    first = parts[0].get("comparisons", [])
    if not first:
        return None
    a, b = first[0]["a"], first[0]["b"]
    rows = [
        {"name": pair["metric"], "cells": [_effect(part["comparisons"][place]) for part in parts]}
        for place, pair in enumerate(first)
    ]
    return {
        "head": f"{a} - {b}",
        "says": f"What the profile adds: {a} minus {b}, which differs from it in having no profile; p is"
        " corrected for all slices of a metric.",
        "rows": rows,
    }


def _effect(pair: Mapping[str, Any]) -> dict[str, Any]:
    low, high = pair["ci95"]
    notes = [] if low is None else [f"{low:+.3f} to {high:+.3f}"]
    notes.append(f"p {p_value(pair['p_holm'])}")
    value = number(None) if pair["difference"] is None else f"{pair['difference']:+.3f}"
    apart = pair["p_holm"] is not None and pair["p_holm"] < ALPHA
    return {"value": value, "interval": "; ".join(notes), "apart": apart}


def _plots(
    way: str, parts: Sequence[Mapping[str, Any]], ordered: Sequence[str], drawn: Sequence[str]
) -> list[Markup]:
    """Draw metrics over the slices for the best rankers, as many as there are colours."""
    names = [part["name"].removesuffix(" items") for part in parts]
    try:
        return [Markup(slice_plot(m, names, _series(parts, ordered, m), x_label=AXES[way])) for m in drawn]
    except MissingExtraError:  # the report says it once, with its other plots
        return []


def _series(parts: Sequence[Mapping[str, Any]], ordered: Sequence[str], metric: str) -> dict[str, list[Bar]]:
    return {
        name: [_bar(part["rankers"][name][metric]) for part in parts] for name in ordered[:N_SERIES_COLORS]
    }


def _bar(entry: Mapping[str, Any]) -> Bar:
    return Bar("", math.nan if entry["value"] is None else entry["value"], *entry["ci95"])
