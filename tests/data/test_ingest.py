from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trsr.data.dataset import Dataset
from trsr.data.importers import summary_lines
from trsr.data.ingest import EventCollector, ItemCollector, by_user_ranges
from trsr.data.raw_file import RawFile, TimedOptions
from trsr.data.text_lines import RAW, ROW
from trsr.data.values import ID_RULE
from trsr.data.writer import DatasetWriter, Spool

Rows = list[tuple[str | None, ...]]
ABCD: Rows = [(i, i) for i in "abcd"]


def day(n: int) -> str:
    return f"2025-01-{n:02}"


def frame(columns: list[str], rows: Rows, raw: pl.Expr) -> pl.DataFrame:
    table = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
    return table.with_row_index(ROW, offset=1).with_columns(raw.alias(RAW))


def collect(
    tmp_path: Path, items: Rows, events: Rows, at_once: int = 2, keep_untimed: bool = False
) -> Dataset:
    options = TimedOptions(keep_untimed=keep_untimed)
    with DatasetWriter(tmp_path / "d", overwrite=True) as writer:
        collector = ItemCollector(RawFile(writer, Path("items"), options), ["title"])
        rows = frame(["item_id", "title"], items, pl.col("title").fill_null("-"))
        for batch in rows.iter_slices(at_once):
            collector.add(batch)
        histories = EventCollector(RawFile(writer, Path("events"), options), collector.ids)
        clicks = frame(["user_id", "item_id", "timestamp"], events, pl.lit("raw"))
        for batch in clicks.iter_slices(at_once):
            histories.add(batch)
        histories.finish()
        names = {"name": "n", "domain": "d", "source": "a test"}
        return Dataset.open(writer.finish(**names, text_fields=["title"], category_fields=[]))


def histories(data: Dataset) -> list[str]:
    return ["".join(h.item_ids) for h in data.histories()]


@pytest.mark.parametrize("at_once", [1, 2, 10])
def test_the_first_text_of_an_id_counts(tmp_path: Path, at_once: int) -> None:
    items: Rows = [("a", "one"), ("b", "two"), ("a", "one"), ("a", "other"), (" b ", "two")]
    items += [(None, "x"), ("", "y"), ("c", None)]
    data = collect(tmp_path, items, [("u", "a", None)], at_once)
    assert {i.item_id: dict(i.fields) for i in data.catalogue().values()} == {
        "a": {"title": "one"},
        "b": {"title": "two"},
        "c": {},
    }
    assert data.info.counts["repeated_items"] == 2
    assert data.info.counts["items_without_text"] == 1
    assert data.rejects().sort("row").collect().rows() == [
        ("items", 4, "item id seen before with another text", "other"),
        ("items", 6, "no item id", "x"),
        ("items", 7, "no item id", "y"),
    ]


def test_events_that_cannot_be_used_are_refused_each_with_its_reason(tmp_path: Path) -> None:
    events: Rows = [("u", "a", None), (None, "a", None), ("u", "nan", None), ("u", "a", "soon")]
    events += [("u", "z", None), ("u\ufffd", "a", None)]
    data = collect(tmp_path, [("a", "one"), ("x\u202ey", "two")], events)
    assert data.rejects().collect().select("row", "reason").rows() == [
        (2, f"item id with {ID_RULE}"),
        (2, "no user id"),
        (3, "no item id"),
        (4, "time cannot be read"),
        (6, f"user id with {ID_RULE}"),
        (5, "unknown item"),
    ]
    assert histories(data) == ["a"]


def test_events_are_ordered_by_time_and_equal_times_by_place_in_the_file(tmp_path: Path) -> None:
    times = zip("abcd", (5, 3, 5, 3), strict=True)
    data = collect(tmp_path, ABCD, [("v", "a", day(9)), *(("u", i, day(n)) for i, n in times)])
    assert [(h.user_id, "".join(h.item_ids)) for h in data.histories()] == [("u", "bdac"), ("v", "a")]


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_equal_times_are_read_from_the_end_of_a_file_that_runs_newest_first(
    tmp_path: Path, at_once: int
) -> None:
    newest: Rows = [("u", "d", day(2)), ("v", "b", day(2)), ("u", "c", day(1)), ("v", "a", day(2))]
    newest += [("u", "b", day(1)), ("u", "a", day(1))]
    data = collect(tmp_path, ABCD, newest, at_once)
    assert histories(data) == ["abcd", "ab"]
    assert data.info.times is not None
    assert (data.info.times.in_file_order, data.info.times.newest_first) == (5, True)
    assert "order in events: 5 events" in "\n".join(summary_lines(data.info))
    # One user whose times grow says that the file does not run so.
    data = collect(tmp_path, ABCD, [*newest, ("w", "a", day(1)), ("w", "b", day(2))], at_once)
    assert histories(data)[:2] == ["cbad", "ba"]
    assert data.info.times is not None
    assert (data.info.times.in_file_order, data.info.times.newest_first) == (5, False)


def test_kept_events_without_a_time_leave_their_user_in_the_order_of_the_file(tmp_path: Path) -> None:
    events: Rows = [("u", "b", day(9)), ("u", "a", None), ("u", "b", day(1))]
    events += [("v", "b", day(2)), ("v", "a", day(1))]
    data = collect(tmp_path, ABCD, events, keep_untimed=True)
    assert histories(data) == ["bab", "ab"]
    assert [h.timestamps is None for h in data.histories()] == [True, False]
    counts = data.info.counts
    assert (counts["events_without_time"], counts["users_in_file_order"], counts["rejects"]) == (1, 1, 0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["a", "b", "ba", "é", "z", "10", "9"]), max_size=60), st.integers(1, 20))
def test_ranges_hold_each_user_whole_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, users: list[str], size: int
) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool"))
    for start in range(0, len(users), 7):
        spool.append(pl.DataFrame({"user_id": users[start : start + 7]}))
    parts = [part.collect()["user_id"].to_list() for part in by_user_ranges(spool, size)]
    assert [user for part in parts for user in sorted(part)] == sorted(users)
    assert sum(len(set(part)) for part in parts) == len(set(users))
