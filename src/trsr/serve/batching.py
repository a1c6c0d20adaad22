"""One thread owns the model; all requests wait in one bounded queue and are answered together.

Nothing is held back to fill a batch: what has come in while one was read is the next one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from trsr.errors import OverloadedError
from trsr.serve.questions import Question, Scored
from trsr.serve.recommender import Recommender

MIN_RETRY_SECONDS = 1.0
_SMOOTHING = 0.2
_FACTS = (
    "batches",
    "questions",
    "candidates",
    "prompt_tokens",
    "read_tokens",
    "cache_hits",
    "cache_misses",
    "refused",
    "expired",
    "failed",
    "busy_seconds",
)


@dataclass(eq=False)
class _Submission:
    """Questions of one caller, and what is known of their answers."""

    questions: tuple[Question, ...]
    until: float
    future: Future[list[Scored]]
    answers: dict[int, Scored | Exception] = field(default_factory=dict)

    def take(self, place: int, answer: Scored | Exception) -> None:
        """Note an answer; the last one settles the future."""
        self.answers[place] = answer
        if len(self.answers) < len(self.questions):
            return
        scored = []
        for number in range(len(self.questions)):
            known = self.answers[number]
            if isinstance(known, Exception):
                self.future.set_exception(known)
                return
            scored.append(known)
        self.future.set_result(scored)


class ModelQueue:
    """Batches concurrent questions in front of a recommender, which it alone asks.

    Args:
        recommender: Scores; its thread starts at once.
        max_waiting: Most questions that wait; a single submission may be larger when nothing waits.
        max_batch: Questions taken together, at least one submission.
    """

    def __init__(self, recommender: Recommender, *, max_waiting: int = 256, max_batch: int = 32) -> None:
        self.recommender = recommender
        self.max_waiting = max_waiting
        self.max_batch = max_batch
        self._waiting: deque[_Submission] = deque()
        self._n_waiting = 0  # questions, not submissions
        self._counts = dict.fromkeys(_FACTS, 0.0)
        self._seconds_each = 0.0
        self._closed = False
        self._changed = threading.Condition()  # guards all of the above
        self._thread = threading.Thread(target=self._run, name="trsr-model", daemon=True)
        self._thread.start()

    def submit(self, questions: Sequence[Question], deadline: float) -> Future[list[Scored]]:
        """Queue questions; the future gets their answers in their order, or the first error among them.

        A future that is cancelled, or whose `deadline` (seconds from now) has passed when its turn comes, is
        never scored; the latter gets `OverloadedError`.

        Raises:
            OverloadedError: the queue is full or closed; `retry_after` is in seconds.
        """
        future: Future[list[Scored]] = Future()
        asked = tuple(questions)
        if not asked:
            future.set_result([])
            return future
        with self._changed:
            if self._closed:
                raise OverloadedError("The service is stopping; ask again later.", MIN_RETRY_SECONDS)
            if self._n_waiting and self._n_waiting + len(asked) > self.max_waiting:
                self._counts["refused"] += len(asked)
                raise OverloadedError(
                    f"{self._n_waiting} questions wait already and at most {self.max_waiting} may; "
                    "ask again later.",
                    self._retry_after(),
                )
            self._waiting.append(_Submission(asked, time.monotonic() + deadline, future))
            self._n_waiting += len(asked)
            self._changed.notify()
        return future

    def facts(self) -> dict[str, float]:
        """Return `waiting` (questions, now) and what was counted since the start, for metrics.

        `batches`, `questions` (answered), their `candidates`, `prompt_tokens` (as if each candidate had been
        read by itself) and `read_tokens`, `cache_hits` and `cache_misses` (questions), `refused` (no room),
        `expired` (too late), `failed` (an error), `busy_seconds` of the model's thread.
        """
        with self._changed:
            return {"waiting": float(self._n_waiting), **self._counts}

    def close(self) -> None:
        """End the thread, and wait for it: the batch it works on is answered, what waits is refused.

        Safe to call twice. Those refused get `OverloadedError`.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _retry_after(self) -> float:
        """Return the seconds after which what waits now should be answered."""
        return max(MIN_RETRY_SECONDS, self._n_waiting * self._seconds_each)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    break
                batch, late, retry_after = self._take()
            for submission in late:
                _refuse(submission, "The model was too busy to answer in time; ask again later.", retry_after)
            live = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if live:
                self._answer(live)
        for submission in self._waiting:  # nothing is added to a closed queue
            _refuse(submission, "The service is stopping; ask again later.", MIN_RETRY_SECONDS)

    def _take(self) -> tuple[list[_Submission], list[_Submission], float]:
        """Return the submissions to answer now, those whose time is over, and when to ask again."""
        batch: list[_Submission] = []
        late: list[_Submission] = []
        room, now = self.max_batch, time.monotonic()
        while self._waiting and (not batch or len(self._waiting[0].questions) <= room):
            submission = self._waiting.popleft()
            self._n_waiting -= len(submission.questions)
            if submission.until < now:
                late.append(submission)
                self._counts["expired"] += len(submission.questions)
            else:
                batch.append(submission)
                room -= len(submission.questions)
        return batch, late, self._retry_after()

    def _answer(self, batch: Sequence[_Submission]) -> None:
        """Score a batch and settle each future as soon as its last answer is there."""
        owners = [(one, place) for one in batch for place in range(len(one.questions))]
        started = time.perf_counter()
        problem: Exception = RuntimeError("The model left a question without an answer.")
        try:
            questions = [one.questions[place] for one, place in owners]
            for number, answer in self.recommender.answers(questions):
                self._count(answer)
                submission, place = owners[number]
                submission.take(place, answer)
        except Exception as error:  # a mistake of ours must not end the only thread that answers
            problem = error
        for submission in batch:
            if not submission.future.done():
                submission.future.set_exception(problem)
        seconds = time.perf_counter() - started
        with self._changed:
            each = seconds / len(owners)
            self._seconds_each += (each - self._seconds_each) * (_SMOOTHING if self._seconds_each else 1.0)
            self._counts["batches"] += 1
            self._counts["busy_seconds"] += seconds

    def _count(self, answer: Scored | Exception) -> None:
        with self._changed:
            if isinstance(answer, Exception):
                self._counts["failed"] += 1
                return
            self._counts["questions"] += 1
            self._counts["candidates"] += len(answer.margins)
            self._counts["prompt_tokens"] += int(answer.n_prompt_tokens.sum())
            self._counts["read_tokens"] += answer.n_read_tokens
            self._counts["cache_hits" if answer.cached else "cache_misses"] += 1


def _refuse(submission: _Submission, message: str, retry_after: float) -> None:
    if submission.future.set_running_or_notify_cancel():
        submission.future.set_exception(OverloadedError(message, retry_after))
