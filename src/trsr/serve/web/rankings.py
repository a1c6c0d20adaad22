"""Rankings as the page shows them: bars, moves since the ranking before, reasons, two methods compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from starlette.concurrency import run_in_threadpool

from trsr.serve.explaining import Explanation
from trsr.serve.ranking import Ranked, Reader, Wish
from trsr.serve.service import Service
from trsr.serve.web.views import ItemView, clipped, item_view

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


def _full(results: Sequence[Ranked]) -> float:
    """Return the score at which bars are full: the next round one, so that small scores can be told apart."""
    most = max((one.score for one in results), default=1.0)
    return next(full for full in _FULL_BARS if most <= full or full == 1.0)
