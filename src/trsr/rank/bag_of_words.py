"""A logistic regression on the words of a candidate, learned from the rows that fine-tune the language model.

It knows nothing of the user. What the language model reaches beyond it, it owes to more than the words of
what is chosen these days; where it stays below, it has not learned those yet. By scikit-learn (Pedregosa et
al., "Scikit-learn: Machine learning in Python", JMLR 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from trsr.errors import DataError, MissingExtraError
from trsr.rank.base import ExampleScores, without_llm
from trsr.types import RankingExample


def require_sklearn() -> None:
    """Check that scikit-learn is there, without importing it.

    Raises:
        MissingExtraError: it is not.
    """
    if find_spec("sklearn") is None:
        raise MissingExtraError("scikit-learn", "baselines")


class BagOfWordsRanker:
    """Scores a candidate by the log odds that an item with these words is a chosen one.

    Features are TF-IDF of words and their runs (sublinear counts, rows of length 1). An item without a word
    that the training candidates have has the intercept as its margin.

    Args:
        examples: The training examples, with their candidates and labels.
        text: The text of an item id.
        settings: `C`, the inverse strength of the L2 penalty; `max_ngram`, the longest run of words;
            `min_df`, in how many training candidates a run has to occur.

    Raises:
        DataError: there is nothing to learn from: no examples, one kind of label, or no words.
    """

    name = "bag_of_words"
    probabilistic = False  # of training's candidates more are chosen than of a test's

    def __init__(
        self, examples: Sequence[RankingExample], text: Callable[[str], str], settings: dict[str, Any]
    ) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self._text = text
        self._words = TfidfVectorizer(
            ngram_range=(1, settings["max_ngram"]), min_df=settings["min_df"], sublinear_tf=True
        )
        labels = [label for example in examples for label in example.labels]
        if len(set(labels)) < 2:
            raise DataError(
                "bag_of_words learns from training candidates, chosen and not chosen, and there are none of"
                " one kind; set n_train of the protocol, or leave bag_of_words out."
            )
        try:
            rows = self._words.fit_transform(text(c) for example in examples for c in example.candidates)
        except ValueError as error:  # of scikit-learn, for an empty vocabulary
            raise DataError(
                f"The texts of the training candidates have no word that occurs {settings['min_df']} times;"
                " lower min_df of bag_of_words, or leave it out."
            ) from error
        self._model = LogisticRegression(C=settings["C"], max_iter=1000).fit(rows, labels)

    def facts(self, examples: Sequence[RankingExample]) -> dict[str, int]:
        """Count the candidates none of whose words it knows."""
        unknown = [self._rows(e.candidates).getnnz(axis=1) == 0 for e in examples]
        return {"candidates_without_a_known_word": int(sum(part.sum() for part in unknown))}

    def rank(self, examples: Sequence[RankingExample]) -> Iterator[ExampleScores]:
        """Yield one answer an example."""
        for example in examples:
            margins = self._model.decision_function(self._rows(example.candidates))
            yield without_llm(example, margins.astype(np.float32))

    def _rows(self, items: Sequence[str]) -> Any:
        return self._words.transform([self._text(item) for item in items])
