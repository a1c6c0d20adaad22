"""What every ranker must hold; subclass it in the tests of a ranker of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from trsr.recommend.ranker import ExampleScores, Ranker
from trsr.types import RankingExample


# ruff: noqa: D102 - a test is named by the sentence it checks
class RankerContract:
    """Tests of a ranker; a subclass has fixtures `ranker` (fitted) and `examples` (a few, of known items)."""

    def test_it_has_a_name_and_says_whether_scores_are_probabilities(self, ranker: Ranker) -> None:
        assert isinstance(ranker.name, str)
        assert ranker.name
        assert isinstance(ranker.probabilistic, bool)

    def test_every_example_gets_one_finite_margin_per_candidate(
        self, ranker: Ranker, examples: Sequence[RankingExample]
    ) -> None:
        answers = list(ranker.rank(examples))
        assert sorted(a.example_id for a in answers) == sorted(e.example_id for e in examples)
        by_id = {answer.example_id: answer for answer in answers}
        for example in examples:
            margins = by_id[example.example_id].margins
            assert margins.shape == (len(example.candidates),)
            assert np.isfinite(margins).all()

    def test_answers_repeat(self, ranker: Ranker, examples: Sequence[RankingExample]) -> None:
        _assert_equal(ranker.rank(examples), ranker.rank(examples))

    def test_labels_are_not_read(self, ranker: Ranker, examples: Sequence[RankingExample]) -> None:
        hidden = [replace(example, labels=(0,) * len(example.labels)) for example in examples]
        _assert_equal(ranker.rank(examples), ranker.rank(hidden))

    def test_an_example_is_ranked_alone_as_among_others(
        self, ranker: Ranker, examples: Sequence[RankingExample]
    ) -> None:
        alone = [answer for example in examples for answer in ranker.rank([example])]
        _assert_equal(ranker.rank(examples), alone)


def _assert_equal(first: Iterable[ExampleScores], second: Iterable[ExampleScores]) -> None:
    found = {answer.example_id: answer.margins for answer in first}
    expected = {answer.example_id: answer.margins for answer in second}
    assert found.keys() == expected.keys()
    for example_id, margins in expected.items():
        np.testing.assert_allclose(found[example_id], margins, rtol=0, atol=1e-5)
