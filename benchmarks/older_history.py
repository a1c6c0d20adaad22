"""Measure the gain of a ranker by the history before the recent items; print one JSON object.

python benchmarks/older_history.py out/mind_recurrent/data --recent 3

A profile replaces the older items, which do not fit the prompt. A ranker that reads these items themselves,
as words, topics and categories, shows the possible gain; boosted trees learn how much of it to use. The same
users, candidates and trees are used with and without the older items.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer

from trsr.data.dataset import Dataset
from trsr.evaluation.metrics import Metric, ranking_metric, tie_groups
from trsr.evaluation.statistics import bootstrap_columns
from trsr.splitting.negatives import NegativesConfig
from trsr.splitting.sampled import SampledProtocol
from trsr.splitting.split import Split, build_examples
from trsr.summarize.counted import field_values
from trsr.types import RankingExample

Floats = npt.NDArray[np.float64]
METRICS = (Metric("recall", 3), Metric("mrr", 10), Metric("auc"))
N_TOPICS = 128


class ItemViews:
    """The catalogue as words, topics and categories, and how often each item was chosen in training."""

    def __init__(self, dataset: Dataset, splits: Split) -> None:
        catalogue = dataset.catalogue()
        self.place = {item_id: place for place, item_id in enumerate(catalogue)}
        texts = [" ".join(item.fields.values()) for item in catalogue.values()]
        self.words = TfidfVectorizer(min_df=2, sublinear_tf=True, stop_words="english").fit_transform(texts)
        topics = TruncatedSVD(N_TOPICS, random_state=0).fit_transform(self.words)
        self.topics = topics / (np.linalg.norm(topics, axis=1, keepdims=True) + 1e-9)
        fields = tuple(dataset.info.category_fields)
        self.categories = [set(field_values(item, fields)) for item in catalogue.values()]
        self.popularity = np.zeros(len(self.place))
        for item_id in splits.training_events["item_id"]:
            self.popularity[self.place[item_id]] += 1

    def likeness(self, items: list[int], candidates: list[int]) -> Floats:
        """Return how candidates resemble some items, on average and at best: (n_candidates, 6)."""
        if not items:
            return np.zeros((len(candidates), 6))
        words = (self.words[candidates] @ self.words[items].T).toarray()
        topics = self.topics[candidates] @ self.topics[items].T
        shared = np.array(
            [
                [
                    len(self.categories[c] & self.categories[i]) / max(1, len(self.categories[c]))
                    for i in items
                ]
                for c in candidates
            ]
        )
        return np.hstack(
            [f(x, axis=1, keepdims=True) for x in (words, topics, shared) for f in (np.mean, np.max)]
        )

    def features(self, example: RankingExample, n_recent: int, *, trained: bool) -> Floats:
        """Return popularity, likeness to the recent and to the older items: (n_candidates, 13).

        A training example's own choice is not counted as popularity: nothing else would be learned.
        """
        candidates = [self.place[c] for c in example.candidates]
        history = [self.place[i] for i in example.history]
        cut = max(0, len(history) - n_recent)
        popularity = self.popularity[candidates] - (np.asarray(example.labels) if trained else 0)
        return np.hstack(
            [
                np.log1p(np.maximum(popularity, 0))[:, None],
                self.likeness(history[cut:], candidates),
                self.likeness(history[:cut], candidates),
            ]
        )


COLUMNS = {
    "recent": range(1, 7),
    "recent + older": range(1, 13),
    "popularity + recent": range(7),
    "popularity + recent + older": range(13),
}


def measure(dataset: Dataset, protocol: SampledProtocol, n_recent: int, seed: int) -> dict[str, Any]:
    """Fit and run the four rankers; return their metrics, and the gain by the older items."""
    splits = build_examples(dataset, protocol, seed)
    views = ItemViews(dataset, splits)
    train = [views.features(e, n_recent, trained=True) for e in splits.train]
    test = [views.features(e, n_recent, trained=False) for e in splits.test]
    learned = np.concatenate([e.labels for e in splits.train])
    labels = np.concatenate([e.labels for e in splits.test])
    offsets = np.cumsum([0, *(len(e.labels) for e in splits.test)])
    values = {}
    for name, columns in COLUMNS.items():
        trees = HistGradientBoostingClassifier(
            max_iter=150, learning_rate=0.06, max_leaf_nodes=15, random_state=0
        )
        trees.fit(np.concatenate(train)[:, columns], learned)
        margins = trees.decision_function(np.concatenate(test)[:, columns])
        groups = tie_groups(margins, labels, offsets)
        values[name] = np.stack([ranking_metric(metric, groups) for metric in METRICS], axis=1)
    users = [e.user_id for e in splits.test]
    added = {
        without: values[f"{without} + older"] - values[without]
        for without in ("recent", "popularity + recent")
    }
    return {
        "rankers": {name: _with_intervals(table, users, seed) for name, table in values.items()},
        "older_items_add_to": {name: _with_intervals(table, users, seed) for name, table in added.items()},
        "n_train": len(splits.train),
        "n_test": len(splits.test),
        "mean_history": round(float(np.mean([len(e.history) for e in splits.test])), 1),
    }


def _with_intervals(table: Floats, users: list[str], seed: int) -> dict[str, Any]:
    return {
        str(metric): {"value": round(i.value, 4), "ci95": [round(i.low, 4), round(i.high, 4)]}
        for metric, i in zip(METRICS, bootstrap_columns(table, users, rng=seed), strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a dataset folder")
    parser.add_argument("--recent", type=int, default=3)
    parser.add_argument("--min-history", type=int, default=10)
    parser.add_argument("--max-history", type=int, default=25)
    parser.add_argument("--truncate", action="store_true", help="keep users with longer histories, cut")
    parser.add_argument("--test-users", type=int, default=500)
    parser.add_argument("--negatives", default="uniform", help="uniform, popularity, same-category, targets")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    protocol = SampledProtocol(
        min_history=given.min_history,
        max_history=given.max_history,
        truncate=given.truncate,
        n_valid=0,
        n_test=given.test_users,
        negatives=NegativesConfig(kind=given.negatives, n_train=20, n_test=20),
    )
    dataset = Dataset.open(given.data)
    result = {
        "benchmark": "older_history",
        "dataset": dataset.info.name,
        "protocol": protocol.model_dump(mode="json"),
        "n_recent": given.recent,
        "seed": given.seed,
        **measure(dataset, protocol, given.recent, given.seed),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
