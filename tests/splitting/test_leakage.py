"""Planted leaks are found in every protocol; the protocols' own examples have none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from trsr.data.dataset import Dataset
from trsr.data.synthetic import SyntheticConfig, generate
from trsr.splitting.impressions import ImpressionsProtocol
from trsr.splitting.leakage import history_leaks, split_leaks
from trsr.splitting.sampled import SampledProtocol
from trsr.splitting.split import ProtocolConfig, Split, build_examples
from trsr.splitting.temporal import TemporalProtocol
from trsr.types import RankingExample

PROTOCOLS: dict[str, ProtocolConfig] = {
    "sampled": SampledProtocol(kind="sampled", min_history=5, max_history=13, n_valid=4, n_test=8),
    "temporal": TemporalProtocol(kind="temporal", min_history=3, max_history=8),
    "impressions": ImpressionsProtocol(kind="impressions", n_valid=4, n_test=8),
}
KINDS = sorted(PROTOCOLS)
Edit = Callable[[RankingExample], RankingExample]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = SyntheticConfig(
        kind="synthetic", n_users=40, n_items=200, mean_history=12, min_history=9, max_history=14
    )
    return generate(config, tmp_path_factory.mktemp("leakage") / "data")


@pytest.fixture(scope="module")
def made(dataset: Dataset) -> dict[str, Split]:
    return {kind: build_examples(dataset, protocol, seed=3) for kind, protocol in PROTOCOLS.items()}


def target(example: RankingExample) -> str:
    return example.candidates[example.labels.index(1)]


def with_split(splits: Split, split: str, examples: list[RankingExample]) -> Split:
    """Return the splits with the examples of one of them replaced."""
    changed: dict[str, Any] = {split: examples}
    return replace(splits, **changed)


def with_first(splits: Split, split: str, edit: Edit) -> Split:
    """Return the splits with the first example of one of them changed."""
    first, *rest = getattr(splits, split)
    return with_split(splits, split, [edit(first), *rest])


@pytest.mark.parametrize("kind", KINDS)
def test_examples_of_the_protocols_have_no_leak(kind: str, made: dict[str, Split]) -> None:
    assert history_leaks(made[kind]) == split_leaks(made[kind]) == []


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("kind", KINDS)
def test_target_in_its_own_history_is_found(kind: str, split: str, made: dict[str, Split]) -> None:
    leaky = with_first(made[kind], split, lambda e: replace(e, history=(*e.history[1:], target(e))))
    name = getattr(leaky, split)[0].example_id
    leaks = history_leaks(leaky)
    assert len(leaks) == 1
    assert repr(name) in leaks[0]


def test_history_between_several_targets_is_found(dataset: Dataset) -> None:
    protocol = SampledProtocol(min_history=5, max_history=13, n_valid=4, n_test=8, train_targets=3)
    splits = build_examples(dataset, protocol, seed=3)
    assert history_leaks(splits) == []
    user = splits.train[0].user_id
    met = dataset.events().filter(user_id=user).sort("position").collect()["item_id"].to_list()
    for n_reached in (1, 2):  # of the targets stand in the history
        history = tuple(met[: len(met) - 3 + n_reached])
        leaky = with_first(splits, "train", lambda e, history=history: replace(e, history=history))  # type: ignore[misc]
        assert len(history_leaks(leaky)) == n_reached


def test_item_that_occurs_more_often_than_before_its_target_is_found(made: dict[str, Split]) -> None:
    leaky = with_first(made["sampled"], "test", lambda e: replace(e, history=(*e.history, e.history[-1])))
    assert len(history_leaks(leaky)) == 1


def test_later_event_in_a_history_is_found(dataset: Dataset, made: dict[str, Split]) -> None:
    last = dict(
        dataset.events()
        .sort("user_id", "position")
        .group_by("user_id")
        .agg(pl.col("item_id").last())
        .collect()
        .iter_rows()
    )
    # In a training stretch the user's very last event is later than the target.
    leaky = with_first(
        made["temporal"], "train", lambda e: replace(e, history=(*e.history[1:], last[e.user_id]))
    )
    assert len(history_leaks(leaky)) == 1


@pytest.mark.parametrize(("split", "later"), [("train", "test"), ("train", "valid"), ("valid", "test")])
def test_row_of_a_held_out_user_is_found(split: str, later: str, made: dict[str, Split]) -> None:
    splits = made["sampled"]
    leaky = with_split(splits, split, [*getattr(splits, split), getattr(splits, later)[0]])
    assert len(split_leaks(leaky)) == 1
    assert f"the {'training' if split == 'train' else 'validation'} example" in split_leaks(leaky)[0]


@pytest.mark.parametrize("kind", ["temporal", "impressions"])
def test_example_no_earlier_than_the_later_split_is_found(kind: str, made: dict[str, Split]) -> None:
    splits = made[kind]
    first_valid = min(e.timestamp for e in splits.valid if e.timestamp is not None)
    leaky = with_first(splits, "train", lambda e: replace(e, timestamp=first_valid))
    assert len(split_leaks(leaky)) == 1
    just_before = first_valid - timedelta(microseconds=1)
    assert split_leaks(with_first(splits, "train", lambda e: replace(e, timestamp=just_before))) == []
    first_test = min(e.timestamp for e in splits.test if e.timestamp is not None)
    assert split_leaks(with_first(splits, "valid", lambda e: replace(e, timestamp=first_test)))
