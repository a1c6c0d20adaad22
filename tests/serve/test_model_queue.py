"""The queue answers together what came together, each caller its own, and never what comes too late."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_parts import CANDIDATES, HISTORY, PROFILE, fake_recommender

from trsr.errors import CandidateTooLongError, OverloadedError
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.fake import FakeScorer
from trsr.recommend.prompt import RankingPrompt
from trsr.recommend.ranker import ModelRequest, RankRequest, ScoredRequest
from trsr.recommend.recommender import Margins, Recommender
from trsr.serve.model_queue import CALLER, ModelQueue

LONG = 60.0  # seconds; no test waits for it
ASK = RankRequest(HISTORY, PROFILE, CANDIDATES)


MORE = [f"i{n}" for n in range(10, 40)]


def prompts(*questions: ModelRequest) -> list[RankingPrompt]:
    recommender = fake_recommender()
    return [recommender.prompt(question) for question in questions]


class Gated:
    """A scorer that waits at a gate, once or at each call, and notes the candidates of each call's groups."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.calls: list[list[int]] = []

    def score(self, groups: Sequence[ScoringGroup], labels: LabelTokens) -> Iterator[Any]:
        self.calls.append([len(group.suffixes) for group in groups])
        self.entered.release()
        assert self.gate.acquire(timeout=30)
        yield from FakeScorer().score(groups, labels)


class Stopped:
    """A queue whose model waits within its first pass until `go`."""

    def __init__(self, **settings: Any) -> None:
        self.scorer = Gated()
        self.queue = ModelQueue(fake_recommender(self.scorer), **settings)
        self.first = self.submit(ASK)
        assert self.scorer.entered.acquire(timeout=30)

    def submit(
        self, *questions: ModelRequest, caller: str = "", seconds: float = LONG
    ) -> Future[list[ScoredRequest]]:
        token = CALLER.set(caller)
        try:
            return self.queue.submit(prompts(*questions), seconds)
        finally:
            CALLER.reset(token)

    def step(self) -> None:
        """Let the model read to its next pass."""
        self.scorer.gate.release()
        assert self.scorer.entered.acquire(timeout=30)

    def go(self) -> None:
        self.scorer.gate.release(1000)

    def __enter__(self) -> Stopped:
        return self

    def __exit__(self, *_: object) -> None:
        self.go()
        self.queue.close()


@pytest.mark.parametrize("rate", [100.0, 1e9])
def test_a_small_request_goes_before_the_rest_of_a_large_one_but_an_old_one_is_not_put_off(
    rate: float,
) -> None:
    large, small = RankRequest(HISTORY, PROFILE, MORE), RankRequest(HISTORY, "Buys clay.", CANDIDATES[:2])
    with Stopped(pass_tokens=700, rate=rate) as stopped:
        slow = stopped.submit(large)
        stopped.step()  # its first pass has begun
        assert 0 < sum(map(sum, stopped.scorer.calls[1:])) < len(MORE)
        quick = stopped.submit(small)
        stopped.step()
        assert (stopped.scorer.calls[-1][0] == 2) == (rate == 100)  # at 1e9, size is no reason to wait
        if rate == 100:
            stopped.step()
            assert len(quick.result(30)[0].margins) == 2
            assert not slow.done()
        stopped.go()
        got = slow.result(30)[0]
    np.testing.assert_array_equal(got.margins, fake_recommender().score([large])[0].margins)
    assert len(stopped.scorer.calls) > 4


def test_callers_take_turns() -> None:
    with Stopped(pass_tokens=1) as stopped:  # a candidate a pass
        greedy = [stopped.submit(ASK, caller="greedy") for _ in range(3)]
        modest = stopped.submit(ASK, caller="modest")
        for _ in range(3 * len(CANDIDATES)):
            stopped.step()
        assert modest.result(30)
        assert sum(future.done() for future in greedy) == 1
        stopped.go()
        assert [len(future.result(30)) for future in greedy] == [1, 1, 1]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again() -> None:
    with Stopped(max_waiting=2, rate=10.0) as stopped:
        kept = stopped.submit(ASK)
        with pytest.raises(OverloadedError, match="2 requests wait, at most 2 may") as refused:
            stopped.submit(ASK)
        assert refused.value.retry_after == pytest.approx(stopped.queue.facts()["waiting_tokens"] / 10)
        stopped.go()
        assert len(kept.result(30)) == 1
    assert stopped.queue.facts()["refused"] == 1


def test_a_caller_who_fills_the_queue_leaves_room_for_others() -> None:
    with Stopped(max_waiting=4) as stopped:
        greedy = [stopped.submit(ASK, caller="greedy") for _ in range(3)]
        with pytest.raises(OverloadedError):
            stopped.submit(ASK, caller="greedy")
        modest = stopped.submit(ASK, caller="modest")
        with pytest.raises(OverloadedError):  # of four places, three callers have one each
            stopped.submit(ASK, caller="modest")
        other = stopped.submit(ASK, caller="other")
        assert stopped.queue.facts()["waiting"] == 4
        for late in greedy[1:]:
            with pytest.raises(OverloadedError, match="most of it is yours"):
                late.result(0)
        stopped.go()
        assert [len(future.result(30)) for future in (greedy[0], modest, other)] == [1, 1, 1]


