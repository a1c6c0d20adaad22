"""Holds a text to given phrases, so that a small model cannot invent anything.

A model writes tokens, and pieces of phrases can be put together to words that nobody said. So what may follow
is read from a tree of whole phrases: one that was begun must be ended as one of them, and none comes twice. A
text has one or more parts, each with phrases of its own: what is new, and before that what was known. So a
model that would rather copy what it reads has to speak of both; which phrases, and in which order, is its
choice. The same rule as a grammar serves engines that take one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from trsr.llm.base import PhrasePart

COMMA = ","
# Between two parts, and nowhere else.
BREAK = ";"
STOP = "."


def tidy(text: str, parts: Sequence[PhrasePart]) -> str:
    """Return a text of some parts without what its cap cut off, and without phrases that came before.

    Only what an engine could not be held to is taken away: a phrase at the very end that is none of its part,
    a lead without its part, a repetition. Anything else stays as it is.
    """
    said = _phrases_by_part(text, parts)
    if said and said[-1] and said[-1][-1] not in parts[len(said) - 1].phrases:
        said[-1].pop()
    shown = ""
    for phrases, part in zip(said, parts, strict=False):
        if not phrases:
            break
        shown += _between(part) if shown else ""
        shown += f"{COMMA} ".join(dict.fromkeys(phrases))
    return shown and f"{shown}{STOP}"


def strange_phrases(text: str, parts: Sequence[PhrasePart]) -> list[str]:
    """Return the phrases of a text that are none of their part, in order."""
    said = _phrases_by_part(text, parts)
    return [
        phrase
        for phrases, part in zip(said, parts, strict=False)
        for phrase in phrases
        if phrase not in part.phrases
    ]


def _between(part: PhrasePart) -> str:
    return f"{BREAK} {part.lead} "


def _phrases_by_part(text: str, parts: Sequence[PhrasePart]) -> list[list[str]]:
    """Take a text apart at its breaks and commas; the last part takes what has no place."""
    rest = text.strip().rstrip("\N{REPLACEMENT CHARACTER}").removesuffix(STOP)
    said = []
    for part in parts[1:]:
        before, found, after = rest.partition(_between(part))
        if not found:
            break
        said.append(before)
        rest = after
    head, _, tail = rest.rpartition(BREAK)
    following = parts[len(said) + 1 :][:1]
    if head and any(part.lead.startswith(tail.strip()) for part in following):
        rest = head
    return [[p for p in (s.strip() for s in one.split(COMMA)) if p] for one in (*said, rest)]


@dataclass(slots=True)
class _Node:
    """A place in a tree of phrases: tokens that may follow, phrases from here on, the one ending here."""

    children: dict[int, _Node] = field(default_factory=dict)
    below: set[int] = field(default_factory=set)
    phrase: int | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a text stands: in which part, which of its phrases are said, and at which node.

    `forced` holds the tokens that must come next, before the part's first phrase. Behind the last phrase and
    its stop `ended` is true.
    """

    part: int
    node: _Node
    said: frozenset[int] = frozenset()
    forced: tuple[int, ...] = ()
    ended: bool = False


