"""The words of a profile, folded just far enough that a word and its plural are one.

A word is a run of letters and digits with at least one letter and two characters; hyphens and other marks
divide words, so numbers and single letters are none. Folding, in this order: Unicode NFKC; a possessive or
contracted ending (`'s`, `'d`, `'ll`, `'ve`, `'re`, `'m`) goes; lower case; then the plural: in words of four
letters or more a last `s` goes (not after `s`, `u` or `i`), `ie` at the end becomes `y`, and a last `e` goes
after `s`, `x`, `z`, `ch`, `sh` or `o`. So `stories` and `story`, `boxes` and `box`, `movies` and `movie`
meet; `running` and `run` do not.

Stop words are English: words of grammar, and those by which any profile says that somebody likes something.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

# Grammar: articles, pronouns, prepositions, conjunctions, auxiliaries, adverbs of degree and time.
_GRAMMAR = """
    a about above across after again against ago all almost along already also although always am among
    an and another any anyone anything are aren't around as at away back be became because become been
    before being below between beyond both but by came can can't cannot come could did didn't do does
    doesn't doing don't done down during each either else enough especially etc even ever every everyone
    everything few first for from further gave get gets getting give given go goes going gone got had has
    having he her here hers herself him himself his how however i if in including indeed instead
    into is isn't it its itself just keep last lately later latest least less let like likely made mainly
    make makes making many may maybe me might more most mostly much must my myself near need neither
    never next no nobody none nor not nothing now of off often old oldest on once one ones only onto or
    other others our ours ourselves out over overall own part particular particularly per perhaps please
    put quite rather re really recent recently said same say says see seem seems seen several shall she
    should since so some someone something sometimes soon still such sure take taken takes than that the
    their theirs them themselves then there these they thing things this those though through throughout
    thus till to together too toward towards two under until up upon us use used uses using various very
    via want wants was wasn't way ways we well went were what whatever when where whether which while who
    whole whom whose why will with within without won't would yet you your yours yourself
"""
# How any profile says that somebody likes something.
_LIKING = """
    attracted care cares curious cared enjoy enjoying enjoys fan favor favorite favorites favour
    favourite favourites focus focused focuses follow following follows fond inclined interest interested
    interesting interests keen liked likes liking love loved loves mention mentioned person prefer
    preference preferences preferred prefers profile show shows summary taste tastes tend tends topic
    topics user users
"""

_WORD = re.compile(r"[^\W_]+")
_LETTER = re.compile(r"[^\W\d_]")
_ENDING = re.compile(r"(?<=\w)['’ʼ](?:s|d|ll|ve|re|m)\b", re.IGNORECASE)
_CONTRACTED = re.compile(r"(?<=\w)['’ʼ](?=\w)")
_PLURAL_LETTERS = 4
_LONGEST_RUN = 5
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s*$")


@lru_cache(maxsize=200_000)
def fold(word: str) -> str:
    """Return the form by which a word is compared; see the module's docstring."""
    lower = unicodedata.normalize("NFKC", word).lower()
    if len(lower) < _PLURAL_LETTERS:
        return lower
    if lower.endswith("s") and not lower.endswith(("ss", "us", "is")):
        lower = lower[:-1]
    if lower.endswith("ie"):
        return lower[:-2] + "y"
    return lower[:-1] if lower.endswith(("se", "xe", "ze", "che", "she", "oe")) else lower


def plain_words(text: str) -> list[str]:
    """Return the words of a text as they are written, in order; `can't` is `cant`, `reader's` is `reader`."""
    return [found.group() for found in _matches(_prepared(text))]


def runs(text: str) -> dict[str, tuple[str, ...]]:
    """Return what neighbouring words, up to five, are when they are written as one, folded.

    `food and drinks` is `foodanddrink` too, as the names of categories have it. The values are the folded
    words; of two places that give the same run the last counts.
    """
    words = plain_words(text)
    return {
        fold("".join(words[i : i + n])): tuple(fold(word) for word in words[i : i + n])
        for n in range(1, _LONGEST_RUN + 1)
        for i in range(len(words) - n + 1)
    }


def _prepared(text: str) -> str:
    text = _ENDING.sub("", unicodedata.normalize("NFKC", text))
    return _CONTRACTED.sub("", text)


def _matches(prepared: str) -> Iterator[re.Match[str]]:
    for found in _WORD.finditer(prepared):
        if len(found.group()) > 1 and _LETTER.search(found.group()):
            yield found


def folded(text: str) -> frozenset[str]:
    """Return the folded words of a text, stop words included."""
    return frozenset(fold(word) for word in plain_words(text))


STOP_WORDS = folded(_GRAMMAR) | folded(_LIKING)
"""Folded words that carry no topic."""


def content_words(text: str, frame: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return the words that carry a topic: folded form -> first written form, in order of the text.

    Args:
        text: Any text.
        frame: Folded words that do not count either.
    """
    found: dict[str, str] = {}
    for word in plain_words(text):
        key = fold(word)
        if key not in STOP_WORDS and key not in frame:
            found.setdefault(key, word)
    return found


def names(text: str, frame: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return those content words that stand with a capital letter elsewhere than at a sentence's start.

    A sentence starts at the text's beginning and after `.`, `!`, `?` or `…`; form as in `content_words`.
    """
    prepared = _prepared(text)
    found: dict[str, str] = {}
    for match in _matches(prepared):
        before, word = prepared[: match.start()].rstrip(), match.group()
        key = fold(word)
        starts = not before.strip("\"'“‘([") or _SENTENCE_END.search(before.rstrip("\"'“‘([ "))
        if word[0].isupper() and not starts and key not in STOP_WORDS and key not in frame:
            found.setdefault(key, word)
    return found
