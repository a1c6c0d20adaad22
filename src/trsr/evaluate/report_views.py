"""What a report tells beside the metrics: values only, gathered by whoever ran the stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from trsr.errors import MissingExtraError
from trsr.evaluate.leaderboard import ALPHA, p_value
from trsr.evaluate.plots import N_SERIES_COLORS, Bar, reliability_plot, slice_plot
from trsr.evaluate.rendering import count, number

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
            "rule": _slice_sentence(rules.get(way, ""), parts, metrics["counts"]["examples"]),
            "metric": metric,
            "names": [part["name"] for part in parts],
            "rows": [
                {"name": name, "cells": [_slice_cell(part["rankers"][name].get(metric)) for part in parts]}
                for name in ordered
            ],
            "examples": [count(part["examples"]) for part in parts],
            "effects": _effects(parts),
            "plots": _plots(way, parts, ordered, drawn),
        }
        for way, parts in metrics.get("slices", {}).items()
        if way in TITLES and len(parts) > 1
    ]


def _slice_sentence(rule: str, parts: Sequence[Mapping[str, Any]], n_examples: int) -> str:
    """Say the rule, and how many examples are in no slice."""
    left_out = n_examples - sum(part["examples"] for part in parts)
    text = f"{rule[:1].upper()}{rule[1:]}."
    return f"{text} {count(left_out)} examples are in neither." if left_out else text


def _slice_cell(entry: Mapping[str, Any] | None) -> dict[str, Any]:
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


METRICS = ("logloss", "brier", "ece")
EXPLANATION = (
    "A score is reliable if, of all candidates with a score near 0.2, about 20 % were chosen: then its dot"
    " lies on the diagonal. Below the diagonal the ranker promises too much, above it too little. Each dot is"
    " one of up to ten groups of equally many candidates, with the 95 % interval over users; axes grow with"
    " the square root, because most scores are small. Ece is the mean distance from the diagonal, weighted by"
    " candidates; for all three measures lower is better. They hold for candidates drawn as here: with more"
    " of them, each is chosen less often."
)
LEGEND = "Grey: sigmoid of the margin."
CALIBRATED = " In colour: the calibrated scores."


def reliability_view(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return rows, sentences and plots, or None where no ranker gives probabilities."""
    found: Mapping[str, Any] = metrics.get("calibration", {})
    if not found:
        return None
    rows = [
        {
            "name": ranker if variant == "calibrated" or len(variants) == 1 else f"{ranker}, not calibrated",
            "cells": [_cell(entry[metric]) for metric in METRICS],
        }
        for ranker, variants in found.items()
        for variant, entry in variants.items()
    ]
    try:
        plots = [Markup(_plot(ranker, variants)) for ranker, variants in found.items()]
    except MissingExtraError:  # the report says it once, with its other plots
        plots = []
    return {
        "metrics": METRICS,
        "rows": rows,
        "chance": [number(metrics["protocol"]["chance"].get(metric)) for metric in METRICS],
        "sentences": [_sentence(ranker, v) for ranker, v in found.items() if "calibrated" in v],
        "explanation": EXPLANATION,
        "legend": LEGEND + (CALIBRATED if any("calibrated" in v for v in found.values()) else ""),
        "plots": plots,
    }


def _cell(entry: Mapping[str, Any]) -> dict[str, Any]:
    low, high = entry["ci95"]
    interval = "" if low is None else f"{low:.3f} to {high:.3f}"
    return {"value": number(entry["value"]), "interval": interval, "apart": False}


def _sentence(ranker: str, variants: Mapping[str, Any]) -> str:
    """Say what the calibration did to the test scores."""
    before, after = variants["raw"], variants["calibrated"]
    moved = [
        f"{metric} from {number(before[metric]['value'])} to {number(after[metric]['value'])}"
        for metric in ("ece", "logloss")
    ]
    return f"Calibration, fitted on validation users, takes {ranker}'s {moved[0]} and its {moved[1]}."


def _plot(ranker: str, variants: Mapping[str, Any]) -> str:
    curves = {
        variant: [(p["score"], Bar("", p["rate"], *p["ci95"])) for p in entry["curve"]]
        for variant, entry in variants.items()
    }
    return reliability_plot(ranker, curves)


