"""NeuMF, SASRec, GRU4Rec and BERT4Rec as rankers; the models and their training are cornac's.

- NeuMF: He et al., "Neural collaborative filtering", WWW 2017.
- SASRec: Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018.
- GRU4Rec: Hidasi et al., "Session-based recommendations with recurrent neural networks", ICLR 2016.
- BERT4Rec: Sun et al., "BERT4Rec: Sequential recommendation with bidirectional encoder representations from
  transformer", CIKM 2019; trained by guessing hidden items, as in the paper (cornac's class of that name
  guesses the last item of every beginning instead).

The models read item ids only, no texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.baselines.simple import ExampleRanker, require
from trsr.errors import DataError
from trsr.seeding import derive_seed
from trsr.types import RankingExample

SequentialName = Literal["sasrec", "gru4rec", "bert4rec"]


def _small_seed(seed: int, name: str) -> int:
    """Return the seed of a model, small enough for numpy's old generators."""
    return derive_seed(seed, "baseline", name) % 2**31


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seed torch and numpy globally within the block, and restore their state after it."""
    import torch

    state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


class _CornacRanker(ExampleRanker):
    """Ranks by the scores of a model.

    Unknown items rank below all others; for an unknown user or history the known ones tie.
    """

    def __init__(self, model: Any, dataset: Any, seed: int) -> None:
        self._model = model
        self._number: dict[str, int] = dict(dataset.iid_map)  # the place of each item in the scores
        with _own_randomness(seed):
            model.fit(dataset)

    def _scores(self, example: RankingExample) -> npt.NDArray[np.float64] | None:
        """Return the score of every item, shape (n_items,); None where nothing is known of the example."""
        raise NotImplementedError

    def _margins(self, example: RankingExample) -> npt.ArrayLike:
        scores = self._scores(example)
        if scores is None:
            scores = np.zeros(len(self._number))
        unknown = float(scores.min()) - 1
        return [scores[self._number[i]] if i in self._number else unknown for i in example.candidates]

    def facts(self, examples: Sequence[RankingExample]) -> dict[str, int]:
        """Count the candidates, and the chosen ones among them, that the model does not know."""
        ranked = [(i, label) for e in examples for i, label in zip(e.candidates, e.labels, strict=True)]
        return {
            "candidates": len(ranked),
            "unknown_candidates": sum(item not in self._number for item, _ in ranked),
            "unknown_targets": sum(bool(label) and item not in self._number for item, label in ranked),
        }


class NcfRanker(_CornacRanker):
    """Scores candidates for a user by NeuMF's probability of an interaction.

    The model knows a user by the training events, which end before the target.

    Args:
        training_events: Columns `user_id`, `item_id`: the events that may be learned from, see
            `Split.training_events`.
        settings: One point of the grid of `trsr.baselines.settings.NcfConfig`.
        seed: Of the run; the model's own is derived from it.

    Raises:
        DataError: there is no event to learn from.
        MissingExtraError: cornac or torch is not installed.
    """

    name = "ncf"

    def __init__(self, training_events: pl.DataFrame, settings: Mapping[str, Any], *, seed: int) -> None:
        require("cornac", "torch")
        from cornac.data import Dataset
        from cornac.models import NeuMF

        pairs = training_events.select("user_id", "item_id").unique().sort("user_id", "item_id")
        # Users of every item have no negatives.
        pairs = pairs.filter(pl.len().over("user_id") < pairs["item_id"].n_unique())
        if pairs.is_empty():
            raise DataError("There is no event that ncf may learn from; take it out of `rankers`.")
        seed = _small_seed(seed, "ncf")
        dataset = Dataset.from_uir([(user, item, 1.0) for user, item in pairs.iter_rows()], seed=seed)
        self._user: dict[str, int] = dict(dataset.uid_map)
        n = settings["n_factors"]
        model = NeuMF(
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
        super().__init__(model, dataset, seed)

    def _scores(self, example: RankingExample) -> npt.NDArray[np.float64] | None:
        user = self._user.get(example.user_id)
        return None if user is None else np.asarray(self._model.score(user))

    def facts(self, examples: Sequence[RankingExample]) -> dict[str, int]:
        """Count the items and users of some examples that the model does not know."""
        without = sum(e.user_id not in self._user for e in examples)
        return super().facts(examples) | {"examples_of_unknown_users": without}


class SequentialRanker(_CornacRanker):
    """Scores candidates as the next item after the history, by a sequence model.

    Args:
        name: Which model.
        training_events: Columns `user_id`, `item_id`, `position`: the events that may be learned from,
            see `Split.training_events`. Items that are alone in every sequence stay unknown.
        settings: One point of the grid of the model's settings (`trsr.baselines.settings`).
        seed: Of the run; the model's own is derived from it. GRU4Rec always starts from the same weights.
        device: As torch names it.

    Raises:
        DataError: no user has two events.
        MissingExtraError: cornac or torch is not installed.
    """

    def __init__(
        self,
        name: SequentialName,
        training_events: pl.DataFrame,
        settings: Mapping[str, Any],
        *,
        seed: int,
        device: str = "cpu",
    ) -> None:
        require("cornac", "torch")
        from cornac.data import SequentialDataset

        self.name = name
        self._max_len = int(settings["max_len"])
        sequences = training_sequences(training_events, self._max_len + 1)
        if not sequences:
            raise DataError(
                f"No user has two events that {name} may learn from; take it out of `rankers`, "
                "or use a larger data set."
            )
        seed = _small_seed(seed, name)
        rows = [(n, item, place) for n, items in enumerate(sequences) for place, item in enumerate(items)]
        dataset = SequentialDataset.build(rows, fmt="SIT", seed=seed)
        super().__init__(_make_model(name, settings, len(sequences), seed, device), dataset, seed)

    def _scores(self, example: RankingExample) -> npt.NDArray[np.float64] | None:
        history = self._known(example.history)
        return np.asarray(self._model.score(None, history)) if history else None

    def facts(self, examples: Sequence[RankingExample]) -> dict[str, int]:
        """Count the items and users of some examples that the model does not know."""
        without = sum(not self._known(e.history) for e in examples)
        return super().facts(examples) | {"examples_without_known_history": without}

    def _known(self, history: Sequence[str]) -> list[int]:
        return [self._number[item] for item in history if item in self._number][-self._max_len :]


def training_sequences(training_events: pl.DataFrame, max_len: int) -> list[list[str]]:
    """Return each user's items, oldest first, in pieces of at most `max_len` cut from the newest end.

    Pieces of a single item are left out: nothing follows in them.
    """
    by_user = (
        training_events.sort("user_id", "position").group_by("user_id", maintain_order=True).agg("item_id")
    )
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
        # Its sequences are read in parallel, and it fails when there are fewer than places.
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
    return TransformerRec(
        backbone="bert",
        objective="mlm",
        max_len=settings["max_len"] + 1,  # one place more than the history, for the item to be guessed
        mask_prob=settings["mask_prob"],
        **common,
    )
