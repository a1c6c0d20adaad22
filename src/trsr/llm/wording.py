"""Keeps a text to given words, so that a small model cannot invent any.

A text may have several parts, each with words of its own and a bound: what is new, and before that what was
known. So a model that would rather copy what it reads has to speak of both.

A model writes tokens, and the pieces of allowed words can be put together to words that nobody said. So what
may follow is read from a tree of whole words: a word that was begun must be ended as one of them. The same
rule as a grammar serves engines that take one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from trsr.llm.base import WordPart

PUNCTUATION = (",", ".")
# Between two parts, and nowhere else, so that a reader of tokens knows in which part a word stands.
BREAK = ";"
_WORD = re.compile(r"[^\W_]+(?:['’&./-][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """Return the words of a text in order: letters and digits, joined by what stands within a word."""
    return _WORD.findall(text)


def vocabulary(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the words of some texts, as written and in small letters, each once, in alphabetical order."""
    found: set[str] = set()
    for text in texts:
        for word in words_of(text):
            found |= {word, word.lower()}
    return tuple(sorted(found))


def words_of_parts(parts: Sequence[WordPart]) -> frozenset[str]:
    """Return all words that a text of these parts may hold."""
    return frozenset(word for part in parts for word in (*part.words, *words_of(part.lead)))


def strange_words(text: str, allowed: Collection[str]) -> list[str]:
    """Return the words of a text that are not allowed, in order."""
    return [word for word in words_of(text) if word not in allowed]


def without_broken_end(text: str, parts: Sequence[WordPart]) -> str:
    """Return a text without what its cap cut off: a word that is none by itself, a lead without its part."""
    allowed = words_of_parts(parts)
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # of a letter that was cut off itself
    *_, last = [None, *_WORD.finditer(text)]
    if last is not None and last.end() == len(text) and last[0] not in allowed:
        text = text[: last.start()].rstrip(" ,;")
    before, _, after = text.rpartition(BREAK)
    begins_lead = any(part.lead.startswith(after.strip()) for part in parts[1:])
    return before if before and begins_lead else text


@dataclass(slots=True)
class _Node:
    """A place in a tree of words: tokens that may follow, and whether a word ends here."""

    children: dict[int, _Node] = field(default_factory=dict)
    ends_word: bool = False


@dataclass(slots=True)
class _Place:
    """Where a text stands: in which part, after how many words of it, at which node.

    `lead` holds the tokens that must come before the part's first word.
    """

    part: int
    node: _Node
    n_words: int = 0
    lead: tuple[int, ...] = ()


class Wording:
    """What may be written next in a text of given parts.

    Args:
        parts: At least one.
        encode: Text to token ids, without special tokens.
        ends: Tokens that end a text.
    """

    def __init__(
        self, parts: Sequence[WordPart], encode: Callable[[str], list[int]], ends: Iterable[int]
    ) -> None:
        self._parts = parts
        self._roots = [_tree(part.words, encode) for part in parts]
        self._ends = frozenset(ends)

        def after_word(text: str) -> tuple[int, ...]:  # not the tokens that it is by itself
            return tuple(encode(f"a{text}")[len(encode("a")) :])

        self._marks = {after_word(mark)[-1] for mark in PUNCTUATION}
        self._leads = [after_word(f"{BREAK} {part.lead}".rstrip()) for part in parts[1:]]

    def allowed(self, written: Sequence[int]) -> list[int]:
        """Return the tokens that may follow those written so far, in ascending order.

        Raises:
            ValueError: what was written does not follow from the parts.
        """
        place = _Place(0, self._roots[0])
        for token in written:
            place = self._after(place, token)
        if place.lead:
            return [place.lead[0]]
        found = set(place.node.children)
        if self._may_begin_word(place):
            found |= set(self._roots[place.part].children)
        if place.node.ends_word and self._has_room(place):
            found |= self._marks
        if self._may_end_part(place):
            found |= self._ends if place.part == len(self._parts) - 1 else {self._leads[place.part][0]}
        return sorted(found)

    def _after(self, place: _Place, token: int) -> _Place:
        """Return the place after one more token."""
        root = self._roots[place.part]
        if place.lead:
            if token == place.lead[0]:
                return _Place(place.part, place.node, lead=place.lead[1:])
        elif token in place.node.children:
            begins = place.node is root
            return _Place(place.part, place.node.children[token], place.n_words + begins)
        elif place.node.ends_word and token in root.children and self._has_room(place):
            return _Place(place.part, root.children[token], place.n_words + 1)
        elif place.node.ends_word and token in self._marks and self._has_room(place):
            return _Place(place.part, root, place.n_words)
        elif self._may_end_part(place) and place.part < len(self._leads):
            lead = self._leads[place.part]
            if token == lead[0]:
                return _Place(place.part + 1, self._roots[place.part + 1], lead=lead[1:])
        raise ValueError(f"Token {token} does not follow from the allowed words.")

    def _has_room(self, place: _Place) -> bool:
        limit = self._parts[place.part].max_words
        return limit is None or place.n_words < limit

    def _may_begin_word(self, place: _Place) -> bool:
        between_words = place.node.ends_word or place.node is self._roots[place.part]
        return between_words and self._has_room(place)

    def _may_end_part(self, place: _Place) -> bool:
        after_mark = place.node is self._roots[place.part] and place.n_words > 0
        return place.node.ends_word or (after_mark and place.part == len(self._parts) - 1)


def _tree(words: Sequence[str], encode: Callable[[str], list[int]]) -> _Node:
    """Return the tree of the words' tokens, each with the blank before it."""
    root = _Node()
    for word in words:
        node = root
        for token in encode(f" {word}"):
            node = node.children.setdefault(token, _Node())
        node.ends_word = True
    return root


def grammar(parts: Sequence[WordPart]) -> str:
    """Return the same rule in GBNF, as llama.cpp reads it."""
    marks = " | ".join(f'"{mark}"' for mark in PUNCTUATION)
    names = [f"part{number}" for number in range(len(parts))]
    whole = names[0]
    for name, part in zip(names[1:], parts[1:], strict=True):
        whole += f' "{_escaped(f"{BREAK} {part.lead}".rstrip())} " {name}'
    rules = [f'root ::= " "? {whole} mark?', f"mark ::= {marks}"]
    for name, part in zip(names, parts, strict=True):
        more = "*" if part.max_words is None else f"{{0,{part.max_words - 1}}}"
        word = name.replace("part", "word")
        rules.append(f'{name} ::= {word} (mark? " " {word}){more}')
        rules.append(f"{word} ::= " + " | ".join(f'"{_escaped(w)}"' for w in part.words))
    return "\n".join(rules) + "\n"


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"')
