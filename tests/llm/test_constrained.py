"""Constrained texts consist of the phrases, and every selection of them can be written."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.llm.base import PhrasePart
from trsr.llm.constrained import PhraseConstraint, grammar, phrases_outside_grammar, trim_incomplete
from trsr.llm.fake import FakeTokenizer

END = 256
# Pieces that build each other's words: a model could put "Kingkrapers" together from them.
PHRASES = (
    *("King", "Kingston papers", "Kingston", "krap", "pap"),
    *("NFL", "AT&T", "don't", "12.5 miles", "12", "l'été"),
)
ENCODE = FakeTokenizer().encode
phrases = st.lists(st.sampled_from(PHRASES), min_size=1, max_size=6, unique=True)


def after(parts: Sequence[PhrasePart], text: str) -> list[int]:
    """Return the allowed continuations of a text."""
    constraint = PhraseConstraint(parts, ENCODE, [END])
    for token in ENCODE(text):
        constraint.advance(token)
    return constraint.allowed()


def drawn(parts: Sequence[PhrasePart], seed: int, n_tokens: int = 400) -> str:
    """Return a text drawn from the allowed tokens, ended or cut off."""
    constraint, draw, written = PhraseConstraint(parts, ENCODE, [END]), random.Random(seed), list[int]()
    while len(written) < n_tokens:
        token = draw.choice(constraint.allowed())
        if token == END:
            break
        constraint.advance(token)
        written.append(token)
    return FakeTokenizer().decode(written)


def split(text: str) -> list[str]:
    return text.strip().removesuffix(".").split(", ")


@given(phrases, phrases, st.integers(1, 8), st.integers(1, 3), st.integers(0, 1000))
def test_each_part_holds_as_many_different_phrases_as_it_should(
    new: list[str], old: list[str], n_new: int, n_old: int, seed: int
) -> None:
    parts = (PhrasePart(tuple(new), n_new), PhrasePart(tuple(old), n_old, lead="before that"))
    text = drawn(parts, seed)
    for written, allowed, n in zip(text.split("; before that "), (new, old), (n_new, n_old), strict=True):
        assert len(split(written)) == len(set(split(written))) == min(n, len(allowed))
        assert set(split(written)) <= set(allowed)
    assert phrases_outside_grammar(text, parts) == []
    assert trim_incomplete(text, parts).rstrip(".") == text.strip().rstrip(".")


@given(phrases, st.integers(0, 1000), st.integers(1, 60))
def test_a_text_cut_off_anywhere_is_made_whole(allowed: list[str], seed: int, n_tokens: int) -> None:
    parts = (PhrasePart(tuple(allowed), 3), PhrasePart(("Queen",), 1, lead="before that"))
    assert phrases_outside_grammar(trim_incomplete(drawn(parts, seed, n_tokens), parts), parts) == []


@given(st.permutations(PHRASES))
def test_every_order_of_phrases_can_be_written(order: list[str]) -> None:
    assert after([PhrasePart(PHRASES, len(PHRASES))], " " + ", ".join(order) + ".") == [END]


ONE_AND_TWO = (PhrasePart(("King", "Kingston"), 1), PhrasePart(("Queen",), 2, lead="before that"))
BOTH = (PhrasePart(("King", "Kingston"), 2),)


@pytest.mark.parametrize(
    ("parts", "text", "allowed"),
    [
        (ONE_AND_TWO, "", ENCODE(" ")),
        (ONE_AND_TWO, " King", sorted(ENCODE("s;"))),
        (ONE_AND_TWO, " Kingston", ENCODE(";")),
        (ONE_AND_TWO, " King; before", ENCODE(" ")),
        (ONE_AND_TWO, " King; before that", ENCODE(" ")),
        (ONE_AND_TWO, " King; before that Queen", sorted([END, *ENCODE(".")])),
        (BOTH, " King", sorted(ENCODE("s,"))),
        (BOTH, " King, King", ENCODE("s")),  # none comes twice
    ],
)
def test_a_part_continues_until_it_has_its_phrases(
    parts: Sequence[PhrasePart], text: str, allowed: list[int]
) -> None:
    assert after(parts, text) == allowed


def test_phrases_of_equal_tokens_are_one() -> None:
    constraint = PhraseConstraint([PhrasePart(("a", "b"), 2)], lambda text: [7] * len(text), [END])
    constraint.advance(7)
    constraint.advance(7)
    assert END in constraint.allowed()


def test_a_token_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(ValueError, match="does not follow"):
        after([PhrasePart(("King",), 1)], " Queen")


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
    assert trim_incomplete(text, parts) == kept


def test_a_strange_phrase_that_is_not_cut_off_stays_to_be_judged() -> None:
    parts = (PhrasePart(("King", "Queens"), 2),)
    assert phrases_outside_grammar(trim_incomplete("Quaggas, King", parts), parts) == ["Quaggas"]


def test_the_grammar_has_a_rule_a_part_and_quotes_what_it_must() -> None:
    rule = grammar((PhrasePart(("AT&T", 'so "said"'), 3), PhrasePart(("jazz",), 1, lead="before that")))
    assert rule.splitlines()[0] == 'root ::= " "? part0 "; before that " part1 "."?'
    assert 'part0 ::= phrase0 (", " phrase0){1,1}' in rule, "there are two"
    assert 'phrase0 ::= "AT&T" | "so \\"said\\""' in rule
