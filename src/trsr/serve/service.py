"""The service behind the routes and the page: users, items and rankings over one store and one model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar, TypeVarTuple, Unpack

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool

from trsr.serve.profile_updater import ProfileUpdater
from trsr.serve.ranking_service import RankingService, RecommendRequest, Tokens, UserContext
from trsr.serve.schemas import (
    UNKNOWN_FIELDS,
    UNKNOWN_ITEM,
    UNKNOWN_USER,
    BlockOut,
    EventIn,
    NotesOut,
    Problem,
    UserOut,
)
from trsr.serve.store import ServeStore
from trsr.summarize.counted import counted_profile
from trsr.summarize.user_plan import BoundSummarizer
from trsr.templating import sanitize_line
from trsr.types import Item, RankedItem

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
N_WRITERS = 8
"""Threads for writes; SQLite runs one write transaction at a time."""


class Service:
    """The operations of a running server. Methods that are not async block: call them from threads.

    Unknown users, items and fields raise a `Problem` that names them, and nothing is stored.

    Args:
        store: Users, profiles and changed items.
        updater: Updates profiles, in its own thread from `start` to `close`.
        ranker: Answers ranking requests; `close` closes its queue too.
        summarizer: Splits histories into blocks; shares the ranker's catalogue.
    """

    def __init__(
        self, store: ServeStore, updater: ProfileUpdater, ranker: RankingService, summarizer: BoundSummarizer
    ) -> None:
        self.store = store
        self.updater = updater
        self.ranker = ranker
        self.summarizer = summarizer
        self.catalogue = ranker.recommender.catalogue
        self._items_lock = threading.Lock()
        self._writers = CapacityLimiter(N_WRITERS)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=updater.run, args=(self._stop,), name="trsr-profiles", daemon=True
        )
        put, deleted = store.changed_items()
        if put:
            ranker.retriever.put_items(put)
        if deleted:
            ranker.retriever.delete_items(deleted)

    @property
    def model_name(self) -> str:
        """The name of the served model."""
        return self.ranker.recommender.name

    @property
    def calibrated(self) -> bool:
        """Whether scores are calibrated."""
        return self.ranker.recommender.calibration is not None

    # Start and stop

    def start(self) -> None:
        """Start the thread that updates profiles."""
        self._thread.start()

    def close(self) -> None:
        """Stop the threads, close engine and store; the next start resumes unfinished updates."""
        self._stop.set()
        self.store.wake()
        if self._thread.is_alive():
            self._thread.join()
        self.ranker.queue.close()
        if self.updater.engine is not None:
            self.updater.engine.close()
        self.store.close()

    @property
    def updates_profiles(self) -> bool:
        """Whether the thread that updates profiles is running."""
        return self._thread.is_alive()

    def facts(self) -> dict[str, float]:
        """Return the counts of the queue, the updater and the store, for metrics."""
        queue = {
            f"model_{name}" if "waiting" in name else f"model_{name}_total": value
            for name, value in self.ranker.queue.facts().items()
        }
        store = {f"store_{name}": value for name, value in self.store.facts().items()}
        written = self.updater.totals
        profiles = {
            "profile_updates_total": float(self.updater.n_updates),
            "profile_failed_updates_total": float(self.updater.n_failed),
            "llm_calls_total": float(written.n_calls_made),
            "llm_failed_calls_total": float(written.n_calls_failed),
            "llm_known_calls_total": float(written.n_calls_known),
            "llm_prompt_tokens_total": float(written.n_prompt_tokens),
            "llm_generated_tokens_total": float(written.n_generated_tokens),
        }
        return {**queue, **store, **profiles}

    async def write(self, do: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Call a function in one of `N_WRITERS` threads, so that writes leave threads free for rankings."""
        return await to_thread.run_sync(do, *args, limiter=self._writers)

    # Users

    def add_events(self, user_id: str, events: Sequence[EventIn]) -> list[bool]:
        """Store events and queue an update of the profile; return which events were new."""
        self.ranker.check_items([event.item_id for event in events])
        return self.store.add_events(user_id, events)

    def user(self, user_id: str) -> UserOut:
        """Return all stored data of a user."""
        events = self.store.events(user_id)
        if not events:
            raise unknown_user(user_id)
        versions = self.store.profiles(user_id)
        left = self.store.user_summaries(user_id)
        blocks = []
        for block in self.summarizer.blocks([event.item_id for event in events]):
            # The first summary of the same items that no earlier block has.
            found = next((summary for summary in left if summary.item_ids == block.item_ids), None)
            if found is not None:
                left.remove(found)
            blocks.append(
                BlockOut(
                    index=block.index,
                    start=block.start,
                    item_ids=list(block.item_ids),
                    complete=block.complete,
                    summary=None if found is None else found.text,
                )
            )
        return UserOut(
            user_id=user_id,
            history=events,
            blocks=blocks,
            notes=self.store.notes(user_id),
            profile=versions[-1] if versions else None,
            versions=list(versions),
            pending=self.store.update_of(user_id) is not None,
        )

    def put_notes(self, user_id: str, text: str) -> NotesOut:
        """Replace a user's notes; a blank text removes them."""
        notes = self.store.put_notes(user_id, text if sanitize_line(text) else "")
        if notes is None:
            raise unknown_user(user_id)
        return notes

    def delete_user(self, user_id: str) -> None:
        """Delete a user; no byte of theirs is left when this returns."""
        if not self.store.delete_user(user_id):
            raise unknown_user(user_id)

    # Items

    def put_items(self, items: Sequence[Item]) -> int:
        """Add or change items; return how many were new."""
        known = self.catalogue.fields
        if unknown := list(dict.fromkeys(f for item in items for f in item.fields if f not in known)):
            raise Problem(
                UNKNOWN_FIELDS,
                f"Items have the fields {', '.join(known)}; leave out {', '.join(map(repr, unknown[:10]))}.",
            )
        with self._items_lock:  # keeps store and memory in the same order
            n_added = len({item.item_id for item in items if item.item_id not in self.catalogue})
            self.store.put_items(items)
            self.ranker.retriever.put_items(items)
        return n_added

    def item(self, item_id: str) -> Item:
        """Return an item."""
        if item_id not in self.catalogue:
            raise Problem(UNKNOWN_ITEM, f"There is no item {item_id!r}; add it with `PUT /v1/items` first.")
        return self.catalogue.item(item_id)

    def delete_item(self, item_id: str) -> None:
        """Delete an item from retrieval and ranking; histories keep its id, without a text."""
        with self._items_lock:
            self.item(item_id)
            self.store.delete_item(item_id)
            self.ranker.retriever.delete_items([item_id])

    # Rankings

    async def recommend(
        self, whom: str | tuple[str, ...], wish: RecommendRequest
    ) -> tuple[UserContext, list[RankedItem], Tokens]:
        """Rank items for a user or a history (item ids, oldest first); see `RankingService.recommend`."""
        reader = await run_in_threadpool(self.reader, whom)
        return reader, *await self.ranker.recommend(reader, wish)

    def reader(self, whom: str | tuple[str, ...]) -> UserContext:
        """Return a user with the newest profile, which may cover fewer items than the history has.

        Args:
            whom: A user id, or a history (item ids, oldest first).
        """
        if not isinstance(whom, str):
            self.ranker.check_items(whom)
            return self._without_written_profile(whom)
        history = self.store.history(whom)
        if not history:
            raise unknown_user(whom)
        notes, profile = self.store.notes(whom), self.store.latest_profile(whom)
        if profile is None:
            found = self._without_written_profile(history)
        else:
            found = UserContext(history, profile.text, "model", profile.version, profile.n_items)
        return replace(found, notes=notes.text) if notes else found

    def _without_written_profile(self, history: tuple[str, ...]) -> UserContext:
        """Return the context with a counted profile, or with none for the method `none`."""
        text = ""
        if self.summarizer.config.method != "none":
            items = [self.catalogue.item(item_id) for item_id in history]
            text = counted_profile(items, self.summarizer.category_fields, self.summarizer.title_field)
        return UserContext(history, text, "counted" if text else "none", None, len(history) if text else 0)


def unknown_user(user_id: str) -> Problem:
    """Return the problem for a user that does not exist."""
    return Problem(UNKNOWN_USER, f"There is no user {user_id!r}; the first event creates a user.")
