"""`report.html` of a run: results, protocol, cost and limits, in one file that loads nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from trsr.errors import MissingExtraError
from trsr.evaluation.plots import N_SERIES_COLORS, draw_metrics, line_plot
from trsr.evaluation.statistics import (
    ALPHA,
    NOTE,
    Leaderboard,
    format_interval,
    format_number,
    format_p,
    leaderboards,
    pairs_on,
    significantly_best,
)
from trsr.storage import atomic_write

NOTHING = "–"
SLICE_TITLES = {
    "history_length": "Length of the history",
    "target": "Cold and warm targets",
    "interest": "Long-term and recent-shift users",
}
TRAINING_METRIC = "validation recall@3 + @5 + @10"
PROBABILITY_COLUMNS = ("logloss", "brier", "ece")
PROFILE_MEASURES = {
    "grounding": "share of a profile's content words that are in the user's items",
    "name_grounding": "the same for its names (capitalised words not at a sentence's start)",
    "copied": "share of its content words that come from the template's worked examples and are in no item",
    "coverage": "share of the user's categories, by how often they occur, that it mentions",
    "words": "length in words",
    "repetition": "share of its word 3-grams that occurred in it before",
    "change": "share of a summary's content words that the one of the block before did not have",
    "auc": "BM25 of the candidates against the profile alone; chance {chance}",
    "mrr": "BM25 of the candidates against the profile alone; chance {chance}",
    "auc_gain": "auc minus the auc of other users' profiles on the same candidates; 0 if a profile says"
    " nothing specific to its user",
}


@dataclass(frozen=True, slots=True)
class ExampleUser:
    """A user shown in full.

    Attributes:
        user_id: Names the user.
        blocks: For each block of the history the texts of its items, and the summary written after it.
        profile: The text that rankers read.
        recent_items: The texts that follow it.
        candidates: Text, score in [0, 1] and label (1 for chosen), best first.
    """

    user_id: str
    blocks: Sequence[tuple[Sequence[str], str]] = ()
    profile: str = ""
    recent_items: Sequence[str] = ()
    candidates: Sequence[tuple[str, float, int]] = ()


@dataclass(frozen=True, slots=True)
class ReportContext:
    """The content of a report in addition to the metrics; empty parts are left out.

    Attributes:
        title: Names the run.
        command: The exact commands that made this run, one per line.
        config_yaml: The resolved configuration.
        environment: Versions, machine, commit, seed.
        stages: By name in order of execution: `seconds`, and `calls_made` and `generated_tokens` if any.
        summaries: Statistics of the summaries: method, users, calls, tokens, failures.
        training: The training log: rows with `step`, and `loss` or `eval_recall_sum`.
        users: A few users in full.
        notes: Warnings and limits of this run, one sentence each.
    """

    title: str
    command: str
    config_yaml: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    summaries: Mapping[str, Any] = field(default_factory=dict)
    training: Sequence[Mapping[str, Any]] = ()
    users: Sequence[ExampleUser] = ()
    notes: Sequence[str] = ()


def write_report(folder: Path, *, metrics: Mapping[str, Any], context: ReportContext) -> Path:
    """Write `report.html` into a folder (made if missing) and return its path.

    Without matplotlib the report has no plots, and names the extra that installs it.

    Args:
        folder: The run folder.
        metrics: The content of `metrics.json`.
        context: The rest.

    Raises:
        OutputError: the folder cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # no text of an item, a user or a model is trusted
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": _count,
        "duration": _duration,
        "interval": format_interval,
        "number": format_number,
        "p_value": format_p,
        "plain": _plain,
        "short": _short,
    }
    text = environment.get_template("report.html.j2").render(_view(metrics, context))
    path = folder / "report.html"
    atomic_write(path, partial(Path.write_text, data=text, encoding="utf-8", errors="replace"))
    return path


