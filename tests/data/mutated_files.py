"""Small raw files of all five kinds with seeded faults in them, for `test_mutated_files`.

Rows are changed before they are written, so it is known how many there are and which ones were left alone.
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

KINDS = ("table", "table-lists", "mind", "movielens", "amazon-m2", "amazon-reviews")
CELLS = (
    *("", " ", "nan", "None", "null", "NULL", "\\N", "NA", "<NA>", "N/A", "NaT", "none", "Null"),
    *("862.0", "007", "1e5", "-1", "3,5", "1,234.5", "inf", "true", "2 stars", "9" * 400),
    *(
        "[",
        "[]",
        "['a' 'b']",
        "['a', 'b'",
        '["i1", "i2"]',
        "['i1' ... 'i2']",
        "(i1,)",
        "{i1,i2}",
        "i1|i2",
        "i1 i2",
    ),
    *(
        "'",
        '"',
        '""',
        "a'b",
        "&amp;",
        "<b>x</b>",
        "=1+1",
        "x" * 100_000,
        "\U0001f600",
        "e\u0301",
        "\u202eabc",
    ),
    *("\x00", "\x1f", "\ufeffi1", "i1\u200b", "\u00a0i1\u00a0", "\u2028", "\x85", "\x0c", "a\\", "#"),
    *("2019-11-12", "11/12/2019", "12.11.2019 10:00", "20191112", "0", "1573560001", "43781", "yesterday"),
    *("i1", "i2", "u1", "N1-1 N2-0", "N1 N2", "-0", "N1-2", "U_UNKNOWN", "UK", "__row__", "^.*$", "*"),
)
LINE_BREAKS = ("a\nb", "a\r\nb", "\n", "a\rb")
JSON_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1.5, 862.0, -1, 10**30, 1e300, float("nan"), float("inf"), "\ud800", "a\nb"),
    *([], ["x"], ["x", None], [1, 2.0], [["a"], ["b"]], {}, {"a": 1}, [{"a": [1]}], {"": None}),
)
NAMES = (
    "__row__",
    "__raw__",
    "__hash__",
    "*",
    "^.*$",
    "",
    "item_id",
    "ITEM_ID",
    "title",
    "\x1frow",
    "Unnamed: 0",
    "x" * 300,
)


@dataclass
class Table:
    """A file before it is written: cells by row; `changed` are the rows that a fault has touched."""

    name: str
    header: list[str]
    rows: list[list[Any]]
    form: str = "csv"
    has_header: bool = True
    changed: set[int] = field(default_factory=set)
    bytes_changed: bool = False

    def text(self) -> str:
        """Return the file's text, without faults in its bytes."""
        out = io.StringIO()
        if self.form == "jsonl":
            for row in self.rows:
                out.write(
                    json.dumps({k: v for k, v in zip(self.header, row, strict=False) if v != "<absent>"})
                    + "\n"
                )
            return out.getvalue()
        rows = [self.header, *self.rows] if self.has_header else self.rows
        if self.form == "csv":
            csv.writer(out, lineterminator="\n").writerows(rows)
        else:
            out.writelines("\t".join(map(str, row)) + "\n" for row in rows)
        return out.getvalue()


