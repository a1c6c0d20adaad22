from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from importing import import_table

from trsr.data import text_lines
from trsr.data.dataset import Dataset
from trsr.data.mind import NEWS
from trsr.data.validate import validate_dataset
from trsr.errors import DataError

ITEMS = "item_id,title,brand,url\na,Lamp,Acme,http://x\nb,,NaN,\nc,Rug,,\n"
EVENTS = "user_id,item_id,timestamp\nv,a,1700000300\nu,b,1700000200\nu,a,1700000100\nu,c,1700000200\n"
UNTIMED = "user_id,item_id\nu,a\n"


@pytest.fixture
def items(tmp_path: Path) -> Path:
    return put(tmp_path / "items.csv", ITEMS)


def put(file: Path, content: str) -> Path:
    file.write_text(content)
    return file


def shop(folder: Path, items: str, events: str = UNTIMED, out: str = "out", **options: Any) -> Dataset:
    files = put(folder / "i.csv", items), put(folder / "e.csv", events)
    return import_table(*files, folder / out, **options)


def histories(data: Dataset) -> dict[str, tuple[str, ...]]:
    return {h.user_id: h.item_ids for h in data.histories()}


def fields(data: Dataset) -> dict[str, dict[str, str]]:
    return {item_id: dict(item.fields) for item_id, item in data.catalogue().items()}


