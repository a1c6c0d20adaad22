"""`report.md` and `report.html` of a run: what came out, how it was asked, what it cost, what it leaves open.

The HTML is one file that loads nothing: style and plots stand in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from trsr.errors import MissingExtraError
from trsr.evaluate.leaderboard import (
    CLAIMS_NOTE,
    NOTE,
    Standing,
    ablation_plots,
    ablation_views,
    claim_views,
    p_value,
    standings,
)
from trsr.evaluate.metrics import parse_metric
from trsr.evaluate.plots import N_SERIES_COLORS, Bar, bar_plot, line_plot
from trsr.evaluate.rendering import NOTHING, TEMPLATES, count, number, templates
from trsr.evaluate.report_views import ReportContext, profile_view, reliability_view, slice_views
from trsr.storage import write_whole


def stands_apart(rankers: Mapping[str, Any], metric: str, chance: float | None) -> str | None:
    """Return the ranker whose interval lies beyond those of all others and beyond chance, or None.

    This is stricter than a paired test: overlapping intervals do not mean that two rankers are equal.
    """
    spans = {name: values[metric]["ci95"] for name, values in rankers.items() if metric in values}
    if len(spans) < 2 or any(end is None for span in spans.values() for end in span):
        return None
    sign = 1 if parse_metric(metric).higher_is_better else -1
    lows = {name: min(sign * end for end in span) for name, span in spans.items()}
    highs = {name: max(sign * end for end in span) for name, span in spans.items()}
    best = max(lows, key=lambda name: (lows[name], name))
    rivals = [high for name, high in highs.items() if name != best]
    beyond = lows[best] > max(rivals) and (chance is None or lows[best] > sign * chance)
    return best if beyond else None


def report_view(metrics: Mapping[str, Any], context: ReportContext) -> dict[str, Any]:
    """Gather what both templates show."""
    rankers, chance = metrics["rankers"], metrics["protocol"]["chance"]
    names = [name for name in chance if any(name in values for values in rankers.values())]
    ordered = sorted(rankers, key=lambda name: (-_value(rankers[name], names[0]), name))
    apart = {metric: stands_apart(rankers, metric, chance[metric]) for metric in names}
    standing = standings(metrics)
    try:
        plots, no_plots = _plots(metrics, context, ordered, names, apart), ""
    except MissingExtraError as error:
        plots = {"bars": [], "training": [], "ablations": []}
        no_plots = f"Without plots. {error}"
    return {
        "context": context,
        "css": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "finding": _finding(rankers, ordered, names[0], apart[names[0]], chance[names[0]], standing),
        "facts": _facts(metrics["counts"]),
        "table": {
            "metrics": names,
            "rows": [_row(name, rankers[name], names, apart) for name in ordered],
            "chance": [number(chance[metric]) for metric in names],
        },
        "marks": "Value and 95 % interval over users. A value is marked only where its interval lies beyond"
        " those of all other rankers and beyond chance; rows are in order of the first column.",
        "protocol": _plain_values(metrics["protocol"]) | _leakage(metrics),
        **({"beats": _beats(standing)} if any(one.value is not None for one in standing) else {}),
        "claims": claim_views(metrics),
        "claims_note": CLAIMS_NOTE,
        "details": _details(metrics),
        "ablations": ablation_views(metrics),
        "slices": slice_views(metrics, ordered, names[0], _headline(names)[:2]),
        "slice_series": ordered[:N_SERIES_COLORS],
        "profiles": profile_view(metrics),
        "reliability": reliability_view(metrics),
        "plots": plots,
        "no_plots": no_plots,
        "n_colors": N_SERIES_COLORS,
        "notes": list(dict.fromkeys([*context.notes, *_standing_notes(metrics)])),
    }


def _plain_values(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if isinstance(value, str | int | float)}


def _leakage(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Say what was checked for leaks."""
    if "leakage" not in metrics:
        return {}
    checked = ", ".join(
        f"{n:,} {name.replace('_', ' ')}" for name, n in metrics["leakage"]["checked"].items() if n
    )
    return {"leakage check": f"{metrics['leakage']['found']} found in {checked}"}


