"""Contract tests for engines: subclass one, say how to make the engine, and pytest runs the rest.

    class TestMyGenerator(TextGeneratorContract):
        @classmethod
        def make_generator(cls) -> TextGenerator:
            return MyGenerator()

Each test says one thing that the callers of `trsr.llm.base` rely on.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

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
from trsr.llm.constrained import strange_phrases, tidy
from trsr.summarize.store import PAGE, Choice, GroupStore, Row, Store, StoredCall
from trsr.summarize.stores import open_store, read_rows, write_rows

# ruff: noqa: D102 - a test is named by the sentence it checks


def call(key: str, text: str | None = "Likes lamps.", error: str | None = None) -> StoredCall:
    """Return a finished call."""
    return StoredCall(key, text, error, "fake@1", "hash", ("i1", "i 2", "ü"), 10, 5, 0.5)


def failed(key: str, error: str = "timed out") -> StoredCall:
    """Return a failed call."""
    return call(key, None, error)


def row(key: str, text: str | None = "Likes lamps.", **changes: object) -> Row:
    """Return a row of a store."""
    error = None if text is not None else "timed out"
    whole = Row(key, text, error, "fake@1", "hash", '["i1"]', 10, 5, 0.25, 1, 1_700_000_000.5)
    return Row(**{**whole._asdict(), **changes})


class StoreContract:
    """What every `Store` must do; each test has a store of its own, which is empty at first."""

    @pytest.fixture
    def place(self) -> str | Path:
        """Where a new store is to be: a file that does not exist, or the URL of an empty database."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, place: str | Path) -> Iterator[Store]:
        with open_store(place) as store:
            yield store

    def test_a_text_is_found_again_after_closing(self, place: str | Path) -> None:
        with open_store(place) as store:
            store.put(call("a", "Likes “lamps”, naïvely."))
        with open_store(place) as store:
            assert store.texts(["a", "b"]) == {"a": "Likes “lamps”, naïvely."}

    def test_a_row_says_what_made_it_and_when(self, store: Store) -> None:
        before = time.time()
        store.put(call("a"))
        (found,) = store.rows()
        assert found[:10] == (
            *("a", "Likes lamps.", None, "fake@1", "hash"),
            *(json.dumps(["i1", "i 2", "ü"]), 10, 5, 0.5, 1),
        )
        assert before <= found.created_at <= time.time()

    def test_any_number_of_keys_can_be_asked_for_at_once(self, store: Store) -> None:
        store.add(row(f"{n:05}", f"text {n}") for n in range(2 * PAGE + 1))
        found = store.texts([f"{n:05}" for n in range(3 * PAGE)])
        assert found == {f"{n:05}": f"text {n}" for n in range(2 * PAGE + 1)}
        assert store.texts([]) == {}

    def test_a_failed_call_is_a_row_but_never_a_text(self, store: Store) -> None:
        store.put(failed("a"))
        assert store.texts(["a"]) == {}
        assert [(r.text, r.error, r.n_attempts) for r in store.rows()] == [(None, "timed out", 1)]

    def test_a_retried_call_takes_the_place_of_the_failed_one_and_attempts_are_counted(
        self, store: Store
    ) -> None:
        store.put(failed("a"))
        store.put(failed("a", "cut off"))
        store.put(replace(call("a"), n_generated_tokens=9, seconds=2.0))
        (found,) = store.rows()
        assert (found.text, found.error, found.n_attempts) == ("Likes lamps.", None, 3)
        assert (found.n_generated_tokens, found.seconds) == (9, 2.0)

    @pytest.mark.parametrize("later", [call("a", "another"), failed("a")])
    def test_a_text_is_never_replaced(self, store: Store, later: StoredCall) -> None:
        store.put(call("a"))
        (before,) = store.rows()
        store.put(later)
        assert list(store.rows()) == [before]

    def test_results_kept_together_are_what_they_would_be_one_by_one(self, store: Store) -> None:
        assert isinstance(store, GroupStore)
        store.put_all([call("c"), failed("b"), failed("a")])
        store.put_all([call("a"), failed("c"), call("b", "another")])
        assert store.texts(["a", "b", "c"]) == {"a": "Likes lamps.", "b": "another", "c": "Likes lamps."}
        assert [found.n_attempts for found in store.rows()] == [2, 2, 1]

    def test_two_openers_see_each_others_texts_at_once(self, place: str | Path) -> None:
        with open_store(place) as one, open_store(place) as other:
            one.put(call("a"))
            other.put(call("b"))
            assert set(one.texts(["a", "b"])) == set(other.texts(["a", "b"])) == {"a", "b"}

    def test_writers_that_start_at_once_make_one_store_and_lose_nothing(self, place: str | Path) -> None:
        together = threading.Barrier(6)
        problems: list[Exception] = []

        def write(number: int) -> None:
            try:
                together.wait(30)
                with open_store(place) as store:
                    for n in range(20):
                        store.put(call(f"{n:03}", f"of {number}"))  # asked by all
                        store.put(failed("failed"))
                        store.put(call(f"{number}-{n:03}"))
            except Exception as error:
                problems.append(error)

        writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        if problems:
            raise problems[0]
        with open_store(place) as store:
            rows = {found.key: found for found in store.rows()}
        assert len(rows) == 20 + 1 + 6 * 20
        assert rows["failed"].n_attempts == 6 * 20

    def test_rows_come_in_the_order_of_their_keys(self, store: Store) -> None:
        rows = [row(key) for key in ("b", "B", "a-b", "a", "ab", "ä", "0")]
        assert store.add(rows) == len(rows)
        assert list(store.rows()) == sorted(rows, key=lambda r: r.key.encode())

    def test_adding_twice_changes_nothing(self, store: Store) -> None:
        rows = [row("a"), row("b", None, n_attempts=4)]
        assert store.add(rows) == 2
        assert store.add(rows) == 0
        assert list(store.rows()) == rows

    def test_adding_keeps_texts_and_replaces_failed_calls_by_texts_only(self, store: Store) -> None:
        store.add([row("a", "kept"), row("b", None, n_attempts=2), row("c", None, error="first")])
        more = [row("a", "not taken"), row("b", "taken", n_attempts=3), row("c", None, error="second")]
        assert store.add(more) == 1
        kept = [(r.text, r.error, r.n_attempts) for r in store.rows()]
        assert kept == [("kept", None, 1), ("taken", None, 5), (None, "first", 1)]

    def test_an_added_row_that_is_wrong_leaves_its_page_out_and_the_store_usable(self, store: Store) -> None:
        with pytest.raises(Exception, match=r"cannot be used|cannot be written|is not a summary store"):
            store.add([row("a"), row("b", error="a text and an error")])
        assert list(store.rows()) == []
        assert store.add([row("a")]) == 1

    def test_counts_are_by_model_and_template(self, store: Store) -> None:
        assert store.parts() == []
        old = row("c", None, model="other@2", created_at=5.0, seconds=1.5)
        store.add([row("a"), row("b", n_attempts=2, created_at=9.0), old, row("d", template_hash="new")])
        first, second, third = store.parts()
        assert first == ("fake@1", "hash", 2, 0, 3, 20, 10, 0.5, 9.0, 1_700_000_000.5)
        assert (second.model, second.template_hash, second.n_texts) == ("fake@1", "new", 1)
        assert third == ("other@2", "hash", 0, 1, 1, 10, 5, 1.5, 5.0, 5.0)
        assert store.n_bytes() > 0

    @pytest.mark.parametrize(
        ("choice", "meant"),
        [
            (Choice(failed=True), {"b", "e"}),
            (Choice(model="other@2"), {"c"}),
            (Choice(template_hash="ha"), {"a", "b", "c", "e"}),
            (Choice(before=10.0), {"d", "e"}),
            (Choice(failed=True, before=10.0), {"e"}),
            (Choice(), {"a", "b", "c", "d", "e"}),
            (Choice(model="no%"), set()),
        ],
    )
    def test_only_the_rows_that_are_meant_are_removed(
        self, store: Store, choice: Choice, meant: set[str]
    ) -> None:
        store.add([row("a"), row("b", None), row("c", model="other@2")])
        store.add([row("d", template_hash="new", created_at=9.0), row("e", None, created_at=9.0)])
        assert store.count(choice) == len(meant)
        assert store.remove(choice) == len(meant)
        assert {r.key for r in store.rows()} == set("abcde") - meant

    def test_a_parquet_file_holds_every_row(self, store: Store, tmp_path: Path) -> None:
        store.put(call("a"))
        store.put(failed("b"))
        store.add(row(f"{n:05}") for n in range(PAGE + 5))
        rows = list(store.rows())
        assert write_rows(tmp_path / "s.parquet", store.rows()) == len(rows)
        assert list(read_rows(tmp_path / "s.parquet")) == rows

    def test_closing_twice_is_harmless(self, place: str | Path) -> None:
        store = open_store(place)
        store.close()
        store.close()


def ask(text: str, *, prefill: str = "") -> Prompt:
    """Return a prompt with a system turn and one question."""
    return Prompt((Message("system", "You answer in one sentence."), Message("user", text)), prefill)


class TextGeneratorContract:
    """What every `TextGenerator` must do; one generator serves all tests of the class."""

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
            assert tidy(answer.text, parts)
            assert strange_phrases(tidy(answer.text, parts), parts) == []
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
    """What every `LabelScorer` must do."""

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