def test_one_event_per_row_is_read(tmp_path: Path) -> None:
    data = shop(tmp_path, ITEMS, EVENTS, domain="products")
    assert list(histories(data).items()) == [("u", ("a", "b", "c")), ("v", ("a",))]
    assert (data.info.name, data.info.domain) == ("out", "products")
    assert (data.info.text_fields, data.info.category_fields) == (["title", "brand"], ["brand"])
    assert fields(data)["b"] == {}
    assert data.info.counts["items_without_text"] == 1
    assert list(validate_dataset(data.path)) == []


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_dataset(tmp_path: Path, suffix: str) -> None:
    items = pl.DataFrame({"id": [1, 2], "title": ["Lamp", None], "tags": ["x", "y"]})
    events = pl.DataFrame({"userId": [7, 7], "id": [2, 1], "time": [1700000200, 1700000100]})
    files = [tmp_path / f"{name}{suffix}" for name in ("items", "events")]
    for file, frame in zip(files, (items, events), strict=True):
        match suffix:
            case ".parquet":
                frame.write_parquet(file)
            case ".jsonl":
                frame.write_ndjson(file)
            case _:
                frame.write_csv(file, separator="," if suffix == ".csv" else "\t")
    data = import_table(files[0], files[1], tmp_path / "out")
    assert histories(data) == {"7": ("1", "2")}
    assert fields(data) == {"1": {"title": "Lamp", "tags": "x"}, "2": {"tags": "y"}}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_one_user_per_row_with_lists_is_read(tmp_path: Path, items: Path, suffix: str) -> None:
    rows = [
        {"user_id": "u", "items": ["a", "b", "c"], "timestamps": [1700000300, 1700000100, 1700000300]},
        {"user_id": "v", "items": ["c", "a"], "timestamps": None},
        {"user_id": "w", "items": ["a", "b"], "timestamps": [1700000001]},
        {"user_id": "x", "items": [], "timestamps": []},
        {"user_id": "y", "items": ["z"], "timestamps": [1700000005]},
    ]
    file = tmp_path / f"events{suffix}"
    if suffix == ".jsonl":
        put(file, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        pl.DataFrame(rows).write_parquet(file)
    data = import_table(items, file, tmp_path / "out", keep_untimed=True, max_rejects=1)
    assert [(h.user_id, h.item_ids, h.timestamps is None) for h in data.histories()] == [
        ("u", ("b", "a", "c"), False),
        ("v", ("c", "a"), True),
    ]
    assert data.rejects().collect().select("row", "reason").rows() == [
        (4, "no items in the list"),
        (3, "another number of times than of items"),
        (5, "unknown item"),
    ]


def test_lists_without_times_and_rows_with_item_and_list_are_read(tmp_path: Path, items: Path) -> None:
    schema = {"user_id": pl.String(), "items": pl.List(pl.String), "timestamps": pl.List(pl.Int64)}
    pl.DataFrame([("u", ["b", "a"], None)], schema=schema, orient="row").write_parquet(tmp_path / "e.parquet")
    data = import_table(items, tmp_path / "e.parquet", tmp_path / "lists")
    assert [(h.item_ids, h.timestamps) for h in data.histories()] == [(("b", "a"), None)]
    assert histories(shop(tmp_path, ITEMS, "user_id,item_id,history\nu,c,a b\n")) == {"u": ("c",)}


def test_lists_in_text_columns_and_named_columns_are_read(tmp_path: Path, items: Path) -> None:
    events = put(tmp_path / "events.tsv", "u\ta b\n")
    options = {"events_columns": ["who", "what"], "user_id": "who", "item_list": "what"}
    assert histories(import_table(items, events, tmp_path / "out", **options)) == {"u": ("a", "b")}


def test_list_cells_are_read_whole_or_refused(tmp_path: Path) -> None:
    rows = ['u1,"[""red shoe"", ""shoe""]"', "u2,\"['red' 'shoe']\"", 'u3,"[""red"", ""shoe"']
    events = "\n".join(["user_id,items", *rows, "u4,red shoe|red\n"])
    data = shop(tmp_path, "item_id,title\nred shoe,A\nshoe,B\nred,C\n", events, max_rejects=1)
    assert histories(data) == {
        "u1": ("red shoe", "shoe"),
        "u2": ("red", "shoe"),
        "u4": ("red shoe", "red"),
    }
    refused = data.rejects().collect().select("row", "reason", "raw").rows()
    assert refused == [(4, "the list of items cannot be read", rows[2])]


def test_named_fields_decide_what_is_text(tmp_path: Path) -> None:
    options: dict[str, Any] = {"text_fields": ["brand", "title"], "category_fields": ["title"]}
    info = shop(tmp_path, ITEMS, EVENTS, **options).info
    assert (info.text_fields, info.category_fields) == (["brand", "title"], ["title"])


@pytest.mark.parametrize(
    ("items", "events", "options", "words"),
    [
        ("name\nx\n", EVENTS, {}, "i.csv has no column for the item id"),
        (ITEMS, "who,item_id\nu,a\n", {}, r"e.csv has no column for the user id.*with --user-id\.$"),
        (ITEMS, EVENTS, {"user_id": "who"}, r"found .*; name one with --user-id\.$"),
        (
            *(ITEMS, "user_id,what\nu,a\n", {}),
            r"e.csv has no column for the item id or list of items.*--event-item-id or --item-list\.$",
        ),
        (ITEMS, EVENTS, {"item_id": "what"}, r"found .*; name one with --item-id\.$"),
        (ITEMS, EVENTS, {"text_fields": ["body"]}, "i.csv has no column for the text field body"),
        (ITEMS, EVENTS, {"text_fields": []}, "i.csv: no text field was named"),
        (ITEMS, EVENTS, {"text_fields": ["title", "title"]}, "text field 'title' was named twice"),
        (ITEMS, EVENTS, {"text_fields": ["item_id"]}, "ids are never text"),
        (ITEMS, EVENTS, {"category_fields": ["url"]}, "category field 'url' is none of the text fields"),
        (ITEMS, EVENTS, {"timestamp": "when"}, r"e.csv has no column for the time.*with --timestamp\.$"),
        (ITEMS, EVENTS, {"item_list": "list"}, "e.csv has no column for the list of items"),
        ("item_id\na\n", EVENTS, {}, "no column that looks like text"),
        ("", EVENTS, {}, "i.csv is empty"),
        (ITEMS, "", {}, "e.csv is empty"),
        ("item_id,title\n,x\n", EVENTS, {}, r"No item could be read \(5 rows .*4 for 'e.csv: unknown it"),
        ("item_id,title\n", EVENTS, {}, "i.csv has no row below its header"),
        (ITEMS, "user_id,item_id\n", {}, "e.csv has no row below its header"),
        (ITEMS, "user_id,item_id\nu,z\n", {}, "1 for 'e.csv: unknown item'"),
    ],
)
def test_tables_that_cannot_be_used_are_one_sentence(
    tmp_path: Path, items: str, events: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        shop(tmp_path, items, events, **options)
    assert not (tmp_path / "out").exists()


def test_a_text_field_may_have_any_name(tmp_path: Path) -> None:
    data = shop(tmp_path, "item_id,hash,first_hash\na,Lamp,x\na,Lamp,x\na,Rug,x\n")
    assert fields(data) == {"a": {"hash": "Lamp", "first_hash": "x"}}
    assert (data.info.counts["repeated_items"], data.info.counts["rejects"]) == (1, 1)


def test_nothing_is_lost_between_bad_rows(tmp_path: Path) -> None:
    items = b'item_id,title\na,"open\nb,caf\xff\nc,' + b"x" * 2**20
    items += b'\nd,"two\nlines"\na,late\nd,other\n,none\ne,\n'
    events = b"user_id,item_id,timestamp\nu,c,2025-01-02\nu,c,x\nu,\xff,2025-01-01\nu,d,2025-01-01\n"
    events += b"u,zz,2025-01-01\n,c,2025-01-01\nu,nan,2025-01-01\nu,c\nu,e,\n"
    (tmp_path / "items.csv").write_bytes(items)
    (tmp_path / "events.csv").write_bytes(events)
    data = import_table(tmp_path / "items.csv", tmp_path / "events.csv", tmp_path / "out", max_rejects=1)
    lengths = {item_id: len(texts.get("title", "")) for item_id, texts in fields(data).items()}
    assert lengths == {"c": 2**20, "d": 9, "a": 4, "e": 0}
    assert data.rejects().collect().select("file", "row", "reason").sort("file", "row").rows() == [
        ("events.csv", 3, "time cannot be read"),
        ("events.csv", 4, "not UTF-8"),
        ("events.csv", 6, "unknown item"),
        ("events.csv", 7, "no user id"),
        ("events.csv", 8, "no item id"),
        ("events.csv", 9, "another number of columns than the header"),
        ("events.csv", 10, "no time"),
        ("items.csv", 2, "broken quote"),
        ("items.csv", 3, "not UTF-8"),
        ("items.csv", 8, "item id seen before with another text"),
        ("items.csv", 9, "no item id"),
    ]
    assert histories(data) == {"u": ("d", "c")}


def test_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shop(tmp_path, ITEMS, EVENTS, "whole")
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 8)
    pieces = shop(tmp_path, ITEMS, EVENTS, "pieces")
    assert whole.events().collect().equals(pieces.events().collect())
    assert whole.info.counts == pieces.info.counts


@pytest.mark.real_data
@pytest.mark.skipif("TRSR_REAL_DATA" not in os.environ, reason="TRSR_REAL_DATA does not name the real data")
@pytest.mark.parametrize(
    ("items", "events", "columns", "expected"),
    [
        ("mind_small/news.tsv", "mind_small/click_histories_with_text", NEWS, (5618, 4492, 86565)),
        ("amazon_office/items.jsonl", "amazon_office/sequences", None, (2420, 4905, 53258)),
        (
            *("movielens_overviews/items.jsonl", "movielens_overviews/sequences_with_overview", None),
            (9742, 610, 94022),
        ),
    ],
)
def test_real_sets_have_their_published_counts(
    tmp_path: Path, items: str, events: str, columns: tuple[str, ...] | None, expected: tuple[int, int, int]
) -> None:
    real = Path(os.environ["TRSR_REAL_DATA"])
    data = import_table(real / items, real / f"{events}.jsonl", tmp_path / "out", items_columns=columns)
    counts = data.info.counts
    assert (counts["items"], counts["users"], counts["events"], counts["rejects"]) == (*expected, 0)
    with (real / f"{events}.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    found = {user: sorted(items) for user, items in histories(data).items()}
    assert found == {row["user_id"]: sorted(row["items"]) for row in rows}
    assert list(validate_dataset(data.path)) == []


def test_an_event_sent_twice_is_one_event_and_counted(tmp_path: Path) -> None:
    t = "2019-11-12 12:00:01"
    rows = f"u,a,{t}\nu,b,{t}\nu,a,{t}\nu,a,2019-11-12 12:00:02\nv,a,{t}\nu,a,2019-11-12T12:00:01Z\n"
    data = shop(tmp_path, ITEMS, f"user_id,item_id,timestamp\n{rows}")
    assert histories(data) == {"u": ("a", "b", "a"), "v": ("a",)}
    assert data.info.counts["repeated_events"] == 2
    assert histories(shop(tmp_path, ITEMS, UNTIMED + "u,b\nu,a\n", "untimed")) == {"u": ("a", "b", "a")}


def test_ids_join_whatever_type_a_file_gives_them(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [1.0, 2.0, None], "title": ["A", "B", "C"]})
    items.write_parquet(tmp_path / "i.parquet")
    events = put(tmp_path / "e.csv", "user_id,item_id\n7.0,1\n7, 2.0 \n007,1\nu,01\n")
    data = import_table(tmp_path / "i.parquet", events, tmp_path / "out", max_rejects=1)
    assert histories(data) == {"007": ("1",), "7": ("1", "2")}
    assert data.info.counts["ids_written_as_floats"] == 2
    assert data.rejects_by_reason() == {"i.parquet: no item id": 1, "e.csv: unknown item": 1}


@pytest.mark.parametrize(
    "name", ["__row__", "__raw__", "__hash__", "__first_hash__", "\x1frow", "*", "^.*$", ""]
)
def test_column_names_never_collide_with_internal_ones(tmp_path: Path, name: str) -> None:
    items = f"item_id,title,{name},other\na,Lamp,mine,x\na,Lamp,mine,x\nb,Rug,yours,\n"
    data = shop(tmp_path, items, f"user_id,item_id,{name}\nu,a,9\n")
    assert histories(data) == {"u": ("a",)}
    assert data.info.counts["repeated_items"] == 1
    texts = fields(data)["b"]
    assert texts.pop("title") == "Rug"
    assert list(texts.values()) == ([] if name in {"", "*"} else ["yours"])
    table = pl.DataFrame({"item_id": ["a"], "title": ["Lamp"], name or "x": ["mine"]})
    table.write_parquet(tmp_path / "i.parquet")
    assert import_table(tmp_path / "i.parquet", tmp_path / "e.csv", tmp_path / "p").info.counts["events"] == 1


def test_remains_of_exporters_are_no_rows(tmp_path: Path) -> None:
    items = ",item_id,title,,\n0,a,Lamp,,\n1,b,Rug\n,item_id,title,,\n\n2,c,Cup,,,\n3,d,Pen,,,junk\n"
    events = "user_id,item_id\nu,a\n\ufeffuser_id,item_id\nu,c\n"
    data = shop(tmp_path, items, events, max_rejects=1)
    assert fields(data) == {"a": {"title": "Lamp"}, "b": {"title": "Rug"}, "c": {"title": "Cup"}}
    assert histories(data) == {"u": ("a", "c")}
    assert data.rejects().collect().select("file", "row", "reason").sort("file", "row").rows() == [
        ("e.csv", 3, "the header line again"),
        ("i.csv", 4, "the header line again"),
        ("i.csv", 7, "another number of columns than the header"),
    ]


def test_texts_that_are_changed_or_doubtful_are_counted(tmp_path: Path) -> None:
    rows = "a,AT&amp;T,\"['Drama', 'War']\"\nb,None,<NA>\nc,Null,[]\nd,R&D;,n/a\n"
    data = shop(tmp_path, f"item_id,title,genres\n{rows}")
    assert fields(data) == {
        "a": {"title": "AT&amp;T", "genres": "Drama|War"},
        "b": {},
        "c": {"title": "Null"},
        "d": {"title": "R&D;"},
    }
    counts = data.info.counts
    assert (counts["texts_that_say_missing"], counts["texts_written_as_lists"]) == (3, 2)
    assert counts["texts_with_html_entities"] == 1


def test_internal_columns_are_never_taken_for_times(tmp_path: Path) -> None:
    info = shop(tmp_path, ITEMS, "user_id,item_id,seen\n2019-11-12,a,2019-11-12\n").info
    assert info.times is not None
    assert info.times.looks_like_time == ["seen"] or info.times.column == "seen"


def test_a_number_of_the_row_is_not_taken_for_the_item(tmp_path: Path) -> None:
    events = "id,user_id,article_id,clicked_at\n1,u,2,2025-01-02\n2,u,1,2025-01-01\n"
    with pytest.raises(DataError, match="no column for the item id"):
        shop(tmp_path, "id,title\n1,Lamp\n2,Chair\n", events)
    data = shop(tmp_path, "id,title\n1,Lamp\n2,Chair\n", events, event_item_id="article_id")
    assert histories(data) == {"u": ("1", "2")}


def test_values_that_mongodb_wrote_with_their_type_are_read_without_it(tmp_path: Path) -> None:
    items = put(tmp_path / "items.csv", "id,title\n65a0,Lamp\n65a1,Chair\n")
    late = {"$date": {"$numberLong": "1735689600000"}}
    rows = [
        {"user": {"$numberLong": "7"}, "item": {"$oid": "65a1"}, "createdAt": late},
        {"user": 7, "item": {"$oid": "65a0"}, "createdAt": {"$date": "2024-12-31T10:00:00Z"}},
    ]
    events = put(tmp_path / "e.jsonl", "\n".join(map(json.dumps, rows)))
    assert histories(import_table(items, events, tmp_path / "data")) == {"7": ("65a0", "65a1")}
