"""Whether a service works, found by trying it: a write and a read of the database, an answer of the model."""

from __future__ import annotations

import re
import time
from concurrent.futures import TimeoutError as FutureTimeoutError

from trsr.errors import TrsrError
from trsr.recommend.questions import TextAsk
from trsr.serve.problems import NOT_READY, Problem
from trsr.serve.schemas import Ready
from trsr.serve.service import Service

RECENT_SECONDS = 60.0
"""An answer of the model that is younger needs no probe."""
PROBE_SECONDS = 5.0
"""The model's time for a probe."""
KEEP_SECONDS = 1.0
"""A result holds for so long: everybody may ask, and each check writes."""


class Readiness:
    """Checks one service; by one thread at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._result: Ready | Problem | None = None
        self._checked = self._answered = float("-inf")
        self._n_answered = 0.0

    def check(self) -> Ready:
        """Return what was found.

        Raises:
            Problem: a part does not work; `part` names it: profiles, database or model.
        """
        if self._result is None or time.monotonic() - self._checked > KEEP_SECONDS:
            try:
                self._result = self._try()
            except Problem as problem:
                self._result = problem
            self._checked = time.monotonic()
        if isinstance(self._result, Problem):
            raise self._result
        return self._result

    def _try(self) -> Ready:
        service = self._service
        if not service.follows:
            raise _not_ready(
                "profiles", "Their thread has not started, or has ended; start the server again."
            )
        try:
            service.store.check()
            waited = service.store.facts()["oldest_pending_seconds"]
        except TrsrError as error:
            raise _not_ready("database", str(error.__cause__ or error)) from error
        self._try_model()
        failure = service.follower.last_failure
        return Ready(
            model_answered_seconds=round(time.monotonic() - self._answered, 1),
            oldest_pending_seconds=round(waited, 1),
            # Who has no key need not know where the engine is.
            engine_failure=failure and re.sub(r"\w+://\S+", "...", failure),
        )

    def _try_model(self) -> None:
        """Probe the model unless it has answered of late."""
        queue, now = self._service.ranker.queue, time.monotonic()
        before, self._n_answered = self._n_answered, queue.facts()["questions"]
        if self._n_answered > before and now - self._checked < RECENT_SECONDS:
            self._answered = now
        if now - self._answered < RECENT_SECONDS:
            return
        try:
            prompt = self._service.ranker.recommender.prompt(TextAsk("probe", ["probe"]))
            queue.submit([prompt], PROBE_SECONDS).result(PROBE_SECONDS)
        except FutureTimeoutError as error:
            raise _not_ready(
                "model", f"It has not answered a probe within {PROBE_SECONDS:g} seconds."
            ) from error
        except TrsrError as error:
            raise _not_ready("model", str(error)) from error
        self._answered = time.monotonic()
        self._n_answered += 1


def _not_ready(part: str, why: str) -> Problem:
    return Problem(NOT_READY, f"Not working: {part}. {why}", retry_after=5.0, part=part)
