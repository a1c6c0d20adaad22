"""`open_run`: everything of a finished run, ready to use from Python."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from trsr.data.dataset import Dataset
from trsr.errors import RunMismatchError
from trsr.experiment.config import FolderData, RunConfig, load_config
from trsr.recommend.recommender import Recommender
from trsr.storage import read_json, read_table
from trsr.summarize.summarizer import Summarizer
from trsr.types import RankedItem


class Run:
    """A run folder, opened for reading.

    Attributes:
        path: The folder.
        config: Its configuration.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset."""
        data = self.config.data
        return Dataset.open(data.path if isinstance(data, FolderData) else self.path / "data")

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
        return dict(read_json(self.path / "metrics.json"))

    @property
    def scores(self) -> pl.DataFrame:
        """One row per ranker, test example and candidate."""
        return read_table(self.path / "scores.parquet")

    @property
    def profiles(self) -> pl.DataFrame:
        """One row per profile of an example."""
        return read_table(self.path / "profiles.parquet")

    @cached_property
    def summarizer(self) -> Summarizer:
        """The summarizer of the run; its texts are kept in the run's own store."""
        store = self.config.store or self.path / "summaries.sqlite"
        return Summarizer.of(self.config.summary, self.config.engine, store)

    @cached_property
    def recommender(self) -> Recommender:
        """The fine-tuned model, or the base model where none was trained."""
        return self.open_recommender(self.dataset)

    def open_recommender(self, dataset: Dataset, *, cache_bytes: int = 0) -> Recommender:
        """Open the run's model over the items of a dataset; raises what `Recommender.open` raises."""
        config = self.config
        return Recommender.open(
            config.recommender,
            self.path / "model" if config.train is not None else None,
            config.prompt,
            dataset,
            name=self.path.resolve().name,
            summarizer=self.summarizer,
            cache_bytes=cache_bytes,
        )

    def recommend(
        self, user_id: str, top_n: int = 10, *, filters: Mapping[str, str] | None = None
    ) -> list[RankedItem]:
        """Recommend items to a user of the run's dataset, best first; see `Recommender.recommend`."""
        return self.recommender.recommend(user_id, top_n, filters=filters)


def open_run(folder: str | Path) -> Run:
    """Open a run folder that `trsr run` or `trsr demo` wrote.

    Raises:
        RunMismatchError: it is no run folder.
        ConfigError: its configuration is wrong.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise RunMismatchError(f"{folder} is no run folder; make one with `trsr run` or `trsr demo`.")
    return Run(folder, load_config(folder / "config.yaml"))
