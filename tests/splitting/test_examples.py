"""The protocols on small invented datasets: what is asked, what is left out, what may be learned from."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from trsr.data.dataset import EVENTS, IMPRESSIONS, Dataset
from trsr.data.writer import write_dataset
from trsr.errors import DataError
from trsr.seeding import derive_rng
from trsr.splitting.examples import Splits, build_examples, chance_recall, make_resampler
from trsr.splitting.leakage import fit_events
from trsr.splitting.protocols import ImpressionsProtocol, ProtocolConfig, SampledProtocol, TemporalProtocol
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
    """Write a dataset; `reverse` turns the order of all rows around, which must not matter."""
    items = pl.DataFrame(
        [
            {
                "item_id": f"i{i}",
                "title": None if f"i{i}" in textless else f"Thing number {i}",
                "category": None if f"i{i}" in textless else f"shelf {i % 3}",
            }
            for i in range(n_items)
        ],
        schema={"item_id": pl.String, "title": pl.String, "category": pl.String},
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


def everything(splits: Splits) -> list[RankingExample]:
    return [*splits.train, *splits.valid, *splits.test]


SAMPLED = SampledProtocol(min_history=3, max_history=10, n_valid=5, n_test=8)


# --- sampled


def test_sampled_asks_for_the_last_item_of_users_with_a_history_in_range(tmp_path: Path) -> None:
    users = random_users(0, 60, 60, times=False)
    splits = build_examples(make(tmp_path / "d", users), SAMPLED, seed=1)
    full = {user: history for user, history, _ in users}
    eligible = {user for user, history in full.items() if 3 <= len(history) - 1 <= 10}
    assert {e.user_id for e in everything(splits)} == eligible
    assert (len(splits.valid), len(splits.test)) == (5, 8)
    for example in everything(splits):
        assert list(example.history) == full[example.user_id][:-1]
        assert positives(example) == {full[example.user_id][-1]}
        assert not set(example.candidates) - positives(example) & set(full[example.user_id])
    assert {len(e.candidates) for e in splits.train} == {5}
    assert {len(e.candidates) for e in splits.test} == {21}
    assert splits.counts["users"] == 60
    assert splits.counts["users_eligible"] == len(eligible)
    assert splits.counts["users_too_short"] + splits.counts["users_too_long"] == 60 - len(eligible)
    assert splits.counts["chance_recall@3"] == pytest.approx(3 / 21)
    assert "Leakage warning" in splits.warnings[0]


def test_training_users_can_be_asked_for_several_last_items(tmp_path: Path) -> None:
    users = random_users(0, 60, 60, times=True)
    dataset = make(tmp_path / "d", users)
    one = build_examples(dataset, SAMPLED, seed=1)
    protocol = SAMPLED.model_copy(update={"train_targets": 3})
    several = build_examples(dataset, protocol, seed=1)
    assert (several.valid, several.test) == (one.valid, one.test)
    assert [e.user_id for e in several.train] == [e.user_id for e in one.train]
    full = {user: (history, times) for user, history, times in users}
    resample = make_resampler(dataset, protocol, seed=1)
    for example in [*several.train, *(resample(e, 1) for e in several.train)]:
        history, times = full[example.user_id]
        assert list(example.history) == history[:-3]
        assert positives(example) == set(history[-3:])
        assert times is not None
        assert example.timestamp == times[-3]
        negatives = set(example.candidates) - positives(example)
        assert len(negatives) == protocol.negatives.n_train
        assert not negatives & set(history)
    assert "in training the last 3" in str(several.description["target"])
    with pytest.raises(ValidationError, match="train_targets 4 leaves users with a history of min_history 3"):
        SampledProtocol(min_history=3, max_history=10, train_targets=4)


def test_sampled_can_keep_the_newest_part_of_long_histories_and_never_draws_the_cut_part(
    tmp_path: Path,
) -> None:
    users: Rows = [(f"u{u}", [f"i{i}" for i in range(30)], None) for u in range(6)]
    data = make(tmp_path / "d", users)
    with pytest.raises(DataError, match="Only 0 users"):
        build_examples(data, SAMPLED, seed=0)
    protocol = SampledProtocol(min_history=3, max_history=10, n_valid=1, n_test=1, truncate=True)
    splits = build_examples(data, protocol, seed=0)
    resample = make_resampler(data, protocol, seed=0)
    for example in [*everything(splits), *(resample(e, 3) for e in splits.train)]:
        assert example.history == tuple(f"i{i}" for i in range(19, 29))
        negatives = set(example.candidates) - {"i29"}
        assert not negatives & {f"i{i}" for i in range(30)}
    assert splits.counts["users_truncated"] == 6


def test_a_user_with_one_event_is_left_out_and_counted(tmp_path: Path) -> None:
    users = random_users(0, 30, 60, times=True, longest=9)
    single: Rows = [(f"single{u}", ["i1"], [START + timedelta(minutes=u)]) for u in range(12)]
    data = make(tmp_path / "d", [*users, *single])
    sampled = SampledProtocol(min_history=1, max_history=10, n_valid=2, n_test=4)
    temporal = TemporalProtocol(kind="temporal", min_history=1)
    for splits in (build_examples(data, sampled, seed=0), build_examples(data, temporal, seed=0)):
        assert not [e for e in everything(splits) if e.user_id.startswith("single")]
        left_out = splits.counts.get("users_too_short", splits.counts.get("questions_too_short"))
        assert left_out is not None
        assert left_out >= 12
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


def test_what_is_held_out_does_not_depend_on_the_number_of_training_users(tmp_path: Path) -> None:
    data = make(tmp_path / "d", random_users(0, 60, 60, times=False))
    few = build_examples(data, SAMPLED.model_copy(update={"n_train": 3}), seed=0)
    many = build_examples(data, SAMPLED, seed=0)
    assert len(few.train) == 3
    assert (few.valid, few.test) == (many.valid, many.test)
    assert few.train == many.train[:3]


def test_the_position_of_the_target_says_nothing(tmp_path: Path) -> None:
    data = make(tmp_path / "d", random_users(0, 700, 60, times=False))
    splits = build_examples(data, SampledProtocol(min_history=1, max_history=20, n_test=400), seed=0)
    places = np.bincount([e.labels.index(1) for e in splits.test], minlength=21)
    assert places.max() < 400 / 21 + 5 * (400 / 21) ** 0.5
    assert places.min() > 0


@pytest.mark.parametrize("kind", ["uniform", "popularity", "same-category", "targets"])
def test_two_runs_and_two_row_orders_give_equal_examples(tmp_path: Path, kind: str) -> None:
    users = random_users(0, 60, 60, times=False)
    protocol = SampledProtocol.model_validate(
        {**SAMPLED.model_dump(), "negatives": {"kind": kind, "n_test": 1}}
    )
    one = build_examples(make(tmp_path / "a", users), protocol, seed=0)
    two = build_examples(make(tmp_path / "b", users, reverse=True), protocol, seed=0)
    assert one == two
    other = build_examples(make(tmp_path / "c", users), protocol, seed=1)
    assert {e.user_id for e in other.test} != {e.user_id for e in one.test}


def test_an_epoch_has_its_own_negatives_that_depend_on_nothing_else(tmp_path: Path) -> None:
    data = make(tmp_path / "d", random_users(0, 60, 60, times=False))
    splits = build_examples(data, SAMPLED, seed=0)
    resample = make_resampler(data, SAMPLED, seed=0)
    again = make_resampler(data, SAMPLED, seed=0)
    first = [resample(e, 0) for e in splits.train]
    assert first == [again(e, 0) for e in reversed(splits.train)][::-1]
    assert [e.candidates for e in first] != [resample(e, 1).candidates for e in splits.train]
    for fresh, old in zip(first, splits.train, strict=True):
        assert (fresh.history, positives(fresh)) == (old.history, positives(old))
        assert len(fresh.candidates) == 5


# --- temporal


def test_temporal_asks_only_about_what_came_later_and_negatives_known_by_then(tmp_path: Path) -> None:
    users = random_users(0, 80, 60, times=True)
    protocol = TemporalProtocol(kind="temporal", min_history=2, max_history=8)
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
    assert all(e.timestamp < valid_from for e in splits.train if e.timestamp)
    assert all(valid_from <= e.timestamp < test_from for e in splits.valid if e.timestamp)
    assert all(test_from <= e.timestamp for e in splits.test if e.timestamp)
    assert splits.train
    assert splits.valid
    assert splits.test
    assert splits.warnings == ()


def test_temporal_without_times_is_a_clear_error(tmp_path: Path) -> None:
    data = make(tmp_path / "d", random_users(0, 10, 60, times=False))
    with pytest.raises(DataError, match="have no time"):
        build_examples(data, TemporalProtocol(kind="temporal"), seed=0)
    same: Rows = [(f"u{u}", ["i1", "i2"], [START, START]) for u in range(5)]
    with pytest.raises(DataError, match="too alike"):
        build_examples(make(tmp_path / "e", same), TemporalProtocol(kind="temporal"), seed=0)


# --- impressions


def logged(n: int, times: bool, n_users: int = 20) -> list[dict[str, Any]]:
    rng = derive_rng(7)
    rows = []
    for i in range(n):
        candidates = [f"i{j}" for j in rng.permutation(50)[: int(rng.integers(2, 9))]]
        clicked = [j == 0 for j in range(len(candidates))]
        rows.append(
            {
                "impression_id": f"m{i}",
                "user_id": f"u{i % n_users}",
                "timestamp": START + timedelta(hours=int(rng.integers(40))) if times else None,
                "history": [f"i{50 + i % 7}", f"i{57 + i % 3}"],
                "candidates": candidates,
                "clicked": clicked,
            }
        )
    return rows


IMPRESSIONS_PROTOCOL = ImpressionsProtocol(kind="impressions", n_valid=10, n_test=15, n_train_negatives=3)


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
        kept = set(row["candidates"]) - {"i0", "i1"}
        assert set(example.candidates) <= kept
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
    timed = build_examples(
        make(tmp_path / "d", [], impressions=logged(100, True)), IMPRESSIONS_PROTOCOL, seed=0
    )
    newest_train = max(e.timestamp for e in timed.train if e.timestamp)
    oldest_valid = min(e.timestamp for e in timed.valid if e.timestamp)
    newest_valid = max(e.timestamp for e in timed.valid if e.timestamp)
    oldest_test = min(e.timestamp for e in timed.test if e.timestamp)
    assert newest_train < oldest_valid <= newest_valid < oldest_test
    assert timed.warnings == ()
    untimed = build_examples(
        make(tmp_path / "e", [], impressions=logged(100, False)), IMPRESSIONS_PROTOCOL, seed=0
    )
    users = [{e.user_id for e in part} for part in (untimed.train, untimed.valid, untimed.test)]
    assert not users[0] & users[1]
    assert not users[0] & users[2]
    assert not users[1] & users[2]
    assert "Leakage warning" in untimed.warnings[0]


def test_impressions_do_not_depend_on_row_order_and_redraw_each_epoch(tmp_path: Path) -> None:
    one = make(tmp_path / "a", [], impressions=logged(100, True))
    two = make(tmp_path / "b", [], impressions=logged(100, True), reverse=True)
    splits = build_examples(one, IMPRESSIONS_PROTOCOL, seed=0)
    assert splits == build_examples(two, IMPRESSIONS_PROTOCOL, seed=0)
    resample = make_resampler(one, IMPRESSIONS_PROTOCOL, seed=0)
    assert any(set(resample(e, 0).candidates) != set(resample(e, 1).candidates) for e in splits.train)
    assert all(positives(resample(e, 0)) == positives(e) for e in splits.train)


def test_a_candidate_that_was_shown_twice_is_one_candidate(tmp_path: Path) -> None:
    rows = logged(30, False)
    for row in rows:
        row["candidates"], row["clicked"] = ["i1", "i2", "i1"], [False, False, True]
    data = make(tmp_path / "d", [], impressions=rows)
    protocol = ImpressionsProtocol(kind="impressions", n_valid=3, n_test=3)
    splits = build_examples(data, protocol, seed=0)
    assert all(
        sorted(zip(e.candidates, e.labels, strict=True)) == [("i1", 1), ("i2", 0)] for e in splits.test
    )


def test_impressions_of_a_dataset_without_them_is_a_clear_error(tmp_path: Path) -> None:
    data = make(tmp_path / "d", random_users(0, 10, 60, times=False))
    with pytest.raises(DataError, match="has no impressions"):
        build_examples(data, IMPRESSIONS_PROTOCOL, seed=0)
    uneven = logged(20, True)
    uneven[3]["clicked"] = uneven[3]["clicked"][1:]
    with_gap = make(tmp_path / "u", [], impressions=uneven)
    with pytest.raises(DataError, match="not as many clicks as candidates"):
        build_examples(with_gap, IMPRESSIONS_PROTOCOL, seed=0)
    few = make(tmp_path / "e", [], impressions=logged(20, True))
    with pytest.raises(DataError, match="lower these numbers"):
        build_examples(few, IMPRESSIONS_PROTOCOL, seed=0)


# --- what may be learned from


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), times=st.booleans(), kind=st.sampled_from(["sampled", "temporal"]))
def test_fit_events_hold_no_target_and_nothing_after_it(seed: int, times: bool, kind: str) -> None:
    users = random_users(seed, 50, 40, times=times or kind == "temporal", longest=9)
    protocol: SampledProtocol | TemporalProtocol
    if kind == "sampled":
        protocol = SampledProtocol(min_history=1, max_history=8, n_valid=4, n_test=6)
    else:
        protocol = TemporalProtocol(kind="temporal")
    with tempfile.TemporaryDirectory() as folder:
        data = make(Path(folder) / "d", users, textless=("i0",))
        splits = build_examples(data, protocol, seed)
        fitted = fit_events(data, splits)
    kept = {(user, position): (item, time) for user, item, position, time in fitted.iter_rows()}
    full = {user: history for user, history, _ in users}
    if kind == "temporal":
        assert splits.valid_from is not None
        assert all(time < splits.valid_from for _, time in kept.values())
        n_before = sum(t < splits.valid_from for _, _, stamps in users for t in stamps or [])
        assert len(kept) == n_before
        return
    held = {e.user_id: e for e in [*splits.valid, *splits.test]}
    for user, history in full.items():
        seen = [kept[user, position][0] for position in range(len(history)) if (user, position) in kept]
        if user not in held:
            assert seen == history
            continue
        assert [item for item in seen if item != "i0"] == list(held[user].history)
        # The user's last event with text is the target; nothing from there on may be learned from.
        readable = [position for position, item in enumerate(history) if item != "i0"]
        assert (user, readable[-1]) not in kept
        assert len(seen) <= readable[-1]


@pytest.mark.parametrize("times", [True, False])
def test_fit_events_of_impressions_hold_training_clicks_and_no_held_out_click(
    tmp_path: Path, times: bool
) -> None:
    rows = logged(100, times)
    users: Rows = [(f"u{u}", [f"i{j}" for j in range(20)], None) for u in range(30)]
    data = make(tmp_path / "d", users, impressions=rows)
    splits = build_examples(data, IMPRESSIONS_PROTOCOL, seed=0)
    fitted = fit_events(data, splits)
    pairs = set(fitted.select("user_id", "item_id").iter_rows())
    held = {(e.user_id, item) for e in [*splits.valid, *splits.test] for item in positives(e)}
    trained = {(e.user_id, item) for e in splits.train for item in positives(e)}
    assert not pairs & held
    assert trained - held <= pairs
    held_users = {user for user, _ in held}
    for user in held_users:
        histories = {i for e in [*splits.valid, *splits.test] if e.user_id == user for i in e.history}
        assert {item for u, item in pairs if u == user} <= histories | {i for u, i in trained if u == user}
    assert {item for user, item in pairs if user == "u29"} == {f"i{j}" for j in range(20)}
    assert not fitted.select(pl.struct("user_id", "position").is_duplicated().any()).item()


def test_fit_events_refuse_examples_of_another_dataset(tmp_path: Path) -> None:
    splits = build_examples(make(tmp_path / "a", random_users(0, 60, 60, times=False)), SAMPLED, seed=0)
    other = make(tmp_path / "b", random_users(1, 5, 60, times=False))
    with pytest.raises(DataError, match="another dataset"):
        fit_events(other, splits)


# --- configuration and numbers


def test_protocols_are_told_apart_by_kind_and_check_themselves() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(ProtocolConfig)
    assert isinstance(adapter.validate_python({"kind": "temporal"}), TemporalProtocol)
    assert adapter.validate_python({"kind": "sampled", "paper_exact": True}).negatives.n_train == 1
    for wrong in (
        {"kind": "sampled", "min_history": 9, "max_history": 3},
        {"kind": "sampled", "paper_exact": True, "negatives": {"kind": "popularity"}},
        {"kind": "temporal", "valid_quantile": 0.9, "test_quantile": 0.8},
        {"kind": "impressions", "max_histroy": 5},
        {"kind": "other"},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


def test_chance_recall_counts_small_candidate_lists_as_certain() -> None:
    def example(n: int) -> RankingExample:
        return RankingExample("e", "u", (), tuple(map(str, range(n))), (1,) + (0,) * (n - 1))

    assert chance_recall([example(2), example(10)], 5) == pytest.approx((1 + 0.5) / 2)
