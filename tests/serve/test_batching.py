"""The queue answers together what came together, each caller its own, and never what comes too late."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_parts import CANDIDATES, HISTORY, PROFILE, fake_recommender

from trsr.errors import CandidateTooLongError, DataError, OverloadedError
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.fake import FakeScorer
from trsr.serve.batching import ModelQueue
from trsr.serve.questions import Ask, Question, Scored, TextAsk
from trsr.serve.recommender import Recommender

LONG = 60.0  # seconds; no test waits for it
ASK = Ask(HISTORY, PROFILE, CANDIDATES)


class Gated:
    """A scorer that waits at a gate, and counts the groups of each call."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.n_groups: list[int] = []

    def score(self, groups: Sequence[ScoringGroup], labels: LabelTokens) -> Iterator[Any]:
        self.n_groups.append(len(groups))
        self.entered.set()
        assert self.gate.wait(30)
        yield from FakeScorer().score(groups, labels)


class Stopped:
    """A queue whose model is busy with one question until `go`."""

    def __init__(self, **settings: Any) -> None:
        self.scorer = Gated()
        self.queue = ModelQueue(fake_recommender(self.scorer), **settings)
        self.first = self.queue.submit([ASK], LONG)
        assert self.scorer.entered.wait(30)

    def go(self) -> None:
        self.scorer.gate.set()

    def __enter__(self) -> Stopped:
        return self

    def __exit__(self, *_: object) -> None:
        self.go()
        self.queue.close()


def test_what_waits_is_answered_in_one_call() -> None:
    with Stopped() as stopped:
        later = [stopped.queue.submit([ASK, TextAsk("tea", [str(n)])], LONG) for n in range(5)]
        assert stopped.queue.facts()["waiting"] == 10
        stopped.go()
        for number, future in enumerate(later):
            mine = fake_recommender().score([ASK, TextAsk("tea", [str(number)])])
            for got, expected in zip(future.result(30), mine, strict=True):
                np.testing.assert_array_equal(got.margins, expected.margins)
    assert stopped.scorer.n_groups == [1, 10]


def test_a_batch_takes_whole_submissions_up_to_its_size() -> None:
    with Stopped(max_batch=4) as stopped:
        futures = [stopped.queue.submit([ASK] * n, LONG) for n in (3, 2, 2, 9)]
        stopped.go()
        assert [len(future.result(30)) for future in futures] == [3, 2, 2, 9]
    assert stopped.scorer.n_groups == [1, 3, 4, 9]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again() -> None:
    with Stopped(max_waiting=4) as stopped:
        kept = stopped.queue.submit([ASK] * 3, LONG)
        with pytest.raises(OverloadedError, match="3 questions wait already and at most 4 may") as refused:
            stopped.queue.submit([ASK] * 2, LONG)
        assert refused.value.retry_after >= 1
        stopped.queue.submit([ASK], LONG)
        stopped.go()
        assert len(kept.result(30)) == 3
    assert stopped.queue.facts()["refused"] == 2


def test_a_submission_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    with ModelQueue(fake_recommender(), max_waiting=2) as queue:
        assert len(queue.submit([ASK] * 5, LONG).result(30)) == 5


def test_the_longer_the_queue_the_later_to_come_again() -> None:
    with Stopped(max_waiting=100) as stopped:
        stopped.queue._seconds_each = 0.5
        stopped.queue.submit([ASK] * 100, LONG)
        with pytest.raises(OverloadedError) as refused:
            stopped.queue.submit([ASK], LONG)
        assert refused.value.retry_after == 50


def test_what_is_too_late_or_no_longer_wanted_is_never_scored() -> None:
    with Stopped() as stopped:
        late = stopped.queue.submit([ASK], 0.0)
        unwanted = stopped.queue.submit([ASK], LONG)
        wanted = stopped.queue.submit([ASK], LONG)
        assert unwanted.cancel()
        stopped.go()
        with pytest.raises(OverloadedError, match="too busy") as refused:
            late.result(30)
        assert refused.value.retry_after >= 1
        assert len(wanted.result(30)) == 1
    assert stopped.scorer.n_groups == [1, 1]
    assert stopped.queue.facts()["expired"] == 1


