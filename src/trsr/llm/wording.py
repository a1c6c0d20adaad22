"""Keeps a text to given words, so that a small model cannot invent any.

A model writes tokens, and the pieces of allowed words can be put together to words that nobody said. So what
may follow is read from a tree of whole words: a word that was begun must be ended as one of them. The same
rule as a grammar serves engines that take one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

PUNCTUATION = (",", ".", ";")
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


def strange_words(text: str, allowed: Collection[str]) -> list[str]:
    """Return the words of a text that are not allowed, in order."""
    return [word for word in words_of(text) if word not in allowed]


def without_broken_word(text: str, allowed: Collection[str]) -> str:
    """Return a text without the word it was cut off in by its cap, if that is no word by itself."""
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # of a letter that was cut off itself
    *_, last = [None, *_WORD.finditer(text)]
    if last is not None and last.end() == len(text) and last[0] not in allowed:
        return text[: last.start()].rstrip(" ,;")
    return text


@dataclass(slots=True)
class _Node:
    """A place in the tree: tokens that may follow, and whether a word ends here."""

    children: dict[int, _Node] = field(default_factory=dict)
    ends_word: bool = False


class Wording:
    """What may be written next in a text of allowed words, commas and full stops.

    Args:
        words: The allowed words, at least one.
        encode: Text to token ids, without special tokens.
        ends: Tokens that end a text.
    """

    def __init__(self, words: Sequence[str], encode: Callable[[str], list[int]], ends: Iterable[int]) -> None:
        self._root = _Node()
        self._ends = tuple(ends)
        # The mark as a token after a word, which need not be the token that it is by itself.
        self._marks = {encode(f"a{mark}")[-1] for mark in PUNCTUATION}
        for word in words:
            node = self._root
            for token in encode(f" {word}"):
                node = node.children.setdefault(token, _Node())
            node.ends_word = True

    def allowed(self, written: Sequence[int]) -> list[int]:
        """Return the tokens that may follow those written so far, in ascending order.

        Raises:
            ValueError: what was written is not of the allowed words.
        """
        node, may_mark = self._root, False
        for token in written:
            if token in node.children:
                node = node.children[token]
            elif (node.ends_word or node is self._root) and token in self._root.children:
                node = self._root.children[token]
            elif node.ends_word and token in self._marks:
                node = self._root
            else:
                raise ValueError(f"Token {token} does not follow from the allowed words.")
            may_mark = node.ends_word
        found = set(node.children)
        if node.ends_word or node is self._root:
            found |= set(self._root.children)
            if written:
                found |= set(self._ends)
        if may_mark:
            found |= self._marks
        return sorted(found)


def grammar(words: Sequence[str]) -> str:
    """Return the same rule in GBNF, as llama.cpp reads it."""
    marks = " | ".join(f'"{mark}"' for mark in PUNCTUATION)
    listed = " | ".join(f'"{_escaped(word)}"' for word in words)
    return f'root ::= " "? word (mark? " " word)* mark?\nmark ::= {marks}\nword ::= {listed}\n'


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"')
