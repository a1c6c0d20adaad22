"""A queue before the model: one thread reads the prompts of all requests, in small passes.

Each pass chooses its candidates from all requests, so a large request does not delay the others: first by the
caller with the fewest tokens read, then by age and size of the request. Cancelled and expired requests are
dropped.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from trsr.errors import CandidateTooLongError, OverloadedError
from trsr.llm.base import ScoringGroup
from trsr.recommend.prompt import RankingPrompt
from trsr.recommend.ranker import ScoredRequest
from trsr.recommend.recommender import Recommender

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""The key or address of the current request."""
MIN_RETRY_SECONDS = 1.0
_SMOOTHING = 0.2
_COUNTED = (
    "passes questions candidates prompt_tokens read_tokens cache_hits cache_misses refused dropped_expired "
    "dropped_gone failed busy_seconds"
)
_STOPPING = "The service is stopping; try again later."


@dataclass(eq=False)
class _Reading:
    """A prompt and its progress."""

    prompt: RankingPrompt
    n_begun: int = 0  # candidates passed to the model
    margins: list[npt.NDArray[np.float32]] = field(default_factory=list)
    n_read_tokens: int = 0
    cached: bool = False

    def piece(self, room: int, known: bool) -> ScoringGroup:
        """Return the next candidates with their prefix: at least one, and as many as `room` tokens allow."""
        group = self.prompt.group
        first = self.n_begun
        room -= 0 if known else len(group.prefix)
        while self.n_begun < len(group.suffixes):
            room -= len(group.suffixes[self.n_begun])
            if room < 0 and self.n_begun > first:
                break
            self.n_begun += 1
        return replace(group, suffixes=group.suffixes[first : self.n_begun])


