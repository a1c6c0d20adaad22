"""What the page shows of a user, item or profile: plain values, cut to lengths that can be read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from trsr.serve.records import Notes
from trsr.serve.service import Service, User
from trsr.summarize.changes import word_changes
from trsr.summarize.counted import field_values
from trsr.templating import plain_line

MAX_TITLE = 140
MAX_FIELD = 1_200
MAX_WORDS = 14
MAX_VERSIONS = 20
"""Newest versions of a profile that are listed."""


@dataclass(frozen=True, slots=True)
class ItemView:
    """An item: its title, its categories, and its other texts."""

    item_id: str
    title: str
    kinds: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """Words that a text added to the one before and that went; `more` of each are not listed."""

    added: list[str]
    gone: list[str]
    more_added: int
    more_gone: int


@dataclass(frozen=True, slots=True)
class BlockView:
    """A block: items `first` to `last` (from 1), newest last; `change` is None at the first text."""

    number: int
    first: int
    last: int
    complete: bool
    items: list[tuple[ItemView, datetime | None]]
    summary: str | None
    change: Change | None


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version of the profile and how it differs from the one before."""

    version: int
    text: str
    n_items: int
    created_at: datetime
    change: Change


State = Literal["current", "updating", "failing", "behind", "unread"]


@dataclass(frozen=True, slots=True)
class ProfileView:
    """The profile that serves now.

    `state`: it knows the whole history; an update waits or runs; one failed and will be tried again; nothing
    is under way although there is news; or the model reads no profile at all. `versions` has the newest ones,
    newest first. `seen` changes when there is something new to show.
    """

    user_id: str
    text: str
    source: str
    version: int | None
    n_items: int
    n_history: int
    n_attempts: int
    state: State
    versions: list[VersionView]
    n_versions: int

    @property
    def seen(self) -> str:
        """Name what is shown."""
        return f"{self.version or 0}.{self.n_history}.{self.n_attempts}.{self.state}"


@dataclass(frozen=True, slots=True)
class UserView:
    """A user's page: blocks and versions newest first."""

    user_id: str
    notes: Notes | None
    profile: ProfileView
    blocks: list[BlockView]
    method: str

    @property
    def summarised(self) -> bool:
        """Whether blocks have summaries by this method at all."""
        return self.method in ("recurrent", "hierarchical")


def clipped(text: str, n: int) -> str:
    """Return at most `n` letters of a text, with a mark where it was cut."""
    return text if len(text) <= n else text[: n - 1].rstrip() + "…"


def item_view(service: Service, item_id: str) -> ItemView:
    """Return an item to show; one that is not in the catalogue any more has its id only."""
    item = service.catalogue.items.get(item_id)
    if item is None:
        return ItemView(item_id, item_id, (), ())
    title_field = service.summariser.title_field
    title = plain_line(item.fields.get(title_field or "", ""))
    kinds = field_values(item, service.summariser.category_fields)
    if not title:
        title = plain_line(next(iter(item.fields.values()), "")) or item_id
    fields = tuple((name, clipped(text, MAX_FIELD)) for name, text in item.fields.items())
    return ItemView(
        item_id, clipped(title, MAX_TITLE), tuple(clipped(kind, 40) for kind in kinds[:3]), fields
    )


def change(before: str, after: str) -> Change:
    """Return the first words that came and went between two texts."""
    added, gone = word_changes(before, after)
    return Change(
        [clipped(word, 40) for word in added[:MAX_WORDS]],
        [clipped(word, 40) for word in gone[:MAX_WORDS]],
        max(0, len(added) - MAX_WORDS),
        max(0, len(gone) - MAX_WORDS),
    )


def user_view(service: Service, user_id: str) -> UserView:
    """Read everything the page shows of a user but rankings.

    Raises:
        Problem: there is no such user.
    """
    user = service.user(user_id)
    method = service.summariser.config.method
    return UserView(user_id, user.notes, _profile(service, user), _blocks(service, user), method)


def _profile(service: Service, user: User) -> ProfileView:
    reader = service.reader(user.user_id)
    update = user.update
    state: State = "current"
    if update is not None:
        state = "failing" if update.n_attempts else "updating"
    elif service.summariser.config.method == "none":
        state = "unread" if reader.source == "none" else "current"
    elif not user.profiles or user.profiles[-1].n_items < len(user.events):
        state = "behind"
    shown = user.profiles[-MAX_VERSIONS:]
    before = [profile.text for profile in user.profiles[-MAX_VERSIONS - 1 :]]
    if len(before) == len(shown):  # the first version is among them
        before = ["", *before]
    versions = [
        VersionView(
            profile.version,
            profile.text,
            profile.n_items,
            profile.created_at,
            change(text, profile.text),
        )
        for text, profile in zip(before, shown, strict=False)
    ]
    return ProfileView(
        user.user_id,
        reader.profile,
        reader.source,
        reader.version,
        reader.n_items,
        len(reader.history),
        update.n_attempts if update else 0,
        state,
        versions[::-1],
        len(user.profiles),
    )


def _blocks(service: Service, user: User) -> list[BlockView]:
    views = []
    before: str | None = None
    for block, summary in user.blocks:
        events = user.events[block.start : block.start + len(block.item_ids)]
        views.append(
            BlockView(
                number=block.index + 1,
                first=block.start + 1,
                last=block.start + len(block.item_ids),
                complete=block.complete,
                items=[(item_view(service, event.item_id), event.timestamp) for event in events],
                summary=summary,
                change=change(before, summary) if summary is not None and before is not None else None,
            )
        )
        before = summary if summary is not None else before
    return views[::-1]
