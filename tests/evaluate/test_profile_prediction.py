"""What a profile's words predict: the target above the others, better than strangers' profiles do."""

from __future__ import annotations

import numpy as np
import pytest

from trsr.evaluate.profile_quality import predictive_values
from trsr.types import RankingExample

TEXTS = {"soup": "tomato soup", "bears": "bears football", "cello": "cello music", "car": "electric cars"}


def example(number: int, target: str, user: str | None = None) -> RankingExample:
    items = tuple(TEXTS)
    return RankingExample(
        example_id=f"e{number}",
        user_id=user or f"u{number}",
        history=("cello",),
        candidates=items,
        labels=tuple(int(item == target) for item in items),
    )


EXAMPLES = [example(0, "soup"), example(1, "bears"), example(2, "car")]
PROFILES = {"e0": "soup of tomato", "e1": "football", "e2": "nothing known here"}


def test_a_profile_that_names_the_target_ranks_it_first_and_strangers_do_not() -> None:
    found = predictive_values(EXAMPLES, PROFILES, TEXTS)
    assert found["auc"].tolist() == [1, 1, 0.5]
    assert found["mrr"] == pytest.approx([1, 1, (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4])
    # With a stranger's word the target shares places two to four: auc 1/3; without any word it is 1/2.
    assert found["auc_gain"] == pytest.approx([1 - (1 / 3 + 1 / 2) / 2, 1 - (1 / 2 + 1 / 3) / 2, 0.5 - 1 / 3])


def test_profiles_that_are_all_the_same_gain_nothing() -> None:
    found = predictive_values(EXAMPLES, dict.fromkeys(PROFILES, "soup"), TEXTS)
    assert found["auc_gain"].tolist() == [0, 0, 0]


def test_the_history_and_the_order_of_examples_do_not_count() -> None:
    found = predictive_values(EXAMPLES, PROFILES, TEXTS)
    other = predictive_values(EXAMPLES[::-1], PROFILES, TEXTS)
    for name, values in found.items():
        assert values == pytest.approx(other[name][::-1])
    assert predictive_values(EXAMPLES, {}, TEXTS)["auc"].tolist() == [0.5, 0.5, 0.5]


def test_a_lone_user_has_no_stranger() -> None:
    found = predictive_values([example(0, "soup", "u"), example(1, "bears", "u")], PROFILES, TEXTS)
    assert np.isnan(found["auc_gain"]).all()
    assert found["auc"].tolist() == [1, 1]


def test_an_example_without_truth_has_no_value() -> None:
    found = predictive_values([*EXAMPLES, example(3, "none of them")], PROFILES, TEXTS)
    assert np.isnan([values[3] for values in found.values()]).all()
