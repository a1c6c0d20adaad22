"""Whatever is drawn from the allowed tokens is made of the allowed words, and every word can be said."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.llm.fake import FakeTokenizer
from trsr.llm.wording import (
    Wording,
    grammar,
    strange_words,
    vocabulary,
    without_broken_word,
    words_of,
)

END = 256
# Pieces that build each other's words: a model could put "Kingkrapers" together from them.
WORDS = ("King", "Kingston", "krap", "papers", "pap", "NFL", "AT&T", "don't", "12.5", "l'été")
ENCODE = FakeTokenizer().encode
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6, unique=True)


def written_at_random(wording: Wording, seed: int, n_tokens: int = 60) -> list[int]:
    """Return tokens drawn from what is allowed, ended or cut off."""
    draw, written = random.Random(seed), list[int]()
    while len(written) < n_tokens:
        token = draw.choice(wording.allowed(written))
        if token == END:
            break
        written.append(token)
    return written


@given(words, st.integers(0, 1000))
def test_only_allowed_words_can_be_written(allowed: list[str], seed: int) -> None:
    written = written_at_random(Wording(allowed, ENCODE, [END]), seed)
    text = FakeTokenizer().decode(written)
    assert strange_words(without_broken_word(text, allowed), allowed) == []


@given(words)
def test_every_sentence_of_allowed_words_can_be_written(allowed: list[str]) -> None:
    wording = Wording(allowed, ENCODE, [END])
    tokens = ENCODE(" " + ", ".join(allowed) + ".")
    for place, token in enumerate(tokens):
        assert token in wording.allowed(tokens[:place])
    assert END in wording.allowed(tokens)


def test_a_text_ends_between_words_and_never_before_the_first() -> None:
    wording = Wording(["King", "Kingston"], ENCODE, [END])
    assert wording.allowed([]) == ENCODE(" ")
    assert END not in wording.allowed(ENCODE(" Kin"))
    assert wording.allowed(ENCODE(" King")) == sorted([END, *ENCODE(" s,.;")])
    assert wording.allowed(ENCODE(" King,")) == sorted([END, *ENCODE(" ")])


def test_what_was_never_allowed_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="does not follow"):
        Wording(["King"], ENCODE, [END]).allowed(ENCODE(" Queen"))


def test_words_keep_what_stands_within_them() -> None:
    text = "AT&T's 12.5-inch l'été (new!) -- don't... 3/4 U.S. x_y"
    assert words_of(text) == ["AT&T's", "12.5-inch", "l'été", "new", "don't", "3/4", "U.S", "x", "y"]


def test_the_vocabulary_knows_words_as_written_and_in_small_letters() -> None:
    assert vocabulary(["NFL news", "the NFL"]) == ("NFL", "news", "nfl", "the")
    assert vocabulary([]) == ()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("King, Queens", "King, Queens"),
        ("Quee King", "Quee King"),  # strange, but not cut off: judged by others
        ("King, Que", "King"),
        ("King", "King"),
        ("Ki", ""),
        ("King.", "King."),
        ("", ""),
    ],
)
def test_a_word_cut_off_by_the_cap_is_taken_away(text: str, kept: str) -> None:
    assert without_broken_word(text, ["King", "Queens"]) == kept


def test_the_grammar_lists_every_word_and_quotes_what_it_must() -> None:
    rule = grammar(["AT&T", "12.5"])
    assert rule.splitlines()[0].startswith("root ::= ")
    assert '"AT&T" | "12.5"' in rule
