"""Measures of a profile from texts alone: known values, and what must hold for any text."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.evaluate.profile_quality import (
    ProfileFrame,
    ProfileSource,
    change,
    content_words,
    coverage,
    folded,
    profile_quality,
    repetition,
)

FRAME = ProfileFrame(
    words=folded("This reader cares about. Headlines, oldest first"),
    example_words=folded("NFL football, above all the Packers"),
    prefill="This reader cares about",
)
ITEMS = (
    "Category: sports; Title: Bruins win in Boston",
    "Category: foodanddrink; Title: Twelve soup recipes",
    "Category: sports; Title: Marathon stories",
)
SOURCE = ProfileSource(
    text="This reader cares about sports, above all the Bruins and the Packers, and also food and drinks.",
    item_texts=ITEMS,
    categories=(("sports",), ("foodanddrink",), ("sports", "running")),
    versions=("This reader cares about sports.", "This reader cares about sports and Boston."),
)
WORD = st.sampled_from(
    [
        "soup",
        "Boston",
        "sports",
        "Zorblax",
        "marathon",
        "Bruins",
        "the",
        "and",
        "about",
        "reader",
        "food",
        "drink",
    ]
)
TEXT = st.lists(WORD, max_size=30).map(" ".join) | st.text(max_size=60)


def quality(text: str, **changes: object) -> dict[str, object]:
    return asdict(profile_quality(replace(SOURCE, text=text, **changes), FRAME))  # type: ignore[arg-type]


def test_a_profile_with_one_copied_name() -> None:
    found = profile_quality(SOURCE, FRAME)
    assert found.ungrounded == ("Packers",)
    assert found.grounding == pytest.approx(4 / 5), "sports, Bruins, food and drink; `Packers` is not"
    assert found.name_grounding == pytest.approx(1 / 2)
    assert found.copied == pytest.approx(1 / 5)
    assert found.coverage == pytest.approx(3 / 4), "running is not mentioned"
    assert found.words == 13
    assert found.repetition == 0
    assert found.change == pytest.approx(1 / 2), "Boston is new, sports is not"


def test_the_words_of_the_frame_are_neither_grounded_nor_not() -> None:
    found = quality("This reader cares about headlines.")
    assert math.isnan(found["grounding"])  # type: ignore[arg-type]
    assert found["ungrounded"] == ()
    assert profile_quality(replace(SOURCE, text="Headlines"), ProfileFrame()).ungrounded == ("Headlines",)


def test_a_worked_example_that_the_user_shares_is_not_copied() -> None:
    found = quality("This reader cares about the Packers", item_texts=("Packers win",))
    assert (found["copied"], found["grounding"], found["name_grounding"]) == (0, 1, 1)


def test_an_empty_profile_has_no_shares_and_covers_nothing() -> None:
    found = quality("")
    assert [k for k, v in found.items() if isinstance(v, float) and math.isnan(v)] == [
        "grounding",
        "name_grounding",
        "copied",
        "repetition",
    ]
    assert (found["words"], found["coverage"]) == (0, 0)


def test_coverage_weighs_categories_by_how_often_they_occur_once_an_item() -> None:
    categories = [("garden hoses", "garden hoses"), ("garden hoses",), ("coffee",), ("&", "!")]
    assert coverage("A hose for the garden", categories) == pytest.approx(2 / 3)
    assert coverage("gardens", categories) == 0
    assert coverage("coffee, hose, garden", categories) == 1
    assert math.isnan(coverage("coffee", []))


def test_repetition_counts_three_words_that_come_again() -> None:
    assert repetition("the NBA players and the NBA players and cats") == pytest.approx(2 / 7)
    assert repetition("one two three") == 0
    assert math.isnan(repetition("one two"))


def test_change_is_new_words_between_neighbours() -> None:
    assert change(["soup", "soup", "soup and tea"]) == pytest.approx((0 + 1 / 2) / 2)
    assert change(["soup", "tea"]) == 1
    assert math.isnan(change(["soup"]))
    assert math.isnan(change([]))


@given(TEXT, st.lists(TEXT, max_size=5), st.lists(st.lists(TEXT, max_size=3), max_size=4))
def test_every_share_lies_between_0_and_1(text: str, items: list[str], categories: list[list[str]]) -> None:
    found = profile_quality(ProfileSource(text, items, categories, [*items, text]), FRAME)
    values = asdict(found)
    assert values.pop("words") >= 0
    values.pop("ungrounded")
    assert all(math.isnan(value) or 0 <= value <= 1 for value in values.values()), values


@given(TEXT)
def test_a_copy_of_an_items_text_is_wholly_grounded(text: str) -> None:
    found = profile_quality(ProfileSource(text, ["other things", text]), ProfileFrame())
    assert found.ungrounded == ()
    assert found.grounding == 1 or not content_words(text)
    assert math.isnan(found.name_grounding) or found.name_grounding == 1
    assert found.copied == 0 or not content_words(text)


@given(st.lists(WORD, min_size=1).map(" ".join))
def test_an_invented_name_lowers_both_kinds_of_grounding(text: str) -> None:
    items = [text.replace("Zorblax", "")]
    text = text.replace("Zorblax", "soup")
    source = ProfileSource(f"They like {text}", [*items, "soup in Boston"])
    before = profile_quality(source, ProfileFrame())
    after = profile_quality(replace(source, text=f"{source.text} and Boston and Quuxville"), ProfileFrame())
    assert after.ungrounded == ("Quuxville",)
    assert after.grounding < 1
    assert math.isnan(before.grounding) or before.grounding == 1
    assert math.isnan(before.name_grounding) or after.name_grounding < before.name_grounding == 1


@given(TEXT, st.permutations(ITEMS), st.permutations(SOURCE.categories))
def test_the_order_of_the_items_changes_nothing(
    text: str, items: list[str], categories: list[tuple[str, ...]]
) -> None:
    one = ProfileSource(text, ITEMS, SOURCE.categories, SOURCE.versions)
    other = ProfileSource(text, items, categories, SOURCE.versions)
    assert repr(profile_quality(one, FRAME)) == repr(profile_quality(other, FRAME))


@given(TEXT, st.lists(TEXT, max_size=4), TEXT)
def test_one_more_item_never_lowers_grounding(text: str, items: list[str], more: str) -> None:
    less, grown = (profile_quality(ProfileSource(text, i), FRAME) for i in (items, [*items, more]))
    assert math.isnan(less.grounding) or grown.grounding >= less.grounding
    assert set(grown.ungrounded) <= set(less.ungrounded)


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_summaries_that_repeat_themselves_do_not_change(texts: list[str]) -> None:
    twice = [texts[0]] * 3
    assert math.isnan(change(twice)) or change(twice) == 0
