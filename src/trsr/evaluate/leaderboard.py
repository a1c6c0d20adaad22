"""Who beats whom, for readers: the best ranker of a metric against each other one, with verdicts in words.

Reads `metrics.json` only; the numbers come from `comparisons`, how they look from the report and the command
line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trsr.evaluate.metrics import PROBABILITY_METRICS, parse_metric
from trsr.evaluate.plots import Bar, slice_plot
from trsr.evaluate.rendering import NOTHING, number
from trsr.evaluate.statistics import holm

ALPHA = 0.05
NOTE = (
    "All rankers answered the same questions, so each pair is compared user by user. Corrected p: how often a"
    " difference this large would come up by luck between two equal rankers, made stricter because every pair"
    f" is tested (randomisation test, Holm); below {ALPHA} we say that one beats the other. Not told apart"
    " does not mean equal: more users may tell them apart. Effect size: the mean difference in standard"
    " deviations between users; 0.2 is small, 0.5 medium, 0.8 large (Cohen)."
)


@dataclass(frozen=True, slots=True)
class Rival:
    """A ranker beside the best one.

    Attributes:
        name: The ranker.
        value: Its mean.
        ahead: By how much the best one is ahead; positive is better for every metric.
        low: Lower end of the interval of `ahead`, None if unknown; `high` likewise.
        high: Upper end.
        p: Corrected p-value, None if unknown.
        effect_size: Of `ahead`, None if not defined.
    """

    name: str
    value: float | None
    ahead: float | None
    low: float | None
    high: float | None
    p: float | None
    effect_size: float | None

    @property
    def beaten(self) -> bool:
        """Whether the best ranker beats this one."""
        return self.p is not None and self.p < ALPHA

    @property
    def verdict(self) -> str:
        """Return that in words."""
        if self.value is None:
            return "no value"
        return "beaten" if self.beaten else "not told apart"


@dataclass(frozen=True, slots=True)
class Standing:
    """The rankers on one metric: the best one, and its rivals, best first."""

    metric: str
    best: str
    value: float | None
    rivals: tuple[Rival, ...]

    @property
    def sentence(self) -> str:
        """Say whom the best one beats and whom not."""
        if self.value is None:
            return f"No example has a value of {self.metric}, so no ranker is first: {_why(self.metric)}."
        beaten = [rival.name for rival in self.rivals if rival.beaten]
        others = [rival.name for rival in self.rivals if not rival.beaten]
        if not beaten:
            return f"{self.best} is first on {self.metric}, but is not told apart from {_list(others)}."
        whom = "every other ranker" if len(beaten) > 1 and not others else _list(beaten)
        text = f"{self.best} beats {whom} on {self.metric} (corrected p < {ALPHA})"
        return f"{text}; it is not told apart from {_list(others)}." if others else f"{text}."


def _why(metric: str) -> str:
    family = parse_metric(metric).family
    if family in PROBABILITY_METRICS:
        return "it needs a score for every candidate"
    whole = "a chosen and an unchosen candidate" if family == "auc" else "a chosen candidate"
    return f"it needs examples with {whole}"


def standings(metrics: Mapping[str, Any]) -> list[Standing]:
    """Return one standing a compared metric, from the content of `metrics.json`."""
    by_metric: dict[str, list[Mapping[str, Any]]] = {}
    for pair in metrics["comparisons"]:
        by_metric.setdefault(pair["metric"], []).append(pair)
    return [_standing(metric, pairs, metrics["rankers"]) for metric, pairs in by_metric.items()]


def _standing(metric: str, pairs: Sequence[Mapping[str, Any]], rankers: Mapping[str, Any]) -> Standing:
    sign = 1 if parse_metric(metric).higher_is_better else -1

    def place(name: str) -> tuple[float, str]:
        value = rankers[name][metric]["value"]
        return (float("inf") if value is None else -sign * value, name)

    best, *others = sorted({name for pair in pairs for name in (pair["a"], pair["b"])}, key=place)
    known = {(pair["a"], pair["b"]): pair for pair in pairs}
    rivals = []
    for name in others:
        pair = known.get((best, name))
        if pair is None:  # two means that are equal when rounded
            pair = turned(known[(name, best)])
        ends = [None if end is None else sign * end for end in pair["ci95"]]
        low, high = ends[::sign]
        rivals.append(
            Rival(
                name=name,
                value=rankers[name][metric]["value"],
                ahead=_times(sign, pair["difference"]),
                low=low,
                high=high,
                p=pair["p_holm"],
                effect_size=_times(sign, pair["effect_size"]),
            )
        )
    return Standing(metric, best, rankers[best][metric]["value"], tuple(rivals))


def turned(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Look at a pair from the other side."""
    low, high = pair["ci95"]
    return {
        **pair,
        "difference": _times(-1, pair["difference"]),
        "ci95": [_times(-1, high), _times(-1, low)],
        "effect_size": _times(-1, pair["effect_size"]),
    }


def _times(sign: int, value: float | None) -> float | None:
    return None if value is None else sign * value + 0.0


