"""What the service keeps about users: plain values, as the store hands them out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


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
