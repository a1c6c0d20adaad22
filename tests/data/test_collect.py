from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.data.dataset import Dataset
from trsr.data.importers import summary_lines
from trsr.data.ingest import EventCollector, ItemCollector, RawFile, TimedOptions, by_user_ranges
from trsr.data.text_lines import RAW, ROW
from trsr.data.values import ID_RULE
from trsr.data.writer import DatasetWriter, Spool

Events = list[tuple[str | None, str | None, str | None]]


def day(n: int) -> str:
    return f"2025-01-{n:02}"


def collect(
    tmp_path: Path,
    items: list[tuple[str | None, str | None]],
    events: Events,
    at_once: int = 2,
    keep_untimed: bool = False,
) -> Dataset:
    with DatasetWriter(tmp_path / "d", overwrite=True) as writer:
        options = TimedOptions(keep_untimed=keep_untimed)
        item_collector = ItemCollector(RawFile(writer, Path("items"), options), ["title"])
        rows = pl.DataFrame(items, schema={"item_id": pl.String, "title": pl.String}, orient="row")
        rows = rows.with_row_index(ROW, offset=1).with_columns(pl.col("title").fill_null("-").alias(RAW))
        for start in range(0, len(rows), at_once):
            item_collector.add(rows.slice(start, at_once))
        collector = EventCollector(RawFile(writer, Path("events"), options), item_collector.ids)
        schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.String}
        clicks = pl.DataFrame(events, schema=schema, orient="row")
        clicks = clicks.with_row_index(ROW, offset=1).with_columns(pl.lit("raw").alias(RAW))
        for start in range(0, len(clicks), at_once):
            collector.add(clicks.slice(start, at_once))
        collector.finish()
        return writer.finish(name="n", domain="d", text_fields=["title"], category_fields=[], source="a test")


def test_the_first_text_of_an_id_counts(tmp_path: Path) -> None:
    items = [
        ("a", "one"),
        ("b", "two"),
        ("a", "one"),
        ("a", "other"),
        (" b ", "two"),
        (None, "x"),
        ("", "y"),
        ("c", None),
    ]
    data = collect(tmp_path, items, [("u", "a", None)])
    assert {i.item_id: dict(i.fields) for i in data.catalogue().values()} == {
        "a": {"title": "one"},
        "b": {"title": "two"},
        "c": {},
    }
    assert data.info.counts["repeated_items"] == 2
    assert data.info.counts["items_without_text"] == 1
    assert data.rejects().collect().rows() == [
        ("items", 4, "item id seen before with another text", "other"),
        ("items", 6, "no item id", "x"),
        ("items", 7, "no item id", "y"),
    ]


def test_repeated_ids_within_one_batch_are_found_too(tmp_path: Path) -> None:
    data = collect(tmp_path, [("a", "one"), ("a", "other"), ("a", "one")], [("u", "a", None)], at_once=10)
    assert (data.info.counts["items"], data.info.counts["repeated_items"], data.info.counts["rejects"]) == (
        1,
        1,
        1,
    )


def test_events_that_cannot_be_used_are_refused_each_with_its_reason(tmp_path: Path) -> None:
    events: Events = [
        ("u", "a", None),
        (None, "a", None),
        ("u", "nan", None),
        ("u", "a", "soon"),
        ("u", "z", None),
        ("u\ufffd", "a", None),
    ]
    data = collect(tmp_path, [("a", "one"), ("x\u202ey", "two")], events)
    assert data.rejects().collect().select("row", "reason").rows() == [
        (2, f"item id with {ID_RULE}"),
        (2, "no user id"),
        (3, "no item id"),
        (4, "time cannot be read"),
        (6, f"user id with {ID_RULE}"),
        (5, "unknown item"),
    ]
    assert [h.item_ids for h in data.histories()] == [("a",)]


