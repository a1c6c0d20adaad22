"""What the page shows: values read from the service, cut to lengths that can be read.

Unknown users and items raise `Problem`; a model without time for a ranking raises `OverloadedError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, NamedTuple

from starlette.concurrency import run_in_threadpool

from trsr.serve.ranking import RecommendRequest, UserContext
from trsr.serve.rendering import clipped
from trsr.serve.schemas import BlockOut, NotesOut, ProfileOut, UserOut
from trsr.serve.service import Service
from trsr.summarize.counted import field_values, word_changes
from trsr.templating import sanitize_line
from trsr.types import RankedItem

MAX_TITLE = 140
MAX_FIELD = 1_200
MAX_VERSIONS = 20
"""Newest versions of a profile that are listed."""
N_SHOWN = 10
_FULL_BARS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_SMALL = 0.005
"""A difference of margins that is shown as 0.00."""

Change = tuple[list[str], list[str]]
"""Words that a text added to the one before, and that are gone."""


@dataclass(frozen=True, slots=True)
class ItemView:
    """An item: its title, its categories, and its other texts."""

    item_id: str
    title: str
    kinds: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]


class BlockView(NamedTuple):
    """A block with its items and their times; `change` is None at the first summary."""

    block: BlockOut
    items: list[tuple[ItemView, datetime | None]]
    change: Change | None


class ProfileView(NamedTuple):
    """The profile that serves now, and the newest versions, newest first, each with what it changed.

    `state`: it knows the whole history; an update waits or runs; one failed and will be tried again; or
    nothing is under way although there is news.
    """

    reader: UserContext
    n_attempts: int
    state: Literal["current", "updating", "failing", "behind"]
    versions: list[tuple[ProfileOut, Change]]
    n_versions: int

    @property
    def seen(self) -> str:
        """Name what is shown."""
        return f"{self.reader.version or 0}.{len(self.reader.history)}.{self.n_attempts}.{self.state}"


class UserView(NamedTuple):
    """A user's page; blocks newest first."""

    notes: NotesOut | None
    profile: ProfileView
    blocks: list[BlockView]
    method: str


class Reason(NamedTuple):
    """A part of the prompt and how much it adds to the margin (logits); `width` is 0 to 50."""

    text: str
    moved: float
    width: float


class Why(NamedTuple):
    """What moved a score: sentences of notes and profile and recent items, each left out in turn."""

    item: ItemView
    notes: list[Reason]
    sentences: list[Reason]
    recent: list[Reason]


class Row(NamedTuple):
    """A ranked item; `move` is how many places it rose since the ranking before, None for a newcomer."""

    item: ItemView
    ranked: RankedItem
    move: int | None
    why: Why | None


class RankingView(NamedTuple):
    """The best items; `full` is the score at which a bar is full."""

    rows: list[Row]
    full: float
    calibrated: bool
    moved: bool
    reader: UserContext


class Comparison(NamedTuple):
    """The same candidates ranked with the serving profile and the counted one; `agree` of them do so."""

    readers: tuple[UserContext, UserContext]
    pairs: list[tuple[ItemView, tuple[RankedItem, RankedItem]]]
    n_candidates: int
    n_best: int
    agree: int
    full: float


def item_view(service: Service, item_id: str) -> ItemView:
    """Return an item to show; one that is not in the catalogue any more has its id only."""
    item = service.catalogue.items.get(item_id)
    if item is None:
        return ItemView(item_id, item_id, (), ())
    title = sanitize_line(item.fields.get(service.summarizer.title_field or "", ""))
    if not title:
        title = sanitize_line(next(iter(item.fields.values()), "")) or item_id
    kinds = field_values(item, service.summarizer.category_fields)[:3]
    fields = tuple((name, clipped(text, MAX_FIELD)) for name, text in item.fields.items())
    return ItemView(item_id, clipped(title, MAX_TITLE), tuple(clipped(kind, 40) for kind in kinds), fields)


def user_view(service: Service, user_id: str) -> UserView:
    """Read everything the page shows of a user but rankings."""
    user = service.user(user_id)
    blocks, before = [], None
    for block in user.blocks:
        events = user.history[block.start : block.start + len(block.item_ids)]
        items = [(item_view(service, event.item_id), event.timestamp) for event in events]
        change = None if None in (before, block.summary) else word_changes(str(before), str(block.summary))
        blocks.append(BlockView(block, items, change))
        before = before if block.summary is None else block.summary
    method = service.summarizer.config.method
    return UserView(user.notes, _profile_view(service, user), blocks[::-1], method)


