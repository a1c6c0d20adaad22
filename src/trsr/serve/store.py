"""The seam between the service and its database: everything that is known of users and items.

What a method has returned from is kept, whatever happens to the process. Events, imports, notes, items and
deletions also survive a power cut; what the model made may be lost by one, and is then made again. All
methods may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from trsr.serve.settings import Key
from trsr.summarize.store import TextStore
from trsr.types import History, Item


@dataclass(frozen=True, slots=True)
class Event:
    """Something a user did, as it is posted.

    Attributes:
        event_id: The sender's name for it, unique for the user: the same one again changes nothing.
        item_id: What it happened to.
        timestamp: When, with a time zone; None where it is not known.
    """

    event_id: str
    item_id: str
    timestamp: datetime | None = None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with its place in the history: `position` counts from 0, the oldest; times are UTC."""

    event_id: str
    item_id: str
    position: int
    timestamp: datetime | None


@dataclass(frozen=True, slots=True)
class Profile:
    """One version of a user's profile.

    Attributes:
        user_id: Whose profile it is.
        version: Counts from 1.
        text: What it says.
        n_items: How many of the oldest history items stand behind it.
        key: The store's key of the last call that made it; None where no call was made.
        created_at: When (UTC).
    """

    user_id: str
    version: int
    text: str
    n_items: int
    key: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Notes:
    """What a user wrote about themselves, and when (UTC); no update of the profile changes it."""

    text: str
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class PendingUpdate:
    """A user whose profile has not seen all of their history; at most one a user.

    Attributes:
        user_id: Who.
        n_items: Length of their history when this was read.
        since: When the oldest change came that the profile has not seen (UTC).
        n_attempts: Failed attempts so far.
        ticket: Names this user for good: one who is deleted and comes back has another ticket.
    """

    user_id: str
    n_items: int
    since: datetime
    n_attempts: int
    ticket: int


class UserSummary(NamedTuple):
    """The text of one summary call behind a user's profile, and the items it was made of."""

    key: str
    text: str
    item_ids: tuple[str, ...]


