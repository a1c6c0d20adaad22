"""Training events hold no target and nothing after it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_examples import IMPRESSIONS_PROTOCOL, SAMPLED, Rows, logged, make, positives, random_users

from trsr.errors import DataError
from trsr.splitting.sampled import SampledProtocol
from trsr.splitting.split import build_examples
from trsr.splitting.temporal import TemporalProtocol


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), times=st.booleans(), kind=st.sampled_from(["sampled", "temporal"]))
def test_training_events_hold_no_target_and_nothing_after_it(seed: int, times: bool, kind: str) -> None:
    users = random_users(seed, 50, 40, times=times or kind == "temporal", longest=9)
    protocol: SampledProtocol | TemporalProtocol = TemporalProtocol(kind="temporal")
    if kind == "sampled":
        protocol = SampledProtocol(min_history=1, max_history=8, n_valid=4, n_test=6)
    with tempfile.TemporaryDirectory() as folder:
        data = make(Path(folder) / "d", users, textless=("i0",))
        splits = build_examples(data, protocol, seed)
        fitted = splits.training_events
    kept = {(user, position): (item, time) for user, item, position, time in fitted.iter_rows()}
    if kind == "temporal":
        assert splits.valid_from is not None
        assert all(time < splits.valid_from for _, time in kept.values())
        assert len(kept) == sum(t < splits.valid_from for _, _, stamps in users for t in stamps or [])
        return
    held = {e.user_id: e for e in [*splits.valid, *splits.test]}
    for user, history, _ in users:
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
def test_training_events_of_impressions_hold_training_clicks_and_no_held_out_click(
    tmp_path: Path, times: bool
) -> None:
    users: Rows = [(f"u{u}", [f"i{j}" for j in range(20)], None) for u in range(30)]
    data = make(tmp_path / "d", users, impressions=logged(100, times))
    splits = build_examples(data, IMPRESSIONS_PROTOCOL, seed=0)
    fitted = splits.training_events
    pairs = set(fitted.select("user_id", "item_id").iter_rows())
    held = {(e.user_id, item) for e in [*splits.valid, *splits.test] for item in positives(e)}
    trained = {(e.user_id, item) for e in splits.train for item in positives(e)}
    assert not pairs & held
    assert trained - held <= pairs
    for user in {user for user, _ in held}:
        histories = {i for e in [*splits.valid, *splits.test] if e.user_id == user for i in e.history}
        assert {item for u, item in pairs if u == user} <= histories | {i for u, i in trained if u == user}
    assert {item for user, item in pairs if user == "u29"} == {f"i{j}" for j in range(20)}
    assert not fitted.select(pl.struct("user_id", "position").is_duplicated().any()).item()


def test_training_events_refuse_examples_of_another_dataset(tmp_path: Path) -> None:
    splits = build_examples(make(tmp_path / "a", random_users(0, 60, 60, times=False)), SAMPLED, seed=0)
    other = make(tmp_path / "b", random_users(1, 5, 60, times=False))
    with pytest.raises(DataError, match="another dataset"):
        _ = replace(splits, dataset=other).training_events