def _view(metrics: Mapping[str, Any], context: ReportContext) -> dict[str, Any]:
    """Return the variables of the template."""
    rankers, chance, counts = metrics["rankers"], metrics["protocol"]["chance"], metrics["counts"]
    names = [metric for metric in chance if any(metric in values for values in rankers.values())]
    ordered = sorted(rankers, key=lambda name: (-_value(rankers[name], names[0]), name))
    boards = [board for board in leaderboards(metrics) if board.value is not None]
    best = {metric: significantly_best(rankers, metric, chance[metric]) for metric in names}
    rows = [
        (name, [_cell(rankers[name].get(m), "best" if best[m] == name else "") for m in names])
        for name in ordered
    ]
    plots: dict[str, Any] = {"bars": [], "sweeps": [], "slices": {}, "calibration": [], "training": []}
    no_plots, swept = "", sweeps(metrics)
    try:
        plots = draw_metrics(metrics, ordered, best, swept) | {"training": _training_plots(context.training)}
    except MissingExtraError as error:
        no_plots = f"Without plots. {error}"
    return {
        "context": context,
        "finding": _finding(metrics, ordered, names[0], best[names[0]], boards),
        "counts": counts,
        "results": _table("ranker", names, rows, chance=chance),
        "protocol": _protocol(metrics),
        "boards": boards,
        "boards_note": NOTE,
        "sweeps": swept,
        "slices": _slices(metrics, ordered, names[0]),
        "legend": ordered[:N_SERIES_COLORS],
        "profiles": metrics.get("profiles"),
        "profile_measures": PROFILE_MEASURES,
        "training_metric": TRAINING_METRIC,
        "chance": chance,
        "reliability": _reliability(metrics),
        "plots": plots,
        "no_plots": no_plots,
        "notes": list(dict.fromkeys([*context.notes, *_notes(metrics)])),
        "details": {"evaluated": counts}
        | {
            f"protocol: {key}": value
            for key, value in metrics["protocol"].items()
            if isinstance(value, Mapping) and key != "chance"
        },
    }


def _value(values: Mapping[str, Any], metric: str) -> float:
    value = values.get(metric, {}).get("value")
    return float("-inf") if value is None else float(value)


def _training_plots(log: Sequence[Mapping[str, Any]]) -> list[Markup]:
    plots = []
    for title, key in [("loss", "loss"), (TRAINING_METRIC, "eval_recall_sum")]:
        points = [(row["step"], row[key]) for row in log if row.get(key) is not None]
        if len(points) > 1:
            plots.append(line_plot(title, points, x_label="step", mark_max=title == TRAINING_METRIC))
    return plots


# --- tables ---------------------------------------------------------------------------------------------


def _table(
    head: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, list[dict[str, str]]]],
    *,
    chance: Mapping[str, float | None] | None = None,
    last_name: str = "chance",
    last: Sequence[str] = (),
) -> dict[str, Any]:
    """Return a table for the template's macro; the last row shows chance, or what is given."""
    if chance is not None:
        last = [format_number(chance.get(metric)) for metric in columns]
    return {"head": head, "columns": columns, "rows": rows, "last_name": last_name, "last": last}


def _cell(entry: Mapping[str, Any] | None, mark: str = "") -> dict[str, str]:
    """Show a value with its interval, and the standard deviation between seeds where there are several."""
    if entry is None:
        return {"value": NOTHING, "note": "", "mark": ""}
    parts = [format_interval(entry["ci95"])]
    if entry.get("seed_std") is not None:
        parts.append(f"seeds ±{entry['seed_std']:.3f}")
    return {"value": format_number(entry["value"]), "note": "; ".join(filter(None, parts)), "mark": mark}


def _mark(p: float | None) -> str:
    return "differs" if p is not None and p < ALPHA else ""