_MEANING = {
    "grounding": "share of a profile's content words that are in the user's items",
    "name_grounding": "the same for its names (capitalised words not at a sentence's start)",
    "copied": "share of its content words that come from the template's worked examples and are in no item",
    "coverage": "share of the user's categories, by how often they occur, that it mentions",
    "words": "length in words",
    "repetition": "share of its word 3-grams that it has said before",
    "change": "share of a summary's content words that the one of the block before did not have",
    "auc": "BM25 of the candidates against the profile alone; chance {chance}",
    "mrr": "BM25 of the candidates against the profile alone; chance {chance}",
    "auc_gain": "that auc minus the one of strangers' profiles on the same candidates; 0 if a profile says"
    " nothing of its user",
}
NOTE = (
    "Counted from words, without a judge: a word that is in the items can still be said wrongly, and one that"
    " is not can be a fair paraphrase."
)


def profile_view(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the table, the sentence about limits and the listed profiles; None without measures."""
    found = metrics.get("profiles")
    if not found:
        return None
    chance = metrics["protocol"]["chance"]
    rows = [
        {
            "name": name,
            "value": number(entry["value"], 1 if name == "words" else 3),
            "interval": _interval(entry["ci95"], 1 if name == "words" else 3),
            "examples": count(entry["examples"]),
            "meaning": _MEANING[name].format(chance=number(chance.get(name))),
        }
        for name, entry in found["measures"].items()
    ]
    return {
        "method": found["method"],
        "rows": rows,
        "limits": _limits(found),
        "note": NOTE,
        "worst": [
            {
                "user_id": one["user_id"],
                "example_id": one["example_id"],
                "measure": one["measure"],
                "value": number(one["value"]),
                "ungrounded": ", ".join(one["ungrounded"]),
                "text": one["text"],
            }
            for one in found["worst"]
        ],
    }


def _interval(ends: list[float | None], digits: int) -> str:
    low, high = ends
    return "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def _limits(found: Mapping[str, Any]) -> str:
    """Say how many profiles lie beyond each limit."""
    sides = {"at_least": "below", "at_most": "above"}
    parts = [
        f"{found['beyond'][name]} with {name} {word} {limit:g}"
        for side, word in sides.items()
        for name, limit in found["limits"][side].items()
    ]
    text = f"Of {found['examples']:,} profiles: {', '.join(parts)}"
    return f"{text}, {found['empty']} without text." if found["empty"] else f"{text}."


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage took: wall-clock seconds, calls of a language model and tokens where there were any."""

    name: str
    seconds: float
    calls: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One row of the training log; `metric` is the validation metric where it was computed."""

    step: int
    loss: float | None = None
    metric: float | None = None


@dataclass(frozen=True, slots=True)
class ExampleBlock:
    """A block of a history: the texts of its items, and the summary written after it (may be empty)."""

    items: tuple[str, ...]
    summary: str = ""


@dataclass(frozen=True, slots=True)
class ExampleCandidate:
    """A ranked candidate: text, score in [0, 1], label 1 if it was chosen."""

    text: str
    score: float
    label: int

    @property
    def share(self) -> str:
        """The score as the length of its bar."""
        return f"{min(max(self.score, 0.0), 1.0):.3f}"


@dataclass(frozen=True, slots=True)
class ExampleUser:
    """A user shown in full: history in blocks, profile, recent items, candidates best first."""

    user_id: str
    blocks: tuple[ExampleBlock, ...] = ()
    profile: str = ""
    recent_items: tuple[str, ...] = ()
    candidates: tuple[ExampleCandidate, ...] = ()

    @property
    def n_items(self) -> int:
        """Items in all blocks."""
        return sum(len(block.items) for block in self.blocks)


@dataclass(frozen=True, slots=True)
class ReportContext:
    """All that a report tells beside the metrics; what is empty is left out.

    Attributes:
        title: Names the run.
        command: The exact commands that made this run, one a line.
        config_yaml: The resolved configuration.
        environment: Versions, machine, commit, seed.
        stages: In order of execution.
        summaries: Statistics of the summaries: method, users, calls, tokens, failures.
        training: The training log, by step.
        training_metric: Name of `TrainingRow.metric`.
        users: A few users in full.
        notes: Warnings and limits of this run, one sentence each.
    """

    title: str
    command: str
    config_yaml: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[StageCost] = ()
    summaries: Mapping[str, Any] = field(default_factory=dict)
    training: Sequence[TrainingRow] = ()
    training_metric: str = "validation metric"
    users: Sequence[ExampleUser] = ()
    notes: Sequence[str] = ()
