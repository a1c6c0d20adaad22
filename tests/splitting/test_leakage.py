"""Leaks that are planted are found, in every protocol; what the protocols make has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from trsr.data.dataset import EVENTS, Dataset
from trsr.data.synthetic import SyntheticConfig, generate
from trsr.splitting.examples import ProtocolConfig, Splits, build_examples
from trsr.splitting.impressions import ImpressionsProtocol
from trsr.splitting.leakage import fit_events, fit_leaks, history_leaks, split_leaks
from trsr.splitting.sampled import SampledProtocol
from trsr.splitting.temporal import TemporalProtocol
from trsr.types import RankingExample

PROTOCOLS: dict[str, ProtocolConfig] = {
    "sampled": SampledProtocol(kind="sampled", min_history=5, max_history=13, n_valid=4, n_test=8),
    "temporal": TemporalProtocol(kind="temporal", min_history=3, max_history=8),
    "impressions": ImpressionsProtocol(kind="impressions", n_valid=4, n_test=8),
}
KINDS = sorted(PROTOCOLS)
LATE = datetime(2100, 1, 1, tzinfo=UTC)
Edit = Callable[[RankingExample], RankingExample]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = SyntheticConfig(
        kind="synthetic", n_users=40, n_items=200, mean_history=12, min_history=9, max_history=14
    )
    return generate(config, tmp_path_factory.mktemp("leakage") / "data")


@pytest.fixture(scope="module")
def made(dataset: Dataset) -> dict[str, Splits]:
    return {kind: build_examples(dataset, protocol, seed=3) for kind, protocol in PROTOCOLS.items()}


def target(example: RankingExample) -> str:
    return example.candidates[example.labels.index(1)]


def with_split(splits: Splits, split: str, examples: list[RankingExample]) -> Splits:
    """Return the splits with the examples of one of them replaced."""
    changed: dict[str, Any] = {split: examples}
    return replace(splits, **changed)


def with_first(splits: Splits, split: str, edit: Edit) -> Splits:
    """Return the splits with the first example of one of them changed."""
    first, *rest = getattr(splits, split)
    return with_split(splits, split, [edit(first), *rest])


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_protocols_make_has_no_leak(kind: str, dataset: Dataset, made: dict[str, Splits]) -> None:
    splits = made[kind]
    histories, rows = history_leaks(dataset, splits), split_leaks(splits)
    events = fit_leaks(dataset, splits, fit_events(dataset, splits))
    assert (histories.leaks, rows.leaks, events.leaks) == ((), (), ())
    assert histories.n == len(splits.train) + len(splits.valid) + len(splits.test)
    assert rows.n == len(splits.train) + len(splits.valid)
    assert events.n > 100


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_target_in_its_own_history_is_found(
    kind: str, split: str, dataset: Dataset, made: dict[str, Splits]
) -> None:
    leaky = with_first(made[kind], split, lambda e: replace(e, history=(*e.history[1:], target(e))))
    name = getattr(leaky, split)[0].example_id
    leaks = history_leaks(dataset, leaky).leaks
    assert len(leaks) == 1
    assert repr(name) in leaks[0]


def test_a_history_that_reaches_among_several_targets_is_found(dataset: Dataset) -> None:
    protocol = SampledProtocol(min_history=5, max_history=13, n_valid=4, n_test=8, train_targets=3)
    splits = build_examples(dataset, protocol, seed=3)
    assert history_leaks(dataset, splits).leaks == ()
    user = splits.train[0].user_id
    met = dataset.events().filter(user_id=user).sort("position").collect()["item_id"].to_list()
    for n_reached in (1, 2):  # of the targets stand in the history
        history = tuple(met[: len(met) - 3 + n_reached])
        leaky = with_first(splits, "train", lambda e, history=history: replace(e, history=history))  # type: ignore[misc]
        assert len(history_leaks(dataset, leaky).leaks) == n_reached


def test_an_item_met_more_often_than_before_its_target_is_found(
    dataset: Dataset, made: dict[str, Splits]
) -> None:
    leaky = with_first(made["sampled"], "test", lambda e: replace(e, history=(*e.history, e.history[-1])))
    assert len(history_leaks(dataset, leaky).leaks) == 1


def test_a_later_event_in_a_history_is_found(dataset: Dataset, made: dict[str, Splits]) -> None:
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
    assert len(history_leaks(dataset, leaky).leaks) == 1


@pytest.mark.parametrize(("split", "later"), [("train", "test"), ("train", "valid"), ("valid", "test")])
def test_a_row_of_a_held_out_user_is_found(split: str, later: str, made: dict[str, Splits]) -> None:
    splits = made["sampled"]
    leaky = with_split(splits, split, [*getattr(splits, split), getattr(splits, later)[0]])
    assert len(split_leaks(leaky).leaks) == 1
    assert f"the {'training' if split == 'train' else 'validation'} example" in split_leaks(leaky).leaks[0]


@pytest.mark.parametrize("kind", ["temporal", "impressions"])
def test_a_row_no_earlier_than_what_it_prepares_for_is_found(kind: str, made: dict[str, Splits]) -> None:
    splits = made[kind]
    first_valid = min(e.timestamp for e in splits.valid if e.timestamp is not None)
    leaky = with_first(splits, "train", lambda e: replace(e, timestamp=first_valid))
    assert len(split_leaks(leaky).leaks) == 1
    just_before = first_valid - timedelta(microseconds=1)
    assert split_leaks(with_first(splits, "train", lambda e: replace(e, timestamp=just_before))).leaks == ()
    first_test = min(e.timestamp for e in splits.test if e.timestamp is not None)
    assert split_leaks(with_first(splits, "valid", lambda e: replace(e, timestamp=first_test))).leaks


def with_event(dataset: Dataset, splits: Splits, *row: object) -> tuple[str, ...]:
    """Return the leaks after one event was added to what is learned from."""
    added = pl.DataFrame([row], schema=EVENTS, orient="row")
    return fit_leaks(dataset, splits, pl.concat([fit_events(dataset, splits), added])).leaks


def test_events_of_a_held_out_user_from_the_target_on_are_found(
    dataset: Dataset, made: dict[str, Splits]
) -> None:
    splits = made["sampled"]
    example = splits.test[0]
    place = (
        dataset.events()
        .filter(user_id=example.user_id, item_id=target(example))
        .select(pl.col("position").max())
        .collect()
        .item()
    )
    for position in (place, place + 1):
        (leak,) = with_event(dataset, splits, example.user_id, target(example), position, None)
        assert repr(example.user_id) in leak
    # A target met earlier too is no leak, and neither is what a training user does.
    assert with_event(dataset, splits, example.user_id, target(example), place - 1, None) == ()
    assert with_event(dataset, splits, splits.train[0].user_id, target(example), 99, LATE) == ()


@pytest.mark.parametrize("kind", ["temporal", "impressions"])
def test_events_from_the_time_of_the_held_out_examples_on_are_found(
    kind: str, dataset: Dataset, made: dict[str, Splits]
) -> None:
    splits = made[kind]
    user, item = splits.train[0].user_id, splits.train[0].history[0]
    start = min(e.timestamp for e in [*splits.valid, *splits.test] if e.timestamp is not None)
    assert len(with_event(dataset, splits, "somebody", item, 0, start)) == 1
    assert with_event(dataset, splits, "somebody", item, 0, start - timedelta(microseconds=1)) == ()
    assert len(with_event(dataset, splits, user, item, 99, LATE)) == 1


def test_what_an_impression_asks_about_is_found_among_the_events(
    dataset: Dataset, made: dict[str, Splits]
) -> None:
    example = made["impressions"].test[0]
    assert len(with_event(dataset, made["impressions"], example.user_id, target(example), 0, None)) == 1


def test_an_event_of_a_held_out_user_from_nowhere_is_found(dataset: Dataset, made: dict[str, Splits]) -> None:
    splits = made["impressions"]
    example = splits.test[0]
    known = {i for e in [*splits.train, *splits.valid, *splits.test] for i in (*e.history, *e.candidates)}
    foreign = next(item for item in dataset.catalogue() if item not in known)
    assert len(with_event(dataset, splits, example.user_id, foreign, 0, None)) == 1
    assert with_event(dataset, splits, "somebody", foreign, 0, None) == ()