def test_a_request_that_is_being_read_can_make_room_too() -> None:
    with Stopped() as stopped:
        second, third = (stopped.submit(ASK) for _ in range(2))
        stopped.step()
        stopped.queue.max_waiting = 2
        other = stopped.submit(ASK, caller="other")
        with pytest.raises(OverloadedError, match="most of it is yours"):
            third.result(0)
        stopped.go()
        assert second.result(30)
        assert other.result(30)
        assert stopped.queue.facts()["waiting"] == 0


def test_what_is_too_late_or_no_longer_wanted_is_read_no_further() -> None:
    with Stopped(pass_tokens=1) as stopped:
        for _ in CANDIDATES[1:]:
            stopped.step()
        unwanted = stopped.submit(ASK)
        stopped.step()
        stopped.step()
        late = stopped.submit(ASK, seconds=0.0)
        wanted = stopped.submit(RankRequest(HISTORY, "", CANDIDATES[:1]))
        assert unwanted.cancel()
        stopped.go()
        with pytest.raises(OverloadedError, match="too busy") as refused:
            late.result(30)
        assert refused.value.retry_after >= 1
        assert len(wanted.result(30)) == 1
    assert len(stopped.scorer.calls) == len(CANDIDATES) + 2 + 1
    facts = stopped.queue.facts()
    assert (facts["dropped_expired"], facts["dropped_gone"], facts["waiting"]) == (1, 1, 0)


def test_a_client_that_gives_up_as_the_time_is_over_came_too_late() -> None:
    with Stopped() as stopped:
        assert stopped.submit(ASK, seconds=0.0).cancel()
        wanted = stopped.submit(ASK)
        stopped.go()
        assert wanted.result(30)
    facts = stopped.queue.facts()
    assert (facts["dropped_expired"], facts["dropped_gone"]) == (1, 0)


def test_one_wrong_question_is_answered_with_its_error_and_the_others_are_read() -> None:
    class OneTooLong:
        def score(self, groups: Sequence[ScoringGroup], labels: LabelTokens) -> Iterator[Any]:
            for index, group in enumerate(groups):
                if len(group.suffixes) == 2:
                    raise CandidateTooLongError(index, 1, 900, 512)
            yield from FakeScorer().score(groups, labels)

    with closing(ModelQueue(fake_recommender(OneTooLong()))) as queue:
        wrong = queue.submit(prompts(ASK, RankRequest((), "", ("i1", "i2"))), LONG)
        right = queue.submit(prompts(ASK), LONG)
        with pytest.raises(CandidateTooLongError, match="Candidate 1 of group 1 has 900 tokens"):
            wrong.result(30)
        assert len(right.result(30)[0].margins) == len(CANDIDATES)
    assert queue.facts()["failed"] == 1


@pytest.mark.parametrize("how", ["raises", "forgets"])
def test_a_mistake_of_the_recommender_reaches_the_callers_and_the_thread_lives_on(how: str) -> None:
    class Broken(Recommender):
        calls = 0

        def read(self, groups: Sequence[ScoringGroup]) -> Iterator[tuple[int, Margins | Exception]]:
            self.calls += 1
            if self.calls > 1:
                yield from super().read(groups)
            elif how == "raises":
                raise KeyError("a mistake")

    fake = fake_recommender()
    with closing(
        ModelQueue(Broken(fake.scorer, fake.builder, fake.labels, fake.catalogue, name="broken"))
    ) as queue:
        with pytest.raises((KeyError, RuntimeError), match=r"mistake|did not answer"):
            queue.submit(prompts(ASK), LONG).result(30)
        assert len(queue.submit(prompts(ASK), LONG).result(30)) == 1


def test_closing_answers_what_is_read_and_refuses_the_rest() -> None:
    with Stopped() as stopped:
        waiting = stopped.submit(ASK)
        closer = threading.Thread(target=stopped.queue.close)
        closer.start()
        while not stopped.queue._closed:
            pass
        with pytest.raises(OverloadedError, match="stopping"):
            stopped.submit(ASK)
        stopped.go()
        closer.join(30)
        assert len(stopped.first.result(30)) == 1
        with pytest.raises(OverloadedError, match="stopping"):
            waiting.result(30)
        assert not stopped.queue._thread.is_alive()
        stopped.queue.close()


QUESTIONS = st.lists(
    st.lists(
        st.builds(
            RankRequest,
            st.lists(st.sampled_from(HISTORY), max_size=4).map(tuple),
            st.sampled_from(["", PROFILE, "Buys clay."]),
            st.lists(st.sampled_from(CANDIDATES), min_size=1, max_size=3).map(tuple),
        ),
        min_size=1,
        max_size=3,
    ),
    min_size=1,
    max_size=24,
)


@settings(max_examples=15, deadline=None)
@given(QUESTIONS, st.integers(1, 1500))
def test_from_many_threads_everyone_gets_the_answers_to_their_own(
    submissions: list[list[RankRequest]], pass_tokens: int
) -> None:
    recommender = fake_recommender()

    def ask(questions: list[RankRequest]) -> list[ScoredRequest]:
        return queue.submit([recommender.prompt(one) for one in questions], LONG).result(30)

    with (
        closing(ModelQueue(fake_recommender(), pass_tokens=pass_tokens, max_waiting=1000)) as queue,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(ask, submissions))
    for questions, answer in zip(submissions, answers, strict=True):
        for got, expected in zip(answer, recommender.score(questions), strict=True):
            np.testing.assert_array_equal(got.margins, expected.margins)
    assert queue.facts()["questions"] == sum(map(len, submissions))
