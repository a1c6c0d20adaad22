"""The report's section on probabilities: can a score be believed, and did the calibration help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from trsr.errors import MissingExtraError
from trsr.evaluate.plots import Bar, reliability_plot
from trsr.evaluate.rendering import number

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