def _details(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the tables that only few will read: what was counted, and the nested parts of the protocol."""
    nested = {
        f"protocol: {key}": value
        for key, value in metrics["protocol"].items()
        if isinstance(value, Mapping) and key != "chance"
    }
    return {"evaluated": metrics["counts"], **nested}


def _value(values: Mapping[str, Any], metric: str) -> float:
    """Return a metric's value for sorting; what is missing comes last."""
    value = values.get(metric, {}).get("value")
    return float("-inf") if value is None else float(value)


def _row(
    name: str, values: Mapping[str, Any], metrics: Sequence[str], apart: Mapping[str, str | None]
) -> dict[str, Any]:
    cells = []
    for metric in metrics:
        entry = values.get(metric)
        low, high = entry["ci95"] if entry else (None, None)
        cells.append(
            {
                "value": number(entry["value"]) if entry else NOTHING,
                "interval": _interval(entry, low, high),
                "apart": apart.get(metric) == name,
            }
        )
    return {"name": name, "cells": cells}


def _interval(entry: Mapping[str, Any] | None, low: float | None, high: float | None) -> str:
    """Write the interval, and the standard deviation between seeds where there are several."""
    parts = [] if low is None else [f"{low:.3f} to {high:.3f}"]
    spread = entry.get("seed_std") if entry else None
    return "; ".join([*parts, *([] if spread is None else [f"seeds ±{spread:.3f}"])])


def _beats(standing: Sequence[Standing]) -> dict[str, Any]:
    """Return the tables "who beats whom", one a compared metric."""
    tables = []
    for one in standing:
        if one.value is None:  # the list of limits says that examples lack a truth
            continue
        rows = [
            {
                "name": rival.name,
                "value": number(rival.value),
                "ahead": number(rival.ahead),
                "interval": "" if rival.low is None else f"{rival.low:.3f} to {rival.high:.3f}",
                "p": p_value(rival.p),
                "effect": number(rival.effect_size, 2),
                "verdict": rival.verdict,
                "beaten": rival.beaten,
            }
            for rival in one.rivals
        ]
        tables.append(
            {
                "metric": one.metric,
                "best": one.best,
                "value": number(one.value),
                "sentence": one.sentence,
                "rows": rows,
            }
        )
    return {"tables": tables, "note": NOTE}


def _finding(
    rankers: Mapping[str, Any],
    ordered: Sequence[str],
    metric: str,
    apart: str | None,
    chance: float | None,
    standing: Sequence[Standing],
) -> str:
    """Say in two sentences what the first metric shows."""
    best, entry = ordered[0], rankers[ordered[0]][metric]
    if entry["value"] is None:
        return f"No example has a value of {metric}: nothing can be said of the rankers."
    text = f"{best} has the highest {metric}: {number(entry['value'])}"
    if entry["ci95"][0] is not None:
        text += f" ({entry['ci95'][0]:.3f} to {entry['ci95'][1]:.3f})"
    text += f", where chance is {number(chance)}."
    if len(ordered) == 1 or entry["ci95"][0] is None:
        return text
    if compared := [one.sentence for one in standing if one.metric == metric]:
        return f"{text} {compared[0]}"
    if apart == best:
        return f"{text} Its interval stands apart from those of all other rankers."
    near = [
        name
        for name in ordered[1:]
        if rankers[name][metric]["ci95"][1] is not None
        and rankers[name][metric]["ci95"][1] >= entry["ci95"][0]
    ]
    if not near:
        return f"{text} Its interval overlaps with no other, but it does not lie beyond chance."
    return f"{text} Its interval overlaps with that of {', '.join(near)}: this run alone does not order them."


def _facts(counts: Mapping[str, Any]) -> dict[str, str]:
    per_example = counts["candidates"] / max(counts["examples"], 1)
    return {
        "users": count(counts["users"]),
        "examples": count(counts["examples"]),
        "candidates an example": f"{per_example:.1f}".removesuffix(".0"),
        "prompts cut": count(counts["cut_prompts"]),
        "tied pairs": NOTHING if counts["tie_rate"] is None else f"{100 * counts['tie_rate']:.1f} %",
    }


def targets_note(n: int, n_examples: int) -> str:
    """Say what it means that targets stand in their own history."""
    return (
        f"In {n:,} of {n_examples:,} examples a target stands in the history that the rankers read: it was"
        " met before, or logged twice; no sampled negative does, so a ranker that repeats the history gains."
    )


def _standing_notes(metrics: Mapping[str, Any]) -> list[str]:
    """Return the limits that follow from the numbers themselves."""
    counts, notes = metrics["counts"], list(metrics["protocol"].get("warnings", []))
    if metrics["protocol"].get("protocol") == "sampled":
        notes.append(
            "Candidates are sampled: against the whole catalogue, values are lower and rankers can change"
            " places (Krichene and Rendle, KDD 2020)."
        )
    notes.append(
        "Intervals and p-values cover the choice of test users; beside them stands how far a value moves"
        " with the seed. Another period can move it further."
        if "seeds" in metrics
        else "Intervals and p-values cover the choice of test users only: another training seed, other"
        " negatives or another period can move a value further; `trsr run --seeds` shows how far."
    )
    if counts["users"] < 50:
        notes.append(f"{counts['users']} users are few: a bootstrap interval over them is too narrow.")
    if counts["cut_prompts"]:
        notes.append(
            f"{counts['cut_prompts']:,} of {counts['candidates']:,} prompts did not fit the token budget: the"
            " profile or older recent items were cut; the candidate never is."
        )
    if counts.get("examples_without_truth"):
        notes.append(
            f"{counts['examples_without_truth']:,} examples lack a chosen or an unchosen candidate; metrics"
            " that need both leave them out."
        )
    if n := counts.get("targets_in_history"):
        notes.append(targets_note(n, counts["examples"]))
    return notes


def _plots(
    metrics: Mapping[str, Any],
    context: ReportContext,
    ordered: Sequence[str],
    names: Sequence[str],
    apart: Mapping[str, str | None],
) -> dict[str, list[Markup]]:
    """Draw a few metrics of different kinds; the table has them all."""
    chance, rankers = metrics["protocol"]["chance"], metrics["rankers"]
    plots: dict[str, list[Markup]] = {"bars": [], "training": []}
    plots["ablations"] = [Markup(plot) for plot in ablation_plots(metrics)]
    for metric in _headline(names):
        bars = [
            _bar(name, entry, apart=apart[metric] == name)
            for name in ordered
            if (entry := rankers[name].get(metric)) and entry["value"] is not None
        ]
        if bars:
            plots["bars"].append(Markup(bar_plot(metric, bars, chance=chance[metric])))
    losses = [(float(row.step), row.loss) for row in context.training if row.loss is not None]
    values = [(float(row.step), row.metric) for row in context.training if row.metric is not None]
    for title, points, mark in [("loss", losses, None), (context.training_metric, values, "max")]:
        if len(points) > 1:
            plots["training"].append(Markup(line_plot(title, points, x_label="step", mark=mark)))
    return plots


def _bar(name: str, entry: Mapping[str, Any], *, apart: bool = False) -> Bar:
    low, high = entry["ci95"]
    return Bar(name, math.nan if entry["value"] is None else entry["value"], low, high, apart)


def _headline(names: Sequence[str]) -> list[str]:
    """Choose the first recall, the deepest mrr and ndcg, and auc."""
    metrics = [parse_metric(name) for name in names]
    chosen = []
    for family, pick in [("recall", 0), ("mrr", -1), ("ndcg", -1)]:
        found = [str(metric) for metric in metrics if metric.family == family and metric.k is not None]
        chosen += found[pick:][:1]
    return chosen + [name for name in names if name == "auc"]


def write_report(folder: Path, *, metrics: Mapping[str, Any], context: ReportContext) -> tuple[Path, Path]:
    """Write `report.md` and `report.html` into a folder and return their paths.

    Without matplotlib the report has its tables and says how to get the plots.

    Args:
        folder: The run folder; made if missing.
        metrics: The content of `metrics.json`.
        context: The rest.

    Raises:
        OutputError: the folder cannot be written.
    """
    view = report_view(metrics, context)
    paths = folder / "report.md", folder / "report.html"
    texts = [templates().get_template(f"{path.name}.j2").render(view) for path in paths]
    texts[0] = re.sub(r"\n{3,}", "\n\n", texts[0]).strip() + "\n"
    for path, text in zip(paths, texts, strict=True):
        write_whole(path, partial(Path.write_text, data=text, encoding="utf-8", errors="replace"))
    return paths
