"""Update the profiles of users in the store's queue from their new events.

The queue is durable: an update leaves it in the transaction that adds its profile, and each text is saved
when it is generated, so a killed process resumes with the missing calls. Work is done in rounds of few calls,
shared by all due users; a long history does not delay the others. A second updater on the same database
repeats the work without harm.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from trsr.errors import EngineError, OutputError, StoreError
from trsr.llm.base import TextGenerator
from trsr.serve.store import PendingUpdate, ServeStore, StoredProfile
from trsr.summarize.executor import SummaryProgress, run_calls
from trsr.summarize.user_plan import BoundSummarizer, SummaryPlan, plan_user, profile
from trsr.types import History

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.5
"""Longest wait for new events, and the interval of checks for failed updates that are due again."""
GIVE_BACK_SECONDS = 10.0
"""Interval at which a local engine's free memory is returned to the system."""
CALLS_A_ROUND = 16
"""Calls of a round, shared by its users; each gets at least one."""

_T = TypeVar("_T")


class StoppedError(Exception):
    """Signals a stop during generation: saved texts stay, and the update stays pending."""


@dataclass(frozen=True)
class _Job:
    """An update in progress, and the latest version at its start."""

    update: PendingUpdate
    latest: StoredProfile | None
    plan: SummaryPlan


