"""A profile without a model: the most frequent values and words of a user's items, and recent new ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from trsr.templating import sanitize_line
from trsr.types import Item

N_VALUES = 8
N_WORDS = 12
LATELY = 5
LABELS = ("Most often", "Words", "Lately")

_WORD = re.compile(r"[^\W\d_]{4,}")
_SEPARATORS = re.compile(r"\s*[|;,]\s*")
_COMMON = """
    about after again also been before being between both cannot could does down during each even ever every
    from have having here hers himself into itself just like made make many more most much must need next once
    only other over same says should some such than that their them then there these they this those through
    time under until upon very want well were what when where which while will with within without would year
    years your pack item product includes include ideal perfect great easy best first back dont doesnt
"""
COMMON_WORDS = frozenset(_COMMON.split())


def field_values(item: Item, fields: Sequence[str]) -> list[str]:
    """Return the single values of an item's category fields; a field may hold a list (`a|b`, `a, b`)."""
    return [
        value
        for field in fields
        if field in item.fields
        for value in _SEPARATORS.split(sanitize_line(item.fields[field]))
        if value
    ]


def title_words(item: Item, title_field: str | None) -> list[str]:
    """Return the distinct uncommon words of an item's title, sorted; empty if `title_field` is None."""
    title = sanitize_line(item.fields.get(title_field or "", "")).lower()
    return sorted(set(_WORD.findall(title)) - COMMON_WORDS)


def counted_profile(items: Sequence[Item], category_fields: Sequence[str], title_field: str | None) -> str:
    """Write the profile of a history, oldest item first.

    Args:
        items: The history's items; may be empty.
        category_fields: The fields whose values are counted (categories, brands, genres).
        title_field: The field whose words are counted; None for none.

    Returns:
        One line such as `Most often: phones (6), Acme (4). Words: cordless, handset. Lately: paper (3).`;
        equal counts are ordered by the latest occurrence, then by name.
    """
    values = [field_values(item, category_fields) for item in items]
    words = [title_words(item, title_field) for item in items]
    often = _top(values, N_VALUES)
    lately = _top(values[-LATELY:], N_VALUES)
    new = [pair for pair in lately if pair[0] not in dict(often)]
    common = [(word, n) for word, n in _top(words, N_WORDS) if n > 1]
    parts = []
    if often:
        parts.append(f"{LABELS[0]}: " + ", ".join(f"{value} ({n})" for value, n in often) + ".")
    if common:
        parts.append(f"{LABELS[1]}: " + ", ".join(word for word, _ in common) + ".")
    if new:
        parts.append(f"{LABELS[2]}: " + ", ".join(f"{value} ({n})" for value, n in new) + ".")
    return " ".join(parts)


def _top(lists: Sequence[Sequence[str]], n: int) -> list[tuple[str, int]]:
    """Return the `n` most frequent values with their counts, each counted once per item."""
    counts = Counter(value for values in lists for value in set(values))
    latest = {value: place for place, values in enumerate(lists) for value in values}
    return sorted(counts.items(), key=lambda pair: (-pair[1], -latest[pair[0]], pair[0]))[:n]


_CHANGED_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def word_changes(before: str, after: str) -> tuple[list[str], list[str]]:
    """Return (added words, removed words), each once, in the order of their text; letter case is ignored.

    Words that carry no topic (`and`, `with`, ...) are left out.
    """
    old, new = _words(before), _words(after)
    return [w for w in new if w not in set(old)], [w for w in old if w not in set(new)]


def _words(text: str) -> list[str]:
    words = dict.fromkeys(word.lower() for word in _CHANGED_WORD.findall(text))
    return [word for word in words if len(word) > 2 and word not in COMMON_WORDS]
