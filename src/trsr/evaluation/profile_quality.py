"""Measures of a profile's text, computed from words alone; NaN where a measure does not exist.

docs/profile_quality.md defines the measures and their limits.
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
from typing import Any

import numpy as np

from trsr.baselines.simple import BM25, Bm25Index
from trsr.evaluation.evaluate_scores import entry_of, rounded
from trsr.evaluation.metrics import EmptyTruthWarning, Floats, Metric, ranking_metric, tie_groups
from trsr.evaluation.statistics import bootstrap_columns
from trsr.seeding import derive_rng
from trsr.types import RankingExample

MEASURES = ("grounding", "name_grounding", "copied", "coverage", "words", "repetition", "change")
AT_LEAST = {"grounding": 0.5, "name_grounding": 0.5}
AT_MOST = {"copied": 0.2, "repetition": 0.2}
"""A profile beyond one of these limits is listed."""
N_WORST = 20
N_STRANGERS = 5

# Articles, pronouns, prepositions, conjunctions, auxiliaries, adverbs of degree and time.
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
# Words that express liking in any profile.
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
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s*$")
_PLURAL_LETTERS = 4
_LONGEST_RUN = 5
_GRAM = 3


@lru_cache(maxsize=200_000)
def fold(word: str) -> str:
    """Return the form by which a word is compared: NFKC, lower case, singular."""
    lower = unicodedata.normalize("NFKC", word).lower()
    if len(lower) < _PLURAL_LETTERS:
        return lower
    if lower.endswith("s") and not lower.endswith(("ss", "us", "is")):
        lower = lower[:-1]
    if lower.endswith("ie"):
        return lower[:-2] + "y"
    return lower[:-1] if lower.endswith(("se", "xe", "ze", "che", "she", "oe")) else lower


def folded(text: str) -> frozenset[str]:
    """Return the folded words of a text, stop words included."""
    return frozenset(fold(word) for word in plain_words(text))


def plain_words(text: str) -> list[str]:
    """Return the words of a text as they are written, in order; `can't` is `cant`, `reader's` is `reader`."""
    return [found.group() for found in _matches(_prepare(text))]


def _prepare(text: str) -> str:
    return _CONTRACTED.sub("", _ENDING.sub("", unicodedata.normalize("NFKC", text)))


def _matches(prepared: str) -> Iterator[re.Match[str]]:
    for found in _WORD.finditer(prepared):
        if len(found.group()) > 1 and _LETTER.search(found.group()):
            yield found


STOP_WORDS = folded(_GRAMMAR) | folded(_LIKING)
"""Folded words that carry no topic."""


def runs(text: str) -> dict[str, tuple[str, ...]]:
    """Return up to five adjacent words written as one, folded -> the folded words.

    `food and drinks` gives `foodanddrink` too, as the names of categories have it. Of two places that give
    the same run the last counts.
    """
    words = plain_words(text)
    return {
        fold("".join(words[i : i + n])): tuple(fold(word) for word in words[i : i + n])
        for n in range(1, _LONGEST_RUN + 1)
        for i in range(len(words) - n + 1)
    }


def content_words(text: str, frame: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return the words that carry a topic: folded form -> first written form, in order of the text.

    Stop words and the folded words of `frame` do not count.
    """
    found: dict[str, str] = {}
    for word in plain_words(text):
        found.setdefault(fold(word), word)
    return {key: word for key, word in found.items() if key not in STOP_WORDS and key not in frame}


