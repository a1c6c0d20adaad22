"""Popularity in which an old interaction counts less than a new one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.errors import ConfigError
from trsr.rank.base import ExampleScores, without_llm
from trsr.types import RankingExample

_DAY = 86_400_000_000  # microseconds


class DecayedPopularityRanker:
    """Scores a candidate by log2 of the sum over its interactions of 0.5 ** (age / half-life).

    The age is counted from the example's own time, and only interactions strictly before it count; an example
    without a time takes all that may be learned from. An item without such an interaction lies just below one
    whose only interaction is the oldest of all.

    Args:
        fit_events: Columns `user_id`, `item_id` and `timestamp` (others are ignored): what may be learned
            from, see `trsr.data.fitting`. Events without a time are left out and counted.
        half_life_days: Days after which an interaction counts half, above 0.

    Raises:
        ConfigError: no event has a time, or the half-life is not above 0.
    """

    name = "popularity_decayed"
    probabilistic = False

    def __init__(self, fit_events: pl.DataFrame, *, half_life_days: float) -> None:
        if not half_life_days > 0:
            raise ConfigError(f"Found half_life_days {half_life_days}; expected a number of days above 0.")
        timed = fit_events.drop_nulls("timestamp").sort("timestamp")
        if timed.is_empty():
            raise ConfigError(
                "The ranker popularity_decayed needs to know when items were met, and no event that it may "
                "learn from has a time; take it out of `rankers`, or use `popularity`."
            )
        self._half_life = half_life_days
        self._n_without_time = len(fit_events) - len(timed)
        days = timed.select("item_id", days=pl.col("timestamp").dt.epoch("us") / _DAY)
        self._first, self._last = float(days["days"][0]), float(days["days"][-1])
        by_item = days.group_by("item_id", maintain_order=True).agg("days")
        self._days = {item: np.asarray(when) for item, when in by_item.iter_rows()}

    def facts(self, examples: Sequence[RankingExample]) -> dict[str, int]:
        """Count the events that were left out, and the candidates that nobody had met."""
        unmet = sum(not len(self._before(item, e)) for e in examples for item in e.candidates)
        return {"events_without_time": self._n_without_time, "unmet_candidates": unmet}

    def rank(self, examples: Sequence[RankingExample]) -> Iterator[ExampleScores]:
        """Yield one answer an example."""
        for example in examples:
            yield without_llm(example, [self._margin(item, example) for item in example.candidates])

    def _before(self, item: str, example: RankingExample) -> npt.NDArray[np.float64]:
        """Return when an item was met before the example, in days, oldest first."""
        when = self._days.get(item, np.zeros(0))
        if example.timestamp is None:
            return when
        return when[: np.searchsorted(when, _in_days(example.timestamp), side="left")]

    def _margin(self, item: str, example: RankingExample) -> float:
        now = self._last if example.timestamp is None else _in_days(example.timestamp)
        when = self._before(item, example)
        if not len(when):
            return (min(self._first, now) - now) / self._half_life - 1
        halvings = (when - now) / self._half_life
        newest = halvings[-1]  # taken out of the sum, which would be 0 in float64 after a thousand half-lives
        return float(newest + np.log2(np.exp2(halvings - newest).sum()))


def _in_days(time: datetime) -> float:
    return time.timestamp() * 1_000_000 / _DAY
