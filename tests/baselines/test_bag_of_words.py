"""Words of chosen items raise a candidate, words of others lower it; the user plays no part."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from trsr.baselines import simple
from trsr.baselines.simple import BagOfWordsRanker, require_sklearn
from trsr.errors import DataError, MissingExtraError
from trsr.types import RankingExample

TEXTS = {
    "pots": "clay pots",
    "vases": "clay vases",
    "bowl": "clay bowl",
    "lights": "string lights",
    "lamp": "string lamp",
    "fairy": "string of fairy lights",
    "unheard": "xylophone",
}
SETTINGS: dict[str, Any] = {"C": 10.0, "max_ngram": 2, "min_df": 2}


def example(labels: dict[str, int], history: tuple[str, ...] = (), name: str = "e") -> RankingExample:
    return RankingExample(name, f"of {name}", history, tuple(labels), tuple(labels.values()))


TRAIN = [
    example({"pots": 1, "lights": 0, "lamp": 0}, name="a"),
    example({"lamp": 0, "vases": 1, "fairy": 0}, name="b"),
]


def fitted(train: list[RankingExample] = TRAIN, **changed: Any) -> BagOfWordsRanker:
    return BagOfWordsRanker(train, TEXTS.__getitem__, SETTINGS | changed)


def margins(ranker: BagOfWordsRanker, *candidates: str) -> npt.NDArray[np.float32]:
    (answer,) = ranker.rank([example(dict.fromkeys(candidates, 0))])
    return answer.margins


def test_words_of_chosen_items_raise_what_was_never_seen() -> None:
    bowl, fairy, unheard = margins(fitted(), "bowl", "fairy", "unheard")
    assert bowl > unheard > fairy


def test_margins_are_those_of_scikit_learn_on_the_training_rows() -> None:
    rows = [(TEXTS[c], label) for e in TRAIN for c, label in zip(e.candidates, e.labels, strict=True)]
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = LogisticRegression(C=3, max_iter=1000)
    model.fit(words.fit_transform([text for text, _ in rows]), [label for _, label in rows])
    expected = model.decision_function(words.transform([TEXTS["bowl"], TEXTS["lights"]]))
    np.testing.assert_allclose(margins(fitted(C=3.0), "bowl", "lights"), expected, rtol=1e-6)


@given(st.lists(st.sampled_from(sorted(TEXTS)), max_size=4), st.permutations(sorted(TEXTS)))
def test_neither_the_history_nor_the_company_of_a_candidate_counts(
    history: list[str], candidates: list[str]
) -> None:
    (answer,) = RANKER.rank([example(dict.fromkeys(candidates, 0), tuple(history))])
    assert dict(zip(candidates, answer.margins.tolist(), strict=True)) == EACH


RANKER = fitted()
EACH = dict(zip(sorted(TEXTS), margins(RANKER, *sorted(TEXTS)).tolist(), strict=True))


def test_candidates_without_a_known_word_are_counted_and_get_the_intercept() -> None:
    one = example({"unheard": 1, "bowl": 0, "lights": 0})
    assert fitted().facts([one, one]) == {"candidates_without_a_known_word": 2}
    rows = [label for e in TRAIN for label in e.labels]
    shut = fitted(C=1e-9)  # with no weights to speak of, the intercept is the log odds of the labels
    assert margins(shut, "unheard")[0] == pytest.approx(np.log(sum(rows) / (len(rows) - sum(rows))), abs=1e-4)


@pytest.mark.parametrize("train", [[], [example({"pots": 1, "vases": 1})], [example({"pots": 0})]])
def test_rows_of_one_kind_are_refused(train: list[RankingExample]) -> None:
    with pytest.raises(DataError, match="chosen and not chosen, and there are none of one kind"):
        fitted(train)


def test_texts_without_a_common_word_are_refused() -> None:
    with pytest.raises(DataError, match="no word that occurs 9 times; lower min_df"):
        fitted(min_df=9)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_sklearn()
    monkeypatch.setattr(simple, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"baselines"):
        require_sklearn()
