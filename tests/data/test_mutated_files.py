"""Files with seeded faults, over all importers.

An import ends in time, with one sentence or with a dataset that validates, in which every row is an item, an
event, a reject or counted, and no row without a fault is changed. Rows are changed before they are written,
so it is known how many there are and which ones were left alone.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from importing import import_amazon_m2, import_amazon_reviews, import_mind, import_movielens, import_table

from trsr.data.dataset import Dataset
from trsr.data.validate import validate_dataset
from trsr.errors import TrsrError

KINDS = ("table", "table-lists", "mind", "movielens", "amazon-m2", "amazon-reviews")
RATED = ("table", "movielens", "amazon-reviews")  # kinds with one event per row
FAST = range(4)  # a kind
SLOW = range(4, 36)  # six kinds: 192, and with the fast ones 216
CELLS = (
    *("", " ", "nan", "None", "null", "NULL", "\\N", "NA", "<NA>", "N/A", "NaT", "none", "Null", "862.0"),
    *("007", "1e5", "-1", "3,5", "1,234.5", "inf", "true", "2 stars", "9" * 400, "[", "[]", "['a' 'b']"),
    *("['a', 'b'", '["i1", "i2"]', "['i1' ... 'i2']", "(i1,)", "{i1,i2}", "i1|i2", "i1 i2", "'", '"', '""'),
    *("a'b", "&amp;", "<b>x</b>", "=1+1", "x" * 100_000, "\U0001f600", "e\u0301", "\u202eabc", "\x00"),
    *("\x1f", "\ufeffi1", "i1\u200b", "\u00a0i1\u00a0", "\u2028", "\x85", "\x0c", "a\\", "#", "2019-11-12"),
    *("11/12/2019", "12.11.2019 10:00", "20191112", "0", "1573560001", "43781", "yesterday", "i1", "i2"),
    *("u1", "N1-1 N2-0", "N1 N2", "-0", "N1-2", "U_UNKNOWN", "UK", "__row__", "^.*$", "*"),
)
LINE_BREAKS = ("a\nb", "a\r\nb", "\n", "a\rb")
JSON_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1.5, 862.0, -1, 10**30, 1e300, float("nan"), float("inf"), "\ud800", "a\nb"),
    *([], ["x"], ["x", None], [1, 2.0], [["a"], ["b"]], {}, {"a": 1}, [{"a": [1]}], {"": None}),
)
NAMES = (
    *("__row__", "__raw__", "__hash__", "*", "^.*$", "", "item_id", "ITEM_ID", "title", "\x1frow"),
    *("Unnamed: 0", "x" * 300),
)


@dataclass
class Table:
    """A file before it is written: cells by row; `changed` are the rows that a fault has touched."""

    name: str
    header: list[str]  # empty where the file has none
    rows: list[list[Any]]
    changed: set[int] = field(default_factory=set)
    bytes_changed: bool = False

    def __post_init__(self) -> None:
        self.form = self.name.rpartition(".")[2]
        self.rows = [list(row) for row in self.rows]

    def text(self) -> str:
        if self.form == "jsonl":
            records = (dict(zip(self.header, row, strict=False)) for row in self.rows)
            present = ({k: v for k, v in record.items() if v != "<absent>"} for record in records)
            return "".join(json.dumps(record) + "\n" for record in present)
        rows = [self.header, *self.rows] if self.header else self.rows
        if self.form == "tsv":
            return "".join("\t".join(map(str, row)) + "\n" for row in rows)
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue()


def make_tables(kind: str, rng: random.Random) -> list[Table]:
    """Return the clean files of a kind: 8 items, 6 users with 3 to 6 events each."""
    items = [f"i{n}" for n in range(8)]
    events: list[list[Any]] = [
        [f"u{user}", item, 1_573_560_001 + 3600 * (10 * user + place)]
        for user in range(6)
        for place, item in enumerate(rng.sample(items, rng.randint(3, 6)))
    ]
    histories = {u: [i for v, i, _ in events if v == u] for u, _, _ in events}
    form = rng.choice(["csv", "jsonl", "tsv"])

    def table(name: str, header: str, rows: list[list[Any]]) -> Table:
        return Table(name, header.split(), rows)

    match kind:
        case "table":
            return [
                table(f"items.{form}", "item_id title brand", [[i, f"Thing {i}", "Acme"] for i in items]),
                table(f"events.{form}", "user_id item_id timestamp", events),
            ]
        case "table-lists":
            lists = [[u, v if form == "jsonl" else " ".join(v)] for u, v in histories.items()]
            return [
                table(f"items.{form}", "item_id title", [[i, f"Thing {i}"] for i in items]),
                table(f"events.{form}", "user_id items", lists),
            ]
        case "mind":
            news = [[i, "sport", "golf", f"Title {i}", "Text", "http://x", "[]", "[]"] for i in items]
            shown = [
                [n, u, "11/12/2019 2:14:46 PM", " ".join(v), "i1-1 i2-0"]
                for n, (u, v) in enumerate(histories.items())
            ]
            return [table("news.tsv", "", news), table("behaviors.tsv", "", shown)]
        case "movielens":
            films = [[i, f"Film {i} (1999)", "Fun|War"] for i in items]
            ratings = [[u, i, 4.5, t] for u, i, t in events]
            return [
                table("movies.csv", "movieId title genres", films),
                table("ratings.csv", "userId movieId rating timestamp", ratings),
                table("tags.csv", "userId movieId tag timestamp", [["u1", i, "dark", 5] for i in items]),
                table("links.csv", "movieId imdbId tmdbId", [[i, n, n + 100] for n, i in enumerate(items)]),
                table("overviews.csv", "id overview", [[n + 100, f"About {i}"] for n, i in enumerate(items)]),
            ]
        case "amazon-m2":
            products = [[i, "UK", f"Thing {i}", 1.5] for i in items]
            sessions = [[f"[{' '.join(map(repr, v[:-1]))}]", v[-1], "UK"] for v in histories.values()]
            return [
                table("products_train.csv", "id locale title price", products),
                table("sessions_train.csv", "prev_items next_item locale", sessions),
            ]
        case _:
            meta = [[i, f"Thing {i}", 1.5, ["a", "b"]] for i in items]
            reviews = [[u, i, 1000 * t, 4.0] for u, i, t in events]
            return [
                table("meta_X.jsonl", "parent_asin title price features", meta),
                table("X.jsonl", "user_id parent_asin timestamp rating", reviews),
            ]


def change_cell(table: Table, rng: random.Random) -> None:
    row = rng.randrange(len(table.rows))
    value: Any = rng.choice([*CELLS, *(LINE_BREAKS if table.form != "tsv" else ())])
    if table.form == "jsonl" and rng.random() < 0.5:
        value = rng.choice((*JSON_VALUES, "<absent>"))
    table.rows[row][rng.randrange(len(table.rows[row]))] = value
    table.changed.add(row)


def repeat_row(table: Table, rng: random.Random) -> None:
    table.rows.append(list(rng.choice(table.rows)))
    table.changed.add(len(table.rows) - 1)


def change_width(table: Table, rng: random.Random) -> None:
    if table.form != "jsonl":
        row = rng.randrange(len(table.rows))
        if rng.random() < 0.5 and len(table.rows[row]) > 2:
            table.rows[row].pop()
        else:
            table.rows[row] += rng.choice([[""], ["", ""], ["more"]])
        table.changed.add(row)


def repeat_header(table: Table, rng: random.Random) -> None:
    if table.header and table.form != "jsonl":
        table.rows.append(list(table.header))
        table.changed.add(len(table.rows) - 1)


def change_case(table: Table, rng: random.Random) -> None:
    table.header = [rng.choice([n.upper(), n.lower(), n.title(), f" {n} "]) for n in table.header]


def add_column(table: Table, rng: random.Random) -> None:
    if table.header:
        table.header.append(rng.choice(NAMES))
        for row in table.rows:
            row.append(rng.choice(CELLS[:20]))


FAULTS: tuple[Callable[[Table, random.Random], None], ...] = (
    *(change_cell, change_cell, change_cell, repeat_row, change_width, repeat_header, change_case),
    add_column,
)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Damage a file as a whole."""
    place = rng.randrange(len(data)) if data else 0
    noise = bytes(rng.randrange(256) for _ in range(5))
    return rng.choice(
        [
            *(data[:place], b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n"), data.replace(b"\n", b"\r")),
            *(data.decode("utf-8", "replace").encode("utf-16"), data[:place] + noise + data[place:]),
            *(data + data, b"\n\n" + data + b"\n\n"),
        ]
    )


def write_files(folder: Path, kind: str, seed: int) -> list[Table]:
    """Write the files of a kind with one to four faults, and return them."""
    rng = random.Random(f"{kind} {seed}")
    tables = make_tables(kind, rng)
    for _ in range(rng.randint(1, 4)):
        rng.choice(FAULTS)(rng.choice(tables), rng)
    damaged = rng.choice(tables) if rng.random() < 0.25 else None
    for table in tables:
        data = table.text().encode("utf-8", "surrogatepass")
        if table is damaged:
            table.bytes_changed = True
            data = change_bytes(data, rng)
        (folder / table.name).write_bytes(data)
    return tables


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


def check_rows(kind: str, data: Dataset, items: Table, events: Table) -> None:
    """Compare the number of rows with the dataset's."""
    counts, rejects = data.info.counts, data.rejects().collect()
    by_entry = pl.col("reason").is_in(["unknown item", "history entry without a news row"])

    def refused(table: Table, kind: pl.Expr) -> int:
        return len(rejects.filter((pl.col("file") == table.name) & kind))

    found_items = counts["items"] + counts["repeated_items"] + refused(items, ~by_entry)
    if kind in RATED:
        found_events = counts["events"] + refused(events, pl.lit(True)) + counts.get("repeated_events", 0)
        found_events += counts.get("ratings_below_threshold", 0)
    elif kind == "mind":
        found_events = counts["impressions"] + refused(events, ~by_entry)
    elif kind == "amazon-m2":
        users = set(data.events().select("user_id").collect()["user_id"])
        rows = {int(user.removeprefix("session-")) for user in users}
        found_events = len(rows | set(rejects.filter(pl.col("file") == events.name)["row"]))
        found_events += counts.get("rows_of_other_locales", 0)
    else:
        return  # a user can have several lists
    wanted = len(items.rows) + len(events.rows)
    # A row with a line break in it that is refused is refused line by line.
    assert found_items + found_events >= wanted
    cells = [str(cell) for table in (items, events) for row in table.rows for cell in row]
    if not any("\n" in cell or "\r" in cell for cell in cells):
        assert found_items + found_events == wanted


def check_untouched(kind: str, data: Dataset, items: Table, events: Table) -> None:
    """Look for every row without a fault, as it was; for text, where no other row has its id."""
    catalogue = data.catalogue()
    whole = {str(row[0]) for n, row in enumerate(items.rows) if n not in items.changed} & set(catalogue)
    ids = [str(row[0]).strip() for row in items.rows]
    title = {"mind": 3, "amazon-m2": 2}.get(kind, 1)
    for n, row in enumerate(items.rows):
        if n not in items.changed and ids.count(ids[n]) == 1 and ids[n] in catalogue:
            fields = {name.lower(): text for name, text in catalogue[ids[n]].fields.items()}
            assert fields.get("title") == row[title], "a text of an untouched row was changed"
    found = set(data.events().select("user_id", "item_id").collect().iter_rows())
    raws = data.rejects().collect()["raw"]
    for n, row in enumerate(events.rows if kind in RATED else ()):
        if n not in events.changed and row[1] in whole and (row[0], row[1]) not in found:
            assert raws.str.contains(str(row[0]), literal=True).any(), "an untouched event is missing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [*FAST, *(pytest.param(seed, marks=pytest.mark.slow) for seed in SLOW)])
@pytest.mark.timeout(30)
def test_mutated_files_are_read_refused_or_counted(tmp_path: Path, kind: str, seed: int) -> None:
    source = tmp_path / "raw"
    source.mkdir()
    tables = write_files(source, kind, seed)
    message = ""
    try:
        data = run_import(kind, source, tmp_path / "out")
    except TrsrError as error:
        message = str(error)
    if message:
        assert message.endswith(".")
        assert "\n" not in message
        return
    assert list(validate_dataset(data.path)) == []
    if not any(table.bytes_changed for table in tables):
        check_rows(kind, data, tables[0], tables[1])
        check_untouched(kind, data, tables[0], tables[1])