def p_value(p: float | None) -> str:
    """Write a p-value with three decimals; none is written as 0."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _list(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


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


CLAIMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("A written profile ranks better than no profile", "llm", ("llm_no_profile",)),
    ("A written profile ranks better than a counted one", "llm", ("llm_counted",)),
    ("Fine-tuning ranks better than the model as it came", "llm", ("llm_zero_shot",)),
    (
        "Recurrent summaries rank better than hierarchical ones",
        "llm",
        ("llm_hierarchical", "method=hierarchical"),
    ),
    ("Hierarchical summaries rank better than recurrent ones", "llm", ("llm_recurrent", "method=recurrent")),
    ("Recent items beside the profile rank better than the profile alone", "llm", ("n_recent=0",)),
    (
        "The number of recent items of the run ranks better than other numbers",
        "llm",
        ("n_recent=1", "n_recent=2", "n_recent=3", "n_recent=5", "n_recent=10"),
    ),
    (
        "The language model ranks better than the best sequential one",
        "llm",
        ("sasrec", "gru4rec", "bert4rec"),
    ),
    (
        "The language model ranks better than the candidates' words do, learned from the run's rows",
        "llm",
        ("bag_of_words",),
    ),
    ("The language model knows what all baselines together do not", "fusion_all", ("fusion_no_llm",)),
)
"""What is claimed, of which ranker, and against which: of several the one with the best mean. Those on ways
to summarise and on recent items look for a variant of that name, or a sweep's over that setting."""
CLAIMS_NOTE = (
    "What the paper claims or asks (LLM-TRSR, WWW 2024); counted profiles, words alone and all baselines"
    " together are our questions. Each is one comparison that no result has chosen, so p is corrected for"
    " the claims that a run can answer (Holm), not for all pairs of rankers; the best sequential model"
    " and the best other number of recent items are those of the run."
    f" Below {ALPHA} a claim holds, or its opposite. Not told apart: more users may tell."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run says of a claim.

    Attributes:
        claim: What is claimed, as a sentence.
        ranker: Of which ranker.
        other: The ranker it is held against.
        metric: On which metric.
        difference: Mean of `ranker` minus mean of `other`, None if unknown; `low` and `high` likewise.
        low: Lower end of the difference's 95 % interval.
        high: Upper end.
        p: Corrected for the claims of this run, None if unknown.
    """

    claim: str
    ranker: str
    other: str
    metric: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None

    @property
    def words(self) -> str:
        """Say whether the claim holds."""
        if self.is_open or self.difference is None:
            return "not told apart"
        return "holds" if self.difference > 0 else "the opposite holds"

    @property
    def is_open(self) -> bool:
        """Whether the run cannot tell."""
        return self.p is None or self.difference is None or self.p >= ALPHA

    @property
    def amount(self) -> str:
        """Write the difference with its interval."""
        if self.difference is None:
            return NOTHING
        ends = "" if self.low is None or self.high is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.difference:+.3f}{ends}"


def verdicts(metrics: Mapping[str, Any]) -> list[Verdict]:
    """Return what a run says of each claim that it can answer, from the content of `metrics.json`.

    The metric is the first of the compared ones that looks at the order of the best candidates (`mrr@10` by
    default), else the first.
    """
    compared = list(dict.fromkeys(pair["metric"] for pair in metrics["comparisons"]))
    metric = [*(name for name in compared if name.startswith(("mrr", "ndcg"))), *compared, ""][0]
    pairs = {(p["a"], p["b"]): p for p in metrics["comparisons"] if p["metric"] == metric}
    found = []
    for claim, ranker, others in CLAIMS:
        known = [o for o in others if (ranker, o) in pairs or (o, ranker) in pairs]
        if known:
            best = max(known, key=lambda name: metrics["rankers"][name][metric]["value"] or 0.0)
            found.append(_verdict(claim, ranker, best, pairs))
    return _corrected(found)


def claim_views(metrics: Mapping[str, Any]) -> list[dict[str, str | bool]]:
    """Return what the templates show: an entry a claim."""
    return [
        {
            "claim": one.claim,
            "pair": f"{one.ranker} - {one.other}",
            "metric": one.metric,
            "amount": one.amount,
            "p": p_value(one.p),
            "verdict": one.words,
            "open": one.is_open,
        }
        for one in verdicts(metrics)
    ]


def _verdict(
    claim: str, ranker: str, other: str, pairs: Mapping[tuple[str, str], Mapping[str, Any]]
) -> Verdict:
    pair = pairs[ranker, other] if (ranker, other) in pairs else turned(pairs[other, ranker])
    low, high = pair["ci95"]
    return Verdict(claim, ranker, other, pair["metric"], pair["difference"], low, high, pair["p"])


def _corrected(found: list[Verdict]) -> list[Verdict]:
    """Return the same with Holm's correction over all of them that have a p-value."""
    of = [one for one in found if one.p is not None]
    p = dict(zip((one.claim for one in of), holm(np.array([one.p for one in of])).tolist(), strict=True))
    return [replace(one, p=p.get(one.claim)) for one in found]
