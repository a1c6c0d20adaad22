"""Cuts texts into the short phrases that a grounded summary may be made of.

A phrase is a run of words without a function word or a mark between them, such as `sheet protectors`. Phrases
of a text that is a list of phrases are those phrases. The function words are English; texts in other
languages are cut at their marks, and into pieces of a few words.
"""

from __future__ import annotations

import re

MAX_WORDS = 4
_PIECE = re.compile(r"[^\W_]+(?:(?:['’./-]|_+)[^\W_]+)*|[^\w\s]+|_+")  # `football_nfl` is one word
_FUNCTION = """
    a about after again against all also am an and another any anyone are aren't around as at away
    be because been before behind being below between both but by can can't could did didn't do does
    doesn't doing don't done down during each either else ever every everyone everything few for
    from get gets getting go goes going got had has have having he he's her here here's hers him his
    how i i'm if in including inside into is isn't it it's its itself just know let like made make
    makes making many may me might more most much must my near need never new no nor not now of off
    on once one only onto or other our out outside over own per plus say says she should since so
    some someone something still such take takes than that that's the their them then there there's
    these they this those though through to together too toward under until up upon us use used
    using very via was wasn't we were what what's when where which while who who's whose why will
    with within without won't would you your
"""
_FUNCTION_WORDS = frozenset(_FUNCTION.split())


def phrases_of(text: str) -> tuple[str, ...]:
    """Return the phrases of a text in order, each once (letter case aside), of at most `MAX_WORDS` words.

    Function words and marks stand between phrases; longer runs are cut into pieces of about equal length.
    Pieces of a single letter or of digits alone are left out.
    """
    found: dict[str, str] = {}
    for run in _runs(text):
        n_pieces = -(-len(run) // MAX_WORDS)
        for number in range(n_pieces):
            words = run[number * len(run) // n_pieces : (number + 1) * len(run) // n_pieces]
            phrase = " ".join(words)
            if len(phrase) > 1 and not phrase.replace(" ", "").isdigit():
                found.setdefault(phrase.casefold(), phrase)
    return tuple(found.values())


def _runs(text: str) -> list[list[str]]:
    """Return the longest runs of content words."""
    runs: list[list[str]] = [[]]
    for piece in _PIECE.findall(text):
        if piece[0].isalnum() and piece.lower() not in _FUNCTION_WORDS:
            runs[-1].append(piece)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