class ProfileUpdater:
    """Generates the profiles of users with new events.

    Args:
        store: Users, their queue and the texts.
        summarizer: The items and settings of the profiles.
        engine: Generates the summaries; None if the method needs none.

    Attributes:
        n_updates: Profiles added so far.
        n_failed: Attempts at an update that failed so far.
        totals: Calls and tokens of this process so far, failed ones included.
        last_failure: The reason of the last failed update; None after a success.
    """

    def __init__(self, store: ServeStore, summarizer: BoundSummarizer, engine: TextGenerator | None) -> None:
        self.store = store
        self.summarizer = summarizer
        self.engine = engine
        self.n_updates = 0
        self.n_failed = 0
        self.totals = SummaryProgress()
        self.last_failure: str | None = None
        self._stop = threading.Event()
        self._begun: dict[int, _Job] = {}
        self._gave_back = float("-inf")

    def run(self, stop: threading.Event) -> None:
        """Update profiles until `stop` is set; `store.wake()` ends a wait at once.

        Errors do not end the loop: a failed update is retried later.
        """
        self._stop = stop
        while not stop.is_set():
            n_updated = 0
            try:
                n_updated = self.step()
                if not n_updated:
                    self.store.clean()
            except StoppedError:
                return
            except Exception as error:
                self.last_failure = _reason(error)
                logger.error("Profiles cannot be updated at the moment (%s); retrying.", self.last_failure)
                logger.debug("The cause:", exc_info=error)
            if not n_updated and not self._begun:
                self.store.wait(IDLE_SECONDS)

    def step(self, limit: int = 32) -> int:
        """Do one round for up to `limit` pending users; return the number of added profiles.

        Updates that failed before are done one at a time, so that one failure does not affect the others. A
        user who needs more calls than their share goes to the end of the queue.

        Raises:
            OutputError: the store is not writable.
        """
        before = self.n_updates
        updates = self.store.pending(limit)
        fresh = [update for update in updates if not update.n_attempts]
        again = [[update] for update in updates if update.n_attempts]
        begun, self._begun = self._begun, {}
        for group in [fresh, *again]:
            if group:
                self._update(group, begun, max(1, CALLS_A_ROUND // len(updates)))
        return self.n_updates - before

    def _update(self, updates: Sequence[PendingUpdate], begun: dict[int, _Job], most: int) -> None:
        """Make up to `most` calls per update; add each profile as soon as its calls are done."""
        jobs: list[_Job] = []
        for update in updates:
            try:
                job = begun.pop(update.user_generation, None) or self._begin(update)
            except Exception as error:
                self._reschedule(update, error)
            else:
                jobs += [job] if job else []
        n_before = [len(job.plan.texts) for job in jobs]
        ended: set[int] = set()

        def end_done() -> None:
            for job in jobs:
                if job.plan.done and job.update.user_generation not in ended:
                    ended.add(job.update.user_generation)
                    self.n_updates += self._end(job)

        failure: Exception = EngineError("The engine did not answer.")
        try:
            self._complete([job.plan for job in jobs], most, end_done)
        except StoppedError:
            raise
        except Exception as error:  # an engine may raise anything, and the other updates must go on
            failure = error
        end_done()
        for job, n in zip(jobs, n_before, strict=True):
            if job.update.user_generation in ended:
                continue
            if job.plan.has_more and not job.plan.failed and len(job.plan.texts) > n:
                self._begun[job.update.user_generation] = job
                self.store.put_back(job.update)
            else:
                self._reschedule(job.update, failure)

    def _begin(self, update: PendingUpdate) -> _Job | None:
        """Plan an update; None if the user was deleted."""
        latest = self.store.latest_profile(update.user_id)
        history = self.store.history(update.user_id)
        if not history:
            return None
        seen = History(str(update.user_generation), history[: update.n_items])
        return _Job(update, latest, plan_user(seen, self.summarizer))

    def _complete(self, plans: Sequence[SummaryPlan], most: int, end_done: Callable[[], None]) -> None:
        """Make the plans' calls, end those that are done, and add to the totals."""
        last = SummaryProgress()

        def note(progress: SummaryProgress) -> None:
            nonlocal last
            last = progress
            end_done()
            if self._stop.is_set():
                raise StoppedError

        try:
            if plans:  # in a thread that ends, or the ranking thread is slower afterwards
                run_in_thread(
                    lambda: run_calls(plans, self.summarizer, self.engine, self.store, note, most=most)
                )
        finally:
            if time.monotonic() - self._gave_back > GIVE_BACK_SECONDS:
                give_back()
                self._gave_back = time.monotonic()
            for name in SummaryProgress.__slots__:
                setattr(self.totals, name, getattr(self.totals, name) + getattr(last, name))

    def _end(self, job: _Job) -> bool:
        """Add the profile of a finished update; return whether it is new."""
        made, latest = profile(job.plan, self.summarizer), job.latest
        self.last_failure = None
        is_old = latest is not None and (latest.text, latest.key, latest.n_items) == (
            made.text,
            made.key,
            made.n_items,
        )
        if not made.n_items or self.summarizer.config.method == "none" or is_old:
            self.store.finish(job.update)
            return False
        calls = [(key, job.plan.calls[place].item_ids) for place, key in sorted(job.plan.keys.items())]
        version = latest.version if latest else 0
        return self.store.add_profile(job.update, made.text, made.n_items, made.key, calls, version)

    def _reschedule(self, update: PendingUpdate, error: Exception) -> None:
        self.n_failed += 1
        self.last_failure = _reason(error)
        logger.warning("A profile could not be updated (%s); retrying later.", self.last_failure)
        logger.debug("The cause:", exc_info=error)
        self.store.fail(update, str(error) or type(error).__name__)


def _reason(error: Exception) -> str:
    """Return the reason of a failure without the words of a model or its server, which may quote users."""
    if isinstance(error, OutputError | StoreError):
        return str(error.__cause__ or error)
    if not isinstance(error, EngineError):
        return type(error).__name__
    first = re.search(r"first error: ([^,:()]*)", str(error))
    return first[1].strip() if first else str(error)


def run_in_thread(do: Callable[[], _T]) -> _T:
    """Return `do()`, called in a thread that has ended when this returns.

    libgomp keeps a team of threads for every thread that has begun a loop of torch, as long as that thread
    lives. With more of them than processors, each has to be woken thousands of times in a forward pass.

    Raises:
        Exception: what `do` raised.
    """
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(do())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="trsr-apart", daemon=True)  # a Ctrl-C need not wait for it
    thread.start()
    thread.join()
    return future.result()


def give_back() -> None:
    """Return freed memory to the system, after work that needed far more than what follows."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
