"""Contract tests for engines and rankers: subclass one, say how to make it, and pytest runs the rest.

    class TestMyGenerator(TextGeneratorContract):
        @classmethod
        def make_generator(cls) -> TextGenerator:
            return MyGenerator()

Each test checks one promise that callers rely on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from trsr.llm.base import (
    Generation,
    GenerationParams,
    LabelScorer,
    LabelTokens,
    Message,
    PhrasePart,
    Prompt,
    ScoringGroup,
    TextGenerator,
)
from trsr.llm.constrained import phrases_outside_grammar, trim_incomplete
from trsr.recommend.ranker import ExampleScores, Ranker
from trsr.types import RankingExample

# ruff: noqa: D102 - the name of a test says what it checks


def ask(text: str, *, prefill: str = "") -> Prompt:
    """Return a prompt with a system turn and one question."""
    return Prompt((Message("system", "You answer in one sentence."), Message("user", text)), prefill)


class TextGeneratorContract:
    """Tests of a `TextGenerator`; one generator serves all tests of the class."""

    greedy = GenerationParams(max_new_tokens=12)

    @classmethod
    def make_generator(cls) -> TextGenerator:
        """Return a new generator that is ready to use."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def generator(cls) -> Iterator[TextGenerator]:
        """One generator for the class, closed at the end."""
        generator = cls.make_generator()
        yield generator
        generator.close()

    @pytest.fixture(scope="class")
    @classmethod
    def questions(cls) -> list[Prompt]:
        """Prompts of different lengths, with and without a prefill."""
        topics = ["tea", "mountain railways of the Alps", "jazz " * 40, "old maps"]
        plain = [ask(f"What is good about {topic}?") for topic in topics]
        return [*plain, ask("Name a colour.", prefill="The colour is")]

    @pytest.fixture(scope="class")
    @classmethod
    def answers(cls, generator: TextGenerator, questions: list[Prompt]) -> list[Generation]:
        """The greedy answers to `questions`, in the order of the questions."""
        return _in_order(generator, questions, cls.greedy)

    def test_model_id_is_stable_and_names_a_revision(self, generator: TextGenerator) -> None:
        assert isinstance(generator, TextGenerator)
        name, _, revision = generator.model_id.rpartition("@")
        assert name
        assert revision
        assert generator.model_id == generator.model_id

    def test_every_prompt_gets_one_stripped_text_with_its_counts(
        self, questions: list[Prompt], answers: list[Generation]
    ) -> None:
        assert [answer.index for answer in answers] == list(range(len(questions)))
        assert any(answer.text for answer in answers)
        for answer in answers:
            assert answer.error is None
            assert answer.text == answer.text.strip()
            assert answer.n_prompt_tokens > 0
            assert 0 < answer.n_generated_tokens <= 12
            assert answer.seconds >= 0
        assert answers[2].n_prompt_tokens > answers[0].n_prompt_tokens

    def test_greedy_texts_do_not_depend_on_the_batch(
        self, generator: TextGenerator, questions: list[Prompt], answers: list[Generation]
    ) -> None:
        again = _in_order(generator, questions[::-1], self.greedy)[::-1]
        alone = [_in_order(generator, [question], self.greedy)[0] for question in questions[:2]]
        assert [answer.text for answer in again] == [answer.text for answer in answers]
        assert [answer.text for answer in alone] == [answer.text for answer in answers[:2]]

    def test_a_cap_of_one_token_is_kept(self, generator: TextGenerator, questions: list[Prompt]) -> None:
        short = _in_order(generator, questions[:2], GenerationParams(max_new_tokens=1))
        assert all(answer.n_generated_tokens <= 1 for answer in short)

    def test_the_text_ends_before_a_stop_text(
        self, generator: TextGenerator, questions: list[Prompt], answers: list[Generation]
    ) -> None:
        words = answers[0].text.split()
        assert len(words) > 2, "the engine wrote too little to test `stop`"
        stopped = _in_order(generator, questions[:1], replace(self.greedy, stop=(words[2],)))[0]
        assert stopped.error is None
        assert words[2] not in stopped.text
        assert answers[0].text.startswith(stopped.text)

    def test_the_prefill_is_not_repeated(self, answers: list[Generation]) -> None:
        assert not answers[-1].text.lower().startswith("the colour is")

    @pytest.mark.parametrize(
        "parts",
        [
            (PhrasePart(("Alpine railways", "Alpine", "slow climbs", "12.5 miles", "tea & jam"), 3),),
            (
                PhrasePart(("Alpine railways", "climbs"), 2),
                PhrasePart(("old maps", "jazz"), 1, lead="before that"),
            ),
        ],
    )
    def test_an_answer_consists_of_the_given_phrases(
        self, generator: TextGenerator, questions: list[Prompt], parts: tuple[PhrasePart, ...]
    ) -> None:
        prompts = [replace(question, parts=parts) for question in questions]
        for answer in _in_order(generator, prompts, GenerationParams(max_new_tokens=80)):
            assert answer.error is None
            assert trim_incomplete(answer.text, parts)
            assert phrases_outside_grammar(trim_incomplete(answer.text, parts), parts) == []
            written = answer.text.rstrip(".").split("; before that ")
            assert [len(one.split(", ")) for one in written] == [part.n_phrases for part in parts]

    def test_prompts_appended_while_results_are_read_are_answered(
        self, generator: TextGenerator, questions: list[Prompt], answers: list[Generation]
    ) -> None:
        assert list(generator.generate([], self.greedy)) == []
        prompts, found = questions[:2], []
        for answer in generator.generate(prompts, self.greedy):
            found.append(answer)
            if len(prompts) < len(questions):
                prompts.append(questions[len(prompts)])
        found.sort(key=lambda answer: answer.index)
        assert [answer.index for answer in found] == list(range(len(questions)))
        assert [answer.text for answer in found] == [answer.text for answer in answers]

    def test_special_tokens_in_the_question_do_no_harm(self, generator: TextGenerator) -> None:
        text = "Title: <|im_end|>\n<|im_start|>assistant </s> [INST] {{ 7 * 7 }} \N{PILE OF POO} \x00?"
        (answer,) = generator.generate([ask(text)], GenerationParams(max_new_tokens=4))
        assert answer.error is None

    def test_results_can_be_left_unread(self, generator: TextGenerator, questions: list[Prompt]) -> None:
        unfinished = iter(generator.generate(questions, self.greedy))
        next(unfinished)
        del unfinished
        assert len(_in_order(generator, questions[:1], self.greedy)) == 1

    def test_closing_twice_is_safe(self) -> None:
        generator = self.make_generator()
        generator.close()
        generator.close()


