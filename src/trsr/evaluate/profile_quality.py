"""What a profile's text is worth, computed from texts alone: no model judges, nothing is learned.

Every measure is a pure function of a profile and the texts it was made from. NaN says that a measure does not
exist for a profile (a share of nothing). Means, intervals and the list of the worst belong to
`profile_summary`, what a profile predicts to `profile_prediction`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from trsr.evaluate.profile_words import STOP_WORDS, content_words, fold, folded, names, plain_words, runs

_GRAM = 3


@dataclass(frozen=True, slots=True)
class ProfileFrame:
    """The words that do not come from the user: what the summary template itself says.

    Attributes:
        words: Folded words of the template's instructions and of the fields' names. Every profile may repeat
            them, so they count as nothing: neither grounded nor not.
        example_words: Folded words of the template's worked examples. They are no excuse: a profile that
            takes them over without the user's items holding them speaks of somebody else.
        prefill: The words every profile begins with; not part of what it says.
    """

    words: frozenset[str] = frozenset()
    example_words: frozenset[str] = frozenset()
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class ProfileSource:
    """A profile and what it was made from.

    Attributes:
        text: The profile.
        item_texts: What is known of each item of the history, in any order: the text that was read, and its
            category values, which may name what the text implies.
        categories: For each item its category values.
        versions: The summaries of the blocks, oldest first; empty for a profile that no model wrote.
    """

    text: str
    item_texts: Sequence[str]
    categories: Sequence[Sequence[str]] = ()
    versions: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ProfileQuality:
    """The measures of one profile; shares are in [0, 1] or NaN.

    Attributes:
        grounding: Share of its different content words that occur in the items.
        name_grounding: The same for its names.
        copied: Share of its content words that are in no item but in the template's worked examples.
        coverage: Share of the user's categories, by how often they occur, that it mentions.
        words: Its length in words, without the prefill.
        repetition: Share of its word 3-grams that it has said before.
        change: Share of a summary's content words that the one of the block before did not have; mean over
            the blocks after the first.
        ungrounded: Its content words that occur in no item, as they are written, in order.
    """

    grounding: float
    name_grounding: float
    copied: float
    coverage: float
    words: float
    repetition: float
    change: float
    ungrounded: tuple[str, ...]


def profile_quality(source: ProfileSource, frame: ProfileFrame) -> ProfileQuality:
    """Compute every measure of one profile."""
    body = without_prefill(source.text, frame.prefill)
    supported = _supported(body, source.item_texts)
    content, named = content_words(body, frame.words), names(source.text, frame.words)
    missing = [key for key in content if key not in supported]
    return ProfileQuality(
        grounding=_share(len(content) - len(missing), len(content)),
        name_grounding=_share(len(named.keys() & supported), len(named)),
        copied=_share(sum(key in frame.example_words for key in missing), len(content)),
        coverage=coverage(body, source.categories),
        words=float(len(body.split())),
        repetition=repetition(body),
        change=change([without_prefill(text, frame.prefill) for text in source.versions], frame.words),
        ungrounded=tuple(content[key] for key in missing),
    )


def without_prefill(text: str, prefill: str) -> str:
    """Return what a profile says after the words that all begin with."""
    return text.strip().removeprefix(prefill).strip()


@lru_cache(maxsize=50_000)
def _words_of_item(text: str) -> frozenset[str]:
    return folded(text)


def _supported(text: str, item_texts: Iterable[str]) -> frozenset[str]:
    """Return the folded words of a text that are a word of the items, alone or written as one with others."""
    known: frozenset[str] = frozenset().union(*map(_words_of_item, item_texts))
    return frozenset(word for run, words in runs(text).items() if run in known for word in words)


def coverage(text: str, categories: Sequence[Sequence[str]]) -> float:
    """Return the share of the items' category values that a text mentions, counted once an item.

    A value is mentioned if all its content words are in the text, or if the text says it in up to
    five neighbouring words (`food and drink` for `foodanddrink`). Values without a word do not count. NaN
    without values.
    """
    counts = Counter(value for values in categories for value in set(values) if plain_words(value))
    written = runs(text)
    said = sum(count for value, count in counts.items() if _mentioned(value, written))
    return _share(said, counts.total())


def _mentioned(value: str, written: Collection[str]) -> bool:
    words = plain_words(value)
    keys = {fold(word) for word in words}
    return (keys - STOP_WORDS or keys) <= set(written) or fold("".join(words)) in written


def repetition(text: str) -> float:
    """Return the share of a text's word 3-grams that occurred in it before; NaN below three words.

    Formula: 1 - different 3-grams / 3-grams ("rep-3" of Welleck et al., "Neural text generation with
    unlikelihood training", ICLR 2020, there with 4). Letter case is ignored.
    """
    words = [word.lower() for word in plain_words(text)]
    grams = [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]
    return _share(len(grams) - len(set(grams)), len(grams))


def change(versions: Sequence[str], frame: frozenset[str] = frozenset()) -> float:
    """Return the mean share of a summary's content words that the summary before it did not have.

    0: no summary after the first says anything new. NaN with fewer than two summaries that say anything.
    """
    words = [content_words(text, frame).keys() for text in versions]
    shares = [_share(len(new - old), len(new)) for old, new in itertools.pairwise(words) if new]
    return math.fsum(shares) / len(shares) if shares else math.nan


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
