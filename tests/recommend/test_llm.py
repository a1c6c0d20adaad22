"""The language model ranker asks about each candidate and reports what its prompts cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from trsr.errors import BudgetError, CandidateTooLongError
from trsr.llm.base import LabelScorer, LabelTokens, ScoringGroup
from trsr.llm.fake import FakeScorer, FakeTokenizer
from trsr.recommend.catalogue import Catalogue
from trsr.recommend.prompt import PromptBuilder, PromptConfig, load_ranking_template
from trsr.recommend.recommender import Recommender
from trsr.types import RankingExample

EXAMPLES = [
    RankingExample(f"e{i}", f"u{i}", tuple(f"h{i}{j}" for j in range(4)), (f"x{i}", "y", "z"), (1, 0, 0))
    for i in range(5)
]
PROFILES = {f"e{i}": f"likes number {i} " + "very much " * 40 for i in range(4)}


def ranker(max_tokens: int = 2048, scorer: FakeScorer | None = None) -> Recommender:
    template = load_ranking_template("products", "products")
    config = PromptConfig(n_recent=2, max_tokens=max_tokens)
    builder = PromptBuilder(template, config, FakeTokenizer(), lambda item: f"Title: {item}")
    return asking(scorer or FakeScorer(), builder)


def asking(scorer: LabelScorer, builder: PromptBuilder) -> Recommender:
    items = Catalogue({}, ("title",))
    return Recommender(scorer, builder, LabelTokens(258, 259), items, name="llm", profiles=PROFILES)


def test_results_carry_their_example_whatever_order_the_scorer_answers_in() -> None:
    mixed = {answer.example_id: answer for answer in ranker().rank(EXAMPLES)}
    in_order = list(ranker(scorer=FakeScorer(shuffle=False)).rank(EXAMPLES))
    assert [answer.example_id for answer in in_order] == [example.example_id for example in EXAMPLES]
    for answer in in_order:
        np.testing.assert_array_equal(mixed[answer.example_id].margins, answer.margins)


def test_each_candidate_gets_a_margin_and_the_length_of_its_prompt() -> None:
    asked = ranker()
    for example, answer in zip(
        EXAMPLES, ranker(scorer=FakeScorer(shuffle=False)).rank(EXAMPLES), strict=True
    ):
        prompt = asked.builder.build(
            example.history, PROFILES.get(example.example_id, ""), example.candidates
        )
        assert answer.margins.shape == answer.n_prompt_tokens.shape == (3,)
        assert answer.n_prompt_tokens.tolist() == prompt.n_tokens()
        assert answer.n_cut_tokens.tolist() == [0, 0, 0]


def test_the_profile_enters_the_prompt_and_its_absence_does_no_harm() -> None:
    answers = {answer.example_id: answer for answer in ranker().rank(EXAMPLES)}
    assert answers["e0"].n_prompt_tokens[1] > answers["e4"].n_prompt_tokens[1] + 100


def test_what_was_cut_is_reported() -> None:
    answers = {answer.example_id: answer for answer in ranker(max_tokens=700).rank(EXAMPLES)}
    assert answers["e0"].n_cut_tokens.min() > 0
    assert answers["e4"].n_cut_tokens.max() == 0
    assert all(answer.n_prompt_tokens.max() <= 700 for answer in answers.values())


def test_a_prompt_that_cannot_fit_is_refused() -> None:
    with pytest.raises(BudgetError, match="max_tokens"):
        list(ranker(max_tokens=64).rank(EXAMPLES))


def test_an_item_that_cannot_fit_a_forward_pass_is_named() -> None:
    class TooSmall:
        def score(self, groups: Sequence[ScoringGroup], labels: LabelTokens) -> Iterator[Any]:
            del groups, labels
            raise CandidateTooLongError(2, 1, 900, 512)
            yield

    template = load_ranking_template("products", "products")
    builder = PromptBuilder(template, PromptConfig(), FakeTokenizer(), lambda item: f"Title: {item}")
    asked = asking(TooSmall(), builder)
    with pytest.raises(CandidateTooLongError, match="The item 'y' for the user 'u2' has 900 tokens"):
        list(asked.rank(EXAMPLES))


def test_what_caps_cut_from_the_items_shown_is_counted_for_each_candidate() -> None:
    asked = ranker(scorer=FakeScorer(shuffle=False))
    asked.n_field_cut = lambda item: {EXAMPLES[0].candidates[1]: 5, EXAMPLES[0].history[-1]: 7}.get(item, 0)
    answer = next(asked.rank(EXAMPLES[:1]))
    assert answer.n_cut_tokens.tolist() == [7, 12, 7]
