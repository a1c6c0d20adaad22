"""Text-rich sequential recommendation with language models.

>>> import trsr
>>> data = trsr.Dataset.from_tables("items.csv", "events.csv")
>>> profiles = trsr.Summarizer("recurrent").summarize(data)
>>> split = trsr.split(data)
>>> model = trsr.fine_tune("smollm2-135m", split.train, profiles, out="my-model", valid=split.valid)
>>> model.recommend("u1", top_n=5)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trsr.baselines.simple import BM25, Popularity, Recency
    from trsr.data.dataset import Dataset
    from trsr.evaluation.evaluate_rankers import evaluate
    from trsr.experiment.experiment import open_run
    from trsr.recommend.recommender import Recommender
    from trsr.splitting.split import split
    from trsr.summarize.summarizer import Summarizer
    from trsr.train.fine_tune import fine_tune
    from trsr.types import Profile, RankedItem, RankingExample

_WHERE = {
    "BM25": "baselines.simple",
    "Dataset": "data.dataset",
    "Popularity": "baselines.simple",
    "Profile": "types",
    "RankedItem": "types",
    "RankingExample": "types",
    "Recency": "baselines.simple",
    "Recommender": "recommend.recommender",
    "Summarizer": "summarize.summarizer",
    "evaluate": "evaluation.evaluate_rankers",
    "fine_tune": "train.fine_tune",
    "open_run": "experiment.experiment",
    "split": "splitting.split",
}

__all__ = [
    "BM25",
    "Dataset",
    "Popularity",
    "Profile",
    "RankedItem",
    "RankingExample",
    "Recency",
    "Recommender",
    "Summarizer",
    "__version__",
    "evaluate",
    "fine_tune",
    "open_run",
    "split",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import trsr` itself loads nothing."""
    if name == "__version__":
        from importlib.metadata import version

        return version("trsr")
    if name not in _WHERE:
        raise AttributeError(f"module 'trsr' has no attribute {name!r}")
    value = getattr(import_module(f"trsr.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
