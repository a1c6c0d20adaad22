"""Whatever is drawn from the allowed tokens is made of the allowed words, and every word can be said."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.llm.base import WordPart
from trsr.llm.fake import FakeTokenizer
from trsr.llm.wording import (
    Wording,
    grammar,
    strange_words,
    vocabulary,
    without_broken_end,
    words_of,
)

END = 256
# Pieces that build each other's words: a model could put "Kingkrapers" together from them.
WORDS = ("King", "Kingston", "krap", "papers", "pap", "NFL", "AT&T", "don't", "12.5", "l'été")
ENCODE = FakeTokenizer().encode
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6, unique=True)


def free(allowed: Sequence[str]) -> tuple[WordPart, ...]:
    """Return one part without a bound."""
    return (WordPart(tuple(allowed)),)


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
    written = written_at_random(Wording(free(allowed), ENCODE, [END]), seed)
    text = FakeTokenizer().decode(written)
    assert strange_words(without_broken_end(text, free(allowed)), allowed) == []


@given(words)
def test_every_sentence_of_allowed_words_can_be_written(allowed: list[str]) -> None:
    wording = Wording(free(allowed), ENCODE, [END])
    tokens = ENCODE(" " + ", ".join(allowed) + ".")
    for place, token in enumerate(tokens):
        assert token in wording.allowed(tokens[:place])
    assert END in wording.allowed(tokens)


def test_a_text_ends_between_words_and_never_before_the_first() -> None:
    wording = Wording(free(["King", "Kingston"]), ENCODE, [END])
    assert wording.allowed([]) == ENCODE(" ")
    assert END not in wording.allowed(ENCODE(" Kin"))
    assert wording.allowed(ENCODE(" King")) == sorted([END, *ENCODE(" s,.")])
    assert wording.allowed(ENCODE(" King,")) == sorted([END, *ENCODE(" ")])


@given(words, words, st.integers(1, 3), st.integers(0, 1000))
def test_parts_follow_each_other_within_their_bounds(
    new: list[str], old: list[str], bound: int, seed: int
) -> None:
    parts = (WordPart(tuple(new), bound), WordPart(tuple(old), bound, lead="before that"))
    text = FakeTokenizer().decode(written_at_random(Wording(parts, ENCODE, [END]), seed, 200))
    first, second = text.split("; before that ")
    for said, part in ((first, new), (second, old)):
        assert 1 <= len(words_of(said)) <= bound
        assert strange_words(said, part) == []


def test_a_part_that_is_not_the_last_ends_with_the_next_one_only() -> None:
    parts = (WordPart(("King",), 1), WordPart(("Queen",), 2, lead="before that"))
    wording = Wording(parts, ENCODE, [END])
    assert wording.allowed(ENCODE(" King")) == ENCODE(";")
    assert wording.allowed(ENCODE(" King; before")) == ENCODE(" ")
    assert wording.allowed(ENCODE(" King; before that")) == ENCODE(" ")
    assert wording.allowed(ENCODE(" King; before that Queen")) == sorted([END, *ENCODE(" ,.")])
    assert wording.allowed(ENCODE(" King; before that Queen Queen")) == [END]


def test_what_was_never_allowed_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="does not follow"):
        Wording(free(["King"]), ENCODE, [END]).allowed(ENCODE(" Queen"))


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
    assert without_broken_end(text, free(["King", "Queens"])) == kept


@pytest.mark.parametrize("cut", [";", "; bef", "; before", "; before that", "; before that Que"])
def test_a_lead_cut_off_from_its_part_is_taken_away(cut: str) -> None:
    parts = (WordPart(("King",)), WordPart(("Queen",), lead="before that"))
    assert without_broken_end(f"King{cut}", parts) == "King"
    assert without_broken_end("King; before that Queen", parts) == "King; before that Queen"


def test_the_grammar_lists_every_word_and_quotes_what_it_must() -> None:
    rule = grammar(free(["AT&T", "12.5"]))
    assert rule.splitlines()[0].startswith("root ::= ")
    assert '"AT&T" | "12.5"' in rule


def test_the_grammar_has_a_rule_a_part() -> None:
    rule = grammar((WordPart(("tea",), 3), WordPart(("jazz",), lead="before that")))
    assert 'part0 "; before that " part1' in rule
    assert 'part0 ::= word0 (mark? " " word0){0,2}' in rule
    assert 'part1 ::= word1 (mark? " " word1)*' in rule
