"""Who beats whom, for readers: the best ranker of a metric against each other one, with verdicts in words.

Reads `metrics.json` only; the numbers come from `comparisons`, how they look from the report and the command
line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trsr.evaluate.metrics import PROBABILITY_METRICS, parse_metric

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