@dataclass(eq=False)
class _Submission:
    """Prompts of one caller; times are monotonic seconds."""

    readings: list[_Reading]
    caller: str
    came: float
    until: float
    due: float
    future: Future[list[ScoredRequest]]
    n_left: int  # tokens not yet passed to the model

    @property
    def next(self) -> _Reading | None:
        """The first reading with candidates left."""
        return next((one for one in self.readings if one.n_begun < len(one.prompt.group.suffixes)), None)

    def refuse(self, message: str, retry_after: float) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(OverloadedError(message, retry_after))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Candidates of a reading for one pass, beginning with number `first`."""

    submission: _Submission
    reading: _Reading
    first: int
    group: ScoringGroup
    known: bool

    @property
    def n_tokens(self) -> int:
        prefix = 0 if self.known else len(self.group.prefix)
        return prefix + sum(map(len, self.group.suffixes))

    def placed(self, error: Exception) -> Exception:
        """Return the error with the indices of prompt and candidate in the submission."""
        if not isinstance(error, CandidateTooLongError):
            return error
        place = self.submission.readings.index(self.reading)
        return CandidateTooLongError(place, self.first + error.suffix, error.n_tokens, error.max_tokens)


class ModelQueue:
    """Reads the prompts of concurrent requests with a recommender, whose model only this queue may use.

    Args:
        recommender: Scores the prompts, in a thread that starts at once.
        max_waiting: Maximum number of waiting and running requests. In a full queue each caller has an equal
            share: a caller below it replaces the newest request of the caller with the most requests.
        pass_tokens: Tokens of a pass, above which no further candidate is added.
        rate: First estimate of the tokens that the model reads per second; updated by measurement.
    """

    def __init__(
        self, recommender: Recommender, *, max_waiting: int = 64, pass_tokens: int = 4096, rate: float = 1e4
    ) -> None:
        self.recommender = recommender
        self.max_waiting = max_waiting
        self.pass_tokens = pass_tokens
        self.rate = rate
        self._waiting: list[_Submission] = []
        self._used: dict[str, float] = {}  # tokens read for each caller that waits
        self._counts = dict.fromkeys(_COUNTED.split(), 0.0)
        self._closed = False
        self._changed = threading.Condition()  # guards all of the above
        self._thread = threading.Thread(target=self._run, name="trsr-model", daemon=True)
        self._thread.start()

    def submit(self, prompts: Sequence[RankingPrompt], deadline: float) -> Future[list[ScoredRequest]]:
        """Queue one or more prompts; the future gets their answers in order, or the first error.

        Reading stops when the future is cancelled, or when its `deadline` (seconds from now) has passed; then
        it gets `OverloadedError`.

        Raises:
            OverloadedError: the queue is full or closed; `retry_after` is in seconds.
        """
        future: Future[list[ScoredRequest]] = Future()
        caller, now = CALLER.get(), time.monotonic()
        n_tokens = sum(map(n_read_at_most, prompts))
        with self._changed:
            self.check_room()
            if len(self._waiting) >= self.max_waiting:
                self._make_room()
            self._used.setdefault(caller, min(self._used.values(), default=0.0))
            readings = [_Reading(prompt) for prompt in prompts]
            due = now + n_tokens / self.rate
            self._waiting.append(_Submission(readings, caller, now, now + deadline, due, future, n_tokens))
            self._changed.notify()
        return future

    def facts(self) -> dict[str, float]:
        """Return the state of the queue and its counts since the start, for metrics.

        `waiting` (requests), `waiting_tokens`, `oldest_waiting_seconds`; `passes`, `questions` (prompts
        answered), their `candidates`, `prompt_tokens` (as if each candidate were read alone), `read_tokens`,
        `cache_hits` and `cache_misses`; requests that were `refused` (queue full), `dropped_expired` (too
        late), `dropped_gone` (client disconnected) or `failed` (error); and `busy_seconds` of the thread.
        """
        with self._changed:
            oldest = min((one.came for one in self._waiting), default=None)
            return {
                "waiting": float(len(self._waiting)),
                "waiting_tokens": float(sum(one.n_left for one in self._waiting)),
                "oldest_waiting_seconds": 0.0 if oldest is None else time.monotonic() - oldest,
                **self._counts,
            }

    def close(self) -> None:
        """End the thread after its pass; waiting requests get `OverloadedError`. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def check_room(self) -> None:
        """Refuse a request if the queue is full, unless its caller has fewer than an equal share.

        Raises:
            OverloadedError: see `submit`; this check comes before the work of building a prompt.
        """
        caller = CALLER.get()
        with self._changed:
            if self._closed:
                raise OverloadedError(_STOPPING, MIN_RETRY_SECONDS)
            if len(self._waiting) < self.max_waiting:
                return
            n_own = sum(one.caller == caller for one in self._waiting)
            if n_own >= self.max_waiting // len({caller, *self._used}):
                self._counts["refused"] += 1
                raise OverloadedError(
                    f"The queue is full: {len(self._waiting)} requests wait, at most {self.max_waiting} may; "
                    "try again later.",
                    self._retry_after(),
                )

    def _make_room(self) -> None:
        """Refuse the newest request of the caller with the most requests."""
        n_of = Counter(one.caller for one in self._waiting)
        newest = max(self._waiting, key=lambda one: (n_of[one.caller], one.came))
        self._counts["refused"] += 1
        newest.refuse(
            "The queue is full and most of it is yours; try again later.",
            self._retry_after(),
        )
        self._remove(newest)

    def _retry_after(self) -> float:
        """Return the estimated seconds until all waiting requests are answered."""
        return max(MIN_RETRY_SECONDS, sum(one.n_left for one in self._waiting) / self.rate)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    break
                self._drop()
                pieces = self._choose()
            if pieces:
                self._read(pieces)
        for submission in self._waiting:  # nothing is added to a closed queue
            submission.refuse(_STOPPING, MIN_RETRY_SECONDS)

    def _drop(self) -> None:
        """Drop expired and cancelled requests."""
        now = time.monotonic()
        for submission in list(self._waiting):
            if submission.until < now:  # checked first: the client cancels at the same moment
                self._counts["dropped_expired"] += 1
                submission.refuse(
                    "The model was too busy to answer in time; try again later.", self._retry_after()
                )
            elif submission.future.cancelled():
                self._counts["dropped_gone"] += 1
            else:
                continue
            self._remove(submission)

    def _remove(self, submission: _Submission) -> None:
        if submission in self._waiting:
            self._waiting.remove(submission)
        if not any(one.caller == submission.caller for one in self._waiting):
            self._used.pop(submission.caller, None)

    def _choose(self) -> list[_Piece]:
        """Return the candidates of the next pass."""
        pieces: list[_Piece] = []
        room = self.pass_tokens
        left = [one for one in self._waiting if one.next is not None]
        while left and room > 0:
            submission = min(left, key=lambda one: (self._used[one.caller], one.due))
            reading = submission.next
            if reading is None:
                left.remove(submission)
                continue
            first = reading.n_begun
            known = self.recommender.knows(reading.prompt.group.prefix)
            piece = _Piece(submission, reading, first, reading.piece(room, known), known)
            if pieces and piece.n_tokens > room:
                reading.n_begun = first  # it begins the next pass
                break
            pieces.append(piece)
            room -= piece.n_tokens
            submission.n_left -= piece.n_tokens
            self._used[submission.caller] += piece.n_tokens
        return pieces

    def _read(self, pieces: Sequence[_Piece]) -> None:
        """Read a pass, and settle the requests that it finishes."""
        started = time.perf_counter()
        failures: dict[_Submission, Exception] = {}
        left = dict(enumerate(pieces))
        problem: Exception = RuntimeError("The model did not answer a prompt.")
        try:
            for place, margins in self.recommender.read([piece.group for piece in pieces]):
                piece = left.pop(place)
                if isinstance(margins, Exception):
                    failures.setdefault(piece.submission, piece.placed(margins))
                    continue
                piece.reading.cached |= piece.known and not piece.first
                piece.reading.n_read_tokens += piece.n_tokens
                piece.reading.margins.append(margins)
        except Exception as error:  # a bug must not end the only thread that reads
            problem = error
        for piece in left.values():
            failures.setdefault(piece.submission, problem)
        seconds = time.perf_counter() - started
        with self._changed:
            self._counts["passes"] += 1
            self._counts["busy_seconds"] += seconds
            self.rate += _SMOOTHING * (sum(piece.n_tokens for piece in pieces) / seconds - self.rate)
            for submission in dict.fromkeys(piece.submission for piece in pieces):
                # A request refused by `_make_room` is not waiting any more.
                if submission in self._waiting and (submission in failures or submission.next is None):
                    self._remove(submission)
                    self._settle(submission, failures.get(submission))

    def _settle(self, submission: _Submission, failure: Exception | None) -> None:
        scored: list[ScoredRequest] = []
        try:
            if failure is not None:
                raise failure
            for one in submission.readings:
                margins = np.concatenate(one.margins)
                scored.append(self.recommender.answer(one.prompt, margins, one.n_read_tokens, one.cached))
        except Exception as error:
            self._counts["failed"] += 1
            if submission.future.set_running_or_notify_cancel():
                submission.future.set_exception(error)
            return
        for answer in scored:
            self._counts["questions"] += 1
            self._counts["candidates"] += len(answer.margins)
            self._counts["prompt_tokens"] += int(answer.n_prompt_tokens.sum())
            self._counts["read_tokens"] += answer.n_read_tokens
            self._counts["cache_hits" if answer.cached else "cache_misses"] += 1
        if submission.future.set_running_or_notify_cancel():
            submission.future.set_result(scored)


def n_read_at_most(prompt: RankingPrompt) -> int:
    """Return the tokens to read for a prompt whose prefix is not cached."""
    return len(prompt.group.prefix) + sum(map(len, prompt.group.suffixes))
