"""The protocols on small invented datasets: targets and candidates, left-out items, the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from trsr.data.dataset import Dataset, write_dataset
from trsr.data.schema import EVENTS, IMPRESSIONS
from trsr.errors import DataError, OutputError
from trsr.seeding import derive_rng
from trsr.splitting.impressions import ImpressionsProtocol
from trsr.splitting.sampled import SampledProtocol
from trsr.splitting.split import (
    ProtocolConfig,
    Split,
    build_examples,
    chance_recall,
    read_examples,
    write_examples,
)
from trsr.splitting.temporal import TemporalProtocol
from trsr.train.dataset import recall_sum
from trsr.types import RankingExample

START = datetime(2026, 1, 1, tzinfo=UTC)
Rows = Sequence[tuple[str, list[str], list[datetime] | None]]


def make(
    folder: Path,
    users: Rows,
    *,
    n_items: int = 60,
    textless: Sequence[str] = (),
    impressions: list[dict[str, Any]] | None = None,
    reverse: bool = False,
) -> Dataset:
    """Write a dataset; `reverse` reverses all rows, which must not matter."""
    titles: dict[str, tuple[str | None, str | None]] = {
        f"i{i}": (f"Thing number {i}", f"shelf {i % 3}") for i in range(n_items)
    }
    titles |= dict.fromkeys(textless, (None, None))
    items = pl.DataFrame(
        [(item, *texts) for item, texts in titles.items()],
        schema={"item_id": pl.String, "title": pl.String, "category": pl.String},
        orient="row",
    )
    rows = [
        (user, item, position, None if times is None else times[position])
        for user, history, times in users
        for position, item in enumerate(history)
    ]
    events = pl.DataFrame(rows, schema=EVENTS, orient="row")
    logged = pl.DataFrame(impressions, schema=IMPRESSIONS) if impressions is not None else None
    if reverse:
        items, events = items.reverse(), events.reverse()
        logged = logged.reverse() if logged is not None else None
    return write_dataset(
        folder,
        name="small",
        domain="products",
        text_fields=["title", "category"],
        category_fields=["category"],
        items=items,
        events=events,
        impressions=logged,
        source="invented",
    )


def random_users(seed: int, n_users: int, n_items: int, times: bool, longest: int = 20) -> Rows:
    rng = derive_rng(seed)
    users: list[tuple[str, list[str], list[datetime] | None]] = []
    for u in range(n_users):
        n = int(rng.integers(1, longest))
        history = [f"i{i}" for i in rng.integers(n_items, size=n)]
        minutes = np.sort(rng.integers(0, 500, size=n)).tolist()  # equal times do occur
        stamps = [START + timedelta(minutes=m) for m in minutes] if times else None
        users.append((f"u{u}", history, stamps))
    return users


def positives(example: RankingExample) -> set[str]:
    return {item for item, label in zip(example.candidates, example.labels, strict=True) if label}


def everything(splits: Split) -> list[RankingExample]:
    return [*splits.train, *splits.valid, *splits.test]


SAMPLED = SampledProtocol(min_history=3, max_history=10, n_valid=5, n_test=8)


@pytest.fixture
def untimed(tmp_path: Path) -> Dataset:
    return make(tmp_path / "untimed", random_users(0, 60, 60, times=False))


def test_sampled_has_the_last_item_of_users_with_a_history_in_range(untimed: Dataset) -> None:
    splits = build_examples(untimed, SAMPLED, seed=1)
    full = {user: history for user, history, _ in random_users(0, 60, 60, times=False)}
    eligible = {user for user, history in full.items() if 3 <= len(history) - 1 <= 10}
    assert {e.user_id for e in everything(splits)} == eligible
    assert (len(splits.valid), len(splits.test)) == (5, 8)
    for example in everything(splits):
        assert list(example.history) == full[example.user_id][:-1]
        assert positives(example) == {full[example.user_id][-1]}
        assert not set(example.candidates) - positives(example) & set(full[example.user_id])
    assert {len(e.candidates) for e in splits.train} == {5}
    assert {len(e.candidates) for e in splits.test} == {21}
    counts = splits.counts
    assert (counts["users"], counts["users_eligible"]) == (60, len(eligible))
    assert counts["users_too_short"] + counts["users_too_long"] == 60 - len(eligible)
    assert counts["chance_recall@3"] == pytest.approx(3 / 21)
    assert "Leakage warning" in splits.warnings[0]


def test_training_users_can_have_several_last_items_as_targets(tmp_path: Path) -> None:
    users = random_users(0, 60, 60, times=True)
    dataset = make(tmp_path / "d", users)
    one = build_examples(dataset, SAMPLED, seed=1)
    protocol = SAMPLED.model_copy(update={"train_targets": 3})
    several = build_examples(dataset, protocol, seed=1)
    assert (several.valid, several.test) == (one.valid, one.test)
    assert [e.user_id for e in several.train] == [e.user_id for e in one.train]
    full = {user: (history, times) for user, history, times in users}
    for example in [*several.train, *several.resample(1)]:
        history, times = full[example.user_id]
        assert list(example.history) == history[:-3]
        assert positives(example) == set(history[-3:])
        assert times is not None
        assert example.timestamp == times[-3]
        negatives = set(example.candidates) - positives(example)
        assert len(negatives) == protocol.negatives.n_train
        assert not negatives & set(history)
    assert "in training the last 3" in str(several.description["target"])


def test_sampled_can_keep_the_newest_part_of_long_histories_and_never_draws_the_cut_part(
    tmp_path: Path,
) -> None:
    data = make(tmp_path / "d", [(f"u{u}", [f"i{i}" for i in range(30)], None) for u in range(6)])
    with pytest.raises(DataError, match="Only 0 users"):
        build_examples(data, SAMPLED, seed=0)
    protocol = SampledProtocol(min_history=3, max_history=10, n_valid=1, n_test=1, truncate=True)
    splits = build_examples(data, protocol, seed=0)
    for example in [*everything(splits), *splits.resample(3)]:
        assert example.history == tuple(f"i{i}" for i in range(19, 29))
        assert not set(example.candidates) - {"i29"} & {f"i{i}" for i in range(30)}
    assert splits.counts["users_truncated"] == 6


def test_a_user_with_one_event_is_left_out_and_counted(tmp_path: Path) -> None:
    users = random_users(0, 30, 60, times=True, longest=9)
    single: Rows = [(f"single{u}", ["i1"], [START + timedelta(minutes=u)]) for u in range(12)]
    data = make(tmp_path / "d", [*users, *single])
    sampled = SampledProtocol(min_history=1, max_history=10, n_valid=2, n_test=4)
    for protocol, count in (
        (sampled, "users_too_short"),
        (TemporalProtocol(kind="temporal"), "questions_too_short"),
    ):
        splits = build_examples(data, protocol, seed=0)
        assert not [e for e in everything(splits) if e.user_id.startswith("single")]
        assert splits.counts[count] >= 12
    with pytest.raises(DataError, match=r"Only 0 users can be used, but .*; lower these numbers"):
        build_examples(make(tmp_path / "e", single), sampled, seed=0)


def test_items_without_text_are_left_out_and_counted(tmp_path: Path) -> None:
    users: Rows = [(f"u{u}", [*(f"i{i}" for i in range(u, u + 6)), "i50"], None) for u in range(8)]
    data = make(tmp_path / "d", users, textless=("i3", "i50"))
    splits = build_examples(data, SampledProtocol(min_history=3, n_valid=1, n_test=2), seed=0)
    for example in everything(splits):
        assert not {"i3", "i50"} & {*example.history, *example.candidates}
    assert splits.counts["items_without_text"] == 2
    assert splits.counts["events_without_text"] == 8 + 4
    assert splits.counts["missing_text_rate_events"] == pytest.approx(12 / 56)


def test_paper_exact_puts_the_target_first_and_may_draw_the_history(tmp_path: Path) -> None:
    data = make(tmp_path / "d", random_users(0, 80, 25, times=False), n_items=25)
    protocol = SampledProtocol(min_history=3, max_history=10, n_valid=5, n_test=8, paper_exact=True)
    splits = build_examples(data, protocol, seed=0)
    assert all(e.labels == (1, 0) for e in splits.train)
    assert all(e.labels == (1,) + (0,) * 20 for e in splits.test)
    assert any(set(e.candidates[1:]) & set(e.history) for e in splits.test)
    assert "paper" in str(splits.description["negatives"])


def test_held_out_users_do_not_depend_on_the_number_of_training_users(untimed: Dataset) -> None:
    few = build_examples(untimed, SAMPLED.model_copy(update={"n_train": 3}), seed=0)
    many = build_examples(untimed, SAMPLED, seed=0)
    assert (few.valid, few.test) == (many.valid, many.test)
    assert few.train == many.train[:3]


def test_the_position_of_the_target_carries_no_information(tmp_path: Path) -> None:
    data = make(tmp_path / "d", random_users(0, 700, 60, times=False))
    splits = build_examples(data, SampledProtocol(min_history=1, max_history=20, n_test=400), seed=0)
    places = np.bincount([e.labels.index(1) for e in splits.test], minlength=21)
    assert places.max() < 400 / 21 + 5 * (400 / 21) ** 0.5
    assert places.min() > 0


def logged(n: int, times: bool, n_users: int = 20) -> list[dict[str, Any]]:
    """Return impressions whose first candidate was clicked."""
    rng = derive_rng(7)
    rows = []
    for i in range(n):
        candidates = [f"i{j}" for j in rng.permutation(50)[: int(rng.integers(2, 9))]]
        rows.append(
            {
                "impression_id": f"m{i}",
                "user_id": f"u{i % n_users}",
                "timestamp": START + timedelta(hours=int(rng.integers(40))) if times else None,
                "history": [f"i{50 + i % 7}", f"i{57 + i % 3}"],
                "candidates": candidates,
                "clicked": [j == 0 for j in range(len(candidates))],
            }
        )
    return rows


IMPRESSIONS_PROTOCOL = ImpressionsProtocol(kind="impressions", n_valid=10, n_test=15, n_train_negatives=3)


@pytest.mark.parametrize("kind", ["uniform", "popularity", "same-category", "targets", "impressions"])
def test_examples_depend_on_seed_and_epoch_and_not_on_the_order_of_rows(tmp_path: Path, kind: str) -> None:
    users, rows = random_users(0, 60, 60, times=False), logged(100, True)
    one, two = (
        make(tmp_path / f"{reverse}", users, impressions=rows, reverse=reverse) for reverse in (False, True)
    )
    negatives = {"kind": kind, "n_test": 1}
    protocol: SampledProtocol | ImpressionsProtocol = IMPRESSIONS_PROTOCOL
    if kind != "impressions":
        protocol = SampledProtocol.model_validate({**SAMPLED.model_dump(), "negatives": negatives})
    splits, again = (build_examples(data, protocol, seed=0) for data in (one, two))
    assert splits == again
    assert [e.candidates for e in build_examples(one, protocol, seed=1).test] != [
        e.candidates for e in splits.test
    ]
    fresh = splits.resample(1)
    assert fresh == replace(again, train=again.train[::-1]).resample(1)[::-1]
    assert [set(e.candidates) for e in fresh] != [set(e.candidates) for e in splits.resample(2)]
    assert splits.resample(0) == splits.train
    for new, old in zip(fresh, splits.train, strict=True):
        assert (new.history, positives(new)) == (old.history, positives(old))
        assert len(new.candidates) == len(old.candidates)


def popular_users(n_users: int, n_items: int, skew: float) -> Rows:
    """Return eight items per user; item i occurs in proportion to 1 / (i + 3) ^ skew."""
    weights = 1 / (np.arange(n_items) + 3.0) ** skew
    drawn = derive_rng(0, "histories").choice(n_items, size=(n_users, 8), p=weights / weights.sum())
    return [(f"u{u}", [f"i{item}" for item in row], None) for u, row in enumerate(drawn)]


@pytest.mark.parametrize("kind", ["uniform", "targets"])
def test_target_negatives_defeat_popularity_and_stay_within_a_split(tmp_path: Path, kind: str) -> None:
    protocol = SampledProtocol.model_validate(
        {
            "min_history": 1,
            "max_history": 9,
            "n_valid": 50,
            "n_test": 600,
            "negatives": {"kind": kind, "n_test": 9},
        }
    )
    data = make(tmp_path / "d", popular_users(1000, 300, 0.7), n_items=300)
    splits = build_examples(data, protocol, seed=0)
    popular = Counter(next(iter(positives(e))) for e in splits.test)  # even that of the very targets
    found = [
        recall_sum(np.array([popular[c] for c in e.candidates], np.float32), e.labels) for e in splits.test
    ]
    above_chance = np.mean(found) - (3 + 5 + 10) / 10
    noise = np.std(found) / len(found) ** 0.5
    assert (above_chance > 10 * noise) if kind == "uniform" else (abs(above_chance) < 4 * noise)
    for part in (splits.train, splits.valid, splits.test, splits.resample(1)):
        lent = set().union(*map(positives, part))
        assert kind == "uniform" or all(set(e.candidates) <= lent for e in part)


@pytest.mark.parametrize("kind", ["uniform", "targets"])
def test_temporal_targets_come_later_and_negatives_are_known_by_then(tmp_path: Path, kind: str) -> None:
    users = random_users(0, 80, 60, times=True)
    negatives = {"kind": kind, "n_train": 2, "n_test": 2}
    protocol = TemporalProtocol.model_validate(
        {"kind": "temporal", "min_history": 2, "max_history": 8, "negatives": negatives}
    )
    splits = build_examples(make(tmp_path / "d", users), protocol, seed=0)
    valid_from = splits.valid_from
    assert valid_from is not None
    test_from = datetime.fromisoformat(str(splits.description["test_from"]))
    times = {user: list(zip(history, stamps or [], strict=True)) for user, history, stamps in users}
    first_seen: dict[str, datetime] = {}
    for pairs in times.values():
        for item, when in pairs:
            first_seen[item] = min(when, first_seen.get(item, when))
    for example in everything(splits):
        assert example.timestamp is not None
        before = [item for item, when in times[example.user_id] if when < example.timestamp]
        assert list(example.history) == before[-8:]
        until_now = {item for item, when in times[example.user_id] if when <= example.timestamp}
        assert not (set(example.candidates) - positives(example)) & until_now
        assert all(first_seen[item] <= example.timestamp for item in example.candidates)
    assert all(getattr(splits, split) for split in ("train", "valid", "test"))
    assert all(e.timestamp < valid_from for e in splits.train if e.timestamp)
    assert all(valid_from <= e.timestamp < test_from for e in splits.valid if e.timestamp)
    assert all(test_from <= e.timestamp for e in splits.test if e.timestamp)
    assert splits.warnings == ()


def test_temporal_without_times_is_refused(untimed: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="have no time"):
        build_examples(untimed, TemporalProtocol(kind="temporal"), seed=0)
    same: Rows = [(f"u{u}", ["i1", "i2"], [START, START]) for u in range(5)]
    with pytest.raises(DataError, match="too alike"):
        build_examples(make(tmp_path / "e", same), TemporalProtocol(kind="temporal"), seed=0)


@pytest.mark.parametrize("times", [True, False])
def test_impressions_keep_the_logged_candidates_with_text(tmp_path: Path, times: bool) -> None:
    rows = logged(100, times)
    data = make(tmp_path / "d", [], impressions=rows, textless=("i0", "i1", "i50"))
    splits = build_examples(data, IMPRESSIONS_PROTOCOL, seed=0)
    by_id = {row["impression_id"]: row for row in rows}
    assert (len(splits.valid), len(splits.test)) == (10, 15)
    for example in everything(splits):
        row = by_id[example.example_id]
        assert example.user_id == row["user_id"]
        assert list(example.history) == [i for i in row["history"] if i != "i50"]
        assert set(example.candidates) <= set(row["candidates"]) - {"i0", "i1"}
        assert positives(example) == {row["candidates"][0]}
        assert 0 in example.labels
    assert all(
        set(e.candidates) == set(by_id[e.example_id]["candidates"]) - {"i0", "i1"} for e in splits.test
    )
    assert all(e.labels.count(0) <= 3 for e in splits.train)
    counts = splits.counts
    assert counts["impressions"] == 100
    missing = sum(len({"i0", "i1"} & set(row["candidates"])) for row in rows)
    assert counts["candidates_without_text"] == missing
    assert counts["missing_text_rate_history"] == pytest.approx(15 / 200)
    dropped = 100 - counts["impressions_eligible"]
    assert dropped == counts["impressions_without_click_or_unclicked_with_text"] > 0


def test_impressions_with_times_are_split_by_time_and_others_by_user(tmp_path: Path) -> None:
    timed, untimed = (
        build_examples(
            make(tmp_path / f"{times}", [], impressions=logged(100, times)), IMPRESSIONS_PROTOCOL, seed=0
        )
        for times in (True, False)
    )
    spans = [
        sorted(e.timestamp for e in getattr(timed, split) if e.timestamp)
        for split in ("train", "valid", "test")
    ]
    assert spans[0][-1] < spans[1][0] <= spans[1][-1] < spans[2][0]
    assert timed.warnings == ()
    users = [{e.user_id for e in part} for part in (untimed.train, untimed.valid, untimed.test)]
    assert sum(map(len, users)) == len(set().union(*users))
    assert "Leakage warning" in untimed.warnings[0]


def test_a_candidate_that_was_shown_twice_is_one_candidate(tmp_path: Path) -> None:
    rows = logged(30, False)
    for row in rows:
        row["candidates"], row["clicked"] = ["i1", "i2", "i1"], [False, False, True]
    protocol = ImpressionsProtocol(kind="impressions", n_valid=3, n_test=3)
    splits = build_examples(make(tmp_path / "d", [], impressions=rows), protocol, seed=0)
    assert all(
        sorted(zip(e.candidates, e.labels, strict=True)) == [("i1", 1), ("i2", 0)] for e in splits.test
    )


def test_datasets_that_cannot_serve_the_impressions_protocol_are_refused(
    untimed: Dataset, tmp_path: Path
) -> None:
    uneven = logged(20, True)
    uneven[3]["clicked"] = uneven[3]["clicked"][1:]
    for data, message in (
        (untimed, "has no impressions"),
        (make(tmp_path / "u", [], impressions=uneven), "not as many clicks as candidates"),
        (make(tmp_path / "e", [], impressions=logged(20, True)), "lower these numbers"),
    ):
        with pytest.raises(DataError, match=message):
            build_examples(data, IMPRESSIONS_PROTOCOL, seed=0)


def test_protocols_are_chosen_by_kind_and_check_themselves() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(ProtocolConfig)
    assert isinstance(adapter.validate_python({"kind": "temporal"}), TemporalProtocol)
    assert adapter.validate_python({"kind": "sampled", "paper_exact": True}).negatives.n_train == 1
    for wrong in (
        {"kind": "sampled", "min_history": 9, "max_history": 3},
        {"kind": "sampled", "min_history": 3, "max_history": 10, "train_targets": 4},
        {"kind": "sampled", "paper_exact": True, "negatives": {"kind": "popularity"}},
        {"kind": "temporal", "valid_quantile": 0.9, "test_quantile": 0.8},
        {"kind": "impressions", "max_histroy": 5},
        {"kind": "other"},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


EXAMPLES = [
    RankingExample("e1", "u1", ("a", "b"), ("c", "d"), (0, 1), datetime(2026, 3, 1, 12, tzinfo=UTC)),
    RankingExample("e2", "u2", (), ("d",), (1,)),
]


def test_chance_recall_counts_small_candidate_lists_as_certain() -> None:
    many = RankingExample("e", "u", (), tuple(map(str, range(10))), (1,) + (0,) * 9)
    assert chance_recall([EXAMPLES[0], many], 5) == pytest.approx((1 + 0.5) / 2)


def test_splits_are_read_as_they_were_written(untimed: Dataset, tmp_path: Path) -> None:
    times: dict[str, object] = {"valid_from": "2026-02-01T00:00:00+00:00"}
    made = (untimed, SAMPLED, 0)
    splits = Split(*made, EXAMPLES, [], EXAMPLES[1:], {"n": 2, "rate": 0.5}, times, ("Mind.",))
    splits.write(tmp_path / "new")
    assert Split.read(tmp_path / "new", *made) == splits
    assert Split.read(tmp_path / "new", *made).valid_from == datetime(2026, 2, 1, tzinfo=UTC)
    assert len(list((tmp_path / "new").iterdir())) == 4


def test_files_that_are_no_examples_are_refused(untimed: Dataset, tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    for name, message in (
        ("none", "cannot be read"),
        ("broken", "cannot be read"),
        ("other", "has the columns a"),
    ):
        with pytest.raises(DataError, match=message):
            read_examples(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"splits\.json"):
        Split.read(tmp_path, untimed, SAMPLED, 0)
    with pytest.raises(OutputError, match="cannot be written"):
        write_examples(tmp_path / "broken.parquet" / "train.parquet", EXAMPLES)