def make_tables(kind: str, rng: random.Random) -> list[Table]:
    """Return the clean files of a kind: 8 items, 6 users with 3 to 6 events each."""
    items = [f"i{n}" for n in range(8)]
    events = [
        (f"u{user}", item, 1_573_560_001 + 3600 * (10 * user + place))
        for user in range(6)
        for place, item in enumerate(rng.sample(items, rng.randint(3, 6)))
    ]
    histories = {u: [i for v, i, _ in events if v == u] for u, _, _ in events}
    form = rng.choice(["csv", "jsonl", "tsv"])
    match kind:
        case "table":
            return [
                Table(
                    f"items.{form}",
                    ["item_id", "title", "brand"],
                    [[i, f"Thing {i}", "Acme"] for i in items],
                    form,
                ),
                Table(f"events.{form}", ["user_id", "item_id", "timestamp"], [list(e) for e in events], form),
            ]
        case "table-lists":
            lists = [[u, v if form == "jsonl" else " ".join(v)] for u, v in histories.items()]
            return [
                Table(f"items.{form}", ["item_id", "title"], [[i, f"Thing {i}"] for i in items], form),
                Table(f"events.{form}", ["user_id", "items"], lists, form),
            ]
        case "mind":
            news = [[i, "sport", "golf", f"Title {i}", "Text", "http://x", "[]", "[]"] for i in items]
            shown = [
                [n, u, "11/12/2019 2:14:46 PM", " ".join(v), "i1-1 i2-0"]
                for n, (u, v) in enumerate(histories.items())
            ]
            return [
                Table("news.tsv", [], news, "tsv", has_header=False),
                Table("behaviors.tsv", [], shown, "tsv", has_header=False),
            ]
        case "movielens":
            return [
                Table(
                    "movies.csv",
                    ["movieId", "title", "genres"],
                    [[i, f"Film {i} (1999)", "Fun|War"] for i in items],
                ),
                Table(
                    "ratings.csv",
                    ["userId", "movieId", "rating", "timestamp"],
                    [[u, i, 4.5, t] for u, i, t in events],
                ),
                Table(
                    "tags.csv",
                    ["userId", "movieId", "tag", "timestamp"],
                    [["u1", i, "dark", 5] for i in items],
                ),
                Table(
                    "links.csv",
                    ["movieId", "imdbId", "tmdbId"],
                    [[i, n, n + 100] for n, i in enumerate(items)],
                ),
                Table(
                    "overviews.csv",
                    ["id", "overview"],
                    [[n + 100, f"About {i}"] for n, i in enumerate(items)],
                ),
            ]
        case "amazon-m2":
            sessions = [[f"[{' '.join(map(repr, v[:-1]))}]", v[-1], "UK"] for v in histories.values()]
            return [
                Table(
                    "products_train.csv",
                    ["id", "locale", "title", "price"],
                    [[i, "UK", f"Thing {i}", 1.5] for i in items],
                ),
                Table("sessions_train.csv", ["prev_items", "next_item", "locale"], sessions),
            ]
        case _:
            return [
                Table(
                    "meta_X.jsonl",
                    ["parent_asin", "title", "price", "features"],
                    [[i, f"Thing {i}", 1.5, ["a", "b"]] for i in items],
                    "jsonl",
                ),
                Table(
                    "X.jsonl",
                    ["user_id", "parent_asin", "timestamp", "rating"],
                    [[u, i, 1000 * t, 4.0] for u, i, t in events],
                    "jsonl",
                ),
            ]


def change_cell(table: Table, rng: random.Random) -> None:
    """Put something odd into a cell."""
    row = rng.randrange(len(table.rows))
    pool = [*CELLS, *(LINE_BREAKS if table.form != "tsv" else ())]
    value: Any = rng.choice(pool)
    if table.form == "jsonl" and rng.random() < 0.5:
        value = rng.choice((*JSON_VALUES, "<absent>"))
    if table.form == "tsv":
        value = value.replace("\t", " ")
    table.rows[row][rng.randrange(len(table.rows[row]))] = value
    table.changed.add(row)


def repeat_row(table: Table, rng: random.Random) -> None:
    """Write a row again, at the end."""
    table.rows.append(list(rng.choice(table.rows)))
    table.changed.add(len(table.rows) - 1)


def change_width(table: Table, rng: random.Random) -> None:
    """Drop the last cell of a row, or add one."""
    if table.form != "jsonl":
        row = rng.randrange(len(table.rows))
        if rng.random() < 0.5 and len(table.rows[row]) > 2:
            table.rows[row].pop()
        else:
            table.rows[row] += rng.choice([[""], ["", ""], ["more"]])
        table.changed.add(row)


def repeat_header(table: Table, rng: random.Random) -> None:
    """Write the header again, between the rows."""
    if table.has_header and table.form != "jsonl":
        table.rows.append(list(table.header))
        table.changed.add(len(table.rows) - 1)


def change_case(table: Table, rng: random.Random) -> None:
    """Write the header in another case, or with blanks."""
    table.header = [
        rng.choice([name.upper(), name.lower(), name.title(), f" {name} "]) for name in table.header
    ]


def add_column(table: Table, rng: random.Random) -> None:
    """Add a column with a name that may be taken."""
    if table.has_header:
        table.header.append(rng.choice(NAMES))
        for row in table.rows:
            row.append(rng.choice(CELLS[:20]).replace("\t", " "))


FAULTS: tuple[Callable[[Table, random.Random], None], ...] = (
    *(
        change_cell,
        change_cell,
        change_cell,
        repeat_row,
        change_width,
        repeat_header,
        change_case,
        add_column,
    ),
)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Damage a file as a whole."""
    place = rng.randrange(len(data)) if data else 0
    noise = bytes(rng.randrange(256) for _ in range(5))
    return rng.choice(
        [
            data[:place],
            b"\xef\xbb\xbf" + data,
            data.replace(b"\n", b"\r\n"),
            data.replace(b"\n", b"\r"),
            data.decode("utf-8", "replace").encode("utf-16"),
            data[:place] + noise + data[place:],
            data + data,
            b"\n\n" + data + b"\n\n",
        ]
    )


def write_files(folder: Path, kind: str, seed: int) -> list[Table]:
    """Write the files of a kind with one to four faults, and return what was written."""
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