class Wording:
    """What may be written next in a text of given parts.

    Args:
        parts: At least one; each with at least one phrase.
        encode: Text to token ids, without special tokens.
        ends: Tokens that end a text.
    """

    def __init__(
        self, parts: Sequence[PhrasePart], encode: Callable[[str], list[int]], ends: Iterable[int]
    ) -> None:
        self._roots = [_tree(part.phrases, encode) for part in parts]
        self._n_phrases = [min(part.n_phrases, len(set(part.phrases))) for part in parts]
        self._ends = frozenset(ends)

        def after_word(text: str) -> tuple[int, ...]:  # not the tokens that it is by itself
            return tuple(encode(f"a{text}")[len(encode("a")) :])

        self._comma, self._stop = after_word(COMMA)[-1], after_word(STOP)[-1]
        self._followed: list[int] = []
        self._place = _Place(0, self._roots[0])
        self._leads = [after_word(_between(part).rstrip()) for part in parts[1:]]

    def allowed(self, written: Sequence[int]) -> list[int]:
        """Return the tokens that may follow those written so far, in ascending order.

        Raises:
            ValueError: what was written does not follow from the parts.
        """
        place = self._reach(written)
        if place.forced:
            return [place.forced[0]]
        if place.ended:
            return sorted(self._ends)
        found = {token for token, child in place.node.children.items() if child.below - place.said}
        if self._ends_phrase(place):
            found |= self._behind_phrase(place)
        return sorted(found)

    def _reach(self, written: Sequence[int]) -> _Place:
        """Return the place after some tokens, going on from those of the last call."""
        n_known, place = len(self._followed), self._place
        if list(written[:n_known]) != self._followed:
            n_known, place = 0, _Place(0, self._roots[0])
        for token in written[n_known:]:
            place = self._after(place, token)
        self._followed, self._place = list(written), place
        return place

    def _ends_phrase(self, place: _Place) -> bool:
        return place.node.phrase is not None and place.node.phrase not in place.said

    def _behind_phrase(self, place: _Place) -> set[int]:
        """Return what may follow a whole phrase."""
        if len(place.said) + 1 < self._n_phrases[place.part]:
            return {self._comma}
        if place.part < len(self._leads):
            return {self._leads[place.part][0]}
        return {self._stop, *self._ends}

    def _after(self, place: _Place, token: int) -> _Place:
        """Return the place after one more token."""
        if place.forced and token == place.forced[0]:
            return _Place(place.part, place.node, forced=place.forced[1:])
        child = None if place.forced or place.ended else place.node.children.get(token)
        if child is not None and child.below - place.said:
            return _Place(place.part, child, place.said)
        if not place.forced and not place.ended and self._ends_phrase(place):
            if token not in self._behind_phrase(place):
                raise ValueError(f"Token {token} does not follow from the allowed phrases.")
            assert place.node.phrase is not None
            said = place.said | {place.node.phrase}
            if len(said) < self._n_phrases[place.part]:
                return _Place(place.part, self._roots[place.part], said)
            if place.part < len(self._leads):
                forced = self._leads[place.part][1:]
                return _Place(place.part + 1, self._roots[place.part + 1], forced=forced)
            return _Place(place.part, place.node, said, ended=True)
        raise ValueError(f"Token {token} does not follow from the allowed phrases.")


def _tree(phrases: Sequence[str], encode: Callable[[str], list[int]]) -> _Node:
    """Return the tree of the phrases' tokens, each with the blank before it."""
    root = _Node()
    for number, phrase in enumerate(dict.fromkeys(phrases)):
        node = root
        for token in encode(f" {phrase}"):
            node = node.children.setdefault(token, _Node())
            node.below.add(number)
        node.phrase = number
    return root


def grammar(parts: Sequence[PhrasePart]) -> str:
    """Return the same rule in GBNF, as llama.cpp reads it; it cannot forbid repetitions (see `tidy`)."""
    whole = "part0"
    for number, part in enumerate(parts[1:], start=1):
        whole += f' "{_escaped(_between(part))}" part{number}'
    rules = [f'root ::= " "? {whole} "{STOP}"?']
    for number, part in enumerate(parts):
        n_more = min(part.n_phrases, len(set(part.phrases))) - 1
        rules.append(f'part{number} ::= phrase{number} ("{COMMA} " phrase{number}){{{n_more},{n_more}}}')
        rules.append(f"phrase{number} ::= " + " | ".join(f'"{_escaped(p)}"' for p in part.phrases))
    return "\n".join(rules) + "\n"


def _escaped(phrase: str) -> str:
    return phrase.replace("\\", "\\\\").replace('"', '\\"')
