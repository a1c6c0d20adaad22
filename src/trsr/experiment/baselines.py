"""Fits the baselines that learn or have settings, and chooses their settings on the validation examples.

`baselines/NAME.json` of the run folder lists the trials and is written after each: a killed run repeats at
most one. Item embeddings are in `baselines/embeddings`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from trsr.baselines.settings import described
from trsr.baselines.simple import BagOfWordsRanker, require
from trsr.errors import DataError
from trsr.experiment.experiment import NO_CAP, Experiment
from trsr.llm import models
from trsr.recommend.ranker import Ranker
from trsr.train.dataset import recall_sum
from trsr.types import RankingExample

BaselineName = Literal[
    "popularity_decayed", "embedding", "bag_of_words", "ncf", "gru4rec", "bert4rec", "sasrec"
]
Point = dict[str, Any]
Made = Callable[[Point], "FittedRanker"]


class FittedRanker(Ranker, Protocol):
    """A ranker that counts the users and items it does not know."""

    def facts(self, examples: Sequence[RankingExample]) -> dict[str, int]:
        """Count the unknown users and items of the examples."""
        ...


def check_baselines(experiment: Experiment) -> None:
    """Check that the configured baselines are available, before any call is paid for.

    Raises:
        ConfigError: popularity_decayed is configured, and no event has a time.
        MissingExtraError: a library is not installed.
        ModelError: the embedding model is unknown.
    """
    wanted = set(experiment.config.rankers)
    if "embedding" in wanted:
        models.locate(experiment.config.baselines.embedding.model)
    if "bag_of_words" in wanted:
        require("sklearn")
    if wanted & {"ncf", "gru4rec", "bert4rec", "sasrec"}:
        require("cornac", "torch")
    if "popularity_decayed" in wanted:
        _maker(experiment, "popularity_decayed")(experiment.config.baselines.popularity_decayed.grid()[0])


def make_baseline(experiment: Experiment, name: BaselineName) -> FittedRanker:
    """Return the baseline called `name` with the settings that rank the validation examples best.

    The criterion is the one for the best checkpoint, the mean of R@3 + R@5 + R@10; of equal settings the
    first wins. Without validation examples the first setting is taken.

    Raises:
        DataError: no setting gave finite scores.
    """
    grid: list[Point] = getattr(experiment.config.baselines, name).grid()
    plain = [dict(json.loads(json.dumps(point))) for point in grid]  # as the file gives them back
    make, file = _maker(experiment, name), f"baselines/{name}.json"
    trials: list[Point] = experiment.folder.read_json(file, {"trials": []})["trials"]
    kept: dict[int, FittedRanker] = {}
    chosen: int | None = 0
    if len(grid) > 1 and experiment.splits.valid:
        for number, settings in enumerate(plain):
            if any(trial["settings"] == settings for trial in trials):
                continue
            started = time.perf_counter()
            ranker = make(grid[number])
            seconds = round(time.perf_counter() - started, 2)
            value = _judge(ranker, experiment.splits.valid)
            trials.append({"settings": settings, "recall_sum": value, "fit_seconds": seconds})
            experiment.folder.write_json(file, {"trials": trials})
            if _best(plain, trials) == number:
                kept = {number: ranker}
        chosen = _best(plain, trials)
    if chosen is None:
        raise DataError(f"No setting of {name} gave finite scores; lower its learning_rate in `baselines`.")
    ranker = kept.get(chosen) or make(grid[chosen])
    facts, tuned = ranker.facts(experiment.splits.test), described(grid[chosen], grid)
    result = {"chosen": plain[chosen], "tuned": tuned, "test": facts}
    experiment.folder.write_json(file, {**result, "trials": trials})
    return ranker


def _maker(experiment: Experiment, name: BaselineName) -> Made:
    """Return a function from settings to the ranker fitted with them; shared parts are built once."""
    if name == "embedding":
        return _embedding(experiment)
    if name == "bag_of_words":
        text = experiment.dataset.item_texts(experiment.config.prompt.fields, NO_CAP, None)
        return lambda point: BagOfWordsRanker(experiment.splits.train, text, point)
    events = experiment.splits.training_events
    seed = experiment.config.seed
    if name == "popularity_decayed":
        from trsr.baselines.simple import DecayedPopularityRanker

        return lambda point: DecayedPopularityRanker(events, **point)
    if name == "ncf":
        from trsr.baselines.neural import NcfRanker

        return lambda point: NcfRanker(events, point, seed=seed)
    from trsr.baselines.neural import SequentialRanker
    from trsr.llm.transformers import resolve_device

    device = str(resolve_device(experiment.config.recommender.device))
    return lambda point: SequentialRanker(name, events, point, seed=seed, device=device)


def _embedding(experiment: Experiment) -> Made:
    from trsr.baselines.embedding import EmbeddingRanker, TextEmbedder, cached_embeddings

    config = experiment.config.baselines.embedding
    text = experiment.dataset.item_texts(None, NO_CAP, None)
    vectors = cached_embeddings(
        {i: text(i) for i, item in experiment.dataset.catalogue().items() if item.fields},
        TextEmbedder(
            config.model,
            device=experiment.config.recommender.device,
            max_tokens=config.max_tokens,
            max_batch_tokens=config.max_batch_tokens,
        ),
        experiment.folder.path / "baselines" / "embeddings",
    )
    return lambda point: EmbeddingRanker(vectors, n_recent=point["n_recent"], centre=point["centre"])


def _judge(ranker: Ranker, examples: Sequence[RankingExample]) -> float | None:
    """Return the mean recall sum, None where a score is not finite."""
    labels = {example.example_id: example.labels for example in examples}
    values = []
    for answer in ranker.rank(examples):
        if not np.isfinite(answer.margins).all():
            return None
        values.append(recall_sum(answer.margins, labels[answer.example_id]))
    return float(np.mean(values))


def _best(plain: Sequence[Point], trials: Sequence[Point]) -> int | None:
    """Return the index of the settings with the largest value, the first of equals; None if there is none."""
    known = [
        (trial["recall_sum"], -plain.index(trial["settings"]))
        for trial in trials
        if trial["recall_sum"] is not None and trial["settings"] in plain
    ]
    return -max(known)[1] if known else None