def names(text: str, frame: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return the content words that have a capital letter and do not begin a sentence.

    A sentence starts at the text's beginning and after `.`, `!`, `?` or `…`; form as in `content_words`.
    """
    prepared = _prepare(text)
    found: dict[str, str] = {}
    for match in _matches(prepared):
        before, word = prepared[: match.start()].rstrip(), match.group()
        starts = not before.strip("\"'“‘([") or _SENTENCE_END.search(before.rstrip("\"'“‘([ "))
        if word[0].isupper() and not starts:
            found.setdefault(fold(word), word)
    return {key: word for key, word in found.items() if key not in STOP_WORDS and key not in frame}


def without_prefill(text: str, prefill: str) -> str:
    """Return a profile without the words that all profiles begin with."""
    return text.strip().removeprefix(prefill).strip()


# --- measures of one profile --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProfileFrame:
    """The words that do not come from the user: the summary template's own.

    Attributes:
        words: Folded words of the template's instructions and of the fields' names; ignored in profiles.
        example_words: Folded words of the template's worked examples; those in no item count as copied.
        prefill: The words every profile begins with.
    """

    words: frozenset[str] = frozenset()
    example_words: frozenset[str] = frozenset()
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class ProfileSource:
    """A profile and what it was made from.

    Attributes:
        text: The profile.
        item_texts: For each item of the history, in any order, the text that was read and its category
            values.
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
        coverage: See `coverage`.
        words: Length in words, without the prefill.
        repetition: See `repetition`.
        change: See `change`.
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


@lru_cache(maxsize=50_000)
def _words_of_item(text: str) -> frozenset[str]:
    return folded(text)


def _supported(text: str, item_texts: Iterable[str]) -> frozenset[str]:
    """Return the folded words of a text that are a word of the items, alone or written as one with others."""
    known: frozenset[str] = frozenset().union(*map(_words_of_item, item_texts))
    return frozenset(word for run, words in runs(text).items() if run in known for word in words)


def coverage(text: str, categories: Sequence[Sequence[str]]) -> float:
    """Return the share of the items' category values that a text mentions, counted once per item.

    A value is mentioned if all its content words are in the text, or if up to five neighbouring words make it
    up (`food and drink` for `foodanddrink`). Values without a word do not count. NaN without values.
    """
    counts = Counter(value for values in categories for value in set(values) if plain_words(value))
    written = runs(text)
    return _share(sum(n for value, n in counts.items() if _mentioned(value, written)), counts.total())


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

    NaN with fewer than two summaries that have content words.
    """
    words = [content_words(text, frame).keys() for text in versions]
    shares = [_share(len(new - old), len(new)) for old, new in itertools.pairwise(words) if new]
    return math.fsum(shares) / len(shares) if shares else math.nan


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


# --- what the profiles predict ------------------------------------------------------------------------------


def predictive_values(
    examples: Sequence[RankingExample], profiles: Mapping[str, str], items: Bm25Index
) -> dict[str, Floats]:
    """Rank every example's candidates by BM25 against the profile's words alone.

    Args:
        examples: Several of one user are allowed.
        profiles: Text by example id, without the prefill; missing means empty: all tied.
        items: An index of the catalogue.

    Returns:
        By name, shape (n_examples,), NaN where there is nothing to rank: `auc` and `mrr`, with the
        expectation over ties, and `auc_gain`, the auc minus its mean over the profiles of `N_STRANGERS` other
        users (fewer if there are fewer), the next ones in order of user id; in [-1, 1].

    Raises:
        MissingExtraError: bm25s is not installed.
    """
    own = [profiles.get(example.example_id, "") for example in examples]
    foreign = [[profiles.get(name, "") for name in row] for row in _strangers(examples)]
    questions, texts = [], {}
    for place, row in enumerate([own, *foreign]):
        for example, text in zip(examples, row, strict=True):
            name = f"{example.example_id}\n{place}"
            questions.append(replace(example, example_id=name))
            texts[name] = text
    ranker = BM25(items, profiles=texts, n_recent=0)
    margins = np.asarray([m for answer in ranker.rank(questions) for m in answer.margins], dtype=np.float32)
    labels = np.asarray([label for question in questions for label in question.labels], dtype=np.int64)
    offsets = np.cumsum([0, *(len(question.candidates) for question in questions)])
    groups = tie_groups(margins, labels, offsets)
    with warnings.catch_warnings():  # counted as examples without truth
        warnings.simplefilter("ignore", EmptyTruthWarning)
        auc, mrr = (
            ranking_metric(Metric(family), groups).reshape(1 + len(foreign), -1) for family in ("auc", "mrr")
        )
    gain = auc[0] - auc[1:].mean(axis=0) if foreign else np.full(len(examples), np.nan)
    return {"auc": auc[0], "mrr": mrr[0], "auc_gain": gain}


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


# --- the entry `profiles` of `metrics.json` -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """The profile of one example with its measures."""

    example_id: str
    user_id: str
    text: str
    quality: ProfileQuality


def summarize_profiles(
    rows: Sequence[ProfileRow], prediction: Mapping[str, Floats], *, method: str, seed: int = 0
) -> dict[str, Any]:
    """Compute the entry `profiles` of `metrics.json`.

    Args:
        rows: One per example.
        prediction: Measures of prediction by name, shape (n_examples,) in the order of the rows.
        method: How the profiles were made.
        seed: The run's seed, for the bootstrap.

    Returns:
        `method`, `examples`, `empty` (profiles without text), `measures` (`value`, the mean over the examples
        that have it, `ci95` from resampling users, and `examples`, how many they are; a measure that no
        example has is left out), `limits`, `beyond` (how many profiles lie beyond each limit) and `worst`: at
        most `N_WORST` profiles with the measure that lies farthest beyond its limit.
    """
    columns = [*MEASURES, *prediction]
    table = np.asarray([[getattr(row.quality, name) for name in MEASURES] for row in rows], dtype=np.float64)
    table = np.column_stack([table.reshape(len(rows), len(MEASURES)), *prediction.values()])
    intervals = bootstrap_columns(table, [row.user_id for row in rows], rng=derive_rng(seed, "profiles"))
    beyond = [(distance, name, row) for row in rows for name, distance in _beyond(row.quality).items()]
    return {
        "method": method,
        "examples": len(rows),
        "empty": sum(not row.text.strip() for row in rows),
        "measures": {
            name: entry_of(interval) | {"examples": interval.n_examples}
            for name, interval in zip(columns, intervals, strict=True)
            if interval.n_examples
        },
        "limits": {"at_least": AT_LEAST, "at_most": AT_MOST},
        "beyond": {name: sum(one[1] == name for one in beyond) for name in [*AT_LEAST, *AT_MOST]},
        "worst": _worst(beyond),
    }


def _beyond(quality: ProfileQuality) -> dict[str, float]:
    """Return how far beyond its limit each measure lies, as a share of the way to the worst value."""
    distances = {name: (limit - getattr(quality, name)) / limit for name, limit in AT_LEAST.items()}
    distances |= {name: (getattr(quality, name) - limit) / (1 - limit) for name, limit in AT_MOST.items()}
    return {name: distance for name, distance in distances.items() if distance > 0}  # never NaN


def _worst(beyond: Sequence[tuple[float, str, ProfileRow]]) -> list[dict[str, Any]]:
    """Return the profiles that lie farthest beyond a limit, each once; of equal ones the wordiest first."""

    def order(entry: tuple[float, str, ProfileRow]) -> tuple[float, int, str, str]:
        distance, name, row = entry
        return -distance, -len(row.quality.ungrounded), row.example_id, name

    chosen: dict[str, tuple[str, ProfileRow]] = {}
    for _, name, row in sorted(beyond, key=order):
        chosen.setdefault(row.example_id, (name, row))
    return [
        {
            "example_id": row.example_id,
            "user_id": row.user_id,
            "measure": name,
            "value": rounded(getattr(row.quality, name)),
            "ungrounded": list(row.quality.ungrounded),
            "text": row.text,
        }
        for name, row in list(chosen.values())[:N_WORST]
    ]
