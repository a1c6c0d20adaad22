"""What changed between two profiles is said in words that carry a topic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trsr.summarize.counted import word_changes


def test_words_added_and_gone_stand_in_the_order_of_their_text() -> None:
    added, gone = word_changes(
        "Likes lamps and red chairs.", "Likes tables, red lamps and Blue vases, vases."
    )
    assert added == ["tables", "blue", "vases"]
    assert gone == ["chairs"]


def test_common_and_tiny_words_and_letter_case_do_not_count() -> None:
    assert word_changes("LAMPS", "lamps, with many of them") == ([], [])


@given(st.text())
def test_a_text_has_no_changes_to_itself(text: str) -> None:
    assert word_changes(text, text) == ([], [])


@given(st.text("ab cd", max_size=30), st.text("ab cd", max_size=30))
def test_what_is_added_one_way_is_gone_the_other(before: str, after: str) -> None:
    added, gone = word_changes(before, after)
    assert word_changes(after, before) == (gone, added)
