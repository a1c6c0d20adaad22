"""What a profile's text alone predicts: BM25 of the candidates against it, beside strangers' profiles.

A profile that speaks of its user ranks the target higher than the profiles of other users do; what these
reach shows what any text of this kind reaches, by naming what is popular. BM25 sees common words only.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from trsr.evaluate.metrics import EmptyTruthWarning, Floats, Metric, ranking_metric, tie_groups
from trsr.rank.baselines import Bm25Index, Bm25Ranker
from trsr.types import RankingExample

N_STRANGERS = 5


def predictive_values(
    examples: Sequence[RankingExample], profiles: Mapping[str, str], items: Mapping[str, str] | Bm25Index
) -> dict[str, Floats]:
    """Rank every example's candidates by the profile's words alone.

    Args:
        examples: Several of one user are allowed.
        profiles: Text by example id, without the words that all share; missing means empty: all tied.
        items: The text of each item of the catalogue, or an index of them.

    Returns:
        By name, shape (n_examples,), NaN where there is nothing to rank: `auc` and `mrr`, with the
        expectation over ties, and `auc_gain`, the auc minus its mean over the profiles of `N_STRANGERS` other
        users (fewer if there are fewer), which are those next in order of user id; in [-1, 1].

    Raises:
        MissingExtraError: bm25s is not installed.
    """
    asked = list(examples)
    texts = {example.example_id: profiles.get(example.example_id, "") for example in examples}
    foreign = _strangers(examples)
    for place, strangers in enumerate(foreign):
        for example, stranger in zip(examples, strangers, strict=True):
            name = f"{example.example_id}\n{place}"
            asked.append(replace(example, example_id=name))
            texts[name] = profiles.get(stranger, "")
    ranker = Bm25Ranker(items, profiles=texts, n_recent=0)
    margins = np.asarray([m for answer in ranker.rank(asked) for m in answer.margins], dtype=np.float32)
    labels = np.asarray([label for example in asked for label in example.labels], dtype=np.int64)
    groups = tie_groups(margins, labels, np.cumsum([0, *(len(example.candidates) for example in asked)]))
    with warnings.catch_warnings():  # an example without truth is NaN, and said in the counts
        warnings.simplefilter("ignore", EmptyTruthWarning)
        auc, mrr = (ranking_metric(Metric(family), groups) for family in ("auc", "mrr"))
    n = len(examples)
    gain = np.full(n, np.nan)
    if foreign:
        gain = auc[:n] - auc[n:].reshape(len(foreign), n).mean(axis=0)
    return {"auc": auc[:n], "mrr": mrr[:n], "auc_gain": gain}


def _strangers(examples: Sequence[RankingExample]) -> list[list[str]]:
    """Return lists of example ids, each with one of another user for every example."""
    first: dict[str, str] = {}
    for example in sorted(examples, key=lambda e: (e.user_id, e.example_id)):
        first.setdefault(example.user_id, example.example_id)
    ids, place = list(first.values()), {user: i for i, user in enumerate(first)}
    return [
        [ids[(place[example.user_id] + shift) % len(ids)] for example in examples]
        for shift in range(1, min(N_STRANGERS, len(ids) - 1) + 1)
    ]