def test_one_wrong_question_is_answered_with_its_error_and_the_others_are_scored() -> None:
    class OneTooLong:
        def score(self, groups: Sequence[ScoringGroup], labels: LabelTokens) -> Iterator[Any]:
            for index, group in enumerate(groups):
                if len(group.suffixes) == 2:
                    raise CandidateTooLongError(index, 1, 900, 512)
            yield from FakeScorer().score(groups, labels)

    queue = ModelQueue(fake_recommender(OneTooLong()))
    with queue:
        wrong = queue.submit([ASK, Ask((), "", ("i1", "i2"))], LONG)
        unknown = queue.submit([Ask(("gone",), "", ("i1",))], LONG)
        right = queue.submit([ASK], LONG)
        with pytest.raises(CandidateTooLongError, match="The item 'i2' has 900 tokens"):
            wrong.result(30)
        with pytest.raises(DataError, match="'gone'"):
            unknown.result(30)
        assert len(right.result(30)[0].margins) == len(CANDIDATES)
    assert queue.facts()["failed"] == 2


@pytest.mark.parametrize("how", ["raises", "forgets"])
def test_a_mistake_of_the_recommender_reaches_the_callers_and_the_thread_lives_on(how: str) -> None:
    class Broken(Recommender):
        calls = 0

        def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Scored | Exception]]:
            self.calls += 1
            if self.calls > 1:
                yield from super().answers(questions)
            elif how == "raises":
                raise KeyError("a mistake")

    fake = fake_recommender()
    with ModelQueue(
        Broken(fake.scorer, fake.builder, fake.labels, fake.catalogue, model_name="broken")
    ) as queue:
        with pytest.raises((KeyError, RuntimeError), match=r"mistake|without an answer"):
            queue.submit([ASK], LONG).result(30)
        assert len(queue.submit([ASK], LONG).result(30)) == 1


def test_closing_answers_what_is_read_and_refuses_the_rest() -> None:
    with Stopped() as stopped:
        waiting = stopped.queue.submit([ASK], LONG)
        closer = threading.Thread(target=stopped.queue.close)
        closer.start()
        while not stopped.queue._closed:
            pass
        with pytest.raises(OverloadedError, match="stopping"):
            stopped.queue.submit([ASK], LONG)
        stopped.go()
        closer.join(30)
        assert len(stopped.first.result(30)) == 1
        with pytest.raises(OverloadedError, match="stopping"):
            waiting.result(30)
        assert not stopped.queue._thread.is_alive()
        stopped.queue.close()


def test_no_question_has_an_empty_answer() -> None:
    with ModelQueue(fake_recommender()) as queue:
        assert queue.submit([], LONG).result(30) == []


def test_what_was_done_is_counted() -> None:
    with ModelQueue(fake_recommender()) as queue:
        (answer,) = queue.submit([ASK], LONG).result(30)
        queue.submit([TextAsk("tea", ["lamp"])], LONG).result(30)
    facts = queue.facts()
    assert facts["waiting"] == 0
    assert (facts["batches"], facts["questions"], facts["candidates"]) == (2, 2, len(CANDIDATES) + 1)
    assert facts["prompt_tokens"] > facts["read_tokens"] > answer.n_read_tokens
    assert (facts["cache_hits"], facts["cache_misses"]) == (0, 2)
    assert facts["busy_seconds"] > 0


QUESTIONS = st.lists(
    st.lists(
        st.builds(
            Ask,
            st.lists(st.sampled_from(HISTORY), max_size=4).map(tuple),
            st.sampled_from(["", PROFILE, "Buys clay."]),
            st.lists(st.sampled_from([*CANDIDATES, "gone"]), min_size=1, max_size=3).map(tuple),
        ),
        min_size=1,
        max_size=3,
    ),
    min_size=1,
    max_size=24,
)


@settings(max_examples=15, deadline=None)
@given(QUESTIONS, st.integers(1, 8))
def test_from_many_threads_everyone_gets_the_answers_to_their_own(
    submissions: list[list[Ask]], max_batch: int
) -> None:
    recommender = fake_recommender()

    def ask(questions: list[Ask]) -> list[Scored] | str:
        try:
            return queue.submit(questions, LONG).result(30)
        except DataError as error:
            return str(error)

    with (
        ModelQueue(fake_recommender(), max_batch=max_batch, max_waiting=1000) as queue,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(ask, submissions))
    for questions, answer in zip(submissions, answers, strict=True):
        if any("gone" in question.candidates for question in questions):
            assert isinstance(answer, str)
            assert "'gone'" in answer
            continue
        assert not isinstance(answer, str)
        for got, expected in zip(answer, recommender.score(questions), strict=True):
            np.testing.assert_array_equal(got.margins, expected.margins)
    n_right = sum(len(q) - sum("gone" in ask.candidates for ask in q) for q in submissions)
    assert queue.facts()["questions"] == n_right
