"""What a profile's text is worth, computed from texts alone: no model judges, nothing is learned.

Every measure is a pure function of a profile and the texts it was made from. NaN says that a measure does not
exist for a profile (a share of nothing). Means, intervals and the list of the worst belong to
`profile_summary`, what a profile predicts to `profile_prediction`.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from trsr.baselines.simple import Bm25Index, Bm25Ranker
from trsr.evaluate.metrics import EmptyTruthWarning, Floats, Metric, ranking_metric, tie_groups
from trsr.types import RankingExample

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


N_STRANGERS = 5


def predictive_values(
    examples: Sequence[RankingExample], profiles: Mapping[str, str], items: Mapping[str, str] | Bm25Index
) -> dict[str, Floats]:
    """Rank every example's candidates by the profile's words alone.

    Args:
        examples: Several of one user are allowed.
        profiles: Text by example id, without the words that all share; missing means empty: all tied.
        items: The text of each item of the catalogue, or an index of them.

    Returns:
        By name, shape (n_examples,), NaN where there is nothing to rank: `auc` and `mrr`, with the
        expectation over ties, and `auc_gain`, the auc minus its mean over the profiles of `N_STRANGERS` other
        users (fewer if there are fewer), which are those next in order of user id; in [-1, 1].

    Raises:
        MissingExtraError: bm25s is not installed.
    """
    asked = list(examples)
    texts = {example.example_id: profiles.get(example.example_id, "") for example in examples}
    foreign = _strangers(examples)
    for place, strangers in enumerate(foreign):
        for example, stranger in zip(examples, strangers, strict=True):
            name = f"{example.example_id}\n{place}"
            asked.append(replace(example, example_id=name))
            texts[name] = profiles.get(stranger, "")
    ranker = Bm25Ranker(items, profiles=texts, n_recent=0)
    margins = np.asarray([m for answer in ranker.rank(asked) for m in answer.margins], dtype=np.float32)
    labels = np.asarray([label for example in asked for label in example.labels], dtype=np.int64)
    groups = tie_groups(margins, labels, np.cumsum([0, *(len(example.candidates) for example in asked)]))
    with warnings.catch_warnings():  # an example without truth is NaN, and said in the counts
        warnings.simplefilter("ignore", EmptyTruthWarning)
        auc, mrr = (ranking_metric(Metric(family), groups) for family in ("auc", "mrr"))
    n = len(examples)
    gain = np.full(n, np.nan)
    if foreign:
        gain = auc[:n] - auc[n:].reshape(len(foreign), n).mean(axis=0)
    return {"auc": auc[:n], "mrr": mrr[:n], "auc_gain": gain}


def _strangers(examples: Sequence[RankingExample]) -> list[list[str]]:
    """Return lists of example ids, each with one of another user for every example."""
    first: dict[str, str] = {}
    for example in sorted(examples, key=lambda e: (e.user_id, e.example_id)):
        first.setdefault(example.user_id, example.example_id)
    ids, place = list(first.values()), {user: i for i, user in enumerate(first)}
    return [
        [ids[(place[example.user_id] + shift) % len(ids)] for example in examples]
        for shift in range(1, min(N_STRANGERS, len(ids) - 1) + 1)
    ]


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
