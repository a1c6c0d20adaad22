"""Whatever is drawn from the allowed tokens is made of the phrases, and every choice of them can be said."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.llm.base import PhrasePart
from trsr.llm.constrained import Wording, grammar, strange_phrases, tidy
from trsr.llm.fake import FakeTokenizer

END = 256
# Pieces that build each other's words: a model could put "Kingkrapers" together from them.
PHRASES = (
    "King",
    "Kingston papers",
    "Kingston",
    "krap",
    "pap",
    "NFL",
    "AT&T",
    "don't",
    "12.5 miles",
    "l'été",
)
ENCODE = FakeTokenizer().encode
phrases = st.lists(st.sampled_from(PHRASES), min_size=1, max_size=6, unique=True)


def drawn(wording: Wording, seed: int, n_tokens: int = 400) -> list[int]:
    """Return tokens drawn from what is allowed, ended or cut off."""
    draw, written = random.Random(seed), list[int]()
    while len(written) < n_tokens:
        token = draw.choice(wording.allowed(written))
        if token == END:
            break
        written.append(token)
    return written


def said(text: str) -> list[str]:
    return text.strip().removesuffix(".").split(", ")


@given(phrases, st.integers(1, 8), st.integers(0, 1000))
def test_as_many_different_phrases_are_said_as_asked(allowed: list[str], n: int, seed: int) -> None:
    text = FakeTokenizer().decode(drawn(Wording([PhrasePart(tuple(allowed), n)], ENCODE, [END]), seed))
    assert len(said(text)) == len(set(said(text))) == min(n, len(allowed))
    assert set(said(text)) <= set(allowed)


@given(phrases, phrases, st.integers(1, 3), st.integers(0, 1000))
def test_parts_follow_each_other(new: list[str], old: list[str], n: int, seed: int) -> None:
    parts = (PhrasePart(tuple(new), n), PhrasePart(tuple(old), n, lead="before that"))
    text = FakeTokenizer().decode(drawn(Wording(parts, ENCODE, [END]), seed))
    first, second = text.split("; before that ")
    assert set(said(first)) <= set(new)
    assert set(said(second)) <= set(old)
    assert strange_phrases(text, parts) == []
    assert tidy(text, parts).rstrip(".") == text.strip().rstrip(".")


@given(phrases, st.integers(0, 1000), st.integers(1, 60))
def test_a_text_cut_off_anywhere_is_made_whole(allowed: list[str], seed: int, n_tokens: int) -> None:
    parts = (PhrasePart(tuple(allowed), 3), PhrasePart(("Queen",), 1, lead="before that"))
    text = FakeTokenizer().decode(drawn(Wording(parts, ENCODE, [END]), seed, n_tokens))
    assert strange_phrases(tidy(text, parts), parts) == []


@given(st.permutations(PHRASES))
def test_every_order_of_phrases_can_be_written(order: list[str]) -> None:
    wording = Wording([PhrasePart(PHRASES, len(PHRASES))], ENCODE, [END])
    tokens = ENCODE(" " + ", ".join(order) + ".")
    for place, token in enumerate(tokens):
        assert token in wording.allowed(tokens[:place])
    assert wording.allowed(tokens) == [END]


def test_a_part_goes_on_until_it_has_its_phrases_and_a_text_ends_then_only() -> None:
    parts = (PhrasePart(("King", "Kingston"), 1), PhrasePart(("Queen",), 2, lead="before that"))
    wording = Wording(parts, ENCODE, [END])
    assert wording.allowed([]) == ENCODE(" ")
    assert wording.allowed(ENCODE(" King")) == sorted(ENCODE("s;"))
    assert wording.allowed(ENCODE(" Kingston")) == ENCODE(";")
    assert wording.allowed(ENCODE(" King; before")) == ENCODE(" ")
    assert wording.allowed(ENCODE(" King; before that")) == ENCODE(" ")
    assert wording.allowed(ENCODE(" King; before that Queen")) == sorted([END, *ENCODE(".")])
    two = Wording([PhrasePart(("King", "Kingston"), 2)], ENCODE, [END])
    assert two.allowed(ENCODE(" King")) == sorted(ENCODE("s,"))
    assert two.allowed(ENCODE(" King, King")) == ENCODE("s"), "none comes twice"


@given(phrases, st.integers(0, 1000), st.lists(st.integers(0, 60), max_size=6))
def test_what_was_asked_before_changes_no_answer(allowed: list[str], seed: int, lengths: list[int]) -> None:
    parts = (PhrasePart(tuple(allowed), 3), PhrasePart(tuple(allowed), 2, lead="before"))
    asked = Wording(parts, ENCODE, [END])
    texts = [drawn(Wording(parts, ENCODE, [END]), seed + number) for number in range(2)]
    for number, length in enumerate(lengths):
        written = texts[number % 2][:length]
        assert asked.allowed(written) == Wording(parts, ENCODE, [END]).allowed(written)
        with pytest.raises(ValueError, match="does not follow"):
            asked.allowed([*written, -1])


def test_what_was_never_allowed_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="does not follow"):
        Wording([PhrasePart(("King",), 1)], ENCODE, [END]).allowed(ENCODE(" Queen"))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("King, Queens; before that tea", "King, Queens; before that tea."),
        ("King, Que", "King."),
        ("King, King, Queens.", "King, Queens."),
        ("King;", "King."),
        ("King; bef", "King."),
        ("King; before that", "King."),
        ("King; before that te", "King."),
        ("Ki", ""),
        ("", ""),
    ],
)
def test_what_the_cap_cut_off_and_what_came_twice_is_taken_away(text: str, kept: str) -> None:
    parts = (PhrasePart(("King", "Queens"), 2), PhrasePart(("tea",), 1, lead="before that"))
    assert tidy(text, parts) == kept


def test_a_strange_phrase_that_is_not_cut_off_stays_to_be_judged() -> None:
    parts = (PhrasePart(("King", "Queens"), 2),)
    assert strange_phrases(tidy("Quaggas, King", parts), parts) == ["Quaggas"]


def test_the_grammar_has_a_rule_a_part_and_quotes_what_it_must() -> None:
    rule = grammar((PhrasePart(("AT&T", 'so "said"'), 3), PhrasePart(("jazz",), 1, lead="before that")))
    assert rule.splitlines()[0] == 'root ::= " "? part0 "; before that " part1 "."?'
    assert 'part0 ::= phrase0 (", " phrase0){1,1}' in rule, "there are two"
    assert 'phrase0 ::= "AT&T" | "so \\"said\\""' in rule