def test_events_are_ordered_by_time_and_equal_times_by_place_in_the_file(tmp_path: Path) -> None:
    items: list[tuple[str | None, str | None]] = [(i, i) for i in "abcd"]
    events: Events = [
        ("v", "a", day(9)),
        *(("u", i, day(n)) for i, n in zip("abcd", (5, 3, 5, 3), strict=True)),
    ]
    data = collect(tmp_path, items, events)
    assert [(h.user_id, h.item_ids) for h in data.histories()] == [("u", ("b", "d", "a", "c")), ("v", ("a",))]


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_equal_times_are_read_from_the_end_of_a_file_that_runs_newest_first(
    tmp_path: Path, at_once: int
) -> None:
    items: list[tuple[str | None, str | None]] = [(i, i) for i in "abcd"]
    newest: Events = [("u", "d", day(2)), ("v", "b", day(2)), ("u", "c", day(1)), ("v", "a", day(2))]
    newest += [("u", "b", day(1)), ("u", "a", day(1))]
    data = collect(tmp_path, items, newest, at_once)
    assert [h.item_ids for h in data.histories()] == [("a", "b", "c", "d"), ("a", "b")]
    assert data.info.times is not None
    assert (data.info.times.in_file_order, data.info.times.newest_first) == (5, True)
    assert "order in events: 5 events" in "\n".join(summary_lines(data.info))
    # One user whose times grow says that the file does not run so.
    data = collect(tmp_path, items, [*newest, ("w", "a", day(1)), ("w", "b", day(2))], at_once)
    assert [h.item_ids for h in data.histories()][:2] == [("c", "b", "a", "d"), ("b", "a")]
    assert data.info.times is not None
    assert (data.info.times.in_file_order, data.info.times.newest_first) == (5, False)


def test_events_without_a_time_are_refused_where_others_have_one(tmp_path: Path) -> None:
    items: list[tuple[str | None, str | None]] = [(i, i) for i in "abcd"]
    data = collect(
        tmp_path, items, [("u", "d", day(4)), ("u", "c", day(3)), ("u", "b", day(2)), ("u", "a", None)]
    )
    assert [h.item_ids for h in data.histories()] == [("b", "c", "d")]
    assert data.rejects().collect().select("row", "reason").rows() == [(4, "no time")]
    times = data.info.times
    assert times is not None
    assert (times.missing, times.n, times.first) == (1, 4, datetime(2025, 1, 2, tzinfo=UTC))


def test_kept_events_without_a_time_leave_their_user_in_the_order_of_the_file(tmp_path: Path) -> None:
    events: Events = [
        ("u", "b", day(9)),
        ("u", "a", None),
        ("u", "b", day(1)),
        ("v", "b", day(2)),
        ("v", "a", day(1)),
    ]
    data = collect(tmp_path, [("a", "x"), ("b", "y")], events, keep_untimed=True)
    assert [(h.item_ids, h.timestamps is None) for h in data.histories()] == [
        (("b", "a", "b"), True),
        (("a", "b"), False),
    ]
    counts = data.info.counts
    assert (counts["events_without_time"], counts["users_in_file_order"], counts["rejects"]) == (1, 1, 0)


def test_events_without_any_time_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    data = collect(tmp_path, [("a", "x"), ("b", "y")], [("u", "b", None), ("u", "a", None), ("u", "b", None)])
    assert [(h.item_ids, h.timestamps) for h in data.histories()] == [(("b", "a", "b"), None)]
    assert data.info.counts["rejects"] == 0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["a", "b", "ba", "é", "z", "10", "9"]), max_size=60), st.integers(1, 20))
def test_ranges_hold_each_user_whole_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, users: list[str], size: int
) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool"))
    for start in range(0, len(users), 7):
        spool.append(pl.DataFrame({"user_id": users[start : start + 7]}))
    parts = [part.collect()["user_id"].to_list() for part in by_user_ranges(spool, size)]
    found = [sorted(part) for part in parts]
    assert [user for part in found for user in part] == sorted(users)
    assert sum(len(set(part)) for part in parts) == len(set(users))
