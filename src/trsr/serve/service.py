"""The service behind the routes and the page: users, items and rankings over one store and one model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, TypeVarTuple, Unpack

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool

from trsr.recommend.questions import TextAsk
from trsr.serve.problems import UNKNOWN_FIELDS, UNKNOWN_ITEM, UNKNOWN_USER, Problem
from trsr.serve.profile_updater import Follower
from trsr.serve.ranking import Ranker, Ranking, Reader, Tokens, Wish
from trsr.serve.store import Event, Notes, PendingUpdate, Profile, ServeStore, StoredEvent, UserSummary
from trsr.summarize.counted import counted_profile
from trsr.summarize.user_plan import Summariser
from trsr.templating import plain_line
from trsr.types import Block, Item, RankedItem

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
N_WRITERS = 8
"""Threads in which users and items are written; SQLite writes one transaction at a time."""


@dataclass(frozen=True, slots=True)
class User:
    """Everything that is known of a user.

    Attributes:
        user_id: Who.
        events: Oldest first.
        blocks: Each block of the history with its summary, where one is written.
        notes: What they wrote about themselves.
        profiles: Every version, oldest first.
        update: What waits to be folded into the profile; None if nothing does.
    """

    user_id: str
    events: list[StoredEvent]
    blocks: list[tuple[Block, str | None]]
    notes: Notes | None
    profiles: list[Profile]
    update: PendingUpdate | None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """RankedItem items, best first, for whom they are, and the tokens of their prompts."""

    reader: Reader
    results: list[RankedItem]
    tokens: Tokens


class Service:
    """What can be asked of a running server. Its plain methods block: call them from threads.

    Args:
        store: Keeps users, profiles and items that were put.
        follower: Lets profiles follow; runs in a thread of its own from `start` to `close`.
        ranker: Answers ranking questions; its queue is closed here too. All its parts have one catalogue.
        summariser: Says how histories are cut, and what is counted.
    """

    def __init__(self, store: ServeStore, follower: Follower, ranker: Ranker, summariser: Summariser) -> None:
        self.store = store
        self.follower = follower
        self.ranker = ranker
        self.summariser = summariser
        self.catalogue = ranker.recommender.catalogue
        self._items_lock = threading.Lock()
        self._writers = CapacityLimiter(N_WRITERS)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=follower.run, args=(self._stop,), name="trsr-follower", daemon=True
        )
        if put_before := list(store.items()):
            ranker.retriever.put_items(put_before)
        if deleted := store.deleted_items():
            ranker.retriever.delete_items(deleted)

    @property
    def model_name(self) -> str:
        """The served model, as answers name it."""
        return self.ranker.recommender.name

    @property
    def calibrated(self) -> bool:
        """Whether scores are calibrated."""
        return self.ranker.recommender.calibration is not None

    # Life

    def start(self) -> None:
        """Start to follow."""
        self._thread.start()

    def close(self) -> None:
        """End the threads, close engine and store; what is unfinished is taken up by the next start."""
        self._stop.set()
        self.store.wake()
        if self._thread.is_alive():
            self._thread.join()
        self.ranker.queue.close()
        if self.follower.engine is not None:
            self.follower.engine.close()
        self.store.close()

    @property
    def follows(self) -> bool:
        """Whether the thread in which profiles follow is there."""
        return self._thread.is_alive()

    def facts(self) -> dict[str, float]:
        """Return the counts of the queue, the follower and the store, for metrics."""
        queue = {
            f"model_{name}" if "waiting" in name else f"model_{name}_total": value
            for name, value in self.ranker.queue.facts().items()
        }
        store = {f"store_{name}": value for name, value in self.store.facts().items()}
        written = self.follower.totals
        profiles = {
            "profile_updates_total": float(self.follower.n_updates),
            "profile_failed_updates_total": float(self.follower.n_failed),
            "llm_calls_total": float(written.n_calls_made),
            "llm_failed_calls_total": float(written.n_calls_failed),
            "llm_known_calls_total": float(written.n_calls_known),
            "llm_prompt_tokens_total": float(written.n_prompt_tokens),
            "llm_generated_tokens_total": float(written.n_generated_tokens),
        }
        return {**queue, **store, **profiles}

    async def write(self, do: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Call a function that writes, in one of a few threads, so that the others are there for rankings."""
        return await to_thread.run_sync(do, *args, limiter=self._writers)

    # Users

    def add_events(self, user_id: str, events: Sequence[Event]) -> list[bool]:
        """Keep events and let the profile follow; return which were new.

        Raises:
            Problem: unknown items, by name; then no event is kept.
        """
        self.ranker.check_items([event.item_id for event in events])
        return self.store.add_events(user_id, events)

    def user(self, user_id: str) -> User:
        """Return what is known of a user.

        Raises:
            Problem: there is no such user.
        """
        events = self.store.events(user_id)
        if not events:
            raise _unknown(user_id)
        profiles = self.store.profiles(user_id)
        blocks = self.summariser.blocks([event.item_id for event in events])
        texts = _block_texts(blocks, self.store.user_summaries(user_id))
        return User(
            user_id,
            events,
            list(zip(blocks, texts, strict=True)),
            self.store.notes(user_id),
            profiles,
            self.store.update_of(user_id),
        )

    def put_notes(self, user_id: str, text: str) -> Notes:
        """Keep what a user wrote about themselves, in place of earlier notes; a blank text removes them.

        Raises:
            Problem: there is no such user.
        """
        notes = self.store.put_notes(user_id, text if plain_line(text) else "")
        if notes is None:
            raise _unknown(user_id)
        return notes

    def delete_user(self, user_id: str) -> None:
        """Forget a user; no byte of them is left when this returns.

        Raises:
            Problem: there is no such user.
        """
        if not self.store.delete_user(user_id):
            raise _unknown(user_id)

    # Items

    def put_items(self, items: Sequence[Item]) -> int:
        """Add or change items; return how many were new.

        Raises:
            Problem: an item has a field that the catalogue does not have; then no item is kept.
        """
        known = self.catalogue.fields
        if unknown := list(dict.fromkeys(f for item in items for f in item.fields if f not in known)):
            raise Problem(
                UNKNOWN_FIELDS,
                f"Items have the fields {', '.join(known)}; leave out {', '.join(map(repr, unknown[:10]))}.",
            )
        with self._items_lock:  # the store and the memory must agree on which change was the last
            n_added = len({item.item_id for item in items if item.item_id not in self.catalogue})
            self.store.put_items(items)
            self.ranker.retriever.put_items(items)
        return n_added

    def item(self, item_id: str) -> Item:
        """Return an item.

        Raises:
            Problem: there is no such item.
        """
        if item_id not in self.catalogue:
            raise Problem(UNKNOWN_ITEM, f"There is no item {item_id!r}; put it there first.")
        return self.catalogue.item(item_id)

    def delete_item(self, item_id: str) -> None:
        """Delete an item: it is not found, ranked or bought any more; histories keep its id, without a text.

        Raises:
            Problem: there is no such item.
        """
        with self._items_lock:
            self.item(item_id)
            self.store.delete_item(item_id)
            self.ranker.retriever.delete_items([item_id])

    # Rankings

    async def rerank(self, question: TextAsk, model: str | None = None) -> Ranking:
        """Rank texts for a profile text; see `Ranker.rerank`."""
        return await self.ranker.rerank(question, model)

    async def recommend(self, whom: str | tuple[str, ...], wish: Wish) -> Recommendation:
        """Rank items for a user, or for a history (item ids, oldest first); see `Ranker.recommend`.

        Raises:
            Problem: there is no such user, and what `Ranker.recommend` says.
        """
        reader = await run_in_threadpool(self.reader, whom)
        results, tokens = await self.ranker.recommend(reader, wish)
        return Recommendation(reader, results, tokens)

    def reader(self, whom: str | tuple[str, ...]) -> Reader:
        """Return a user with the newest profile there is, which may know fewer items than the history has.

        Args:
            whom: A user, or a history of nobody in particular (item ids, oldest first).

        Raises:
            Problem: there is no such user, or an item of the history is unknown.
        """
        if not isinstance(whom, str):
            self.ranker.check_items(whom)
            return self._stranger(whom)
        history = self.store.history(whom)
        if history is None:
            raise _unknown(whom)
        notes, profile = self.store.notes(whom), self.store.latest_profile(whom)
        if profile is None:
            found = self._stranger(history.item_ids)
        else:
            found = Reader(history.item_ids, profile.text, "model", profile.version, profile.n_items)
        return replace(found, notes=notes.text) if notes else found

    def _stranger(self, history: tuple[str, ...]) -> Reader:
        """Return a reader nothing is written about: the profile is counted, if the model reads any."""
        text = ""
        if self.summariser.config.method != "none":
            items = [self.catalogue.item(item_id) for item_id in history]
            text = counted_profile(items, self.summariser.category_fields, self.summariser.title_field)
        return Reader(history, text, "counted" if text else "none", None, len(history) if text else 0)


def _unknown(user_id: str) -> Problem:
    return Problem(UNKNOWN_USER, f"There is no user {user_id!r}; a first event makes one.")


def _block_texts(blocks: Sequence[Block], summaries: Sequence[UserSummary]) -> list[str | None]:
    """Return each block's summary: the first one of its items that no block before it has taken."""
    left = list(summaries)
    texts: list[str | None] = []
    for block in blocks:
        found = next((summary for summary in left if summary.item_ids == block.item_ids), None)
        if found is not None:
            left.remove(found)
        texts.append(found.text if found else None)
    return texts