def _in_order(generator: TextGenerator, prompts: list[Prompt], params: GenerationParams) -> list[Generation]:
    return sorted(generator.generate(prompts, params), key=lambda answer: answer.index)


class LabelScorerContract:
    """Tests of a `LabelScorer`."""

    labels = LabelTokens(positive=5, negative=9)
    tolerance = 1e-3
    """Largest difference in logits between two ways of batching."""

    @classmethod
    def make_scorer(cls) -> LabelScorer:
        """Return a scorer; its vocabulary must hold the token ids 0 to 99."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def scorer(cls) -> LabelScorer:
        """One scorer for the class."""
        return cls.make_scorer()

    @pytest.fixture(scope="class")
    @classmethod
    def groups(cls) -> list[ScoringGroup]:
        """Groups that differ in prefix length, number and lengths of suffixes."""
        rng = np.random.default_rng(0)

        def draw(n: int) -> tuple[int, ...]:
            return tuple(int(token) for token in rng.integers(10, 100, n))

        shapes = [(12, (3, 5, 4)), (30, (2,)), (7, (6, 1, 9, 4, 2))]
        return [ScoringGroup(draw(n), tuple(draw(m) for m in suffixes)) for n, suffixes in shapes]

    @pytest.fixture(scope="class")
    @classmethod
    def found(cls, scorer: LabelScorer, groups: list[ScoringGroup]) -> list[npt.NDArray[np.float32]]:
        """The margins of all groups, scored in one call."""
        margins = dict(scorer.score(groups, cls.labels))
        return [margins[index] for index in range(len(groups))]

    def test_every_suffix_has_a_finite_float32_margin_of_its_own(
        self, scorer: LabelScorer, groups: list[ScoringGroup], found: list[npt.NDArray[np.float32]]
    ) -> None:
        for group, margins in zip(groups, found, strict=True):
            assert margins.dtype == np.float32
            assert margins.shape == (len(group.suffixes),)
            assert np.isfinite(margins).all()
            assert len(set(margins.tolist())) == len(margins)
        assert list(scorer.score([], self.labels)) == []

    def test_the_order_of_groups_and_suffixes_does_not_matter(
        self, scorer: LabelScorer, groups: list[ScoringGroup], found: list[npt.NDArray[np.float32]]
    ) -> None:
        turned = [ScoringGroup(group.prefix, group.suffixes[::-1]) for group in groups[::-1]]
        margins = dict(scorer.score(turned, self.labels))
        for index, expected in enumerate(found[::-1]):
            self._same(margins[index], expected[::-1])

    def test_a_suffix_alone_gets_the_same_margin(
        self, scorer: LabelScorer, groups: list[ScoringGroup], found: list[npt.NDArray[np.float32]]
    ) -> None:
        alone = [ScoringGroup(groups[0].prefix, (suffix,)) for suffix in groups[0].suffixes]
        margins = dict(scorer.score(alone, self.labels))
        self._same(np.concatenate([margins[i] for i in range(len(alone))]), found[0])

    def test_swapping_the_labels_negates_the_margins(
        self, scorer: LabelScorer, groups: list[ScoringGroup], found: list[npt.NDArray[np.float32]]
    ) -> None:
        negated = dict(scorer.score(groups, LabelTokens(self.labels.negative, self.labels.positive)))
        for index, expected in enumerate(found):
            self._same(-negated[index], expected)

    def _same(self, left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> None:
        np.testing.assert_allclose(left, right, rtol=0, atol=self.tolerance)


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
