"""Means, intervals and the list of the worst profiles; how the report shows them."""

from __future__ import annotations

import numpy as np
import pytest

from trsr.evaluate.evaluation import N_WORST, ProfileRow, summarise_profiles
from trsr.evaluate.profile_quality import ProfileQuality
from trsr.evaluate.report_views import profile_view

NAN = float("nan")


def row(number: int, grounding: float = 1.0, **values: float) -> ProfileRow:
    measures = {
        "name_grounding": NAN,
        "copied": 0.0,
        "coverage": 0.5,
        "words": 9.0,
        "repetition": 0.0,
        "change": NAN,
    }
    quality = ProfileQuality(grounding=grounding, ungrounded=(f"word{number}",), **(measures | values))
    return ProfileRow(f"e{number:02d}", f"u{number:02d}", f"text {number}", quality)


def test_means_leave_out_what_has_no_value_and_say_so() -> None:
    rows = [row(0, 0.2), row(1, 0.6, name_grounding=1.0), row(2, NAN)]
    found = summarise_profiles(rows, {"auc": np.asarray([0.5, 1.0, NAN])}, method="recurrent")
    assert found["measures"]["grounding"]["value"] == pytest.approx(0.4)
    assert found["measures"]["grounding"]["examples"] == 2
    assert found["measures"]["auc"]["value"] == pytest.approx(0.75)
    assert "change" not in found["measures"], "nobody has it"
    low, high = found["measures"]["grounding"]["ci95"]
    assert 0.2 <= low <= 0.4 <= high <= 0.6
    assert found["measures"]["name_grounding"]["ci95"] == [None, None], "one user"


def test_the_worst_profiles_are_listed_once_farthest_beyond_their_limit_first() -> None:
    rows = [
        row(0, 0.5),
        row(1, 0.4, copied=0.9),
        row(2, 0.0),
        row(3, 0.45),
        row(4, repetition=0.2),
        row(5, NAN),
    ]
    found = summarise_profiles(rows, {}, method="recurrent")
    assert [(one["example_id"], one["measure"]) for one in found["worst"]] == [
        ("e02", "grounding"),
        ("e01", "copied"),
        ("e03", "grounding"),
    ]
    assert found["worst"][0]["ungrounded"] == ["word2"]
    assert found["beyond"] == {"grounding": 3, "name_grounding": 0, "copied": 1, "repetition": 0}


def test_at_most_twenty_are_listed_and_the_order_of_the_rows_does_not_matter() -> None:
    rows = [row(number, 0.0) for number in range(30)]
    found = summarise_profiles(rows, {}, method="counted")
    assert [one["example_id"] for one in found["worst"]] == [f"e{n:02d}" for n in range(N_WORST)]
    assert summarise_profiles(rows[::-1], {}, method="counted") == found


def test_the_report_explains_every_measure_and_shows_the_limits() -> None:
    rows = [row(0, 0.1, name_grounding=0.2, change=0.3), row(1)]
    prediction = {name: np.asarray([0.5, 0.7]) for name in ("auc", "mrr", "auc_gain")}
    profiles = summarise_profiles(rows, prediction, method="recurrent")
    metrics = {"profiles": profiles, "protocol": {"chance": {"auc": 0.5, "mrr": 0.17}}}
    view = profile_view(metrics)
    assert view is not None
    assert [one["name"] for one in view["rows"]] == list(profiles["measures"])
    assert "chance 0.170" in next(one["meaning"] for one in view["rows"] if one["name"] == "mrr")
    assert view["limits"].startswith("Of 2 profiles: 1 with grounding below 0.5, 1 with name_grounding")
    assert view["worst"][0]["ungrounded"] == "word0"
    assert profile_view({"protocol": {"chance": {}}}) is None
