"""Why a candidate got its margin: each recent item and sentence of notes and profile is left out in turn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from trsr.recommend.ranker import RankRequest
from trsr.templating import sanitize_line
from trsr.types import Explanation

MAX_SENTENCES = 12
"""Parts of notes or of a profile that are left out in turn at most; of more, neighbours go together."""
# A full stop ends a sentence unless a small letter or a digit follows: "Mostly tools, e.g. saws." is one.
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+(?=[^\sa-z\d])|(?<=[。！？])")
_CLAUSE_END = re.compile(
    r"(?<=[;:])\s+|(?<=,)\s+(?:and\s+)?|\s+(?=but\b|while\b|and (?:also|lately|recently)\b)"
)


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """The requests behind an explanation: the whole one, then one without each item, note and sentence."""

    requests: tuple[RankRequest, ...]
    items: tuple[str, ...]
    notes: tuple[str, ...]
    sentences: tuple[str, ...]

    def explanation(self, margins: Iterable[float]) -> Explanation:
        """Return what the margins of the answers to `asks` say, in their order."""
        whole, *others = map(float, margins)
        moved = iter([whole - other for other in others])
        items, notes, sentences = (
            tuple((part, next(moved)) for part in parts) for parts in (self.items, self.notes, self.sentences)
        )
        return Explanation(whole, items, notes, sentences)


def leave_one_out(request: RankRequest, candidate: str, n_shown: int) -> LeaveOneOut:
    """Return the requests that explain a candidate.

    No older item takes the place of the one left out. Where a profile had to be cut to fit, more of it may be
    shown with an item left out, as it would be to the user without that item.

    Args:
        request: The request; its candidates are not looked at.
        candidate: An item id.
        n_shown: Newest items of the history that the prompt shows.
    """
    shown = tuple(request.user_history[len(request.user_history) - n_shown :])
    whole = RankRequest(shown, sanitize_line(request.profile), (candidate,), sanitize_line(request.notes))
    notes, said = sentences(whole.notes), sentences(whole.profile)
    without = [replace(whole, user_history=(*shown[:i], *shown[i + 1 :])) for i in range(n_shown)]
    without += [replace(whole, notes=_without(notes, i)) for i in range(len(notes))]
    without += [replace(whole, profile=_without(said, i)) for i in range(len(said))]
    return LeaveOneOut((whole, *without), shown, tuple(map(str.strip, notes)), tuple(map(str.strip, said)))


def _without(parts: Sequence[str], place: int) -> str:
    return "".join([*parts[:place], *parts[place + 1 :]]).strip()


def sentences(line: str) -> list[str]:
    """Cut notes or a profile into sentences, or a single sentence into its clauses; joined they are the line.

    Args:
        line: One line of text; may be empty.

    Returns:
        At most `MAX_SENTENCES` parts, each with the blanks that follow it.
    """
    parts = _cut(line, _SENTENCE_END)
    if len(parts) == 1:
        parts = _cut(line, _CLAUSE_END)
    while len(parts) > MAX_SENTENCES:  # the shortest two neighbours first, so no part dwarfs the others
        place = min(range(len(parts) - 1), key=lambda i: len(parts[i]) + len(parts[i + 1]))
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    return parts


def _cut(line: str, end: re.Pattern[str]) -> list[str]:
    """Cut a line behind each match; what matched stays with the part before it."""
    cuts = [0, *(match.end() for match in end.finditer(line)), len(line)]
    return [line[a:b] for a, b in pairwise(cuts) if line[a:b].strip()]