def _profile_view(service: Service, user: UserOut) -> ProfileView:
    reader, update = service.reader(user.user_id), service.store.update_of(user.user_id)
    state: Literal["current", "updating", "failing", "behind"] = "current"
    if update is not None:
        state = "failing" if update.n_attempts else "updating"
    elif service.summarizer.config.method != "none" and (
        user.profile is None or user.profile.n_items < len(user.history)
    ):
        state = "behind"
    before = ["", *(version.text for version in user.versions)]
    newest = list(zip(before, user.versions, strict=False))[-MAX_VERSIONS:]
    versions = [(version, word_changes(text, version.text)) for text, version in reversed(newest)]
    return ProfileView(reader, update.n_attempts if update else 0, state, versions, len(user.versions))


async def ranking_view(
    service: Service, user_id: str, before: Sequence[str] = (), explain: str | None = None
) -> RankingView:
    """Rank for a user; `before` are the items of the ranking that is on the page, best first."""
    reader, results, _ = await service.recommend(user_id, RecommendRequest(top_n=N_SHOWN))
    why = await why_view(service, user_id, explain) if explain else None
    rows = [
        Row(
            item_view(service, one.item_id),
            one,
            before.index(one.item_id) + 1 - one.rank if one.item_id in before else None,
            why if one.item_id == explain else None,
        )
        for one in results
    ]
    moved = bool(before) and any(row.move != 0 for row in rows)
    return RankingView(rows, _full(results), service.calibrated, moved, reader)


def retrieved_view(service: Service, user_id: str) -> list[ItemView]:
    """Return the items that the model would rank for a user, in the order in which they were found."""
    found = service.ranker.retrieved(service.reader(user_id), RecommendRequest(top_n=N_SHOWN))
    return [item_view(service, item_id) for item_id in found[:N_SHOWN]]


async def why_view(service: Service, user_id: str, item_id: str) -> Why:
    """Explain one candidate's score."""
    wish = RecommendRequest(candidates=(item_id,), top_n=1, explain=True)
    _, (one,), _ = await service.recommend(user_id, wish)
    assert one.explanation is not None
    parts = one.explanation
    everything = (*parts.without_item, *parts.without_note, *parts.without_sentence)
    most = max((abs(moved) for _, moved in everything), default=0.0)

    def reason(text: str, moved: float) -> Reason:
        return Reason(clipped(text, 400), moved, round(50 * abs(moved) / most if most >= _SMALL else 0.0, 1))

    return Why(
        item_view(service, item_id),
        [reason(*part) for part in parts.without_note],
        [reason(*part) for part in parts.without_sentence],
        [reason(item_view(service, name).title, moved) for name, moved in reversed(parts.without_item)],
    )


async def comparison_view(service: Service, user_id: str) -> Comparison:
    """Rank a user's candidates with the profile that serves and with the one that is only counted.

    The notes are read with both.
    """
    wish = RecommendRequest(top_n=max(N_SHOWN, service.ranker.n_ranked))
    reader, results, _ = await service.recommend(user_id, wish)
    candidates = tuple(one.item_id for one in results)
    # A bare history has no profile but what is counted from its items.
    bare = await run_in_threadpool(service.reader, reader.history)
    counted = replace(bare, notes=reader.notes)
    by_counts, _ = await service.ranker.recommend(
        counted, RecommendRequest(candidates=candidates, top_n=len(candidates))
    )
    other = {one.item_id: one for one in by_counts}
    pairs = [(one, other[one.item_id]) for one in results]
    return Comparison(
        readers=(reader, counted),
        pairs=[
            (item_view(service, one.item_id), (one, two))
            for one, two in pairs
            if min(one.rank, two.rank) <= N_SHOWN
        ],
        n_candidates=len(candidates),
        n_best=min(N_SHOWN, len(candidates)),
        agree=sum(max(one.rank, two.rank) <= N_SHOWN for one, two in pairs),
        full=_full([*results, *by_counts]),
    )


def _full(results: Sequence[RankedItem]) -> float:
    """Return the score at which bars are full: the next round one, so that small scores differ visibly."""
    most = max((one.score for one in results), default=1.0)
    return next(full for full in _FULL_BARS if most <= full or full == 1.0)
