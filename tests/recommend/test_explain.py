"""A profile is cut where a reader would cut it, and each part is left out once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.recommend.explain import MAX_SENTENCES, leave_one_out, sentences
from trsr.recommend.ranker import RankRequest


@pytest.mark.parametrize(
    "parts",
    [
        [],
        ["Likes tea."],
        ["Likes tea.", "Hates 3.5 mm plugs!", "Lately?", "Cats."],
        ["Mostly tools, e.g. saws.", "Then paper."],
        ["likes seeds,", "pots and clay,", "but no paper."],
        ["likes tea", "and lately also mugs", "while at work"],
        ["Most often: phones (6), Acme (4).", "Words: cordless.", "Lately: paper (3)."],
    ],
)
def test_sentences_are_cut_and_a_single_one_into_clauses(parts: list[str]) -> None:
    assert [part.strip() for part in sentences(" ".join(parts))] == parts


def test_sentences_end_without_blanks_in_other_scripts() -> None:
    assert sentences("茶が好き。紙は買わない。") == ["茶が好き。", "紙は買わない。"]


@given(st.text(alphabet="ab A.,;!? 。3", max_size=200))
def test_sentences_joined_are_the_line(text: str) -> None:
    line = " ".join(text.split())
    parts = sentences(line)
    assert "".join(parts) == line
    assert len(parts) <= MAX_SENTENCES
    assert all(part.strip() for part in parts)


def test_sentences_beyond_the_limit_are_joined_evenly() -> None:
    parts = sentences(" ".join(f"Sentence {n}." for n in range(10, 58)))
    assert len(parts) == MAX_SENTENCES
    assert max(map(len, parts)) <= 3 * min(map(len, parts))


def test_leave_one_out_leaves_each_part_out_once_and_shows_no_older_item() -> None:
    request = RankRequest(
        ("old", "a", "b", "a"), "Likes  tea. Hates paper.", ("x", "y"), "No wool. No\nlamps."
    )
    found = leave_one_out(request, "x", 3)
    assert found.items == ("a", "b", "a")
    assert found.notes == ("No wool.", "No lamps.")
    assert found.sentences == ("Likes tea.", "Hates paper.")
    shown, whole, noted = ("a", "b", "a"), "Likes tea. Hates paper.", "No wool. No lamps."
    assert [(one.user_history, one.notes, one.profile) for one in found.requests] == [
        (shown, noted, whole),
        (("b", "a"), noted, whole),
        (("a", "a"), noted, whole),
        (("a", "b"), noted, whole),
        (shown, "No lamps.", whole),
        (shown, "No wool.", whole),
        (shown, noted, "Hates paper."),
        (shown, noted, "Likes tea."),
    ]
    assert {one.candidates for one in found.requests} == {("x",)}
    assert leave_one_out(RankRequest(("old",), "", ("x",)), "x", 0).requests == (RankRequest((), "", ("x",)),)
