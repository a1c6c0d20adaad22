"""What each swept setting does, for readers: one table a setting, every value beside the run's own.

Reads `metrics.json` only: `sweep` says which ranker stands for which value, `own_ranker` which one is the
run's own model, `comparisons` how they differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trsr.evaluate.plots import Bar, slice_plot
from trsr.evaluate.rendering import number
from trsr.evaluate.standings import ALPHA, p_value, turned


@dataclass(frozen=True, slots=True)
class Effect:
    """A value of a setting on one metric.

    Attributes:
        value: The mean over examples, None if it does not exist; `low` and `high` are its interval.
        low: Lower end.
        high: Upper end.
        difference: To the run's own value of the setting; None for that value itself.
        p: Of the difference, corrected for all pairs of rankers; None if unknown.
    """

    value: float | None
    low: float | None
    high: float | None
    difference: float | None = None
    p: float | None = None


@dataclass(frozen=True, slots=True)
class Ablation:
    """A setting with the values tried; `effects[i][j]` is value i on metric j, `own` the run's own value."""

    setting: str
    metrics: tuple[str, ...]
    values: tuple[str, ...]
    own: str
    effects: tuple[tuple[Effect, ...], ...]


def ablations(metrics: Mapping[str, Any]) -> list[Ablation]:
    """Return one entry a swept setting, from the content of `metrics.json`; empty without a sweep."""
    compared = tuple(dict.fromkeys(pair["metric"] for pair in metrics["comparisons"]))
    pairs = {(pair["metric"], pair["a"], pair["b"]): pair for pair in metrics["comparisons"]}
    found = []
    for setting, rankers in metrics.get("sweep", {}).items():
        own = next(value for value, ranker in rankers.items() if ranker == metrics["own_ranker"])
        effects = [
            tuple(_effect(metrics["rankers"], pairs, metric, ranker, rankers[own]) for metric in compared)
            for ranker in rankers.values()
        ]
        found.append(Ablation(setting, compared, tuple(rankers), own, tuple(effects)))
    return found


def _effect(
    rankers: Mapping[str, Any],
    pairs: Mapping[tuple[str, str, str], Mapping[str, Any]],
    metric: str,
    ranker: str,
    own: str,
) -> Effect:
    entry = rankers[ranker][metric]
    low, high = entry["ci95"]
    if ranker == own:
        return Effect(entry["value"], low, high)
    if pair := pairs.get((metric, ranker, own)):
        return Effect(entry["value"], low, high, pair["difference"], pair["p_holm"])
    if pair := pairs.get((metric, own, ranker)):
        return Effect(entry["value"], low, high, turned(pair)["difference"], pair["p_holm"])
    return Effect(entry["value"], low, high)


def sentence(ablation: Ablation) -> str:
    """Say which values are told apart from the run's own on which metrics."""
    apart = [
        f"{value} on {metric} ({effect.difference:+.3f})"
        for value, effects in zip(ablation.values, ablation.effects, strict=True)
        for metric, effect in zip(ablation.metrics, effects, strict=True)
        if effect.difference is not None and effect.p is not None and effect.p < ALPHA
    ]
    if not apart:
        return f"No value is told apart from {ablation.own}, this run's own."
    return f"Told apart from {ablation.own}, this run's own: {', '.join(apart)}."


def ablation_views(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the templates show: one table a setting, with the plots of its metrics."""
    chance = metrics["protocol"]["chance"]
    return [
        {
            "setting": one.setting,
            "sentence": sentence(one),
            "metrics": one.metrics,
            "rows": [_row(one, place) for place in range(len(one.values))],
            "chance": [number(chance[metric]) for metric in one.metrics],
        }
        for one in ablations(metrics)
    ]


def ablation_plots(metrics: Mapping[str, Any]) -> list[str]:
    """Draw each metric over the values of each swept setting."""
    return [
        slice_plot(metric, one.values, {one.setting: _points(one, place)}, x_label=one.setting)
        for one in ablations(metrics)
        for place, metric in enumerate(one.metrics)
    ]


def _points(one: Ablation, metric: int) -> list[Bar]:
    effects = [row[metric] for row in one.effects]
    return [
        Bar(name, math.nan if effect.value is None else effect.value, effect.low, effect.high)
        for name, effect in zip(one.values, effects, strict=True)
    ]


def _row(one: Ablation, place: int) -> dict[str, Any]:
    name = one.values[place]
    cells = []
    for effect in one.effects[place]:
        notes = [] if effect.low is None else [f"{effect.low:.3f} to {effect.high:.3f}"]
        if effect.difference is not None:
            notes.append(f"{effect.difference:+.3f}, p {p_value(effect.p)}")
        apart = effect.p is not None and effect.p < ALPHA
        cells.append({"value": number(effect.value), "interval": "; ".join(notes), "apart": apart})
    return {"name": f"{name} (own)" if name == one.own else name, "cells": cells}
