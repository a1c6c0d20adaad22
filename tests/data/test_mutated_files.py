"""Two hundred files with faults in them, over all importers.

An import ends in time, with one sentence or with a dataset that validates, in which every row is an item, an
event, a reject or counted, and no row without a fault is changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from importing import import_amazon_m2, import_amazon_reviews, import_mind, import_movielens, import_table
from mutated_files import KINDS, Table, write_files

from trsr.data.dataset import Dataset
from trsr.data.validate import validate_dataset
from trsr.errors import TrsrError

FAST = range(4)  # a kind
SLOW = range(4, 36)  # six kinds: 192, and with the fast ones 216
BY_ENTRY = ("unknown item", "history entry without a news row")


def run_import(kind: str, source: Path, out: Path) -> Dataset:
    match kind:
        case "table" | "table-lists":
            (items,), (events,) = (list(source.glob(f"{name}.*")) for name in ("items", "events"))
            return import_table(items, events, out, max_rejects=1)
        case "mind":
            return import_mind(source, out, max_rejects=1)
        case "movielens":
            overviews = source / "overviews.csv"
            return import_movielens(source, out, tags=True, overviews=overviews, min_rating=2, max_rejects=1)
        case "amazon-m2":
            return import_amazon_m2(source, out, max_rejects=1)
        case _:
            return import_amazon_reviews(source, out, min_rating=2, max_rejects=1)


def check_rows(kind: str, data: Dataset, tables: list[Table]) -> None:
    """Hold the number of rows against what the dataset has of them."""
    counts, rejects = data.info.counts, data.rejects().collect()
    items, events = tables[:2]

    def refused(table: Table) -> int:
        rows = rejects.filter((pl.col("file") == table.name) & ~pl.col("reason").is_in(BY_ENTRY))
        return len(rows)

    def unknown(table: Table) -> int:
        return len(rejects.filter((pl.col("file") == table.name) & pl.col("reason").is_in(BY_ENTRY)))

    elsewhere = counts.get("rows_of_other_locales", 0)
    found_items = counts["items"] + counts["repeated_items"] + refused(items)
    if kind in {"table", "movielens", "amazon-reviews"}:
        found = counts["events"] + refused(events) + unknown(events) + counts.get("repeated_events", 0)
        found_events = found + counts.get("ratings_below_threshold", 0)
    elif kind == "mind":
        found_events = counts["impressions"] + refused(events)
    else:
        users = set(data.events().select("user_id").collect()["user_id"])
        if kind == "amazon-m2":
            rows = {int(user.removeprefix("session-")) for user in users}
        else:
            return  # a user can have several lists
        rows |= set(rejects.filter(pl.col("file") == events.name)["row"])
        found_events = len(rows)
    n_items, n_events = (len(table.rows) for table in (items, events))
    if kind == "amazon-m2":
        assert found_items + found_events + elsewhere >= n_items + n_events
    else:
        # A row with a line break in it that is refused is refused line by line.
        assert found_items >= n_items
        assert found_events >= n_events
    if not any(
        "\n" in str(cell) or "\r" in str(cell) for t in (items, events) for row in t.rows for cell in row
    ):
        assert found_items + found_events + elsewhere == n_items + n_events


def check_untouched(kind: str, data: Dataset, tables: list[Table]) -> None:
    """Look for every row without a fault, as it was; for text, where no other row has its id."""
    items, events = tables[:2]
    catalogue = data.catalogue()
    whole = {
        str(row[0]) for n, row in enumerate(items.rows) if n not in items.changed and str(row[0]) in catalogue
    }
    ids = [str(row[0]).strip() for row in items.rows]
    for n, row in enumerate(items.rows):
        if n in items.changed or ids.count(ids[n]) > 1 or ids[n] not in catalogue:
            continue
        fields = {name.lower(): text for name, text in catalogue[ids[n]].fields.items()}
        title = {"mind": 3, "amazon-m2": 2}.get(kind, 1)
        assert fields.get("title") == row[title], "a text of an untouched row was changed"
    found = {(user, item) for user, item in data.events().select("user_id", "item_id").collect().iter_rows()}
    if kind in {"table", "movielens", "amazon-reviews"}:
        for n, row in enumerate(events.rows):
            if n not in events.changed and row[1] in whole:
                refused = (
                    data.rejects().filter(pl.col("raw").str.contains(str(row[0]), literal=True)).collect()
                )
                assert (row[0], row[1]) in found or len(refused), "an untouched event is missing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", FAST)
@pytest.mark.timeout(30)
def test_a_few_mutated_inputs_are_read_refused_or_counted(tmp_path: Path, kind: str, seed: int) -> None:
    check(tmp_path, kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SLOW)
@pytest.mark.timeout(30)
def test_two_hundred_mutated_inputs_are_read_refused_or_counted(tmp_path: Path, kind: str, seed: int) -> None:
    check(tmp_path, kind, seed)


def check(tmp_path: Path, kind: str, seed: int) -> None:
    source = tmp_path / "raw"
    source.mkdir()
    tables = write_files(source, kind, seed)
    said = ""
    try:
        data = run_import(kind, source, tmp_path / "out")
    except TrsrError as error:
        said = str(error)
    if said:
        assert "\n" not in said
        assert said.endswith(".")
        return
    assert list(validate_dataset(data.path)) == []
    assert json.loads((data.path / "dataset.json").read_text())
    if not any(table.bytes_changed for table in tables):
        check_rows(kind, data, tables)
        check_untouched(kind, data, tables)
