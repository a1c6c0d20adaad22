"""What the page shows of a user, item or profile: plain values, cut to lengths that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from starlette.concurrency import run_in_threadpool

from trsr.serve.ranking import Reader, Wish
from trsr.serve.service import Service, User
from trsr.serve.store import Notes
from trsr.summarize.counted import field_values, word_changes
from trsr.templating import plain_line
from trsr.types import Explanation, RankedItem

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


N_SHOWN = 10
_FULL_BARS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_SMALL = 0.005
"""A difference of margins that is shown as 0.00."""


@dataclass(frozen=True, slots=True)
class Reason:
    """A part of the prompt and how much it adds to the margin (logits); `width` is 0 to 50."""

    text: str
    moved: float
    width: float


@dataclass(frozen=True, slots=True)
class Why:
    """What moved a score: sentences of notes and profile and recent items, each left out in turn."""

    item: ItemView
    score: float
    notes: list[Reason]
    sentences: list[Reason]
    recent: list[Reason]


@dataclass(frozen=True, slots=True)
class Row:
    """A ranked item; `move` is how many places it rose since the ranking before, None for a newcomer."""

    item: ItemView
    rank: int
    score: float
    width: float
    move: int | None
    why: Why | None


@dataclass(frozen=True, slots=True)
class RankingView:
    """The best items; `full` is the score at which a bar is full."""

    user_id: str
    rows: list[Row]
    full: float
    calibrated: bool
    moved: bool
    reader: Reader


@dataclass(frozen=True, slots=True)
class Pair:
    """An item's rank and score by the written profile and by the other one."""

    item: ItemView
    ranks: tuple[int, int]
    scores: tuple[float, float]
    widths: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same candidates, ranked with two profiles; `agree` of the best ten are the same."""

    user_id: str
    texts: tuple[str, str]
    source: str
    other: str
    pairs: list[Pair]
    n_candidates: int
    n_best: int
    agree: int
    full: float


async def ranking_view(
    service: Service, user_id: str, before: Sequence[str] = (), explain: str | None = None
) -> RankingView:
    """Rank for a user; `before` are the items of the ranking that is on the page, best first.

    Raises:
        Problem: there is no such user, or the item to explain is unknown.
        OverloadedError: there is no time for it.
    """
    found = await service.recommend(user_id, Wish(top_n=N_SHOWN))
    full = _full(found.results)
    why = await why_view(service, user_id, explain) if explain else None
    rows = [
        Row(
            item_view(service, one.item_id),
            one.rank,
            one.score,
            100 * min(1.0, one.score / full),
            before.index(one.item_id) + 1 - one.rank if one.item_id in before else None,
            why if one.item_id == explain else None,
        )
        for one in found.results
    ]
    moved = bool(before) and any(row.move != 0 for row in rows)
    return RankingView(user_id, rows, full, service.calibrated, moved, found.reader)


def retrieved_view(service: Service, user_id: str) -> list[ItemView]:
    """Return the items that the model would rank for a user, in the order in which they were found.

    Raises:
        Problem: there is no such user.
    """
    found = service.ranker.retrieved(service.reader(user_id), Wish(top_n=N_SHOWN))
    return [item_view(service, item_id) for item_id in found[:N_SHOWN]]


async def why_view(service: Service, user_id: str, item_id: str) -> Why:
    """Explain one candidate's score.

    Raises:
        Problem: there is no such user or item.
        OverloadedError: there is no time for it.
    """
    wish = Wish(candidates=(item_id,), top_n=1, explain=True)
    one = (await service.recommend(user_id, wish)).results[0]
    parts = one.explanation or Explanation(one.margin, (), (), ())
    everything = (*parts.without_item, *parts.without_note, *parts.without_sentence)
    most = max((abs(moved) for _, moved in everything), default=0.0)

    def reason(text: str, moved: float) -> Reason:
        width = 50 * abs(moved) / most if most >= _SMALL else 0.0
        return Reason(text, moved, round(width, 1))

    return Why(
        item_view(service, item_id),
        one.score,
        [reason(clipped(text, 400), moved) for text, moved in parts.without_note],
        [reason(clipped(text, 400), moved) for text, moved in parts.without_sentence],
        [reason(item_view(service, name).title, moved) for name, moved in reversed(parts.without_item)],
    )


async def comparison_view(service: Service, user_id: str) -> Comparison:
    """Rank a user's candidates with the profile that serves and with the one that is only counted.

    The notes are read with both.

    Raises:
        Problem: there is no such user.
        OverloadedError: there is no time for it.
    """
    written = await service.recommend(user_id, Wish(top_n=max(N_SHOWN, service.ranker.n_ranked)))
    candidates = tuple(one.item_id for one in written.results)
    # A bare history has no profile but what is counted from its items.
    bare = await run_in_threadpool(service.reader, written.reader.history)
    counted = replace(bare, notes=written.reader.notes)
    by_counts, _ = await service.ranker.recommend(counted, Wish(candidates=candidates, top_n=len(candidates)))
    full = _full([*written.results, *by_counts])
    other = {one.item_id: one for one in by_counts}
    pairs = [
        Pair(
            item_view(service, one.item_id),
            (one.rank, other[one.item_id].rank),
            (one.score, other[one.item_id].score),
            (100 * min(1.0, one.score / full), 100 * min(1.0, other[one.item_id].score / full)),
        )
        for one in written.results
    ]
    best = [pair for pair in pairs if min(pair.ranks) <= N_SHOWN]
    return Comparison(
        user_id,
        (written.reader.profile, counted.profile),
        written.reader.source,
        counted.source,
        best,
        len(candidates),
        min(N_SHOWN, len(candidates)),
        sum(max(pair.ranks) <= N_SHOWN for pair in pairs),
        full,
    )


def _full(results: Sequence[RankedItem]) -> float:
    """Return the score at which bars are full: the next round one, so that small scores can be told apart."""
    most = max((one.score for one in results), default=1.0)
    return next(full for full in _FULL_BARS if most <= full or full == 1.0)
