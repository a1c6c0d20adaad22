"""Neural collaborative filtering as a ranker; the model and its training are cornac's.

NeuMF of He et al., "Neural collaborative filtering", WWW 2017: a matrix factorisation and a multilayer
perceptron over user and item ids, joined in the last layer. It knows no order and no text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from trsr.errors import DataError
from trsr.rank.base import ExampleScores, without_llm
from trsr.rank.cornac_tools import (
    candidate_margins,
    own_randomness,
    require_cornac,
    small_seed,
    unknown_items,
)
from trsr.types import RankingExample


class NcfRanker:
    """Scores candidates for a user by NeuMF's probability that the two meet.

    A user is known by the events that may be learned from, so by the history before the target. For a user
    without any, all known candidates are equal.

    Args:
        fit_events: Columns `user_id`, `item_id`: what may be learned from, see `trsr.data.fitting`.
        settings: One point of the grid of `trsr.rank.settings.NcfConfig`.
        seed: Of the run; the model's own is derived from it.

    Raises:
        DataError: there is no event to learn from.
        MissingExtraError: cornac or torch is not installed.
    """

    name = "ncf"
    probabilistic = False

    def __init__(self, fit_events: pl.DataFrame, settings: Mapping[str, Any], *, seed: int) -> None:
        require_cornac()
        from cornac.data import Dataset
        from cornac.models import NeuMF

        pairs = _pairs(fit_events)
        seed = small_seed(seed, "ncf")
        dataset = Dataset.from_uir([(user, item, 1.0) for user, item in pairs.iter_rows()], seed=seed)
        self._user: dict[str, int] = dict(dataset.uid_map)
        self._number: dict[str, int] = dict(dataset.iid_map)
        n = settings["n_factors"]
        self._model = NeuMF(
            num_factors=n,
            layers=(8 * n, 4 * n, 2 * n, n),
            reg=settings["weight_decay"],
            num_epochs=settings["n_epochs"],
            batch_size=settings["batch_size"],
            num_neg=settings["n_negatives"],
            lr=settings["learning_rate"],
            backend="pytorch",
            verbose=False,
            seed=seed,
        )
        with own_randomness(seed):
            self._model.fit(dataset)

    def facts(self, examples: Sequence[RankingExample]) -> dict[str, int]:
        """Count what the model does not know of some examples."""
        without = sum(e.user_id not in self._user for e in examples)
        return unknown_items(self._number, examples) | {"examples_of_unknown_users": without}

    def rank(self, examples: Sequence[RankingExample]) -> Iterator[ExampleScores]:
        """Yield one answer an example; an item that was never met is below all others."""
        for example in examples:
            user = self._user.get(example.user_id)
            scores: Any = np.zeros(len(self._number)) if user is None else self._model.score(user)
            yield without_llm(example, candidate_margins(scores, self._number, example.candidates))


def _pairs(fit_events: pl.DataFrame) -> pl.DataFrame:
    """Return who met what, each pair once, without users who met everything: they have no negatives."""
    pairs = fit_events.select("user_id", "item_id").unique().sort("user_id", "item_id")
    pairs = pairs.filter(pl.len().over("user_id") < pairs["item_id"].n_unique())
    if pairs.is_empty():
        raise DataError("There is no event that ncf may learn from; take it out of `rankers`.")
    return pairs
