"""The words of a profile: what is one, which are the same, which carry a topic, which are names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.evaluate.profile_quality import STOP_WORDS, content_words, fold, folded, names, plain_words, runs


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ("story", "stories"),
        ("box", "boxes"),
        ("dress", "dresses"),
        ("church", "churches"),
        ("movie", "Movies"),
        ("house", "houses"),
        ("potato", "potatoes"),
        ("Packer", "packers"),
        ("TV", "tv"),
    ],
)
def test_a_word_and_its_plural_are_one(one: str, several: str) -> None:
    assert fold(one) == fold(several)


@pytest.mark.parametrize(
    ("a", "b"), [("car", "care"), ("run", "running"), ("bus", "bu"), ("glass", "glas"), ("new", "newt")]
)
def test_other_words_stay_apart(a: str, b: str) -> None:
    assert fold(a) != fold(b)


def test_numbers_and_single_letters_are_no_words_and_endings_go() -> None:
    text = "K-pop star's 25 hits, 64GB; they'd can't"
    assert plain_words(text) == ["pop", "star", "hits", "64GB", "they", "cant"]


def test_words_of_grammar_liking_and_the_frame_carry_no_topic() -> None:
    text = "This reader likes soup, and also the soups of Boston, above all others."
    assert content_words(text, folded("reader")) == {"soup": "soup", "boston": "Boston"}
    assert "reader" in content_words(text)


def test_names_are_capitals_inside_a_sentence() -> None:
    text = 'Soup matters. Boston is cold! The Bears, "Wheel of Fortune" and Off The Rails. "Tigers" too'
    assert list(names(text).values()) == ["Bears", "Wheel", "Fortune", "Rails"]
    assert names("cares about NFL football", folded("nfl")) == {}


def test_neighbouring_words_are_one_word_too() -> None:
    assert runs("food and drinks")["foodanddrink"] == ("food", "and", "drink")
    assert set(runs("a bc de")) == {"bc", "de", "bcde"}


@given(st.text())
def test_folding_and_dividing_are_total_and_case_counts_nowhere(text: str) -> None:
    assert folded(text) >= content_words(text).keys() >= names(text).keys()
    assert not content_words(text).keys() & STOP_WORDS
    assert set(runs(text)) >= folded(text)


@given(st.lists(st.from_regex(r"[a-z]{2,12}", fullmatch=True)))
def test_letter_case_does_not_matter(words: list[str]) -> None:
    text = " ".join(words)
    assert folded(text) == folded(text.upper()) == folded(text.title())
