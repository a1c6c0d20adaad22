"""What changed between two versions of a profile, in words."""

from __future__ import annotations

import re

from trsr.summarize.counted import COMMON_WORDS

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def word_changes(before: str, after: str) -> tuple[list[str], list[str]]:
    """Return (words added, words gone), each once, in the order of their text; letter case is ignored.

    Words that carry no topic (`and`, `with`, ...) are left out.
    """
    old, new = _words(before), _words(after)
    return [w for w in new if w not in set(old)], [w for w in old if w not in set(new)]


def _words(text: str) -> list[str]:
    words = dict.fromkeys(word.lower() for word in _WORD.findall(text))
    return [word for word in words if len(word) > 2 and word not in COMMON_WORDS]
