"""SASRec, GRU4Rec and BERT4Rec as rankers; the models and their training are cornac's.

- SASRec: Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018.
- GRU4Rec: Hidasi et al., "Session-based recommendations with recurrent neural networks", ICLR 2016.
- BERT4Rec: Sun et al., "BERT4Rec: Sequential recommendation with bidirectional encoder representations from
  transformer", CIKM 2019; trained by guessing hidden items, as in the paper (cornac's class of that name
  guesses the last item of every beginning instead).

They know items by their ids only. Which settings are tried is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

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

SequentialName = Literal["sasrec", "gru4rec", "bert4rec"]


class SequentialRanker:
    """Scores candidates by what a sequence model expects after the history.

    Where none of the history's items is known to the model, all known candidates are equal.

    Args:
        name: Which model.
        fit_events: Columns `user_id`, `item_id`, `position`: what may be learned from, see
            `trsr.data.fitting`. Items that stand alone in every sequence stay unknown.
        settings: One point of the grid of the model's settings (`trsr.rank.settings`).
        seed: Of the run; the model's own is derived from it. GRU4Rec always starts from the same weights.
        device: In torch's words.

    Raises:
        DataError: no user has two events.
        MissingExtraError: cornac or torch is not installed.
    """

    probabilistic = False

    def __init__(
        self,
        name: SequentialName,
        fit_events: pl.DataFrame,
        settings: Mapping[str, Any],
        *,
        seed: int,
        device: str = "cpu",
    ) -> None:
        require_cornac()
        from cornac.data import SequentialDataset

        self.name = name
        self._max_len = int(settings["max_len"])
        sequences = training_sequences(fit_events, self._max_len + 1)
        if not sequences:
            raise DataError(
                f"No user has two events that {name} may learn from; take it out of `rankers`, "
                "or use a larger data set."
            )
        seed = small_seed(seed, name)
        rows = [(n, item, place) for n, items in enumerate(sequences) for place, item in enumerate(items)]
        dataset = SequentialDataset.build(rows, fmt="SIT", seed=seed)
        self._number: dict[str, int] = dict(dataset.iid_map)
        self._model = _make_model(name, settings, len(sequences), seed, device)
        with own_randomness(seed):
            self._model.fit(dataset)

    def facts(self, examples: Sequence[RankingExample]) -> dict[str, int]:
        """Count what the model does not know of some examples."""
        without = sum(not self._known(e.history) for e in examples)
        return unknown_items(self._number, examples) | {"examples_without_known_history": without}

    def rank(self, examples: Sequence[RankingExample]) -> Iterator[ExampleScores]:
        """Yield one answer an example; an item that was never met is below all others."""
        for example in examples:
            history = self._known(example.history)
            scores = self._model.score(None, history) if history else np.zeros(len(self._number))
            yield without_llm(example, candidate_margins(scores, self._number, example.candidates))

    def _known(self, history: Sequence[str]) -> list[int]:
        return [self._number[item] for item in history if item in self._number][-self._max_len :]


def training_sequences(fit_events: pl.DataFrame, max_len: int) -> list[list[str]]:
    """Return each user's items, oldest first, in pieces of at most `max_len` cut from the newest end.

    Pieces of a single item are left out: nothing follows in them.
    """
    by_user = fit_events.sort("user_id", "position").group_by("user_id", maintain_order=True).agg("item_id")
    pieces = []
    for items in by_user["item_id"].to_list():
        for end in range(len(items), 1, -max_len):
            pieces.append(items[max(0, end - max_len) : end])
    return [piece for piece in pieces if len(piece) > 1]


def _make_model(
    name: SequentialName, settings: Mapping[str, Any], n_sequences: int, seed: int, device: str
) -> Any:
    from cornac.models import GRU4Rec, SASRec, TransformerRec

    common = {
        "n_epochs": settings["n_epochs"],
        "learning_rate": settings["learning_rate"],
        "n_sample": settings["n_negatives"],
        "device": device,
        "seed": seed,
    }
    if name == "gru4rec":
        # Its sequences are read side by side, and it fails when there are fewer than places.
        return GRU4Rec(
            layers=[settings["dim"]],
            dropout_p_embed=settings["dropout"],
            batch_size=min(settings["batch_size"], n_sequences),
            **common,
        )
    common |= {
        "embedding_dim": settings["dim"],
        "num_blocks": settings["n_layers"],
        "num_heads": settings["n_heads"],
        "dropout": settings["dropout"],
        "batch_size": settings["batch_size"],
    }
    if name == "sasrec":
        return SASRec(max_len=settings["max_len"], **common)
    # One place more than the history, for the item to be guessed.
    return TransformerRec(
        backbone="bert",
        objective="mlm",
        max_len=settings["max_len"] + 1,
        mask_prob=settings["mask_prob"],
        **common,
    )
