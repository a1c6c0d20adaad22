"""One thread owns the model; all requests wait in one bounded queue and are answered together."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from trsr.errors import OverloadedError
from trsr.serve.questions import Question, Scored
from trsr.serve.recommender import Recommender


class ModelQueue:
    """Batches concurrent questions in front of a recommender, which it alone asks.

    Args:
        recommender: Scores; its thread starts at once.
        max_waiting: Most questions that wait; a single submission may be larger when nothing waits.
        max_batch: Questions taken together, at least one submission.
    """

    def __init__(self, recommender: Recommender, *, max_waiting: int = 256, max_batch: int = 32) -> None:
        raise NotImplementedError

    def submit(self, questions: Sequence[Question], deadline: float) -> Future[list[Scored]]:
        """Queue questions; the future gets their answers in their order, or the first error among them.

        A future that is cancelled, or whose `deadline` (seconds from now) has passed when its turn comes, is
        never scored; the latter gets `OverloadedError`.

        Raises:
            OverloadedError: the queue is full or closed; `retry_after` is in seconds.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, float]:
        """Return for metrics: waiting, batches, questions, candidates, prompt_tokens, read_tokens, cache_hits,
        cache_misses, refused, expired, failed, busy_seconds.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Answer what was taken, refuse what waits (`OverloadedError`), end the thread; safe to call twice."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