def sweeps(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each swept setting with a sentence on its significant values, a table and the rankers by value.

    The values are compared with the run's own.
    """
    compared = list(dict.fromkeys(pair["metric"] for pair in metrics["comparisons"]))
    pairs = {metric: pairs_on(metrics, metric) for metric in compared}
    found = []
    for setting, rankers in metrics.get("sweep", {}).items():
        own = next(value for value, ranker in rankers.items() if ranker == metrics["own_ranker"])
        rows, different = [], []
        for value, ranker in rankers.items():
            cells = [_cell(metrics["rankers"][ranker][metric]) for metric in compared]
            for metric, cell in zip(compared, cells, strict=True):
                pair = pairs[metric].get((ranker, rankers[own]))
                if pair is None or pair["difference"] is None:
                    continue
                change, p = f"{pair['difference']:+.3f}", pair["p_holm"]
                cell["note"] += f"{'; ' if cell['note'] else ''}{change}, p {format_p(p)}"
                cell["mark"] = _mark(p)
                if cell["mark"]:
                    different.append(f"{value} on {metric} ({change})")
            rows.append((f"{value} (own)" if value == own else value, cells))
        found.append(
            {
                "setting": setting,
                "sentence": f"Significantly different from {own}, this run's own: {', '.join(different)}."
                if different
                else f"No value differs significantly from {own}, this run's own.",
                "table": _table("value", compared, rows, chance=metrics["protocol"]["chance"]),
                "rankers": rankers,
            }
        )
    return found


def _slices(metrics: Mapping[str, Any], ordered: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """Return each kind of slices that has at least two, with its tables."""
    rules = metrics["protocol"].get("slices", {})
    found = []
    for way, parts in metrics.get("slices", {}).items():
        if len(parts) < 2:
            continue
        names = [part["name"] for part in parts]
        rows = [(name, [_cell(part["rankers"][name].get(metric)) for part in parts]) for name in ordered]
        examples = [_count(part["examples"]) for part in parts]
        left_out = metrics["counts"]["examples"] - sum(part["examples"] for part in parts)
        rule = rules.get(way, "")
        found.append(
            {
                "way": way,
                "title": SLICE_TITLES[way],
                "rule": f"{rule[:1].upper()}{rule[1:]}."
                + (f" {_count(left_out)} examples are in neither." if left_out else ""),
                "table": _table(metric, names, rows, last_name="examples", last=examples),
                "effects": _effects(parts, names),
            }
        )
    return found


def _effects(parts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any] | None:
    """Return the differences of the compared pair on every slice, None without a pair."""
    pairs = parts[0].get("comparisons")
    if not pairs:
        return None
    a, b = pairs[0]["a"], pairs[0]["b"]
    rows = [
        (pair["metric"], [_effect(part["comparisons"][place]) for part in parts])
        for place, pair in enumerate(pairs)
    ]
    note = (
        f"Gain by the profile: {a} minus {b}, the same without a profile; p is"
        " corrected for all slices of a metric."
    )
    return {"note": note, "table": _table(f"{a} - {b}", names, rows)}


def _effect(pair: Mapping[str, Any]) -> dict[str, str]:
    low, high = pair["ci95"]
    interval = "" if low is None else f"{low:+.3f} to {high:+.3f}; "
    return {
        "value": NOTHING if pair["difference"] is None else f"{pair['difference']:+.3f}",
        "note": f"{interval}p {format_p(pair['p_holm'])}",
        "mark": _mark(pair["p_holm"]),
    }


def _reliability(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return sentences and table, or None where no ranker gives probabilities."""
    found = metrics.get("calibration")
    if not found:
        return None
    rows, sentences = [], []
    for ranker, variants in found.items():
        for variant, entry in variants.items():
            raw = variant == "raw" and len(variants) > 1
            cells = [_cell(entry[metric]) for metric in PROBABILITY_COLUMNS]
            rows.append((f"{ranker}, not calibrated" if raw else ranker, cells))
        if "calibrated" in variants:
            ece, logloss = (
                " to ".join(format_number(variants[name][metric]["value"]) for name in ("raw", "calibrated"))
                for metric in ("ece", "logloss")
            )
            sentences.append(
                f"Calibration, fitted on validation users, changes {ranker}'s ece from {ece} and its logloss"
                f" from {logloss}."
            )
    chance = metrics["protocol"]["chance"]
    table = _table("ranker", PROBABILITY_COLUMNS, rows, chance=chance, last_name="constant")
    return {"table": table, "sentences": sentences}


def _protocol(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain parts of the protocol, and what was checked for leaks."""
    shown = {key: value for key, value in metrics["protocol"].items() if isinstance(value, str | int | float)}
    if leakage := metrics.get("leakage"):
        checked = [f"{n:,} {name.replace('_', ' ')}" for name, n in leakage["checked"].items() if n]
        shown["leakage check"] = f"{leakage['found']} found in {', '.join(checked)}"
    return shown


# --- sentences ------------------------------------------------------------------------------------------


def _finding(
    metrics: Mapping[str, Any],
    ordered: Sequence[str],
    metric: str,
    significant: str | None,
    boards: Sequence[Leaderboard],
) -> str:
    """Describe the first metric in two sentences."""
    rankers, chance = metrics["rankers"], metrics["protocol"]["chance"][metric]
    best, entry = ordered[0], rankers[ordered[0]][metric]
    low = entry["ci95"][0]
    if entry["value"] is None:
        return f"No example has a value of {metric}: the rankers cannot be compared."
    interval = "" if low is None else f" ({format_interval(entry['ci95'])})"
    value = f"{format_number(entry['value'])}{interval}"
    text = f"{best} has the highest {metric}: {value}, where chance is {format_number(chance)}."
    if len(ordered) == 1 or low is None:
        return text
    if compared := [board.sentence for board in boards if board.metric == metric]:
        return f"{text} {compared[0]}"
    if best == significant:
        return f"{text} Its interval does not overlap with any other."
    spans = {name: rankers[name][metric]["ci95"] for name in ordered[1:]}
    near = [name for name, (_, high) in spans.items() if high is not None and high >= low]
    if not near:
        return f"{text} Its interval overlaps with no other, but it does not lie beyond chance."
    return f"{text} Its interval overlaps with {', '.join(near)}: this run alone does not order them."


def targets_note(n: int, n_examples: int) -> str:
    """Explain the effect of targets in their own history."""
    return (
        f"In {n:,} of {n_examples:,} examples a target is in the history that the rankers read: the user"
        " interacted with it before, or it was logged twice; no sampled negative is, so a ranker that repeats"
        " the history gains."
    )


def _notes(metrics: Mapping[str, Any]) -> list[str]:
    """Return the limits that follow from the numbers themselves."""
    counts, notes = metrics["counts"], list(metrics["protocol"].get("warnings", []))
    if metrics["protocol"].get("protocol") == "sampled":
        notes.append(
            "Candidates are sampled: against the whole catalogue, values are lower and rankers can change"
            " places (Krichene and Rendle, KDD 2020)."
        )
    notes.append(
        "Intervals and p-values cover the choice of test users; the standard deviation between seeds is given"
        " with each value. Another period can move it further."
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


# --- filters of the template ----------------------------------------------------------------------------


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _duration(seconds: float) -> str:
    """Write seconds in the two largest fitting units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _plain(value: object) -> str:
    """Write a value of a configuration or of a count as words."""
    match value:
        case None:
            text = NOTHING
        case bool():
            text = "yes" if value else "no"
        case int() if abs(value) >= 10_000:
            text = f"{value:,}"
        case float():
            text = f"{value:.4g}"
        case Mapping():
            text = ", ".join(f"{key}: {_plain(part)}" for key, part in value.items())
        case list() | tuple():
            text = ", ".join(map(_plain, value))
        case _:
            text = str(value)
    return text


def _short(text: str, limit: int = 400) -> str:
    """Cut a foreign text, without control characters and direction marks."""
    cut = text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
    return "".join(c for c in cut if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
