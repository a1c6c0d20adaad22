"""Opens what a service needs from a run folder, or from a model folder and a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trsr.data.tables import Dataset
from trsr.llm.engines import EngineConfig
from trsr.serve.catalogue import Catalogue
from trsr.serve.recommender import Recommender
from trsr.serve.retrieval import Retriever
from trsr.summarize.run import Summariser


@dataclass(frozen=True)
class Serving:
    """The parts of a service, over one catalogue: an item put into it is known to all of them."""

    recommender: Recommender
    retriever: Retriever
    summariser: Summariser
    engine: EngineConfig
    """Writes the profiles; not started."""
    dataset: Dataset
    catalogue: Catalogue


def open_for_serving(
    model_or_run: Path, data: Path | None = None, *, cache_bytes: int = 2 * 1024**3
) -> Serving:
    """Load the model, its prompt and its dataset.

    Args:
        model_or_run: A run folder, or a model folder (then profiles are made with the default settings).
        data: The dataset folder; needed with a model folder, else the run's own is the default.
        cache_bytes: Most memory for prefixes read before.
    """
    raise NotImplementedError
