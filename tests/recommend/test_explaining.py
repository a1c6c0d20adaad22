"""A profile is cut where a reader would cut it, and each part is left out once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.errors import DataError
from trsr.recommend.explain import MAX_SENTENCES, leave_one_out, sentences
from trsr.recommend.questions import Ask


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("", []),
        ("Likes tea.", ["Likes tea."]),
        (
            "Likes tea. Hates 3.5 mm plugs! Lately? Cats.",
            ["Likes tea.", "Hates 3.5 mm plugs!", "Lately?", "Cats."],
        ),
        ("Mostly tools, e.g. saws. Then paper.", ["Mostly tools, e.g. saws.", "Then paper."]),
        ("likes seeds, pots and clay, but no paper.", ["likes seeds,", "pots and clay,", "but no paper."]),
        (
            "likes tea and lately also mugs while at work",
            ["likes tea", "and lately also mugs", "while at work"],
        ),
        (
            "Most often: phones (6), Acme (4). Words: cordless. Lately: paper (3).",
            ["Most often: phones (6), Acme (4).", "Words: cordless.", "Lately: paper (3)."],
        ),
        ("茶が好き。紙は買わない。", ["茶が好き。", "紙は買わない。"]),
    ],
)
def test_a_profile_is_cut_into_sentences_or_one_sentence_into_clauses(line: str, parts: list[str]) -> None:
    assert [part.strip() for part in sentences(line)] == parts


@given(st.text(alphabet="ab A.,;!? 。3", max_size=200))
def test_the_parts_are_the_line_and_few(text: str) -> None:
    line = " ".join(text.split())
    parts = sentences(line)
    assert "".join(parts) == line
    assert len(parts) <= MAX_SENTENCES
    assert all(part.strip() for part in parts)


def test_of_many_sentences_neighbours_go_together_evenly() -> None:
    parts = sentences(" ".join(f"Sentence {n}." for n in range(10, 58)))
    assert len(parts) == MAX_SENTENCES
    assert max(map(len, parts)) <= 3 * min(map(len, parts))


def test_each_part_is_left_out_once_and_no_older_item_takes_its_place() -> None:
    ask = Ask(("old", "a", "b", "a"), "Likes  tea. Hates paper.", ("x", "y"), "No wool. No\nlamps.")
    found = leave_one_out(ask, "x", ("a", "b", "a"))
    assert found.items == ("a", "b", "a")
    assert found.notes == ("No wool.", "No lamps.")
    assert found.sentences == ("Likes tea.", "Hates paper.")
    assert [one.user_history for one in found.asks] == [
        ("a", "b", "a"),
        ("b", "a"),
        ("a", "a"),
        ("a", "b"),
        *[("a", "b", "a")] * 4,
    ]
    whole, noted = "Likes tea. Hates paper.", "No wool. No lamps."
    assert [one.notes for one in found.asks] == [*[noted] * 4, "No lamps.", "No wool.", noted, noted]
    assert [one.profile for one in found.asks] == [*[whole] * 6, "Hates paper.", "Likes tea."]
    assert {one.candidates for one in found.asks} == {("x",)}


def test_without_profile_and_history_only_the_whole_is_asked() -> None:
    assert leave_one_out(Ask((), "", ("x",)), "x", ()).asks == (Ask((), "", ("x",)),)


def test_items_that_do_not_end_the_history_are_refused() -> None:
    with pytest.raises(DataError, match="newest"):
        leave_one_out(Ask(("a", "b"), "", ("x",)), "x", ("a",))
