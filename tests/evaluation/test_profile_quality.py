"""Words, measures and predictions of profiles, and their entry in `metrics.json`."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.baselines.simple import Bm25Index
from trsr.evaluation.profile_quality import (
    N_WORST,
    STOP_WORDS,
    ProfileFrame,
    ProfileQuality,
    ProfileRow,
    ProfileSource,
    change,
    content_words,
    coverage,
    fold,
    folded,
    names,
    plain_words,
    predictive_values,
    profile_quality,
    repetition,
    runs,
    summarize_profiles,
)
from trsr.types import RankingExample

NAN = math.nan


# --- words ------------------------------------------------------------------------------------------------


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
        ("TV", "tv"),
    ],
)
def test_fold_joins_a_word_and_its_plural(one: str, several: str) -> None:
    assert fold(one) == fold(several)


@pytest.mark.parametrize(
    ("a", "b"), [("car", "care"), ("run", "running"), ("bus", "bu"), ("glass", "glas"), ("new", "newt")]
)
def test_fold_keeps_other_words_apart(a: str, b: str) -> None:
    assert fold(a) != fold(b)


def test_words_and_content_words_of_a_text() -> None:
    text = "K-pop star's 25 hits, 64GB; they'd can't"
    assert plain_words(text) == ["pop", "star", "hits", "64GB", "they", "cant"]
    text = "This reader likes soup, and also the soups of Boston, above all others."
    assert content_words(text, folded("reader")) == {"soup": "soup", "boston": "Boston"}
    assert "reader" in content_words(text)
    assert runs("food and drinks")["foodanddrink"] == ("food", "and", "drink")
    assert set(runs("a bc de")) == {"bc", "de", "bcde"}


def test_names_are_capitals_inside_a_sentence() -> None:
    text = 'Soup matters. Boston is cold! The Bears, "Wheel of Fortune" and Off The Rails. "Tigers" too'
    assert list(names(text).values()) == ["Bears", "Wheel", "Fortune", "Rails"]
    assert names("cares about NFL football", folded("nfl")) == {}


@given(st.text())
def test_words_of_any_text_are_nested_sets(text: str) -> None:
    assert folded(text) >= content_words(text).keys() >= names(text).keys()
    assert not content_words(text).keys() & STOP_WORDS
    assert set(runs(text)) >= folded(text)


# --- measures of one profile ------------------------------------------------------------------------------

FRAME = ProfileFrame(
    words=folded("This reader cares about. Headlines, oldest first"),
    example_words=folded("NFL football, above all the Packers"),
    prefill="This reader cares about",
)
SOURCE = ProfileSource(
    text="This reader cares about sports, above all the Bruins and the Packers, and also food and drinks.",
    item_texts=(
        "Category: sports; Title: Bruins win in Boston",
        "Category: foodanddrink; Title: Twelve soup recipes",
        "Category: sports; Title: Marathon stories",
    ),
    categories=(("sports",), ("foodanddrink",), ("sports", "running")),
    versions=("This reader cares about sports.", "This reader cares about sports and Boston."),
)
WORDS = "soup Boston sports Zorblax marathon Bruins the and about reader food drink"
WORD = st.sampled_from(WORDS.split())
TEXT = st.lists(WORD, max_size=30).map(" ".join) | st.text(max_size=60)


def quality(text: str, **changes: Any) -> ProfileQuality:
    return profile_quality(replace(SOURCE, text=text, **changes), FRAME)


def test_measures_of_a_profile_with_one_copied_name() -> None:
    found = profile_quality(SOURCE, FRAME)
    assert found.ungrounded == ("Packers",)
    assert found.grounding == pytest.approx(4 / 5), "sports, Bruins, food and drink; `Packers` is not"
    assert found.name_grounding == pytest.approx(1 / 2)
    assert found.copied == pytest.approx(1 / 5)
    assert found.coverage == pytest.approx(3 / 4), "running is not mentioned"
    assert (found.words, found.repetition) == (13, 0)
    assert found.change == pytest.approx(1 / 2), "Boston is new, sports is not"


def test_frame_words_and_shared_examples_are_not_ungrounded() -> None:
    found = quality("This reader cares about headlines.")
    assert math.isnan(found.grounding)
    assert found.ungrounded == ()
    assert profile_quality(replace(SOURCE, text="Headlines"), ProfileFrame()).ungrounded == ("Headlines",)
    found = quality("This reader cares about the Packers", item_texts=("Packers win",))
    assert (found.copied, found.grounding, found.name_grounding) == (0, 1, 1)


def test_an_empty_profile_has_no_shares_and_covers_nothing() -> None:
    found = asdict(quality(""))
    unknown = [name for name, value in found.items() if isinstance(value, float) and math.isnan(value)]
    assert unknown == ["grounding", "name_grounding", "copied", "repetition"]
    assert (found["words"], found["coverage"]) == (0, 0)


def test_coverage_weighs_categories_by_how_often_they_occur() -> None:
    categories = [("garden hoses", "garden hoses"), ("garden hoses",), ("coffee",), ("&", "!")]
    assert coverage("A hose for the garden", categories) == pytest.approx(2 / 3)
    assert coverage("gardens", categories) == 0
    assert coverage("coffee, hose, garden", categories) == 1
    assert math.isnan(coverage("coffee", []))


def test_repetition_and_change_equal_values_computed_by_hand() -> None:
    assert repetition("the NBA players and the NBA players and cats") == pytest.approx(2 / 7)
    assert repetition("one two three") == 0
    assert math.isnan(repetition("one two"))
    assert change(["soup", "soup", "soup and tea"]) == pytest.approx((0 + 1 / 2) / 2)
    assert change(["soup", "tea"]) == 1
    assert math.isnan(change(["soup"]))


@given(TEXT, st.lists(TEXT, max_size=5), st.lists(st.lists(TEXT, max_size=3), max_size=4), st.randoms())
def test_shares_lie_between_0_and_1_whatever_the_order_of_items(
    text: str, items: list[str], categories: list[list[str]], random: Any
) -> None:
    found = profile_quality(ProfileSource(text, items, categories, [*items, text]), FRAME)
    texts, kinds = random.sample(items, len(items)), random.sample(categories, len(categories))
    assert repr(profile_quality(ProfileSource(text, texts, kinds, [*items, text]), FRAME)) == repr(found)
    values = asdict(found)
    assert values.pop("words") >= 0
    values.pop("ungrounded")
    assert all(math.isnan(value) or 0 <= value <= 1 for value in values.values()), values


@given(TEXT, st.lists(TEXT, max_size=4), TEXT)
def test_more_items_never_lower_grounding(text: str, items: list[str], more: str) -> None:
    less, grown = (profile_quality(ProfileSource(text, i), FRAME) for i in (items, [*items, more]))
    assert math.isnan(less.grounding) or grown.grounding >= less.grounding
    assert set(grown.ungrounded) <= set(less.ungrounded)
    copy = profile_quality(ProfileSource(text, [*items, text]), ProfileFrame())
    assert copy.ungrounded == ()
    assert copy.grounding == 1 or not content_words(text)


@given(st.lists(WORD, min_size=1).map(" ".join))
def test_an_invented_name_lowers_both_kinds_of_grounding(text: str) -> None:
    text = text.replace("Zorblax", "soup")
    source = ProfileSource(f"They like {text}", [text, "soup in Boston"])
    before = profile_quality(source, ProfileFrame())
    after = profile_quality(replace(source, text=f"{source.text} and Boston and Quuxville"), ProfileFrame())
    assert after.ungrounded == ("Quuxville",)
    assert after.grounding < 1
    assert math.isnan(before.name_grounding) or after.name_grounding < before.name_grounding == 1


# --- what the profiles predict ----------------------------------------------------------------------------

TEXTS = {"soup": "tomato soup", "bears": "bears football", "cello": "cello music", "car": "electric cars"}
INDEX = Bm25Index(TEXTS)


def example(number: int, target: str, user: str | None = None) -> RankingExample:
    return RankingExample(
        example_id=f"e{number}",
        user_id=user or f"u{number}",
        history=("cello",),
        candidates=tuple(TEXTS),
        labels=tuple(int(item == target) for item in TEXTS),
    )


EXAMPLES = [example(0, "soup"), example(1, "bears"), example(2, "car")]
PROFILES = {"e0": "soup of tomato", "e1": "football", "e2": "nothing known here"}


def test_a_profile_that_names_the_target_ranks_it_above_others_profiles() -> None:
    found = predictive_values(EXAMPLES, PROFILES, INDEX)
    assert found["auc"].tolist() == [1, 1, 0.5]
    assert found["mrr"] == pytest.approx([1, 1, (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4])
    # With another user's word the target shares places two to four: auc 1/3; without any word it is 1/2.
    assert found["auc_gain"] == pytest.approx([1 - (1 / 3 + 1 / 2) / 2, 1 - (1 / 2 + 1 / 3) / 2, 0.5 - 1 / 3])
    turned = predictive_values(EXAMPLES[::-1], PROFILES, INDEX)
    for name, values in found.items():
        assert values == pytest.approx(turned[name][::-1])


def test_equal_and_empty_profiles_gain_nothing() -> None:
    same = predictive_values(EXAMPLES, dict.fromkeys(PROFILES, "soup"), INDEX)
    assert same["auc_gain"].tolist() == [0, 0, 0]
    assert predictive_values(EXAMPLES, {}, INDEX)["auc"].tolist() == [0.5, 0.5, 0.5]


def test_a_lone_user_and_an_example_without_truth_have_no_gain() -> None:
    found = predictive_values([example(0, "soup", "u"), example(1, "bears", "u")], PROFILES, INDEX)
    assert np.isnan(found["auc_gain"]).all()
    assert found["auc"].tolist() == [1, 1]
    found = predictive_values([*EXAMPLES, example(3, "none of them")], PROFILES, INDEX)
    assert np.isnan([values[3] for values in found.values()]).all()


# --- the entry in `metrics.json` --------------------------------------------------------------------------


def row(number: int, grounding: float = 1.0, **values: float) -> ProfileRow:
    measures = {
        "name_grounding": NAN,
        "copied": 0.0,
        "coverage": 0.5,
        "words": 9.0,
        "repetition": 0.0,
        "change": NAN,
    }
    found = ProfileQuality(grounding=grounding, ungrounded=(f"word{number}",), **(measures | values))
    return ProfileRow(f"e{number:02d}", f"u{number:02d}", f"text {number}", found)


def test_means_leave_out_missing_values() -> None:
    rows = [row(0, 0.2), row(1, 0.6, name_grounding=1.0), row(2, NAN)]
    measures = summarize_profiles(rows, {"auc": np.asarray([0.5, 1.0, NAN])}, method="recurrent")["measures"]
    assert measures["grounding"]["value"] == pytest.approx(0.4)
    assert measures["grounding"]["examples"] == 2
    assert measures["auc"]["value"] == pytest.approx(0.75)
    assert "change" not in measures, "no profile has it"
    low, high = measures["grounding"]["ci95"]
    assert 0.2 <= low <= 0.4 <= high <= 0.6
    assert measures["name_grounding"]["ci95"] == [None, None], "one user"


def test_profiles_beyond_a_limit_are_listed_once_farthest_first() -> None:
    rows = [
        row(0, 0.5),
        row(1, 0.4, copied=0.9),
        row(2, 0.0),
        row(3, 0.45),
        row(4, repetition=0.2),
        row(5, NAN),
    ]
    found = summarize_profiles(rows, {}, method="recurrent")
    assert [(one["example_id"], one["measure"]) for one in found["worst"]] == [
        ("e02", "grounding"),
        ("e01", "copied"),
        ("e03", "grounding"),
    ]
    assert found["worst"][0]["ungrounded"] == ["word2"]
    assert found["beyond"] == {"grounding": 3, "name_grounding": 0, "copied": 1, "repetition": 0}


def test_at_most_twenty_are_listed_in_any_order_of_rows() -> None:
    rows = [row(number, 0.0) for number in range(30)]
    found = summarize_profiles(rows, {}, method="counted")
    assert [one["example_id"] for one in found["worst"]] == [f"e{n:02d}" for n in range(N_WORST)]
    assert summarize_profiles(rows[::-1], {}, method="counted") == found