class ServeStore(TextStore, Protocol):
    """Users with their events and profiles, the queue of updates, summary texts, and the catalogue.

    It is the `TextStore` of the summariser too. A text that `put` brings belongs to the users it was written
    for (`StoredCall.user_ids` are their tickets), those of them who are still there; with nobody left it is
    not kept, nor for a user who was deleted meanwhile and is back.

    Raises:
        OutputError: (any method) the database cannot be written or is busy for long.
    """

    # Events and histories

    def add_events(self, user_id: str, events: Sequence[Event]) -> list[bool]:
        """Append events to a user's history in the order given; the user is made as needed.

        A history is kept in the order of arrival: an event that comes late goes to the end, whatever its
        timestamp, so that blocks already summarised stay as they are. Events and the pending update are
        committed together before this returns.

        Returns:
            For each event, whether it was new. One whose id the user already has is ignored, even if it
            names another item.

        Raises:
            ValueError: a timestamp has no time zone.
        """
        ...

    def import_histories(
        self, histories: Iterable[History], source: str = "data", follow: bool = False
    ) -> int:
        """Append whole histories, all or none; the ids of their events are `data:POSITION`.

        A source is imported once: the second time nothing is read, so that a user who was deleted does not
        come back when the service starts again.

        Args:
            histories: Whose events.
            source: Names where they come from, such as a data set's fingerprint.
            follow: Whether profiles are to be made for these users now; else their next event starts it.

        Returns:
            How many events were new.
        """
        ...

    def sources(self) -> list[str]:
        """Return the names of what `import_histories` has taken, the first one first."""
        ...

    def history(self, user_id: str) -> History | None:
        """Return a user's items, oldest first, with times if every event has one; None: nobody of that id."""
        ...

    def events(self, user_id: str) -> list[StoredEvent]:
        """Return a user's events, oldest first; none for an unknown user."""
        ...

    def users(self, query: str = "", limit: int = 50, prefix: str = "", after: str = "") -> list[str]:
        """Return the first `limit` ids behind `after` with `query` in them and `prefix` first, sorted.

        Letter case counts.
        """
        ...

    # Notes and profiles

    def notes(self, user_id: str) -> Notes | None:
        """Return what a user wrote about themselves; None where they wrote nothing."""
        ...

    def put_notes(self, user_id: str, text: str) -> Notes | None:
        """Replace a user's notes, or remove them by an empty text; return None for nobody of that id.

        Nothing else changes them, but `delete_user`.
        """
        ...

    def profiles(self, user_id: str) -> list[Profile]:
        """Return all versions of a user's profile, oldest first."""
        ...

    def latest_profile(self, user_id: str) -> Profile | None:
        """Return the newest version; None if there is none."""
        ...

    def add_profile(
        self,
        user_id: str,
        text: str,
        n_items: int,
        key: str | None = None,
        calls: Sequence[tuple[str, Sequence[str]]] = (),
        expected_version: int | None = None,
        ticket: int | None = None,
    ) -> Profile | None:
        """Add a version of a user's profile; take the update out of the queue unless the history is longer.

        Args:
            user_id: Whose.
            text: The profile.
            n_items: How many of the oldest items it has seen.
            key: The key of the last call that made it.
            calls: The keys of all calls behind it, in the order of the plan, each with the items below it.
                They replace those of the version before; a text nobody uses any more goes.
            expected_version: The newest version there must be (0 for none); None for whatever there is.
            ticket: The user's ticket there must be; None for any.

        Returns:
            The version, or None, and nothing changes: no such user, another version, another ticket, fewer
            than `n_items` items, or the text of one of the calls is gone, as those it was shared with are.
        """
        ...

    def user_summaries(self, user_id: str) -> list[UserSummary]:
        """Return the summaries behind the newest profile in the order of its plan."""
        ...

    # The queue of updates

    def request_update(self, user_id: str) -> bool:
        """Mark an update pending, as new events do; return whether there is such a user."""
        ...

    def update_of(self, user_id: str) -> PendingUpdate | None:
        """Return a user's update in the queue, due or put off; None if there is none."""
        ...

    def pending(self, limit: int) -> list[PendingUpdate]:
        """Return up to `limit` updates whose time has come, those that are due longest first.

        One that is put off for more than 5 minutes is due too: the clock was set back.

        They stay in the queue until `add_profile` or `finish`, so a killed process leaves them to the next.
        """
        ...

    def finish(self, update: PendingUpdate) -> None:
        """Take an update that has nothing to add out of the queue.

        It stays if there are newer events, or if the user is not the one of `update.ticket`.
        """
        ...

    def fail(self, update: PendingUpdate, error: str) -> None:
        """Count a failed attempt; the next is due in 1 second, then in twice as long each, up to 5 minutes.

        `error` is kept until the update succeeds or the user is deleted.
        """
        ...

    def put_back(self, update: PendingUpdate) -> None:
        """Let all updates that are due now go before this one."""
        ...

    def wait(self, seconds: float) -> None:
        """Return when an update may have become pending, or after some seconds."""
        ...

    def wake(self) -> None:
        """Let a thread in `wait` return now."""
        ...

    # The catalogue

    def items(self) -> Iterator[Item]:
        """Yield all items, sorted by id."""
        ...

    def item(self, item_id: str) -> Item | None:
        """Return an item, or None if it is unknown."""
        ...

    def deleted_items(self) -> list[str]:
        """Return the ids of the items that were deleted and not put again."""
        ...

    def put_items(self, items: Sequence[Item]) -> None:
        """Add items; those whose ids are known take the new fields."""
        ...

    def delete_item(self, item_id: str) -> None:
        """Delete an item, also one of the data set; histories keep its id."""
        ...

    # All of it

    def keys(self) -> list[Key]:
        """Return the API keys, sorted by name."""
        ...

    def delete_user(self, user_id: str) -> bool:
        """Forget a user: events, notes, profiles, updates, and the summaries no other user has.

        Returns whether there was such a user, when no byte of them is left on disk, in no log or journal
        either. A process that is killed meanwhile leaves the rest to the next one, which does it before
        anything else. The room this needs on a full disk is reserved.

        Raises:
            NotErasedError: the user is deleted, but another process holds the bytes; `clean` goes on.
        """
        ...

    def clean(self) -> bool:
        """Take what deletions left from the disk; return whether nothing is left. To be called when idle."""
        ...

    def check(self) -> None:
        """Write and read something, as requests do, and look whether there is room for more.

        Raises:
            OutputError, StoreError: it does not work, or was found damaged before.
        """
        ...

    def facts(self) -> dict[str, float]:
        """Return counts for metrics.

        `users`, `events`, `items`, `profiles` (versions), `notes`, `pending` (updates),
        `failing` (of these, with a failed attempt), `oldest_pending_seconds`, and `items_behind`: the events
        that the profiles of pending users have not seen.
        """
        ...

    def close(self) -> None:
        """Close the database; safe to call twice."""
        ...
