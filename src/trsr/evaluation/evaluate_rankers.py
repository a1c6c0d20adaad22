"""`evaluate`: rankers on the same examples, with confidence intervals and paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from trsr.errors import ConfigError
from trsr.evaluation.evaluate_scores import evaluate_scores
from trsr.recommend.ranker import Ranker, score_table
from trsr.splitting.split import split_of
from trsr.types import RankingExample


@dataclass(frozen=True)
class Evaluation:
    """The results of rankers on the same examples.

    Attributes:
        scores: One row per ranker, example and candidate.
        metrics: The content of a run's `metrics.json`: values, intervals, comparisons.
    """

    scores: pl.DataFrame
    metrics: dict[str, Any]

    def to_frame(self) -> pl.DataFrame:
        """Return one row per ranker, in the order given, with the value of each metric."""
        table = self.metrics["rankers"]
        names = list(dict.fromkeys(metric for row in table.values() for metric in row))
        rows = [
            {"ranker": ranker, **{name: table[ranker].get(name, {}).get("value") for name in names}}
            for ranker in self.scores["ranker"].unique(maintain_order=True)
        ]
        return pl.DataFrame(rows)

    def intervals(self) -> pl.DataFrame:
        """Return one row per ranker and metric: its value and the 95 % interval over users, low and high."""
        rows = [
            (ranker, metric, entry["value"], *entry["ci95"])
            for ranker, table in self.metrics["rankers"].items()
            for metric, entry in table.items()
        ]
        return pl.DataFrame(rows, schema=["ranker", "metric", "value", "low", "high"], orient="row")

    def __repr__(self) -> str:
        return str(self.to_frame())


def evaluate(
    rankers: Sequence[Ranker],
    examples: Sequence[RankingExample],
    *,
    ks: Sequence[int] = (3, 5, 10),
    seed: int = 0,
) -> Evaluation:
    """Rank the same examples with several rankers and compare them.

    A ranker that has a method `fit(split)` is fitted first, on what the split allows it to learn from.

    Args:
        rankers: Recommenders, baselines or rankers of one's own, each with a name of its own.
        examples: Mostly `split.test`.
        ks: Cut-offs of recall, mrr and ndcg.
        seed: Of the bootstrap.

    Raises:
        ConfigError: two rankers have the same name.
        DataError: `examples` is a plain list, which has no split, or a ranker's scores are not finite.
    """
    names = [ranker.name for ranker in rankers]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"Two rankers are called {min(repeated)!r}; give each a `name` of its own.")
    split, frames = split_of(examples), []
    for ranker in rankers:
        if fit := getattr(ranker, "fit", None):
            fit(split)
        frames.append(score_table(ranker, examples))
    scores = pl.concat(frames)
    metrics = evaluate_scores(
        scores,
        protocol=split.facts,
        ks=ks,
        seed=seed,
        probabilistic=[ranker.name for ranker in rankers if ranker.probabilistic],
    )
    return Evaluation(scores, metrics)
