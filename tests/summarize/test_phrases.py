"""Texts become short phrases of words that stood side by side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.summarize.prompts import MAX_WORDS, phrases_of


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("The wife of Kelechi Osemele is at the Jets.", ("wife", "Kelechi Osemele", "Jets")),
        ("Avery Label Pad, 1-inch; Pens & paper!", ("Avery Label Pad", "1-inch", "Pens", "paper")),
        ("alpha beta gamma delta epsilon", ("alpha beta", "gamma delta epsilon")),
        ("football_nfl", ("football_nfl",)),
        ("blue_ green __red", ("blue", "green", "red")),
        ("2 8 1984", ()),
        ("Jazz, jazz, JAZZ", ("Jazz",)),
        ("", ()),
    ],
)
def test_function_words_and_marks_stand_between_phrases(text: str, phrases: tuple[str, ...]) -> None:
    assert phrases_of(text) == phrases


@given(st.text(max_size=200))
def test_phrases_are_words_of_the_text_in_their_order(text: str) -> None:
    plain = " ".join(text.split())
    for phrase in phrases_of(text):
        assert phrase in plain
        assert 1 <= len(phrase.split()) <= MAX_WORDS
        assert not set(phrase) & set(",;")


@given(st.text(max_size=200))
def test_a_list_of_phrases_has_these_phrases(text: str) -> None:
    phrases = phrases_of(text)
    assert phrases_of("; ".join(phrases)) == phrases
