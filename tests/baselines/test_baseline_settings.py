"""Settings of the baselines: tuples are tried in all combinations."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from trsr.baselines.settings import BaselinesConfig, EmbeddingConfig, Gru4RecConfig, described


def test_a_grid_holds_every_combination_and_begins_with_the_first_values() -> None:
    grid = Gru4RecConfig(n_epochs=(5, 15), learning_rate=(0.05, 0.01), dim=(8,)).grid()
    tried = [(point["n_epochs"], point["learning_rate"]) for point in grid]
    assert tried == [(5, 0.05), (5, 0.01), (15, 0.05), (15, 0.01)]
    assert {point["dim"] for point in grid} == {8}


def test_one_value_each_is_a_grid_of_one_point() -> None:
    assert len(EmbeddingConfig(n_recent=(None,), centre=(True,)).grid()) == 1


def test_one_value_needs_no_brackets() -> None:
    found = BaselinesConfig.model_validate(
        {
            "sasrec": {"n_epochs": 4},
            "embedding": {"n_recent": None},
            "popularity_decayed": {"half_life_days": 7},
        }
    )
    assert found.sasrec.n_epochs == (4,)
    assert found.embedding.n_recent == (None,)
    assert found.popularity_decayed.half_life_days == (7.0,)


def test_the_tuned_settings_are_named_in_words() -> None:
    grid = Gru4RecConfig(n_epochs=(5, 15), learning_rate=(0.05, 0.01)).grid()
    assert described(grid[3], grid) == "n_epochs 15, learning_rate 0.01"
    assert described(grid[0], grid[:1]) == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"popularity_decayed": {"half_life_days": [0.0]}},
        {"popularity_decayed": {"half_life_days": []}},
        {"sasrec": {"epochs": [1]}},
        {"narm": {}},
        {"gru4rec": {"dropout": [1.0]}},
        {"bert4rec": {"dim": [32, 33]}},
    ],
)
def test_unknown_and_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BaselinesConfig.model_validate(wrong)
