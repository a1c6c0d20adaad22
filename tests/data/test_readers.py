"""Lines, records and frames of raw files, how text files are written, and Excel workbooks."""

from __future__ import annotations

import builtins
import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from importing import import_table

from trsr.data import text_lines
from trsr.data.import_info import FileInfo
from trsr.data.readers import read_frames
from trsr.data.text_lines import RAW, ROW, split_records
from trsr.errors import DataError, MissingExtraError

WIDTH = "another number of columns than the header"


class Refused(list[tuple[int, str, str]]):
    """Collects rejected rows as (row, raw, reason)."""

    def __call__(self, rows: pl.DataFrame, reason: str) -> None:
        self.extend((row, raw, reason) for row, raw in rows.select(ROW, RAW).iter_rows())


def read(
    file: Path, refused: Refused | None = None, info: FileInfo | None = None, **options: object
) -> pl.DataFrame:
    refused = Refused() if refused is None else refused
    frames = list(read_frames(file, refused, info or FileInfo(), **options))  # type: ignore[arg-type]
    return pl.concat([frame for frame in frames if len(frame)] or frames[:1], how="diagonal")


def write(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 16)


def test_csv_with_quotes_newlines_and_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", b'\xef\xbb\xbfid,text\r\n1,"a, ""b""\nc"\r\n\r\n2,5" nail\r\n')
    table = read(file)
    assert table.select("id", "text").rows() == [("1", 'a, "b"\nc'), ("2", '5" nail')]
    assert table[ROW].to_list() == [2, 5]


def test_a_broken_quote_costs_one_row_only(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", 'id,text\n1,"open\n2,fine\n3,"two\nlines"\n4,"bro"ken"\n5,end\n')
    refused = Refused()
    assert read(file, refused)["id"].to_list() == ["2", "3", "5"]
    assert refused == [(2, '1,"open', "broken quote"), (6, '4,"bro"ken"', "broken quote")]


@pytest.mark.usefixtures("small_batches")
def test_rows_and_numbers_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    rows = (f'{i},"some\ntext {i}"' if i % 3 == 0 else f"{i},plain" for i in range(20))
    refused = Refused()
    table = read(write(tmp_path / "a.csv", "\n".join(["id,text", *rows, '20,"open'])), refused)
    assert table["id"].to_list() == [str(i) for i in range(20)]
    assert table.filter(pl.col("id") == "7")[ROW].item() == 2 + 7 + 3
    assert [reason for _, _, reason in refused] == ["broken quote"]


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=8)


@settings(deadline=None)
@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1), st.integers(1, 5))
def test_csv_writers_output_is_read_back(rows: list[list[str]], size: int) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    texts = stream.getvalue().removesuffix("\n").split("\n")
    found: list[list[str] | None] = []
    pending: list[str] = []
    for start in range(0, len(texts), size):
        lines = pending + texts[start : start + size]
        records, used = split_records(lines, ",", 2, final=start + size >= len(texts))
        found += [fields for *_, fields in records]
        pending = lines[used:]
    assert found == rows


MANY = "".join(f'{n}\t"a, b"\n' for n in range(40))


@pytest.mark.parametrize(
    ("content", "texts", "quotes", "broken"),
    [
        ('"id"\t"text"\n"1"\t"a ""b"""\n"2"\t"c\nd"\n', ['a "b"', "c\nd"], True, 0),  # all are quoted
        ('id\ttext\n1\t"a, b"\n2\tc\n3\t5" nail\n', ["a, b", "c", '5" nail'], True, 0),  # where needed
        ('id\ttext\n1\t"a"\n2\tc\n', ['"a"', "c"], False, 0),  # a quotation
        ('id\ttext\n1\t"a, b"\n2\t"c"\n3\td\n', ['"a, b"', '"c"', "d"], False, 0),  # one without need
        ('id\ttext\n1\t"a, b"\n2\t"c" said d\n', ['"a, b"', '"c" said d'], False, 0),
        ('id\ttext\n1\t"a\n2\tb"\n', ['"a', 'b"'], False, 0),  # from one to the other is no field
        (f'id\ttext\n{MANY}x\t"open\n', ["a, b"] * 40, True, 1),
    ],
)
def test_quotes_of_a_tsv_are_read_as_such_where_it_uses_them_throughout(
    tmp_path: Path, content: str, texts: list[str], quotes: bool, broken: int
) -> None:
    info, refused = FileInfo(), Refused()
    assert read(write(tmp_path / "a.tsv", content), refused, info)["text"].to_list() == texts
    assert (info.quotes, [reason for *_, reason in refused]) == (quotes, ["broken quote"] * broken)


def test_quotes_of_a_tsv_can_be_requested(tmp_path: Path) -> None:
    refused = Refused()
    file = write(tmp_path / "a.tsv", 'id\ttext\n1\t"so said he\n2\t"x"\n')
    assert read(file, refused, quotes=True)["text"].to_list() == ["x"]
    assert len(refused) == 1
    file = write(tmp_path / "a.txt", 'id,text\n1,"a, b"\n2,"c, d"\n')
    assert read(file)["text"].to_list() == ["a, b", "c, d"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_gzip_is_read_under_any_name_and_other_bytes_are_named(tmp_path: Path, name: str) -> None:
    content = '{"id": "1"}\n' if name.endswith("jsonl") else "id\n1\n"
    assert read(write(tmp_path / name, gzip.compress(content.encode())))["id"].to_list() == ["1"]
    parquet, archive = io.BytesIO(), io.BytesIO()
    pl.DataFrame({"id": [1]}).write_parquet(parquet)
    zipfile.ZipFile(archive, "w").writestr("a.csv", "id\n1\n")
    for data, words in {
        parquet.getvalue(): "no text but holds Parquet; rename it to .parquet",
        gzip.compress(parquet.getvalue()): "holds Parquet",
        archive.getvalue(): r"holds a zip archive; unpack it, or rename it to .xlsx",
        bz2.compress(b"id\n1\n"): "holds bzip2 data",
        lzma.compress(b"id\n1\n"): "holds xz data",
        gzip.compress(gzip.compress(b"id\n1\n")): "gzip data inside of gzip data",
    }.items():
        with pytest.raises(DataError, match=words):
            read(write(tmp_path / f"b_{name}", data))


def test_a_damaged_gzip_file_is_one_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(b"id,t\n1,x\n")
    assert read(write(tmp_path / "a.csv.gz", whole))["t"].to_list() == ["x"]
    for damaged in (whole[:-6], b"no gzip"):
        with pytest.raises(DataError, match="damaged gzip"):
            read(write(tmp_path / "b.csv.gz", damaged))


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    ("name", "content", "ids", "expected"),
    [
        ("a.tsv", b"id\ttext\n1\tgood\n2\tb\xffd\n3\ttoo\n", ["1", "3"], [(3, "2\tb\\xffd", "not UTF-8")]),
        ("a.tsv", b"id\tb\n1\t2\n1\t2\t3\n", ["1"], [(3, "1\t2\t3", WIDTH)]),
        ("a.csv", b'id,b\n"1",2\n1,2,"3"\n', ["1"], [(3, '1,2,"3"', WIDTH)]),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_alone(
    tmp_path: Path, name: str, content: bytes, ids: list[str], expected: list[object]
) -> None:
    refused = Refused()
    assert read(write(tmp_path / name, content), refused)["id"].to_list() == ids
    assert refused == expected


def test_a_headerless_file_needs_a_name_for_every_column(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "1\tx\ty\n")
    assert read(file, columns=["id", "a", "b"]).select("id", "b").rows() == [("1", "y")]
    with pytest.raises(DataError, match="3 columns, expected 2: id, a"):
        read(file, columns=["id", "a"])
    first_goes_on = write(tmp_path / "a.csv", '1,"x\ny",z\n')
    assert read(first_goes_on, columns=["id", "a", "b"]).select("a", "b").rows() == [("x\ny", "z")]
    with pytest.raises(DataError, match="its own column names"):
        read(write(tmp_path / "a.jsonl", "{}"), columns=["id"])


def test_json_values_become_text_or_lists(tmp_path: Path) -> None:
    records = [
        {"id": 1, "f": 2.0, "n": float("nan"), "l": [["a"], "b"], "d": {"k": "v", "e": None}, "t": "x"},
        {"id": "2", "b": True, "t": "\ud83d half"},
    ]
    table = read(write(tmp_path / "a.jsonl", "\n".join(json.dumps(r) for r in records) + "\n"))
    assert table.drop(ROW, RAW).to_dict(as_series=False) == {
        "id": ["1", "2"],
        "f": ["2", None],
        "n": [None, None],
        "l": [["a", "b"], None],
        "d": [["k: v"], None],
        "t": ["x", "\ufffd half"],
        "b": [None, "True"],
    }


def test_lines_that_are_no_json_object_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"id": 1}\n{"id": 2\n[3]\n' + "[" * 100_000 + "\n\n{}\n")
    refused = Refused()
    assert read(file, refused)["id"].to_list() == ["1", None]
    assert [(row, reason) for row, _, reason in refused] == [(i, "not a JSON object") for i in (2, 3, 4)]


@pytest.mark.usefixtures("small_batches")
def test_a_json_key_that_a_batch_lacks_is_null_there(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"id": 1, "user": "u"}\n{"id": 2}\n{"id": 3, "more": 4}\n')
    assert read(file)["user"].to_list() == ["u", None, None]


def test_parquet_columns_become_text(tmp_path: Path) -> None:
    grid = pl.Series([[[1, 2], [3, 4]]] * 2, dtype=pl.Array(pl.Int8, (2, 2)))
    columns = {
        "id": ([1, 2], ["1", "2"]),
        "f": ([3.0, float("nan")], ["3", None]),
        "when": ([datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)] * 2, ["1970-01-01 00:00:01.000000+00:00"] * 2),
        "items": ([[1, 2], []], [["1", "2"], []]),
        "s": ([{"k": 1}, None], ['{"k": 1}', None]),
        "day": ([date(2020, 2, 29), None], ["2020-02-29", None]),
        "span": ([timedelta(days=1), None], ["P1D", None]),
        "levels": ([[["a"], ["b", None]], None], [["a", "b", None], None]),
        "grid": (grid, [["1", "2", "3", "4"]] * 2),
    }
    pl.DataFrame({name: given for name, (given, _) in columns.items()}).write_parquet(tmp_path / "a.parquet")
    table = read(tmp_path / "a.parquet")
    found = table.drop(ROW, RAW).to_dict(as_series=False)
    assert found == {name: expected for name, (_, expected) in columns.items()}
    assert table[ROW].to_list() == [1, 2]
    assert '"id":"1"' in table[RAW][0]


def test_bytes_in_parquet_are_text_where_they_are_utf8_and_refused_elsewhere(tmp_path: Path) -> None:
    tags = [[b"x", None], None, [b"x"], [], [b"y", b"caf\xe9"]]
    ids = [b"a", b"b", b"\xff", None, b"c"]
    pl.DataFrame({"id": ids, "tags": tags}).write_parquet(tmp_path / "a.parquet")
    refused = Refused()
    table = read(tmp_path / "a.parquet", refused)
    assert table.select(ROW, "id", "tags").rows() == [(1, "a", ["x", None]), (2, "b", None), (4, None, [])]
    assert [(row, reason) for row, _, reason in refused] == [(3, "not UTF-8"), (5, "not UTF-8")]
    assert "caf\\\\xe9" in refused[1][1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        *((f"empty.{suffix}", "", "is empty") for suffix in ("csv", "tsv", "jsonl")),
        *((f"none.{suffix}", None, "no file") for suffix in ("csv", "parquet")),
        ("a.zip", "x", "unknown suffix"),
        ("a.parquet", "x", "cannot be read as Parquet"),
        ("list.json", '[{"id": 1}]', "one JSON list"),
        ("a.jsonl", "no json\n", "no JSON object"),
        ("b.csv", b"\xff\xfe\n1\n", "no readable header"),
        ("c.csv", "id,id\n1,2\n", "more than one column called 'id'"),
        ("d.csv", "\nid\n", "no readable header"),
        ("f.csv", '{"id": 1}\n', "holds JSON; rename it to .jsonl"),
        ("e.csv", 'id,"text\n1,x\n', "broken quote in its header line"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, name: str, content: str | bytes | None, words: str
) -> None:
    file = tmp_path / name if content is None else write(tmp_path / name, content)
    with pytest.raises(DataError, match=words):
        read(file)


def test_an_empty_parquet_file_and_a_folder_are_one_sentence(tmp_path: Path) -> None:
    pl.DataFrame({"a": []}).write_parquet(tmp_path / "empty.parquet")
    (tmp_path / "x.csv").mkdir()
    for name, words in (("empty.parquet", "is empty"), ("x.csv", "cannot be read")):
        with pytest.raises(DataError, match=words):
            read(tmp_path / name)


@pytest.mark.parametrize("batch", [7, 2**20])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_encoding_and_line_ends_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, line_end: str, batch: int
) -> None:
    monkeypatch.setattr(text_lines, "BATCH_BYTES", batch)
    info, content = FileInfo(), f"item_id;title{line_end}a;Café, Übermaß{line_end}b;Thé{line_end}"
    table = read(write(tmp_path / "i.csv", content.encode(encoding)), info=info)
    assert table["title"].to_list() == ["Café, Übermaß", "Thé"]
    assert table[ROW].to_list() == [2, 3]
    assert (info.encoding, info.delimiter) == (encoding.removesuffix("-sig"), ";")


def test_a_named_encoding_is_used_and_an_unknown_one_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "i.csv", "item_id,title\na,Привет\n".encode("cp1251"))
    assert read(file, info=FileInfo(encoding="cp1251"))["title"].to_list() == ["Привет"]
    assert read(file).is_empty()  # no western words: refused by line, not guessed
    for unknown in ("klingon", "rot13", "base64"):
        with pytest.raises(DataError, match="no text encoding"):
            read(file, info=FileInfo(encoding=unknown))


def test_a_line_that_the_encoding_cannot_hold_is_refused_alone(tmp_path: Path) -> None:
    start, end = "item_id,title\na,x\nb,".encode("utf-16-le"), "\nc,z\n".encode("utf-16-le")
    refused = Refused()
    table = read(write(tmp_path / "i.csv", start + b"\x00\xd8" + end + b"d"), refused)
    assert table["item_id"].to_list() == ["a", "c"]
    assert "not UTF-16-LE" in {reason for *_, reason in refused}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "::"])
@pytest.mark.parametrize("name", ["i.csv", "i.tsv", "i.txt"])
def test_the_delimiter_is_found_whatever_the_suffix(tmp_path: Path, name: str, delimiter: str) -> None:
    rows = [["item_id", "title", "price"], ["a", "one. two", "3.5"], ["b", "x", "4"]]
    info = FileInfo()
    file = write(tmp_path / name, "\n".join(delimiter.join(row) for row in rows))
    assert read(file, info=info)["title"].to_list() == ["one. two", "x"]
    assert info.delimiter == delimiter


@pytest.mark.parametrize(
    ("content", "delimiter"),
    [
        ("id;rating\na;3,5\nb;4,5\n", ";"),
        ("id,text\na,x;y;z\nb,x;y;z\n", ","),
        ('id;text\na;"x;y"\nb;"one\ntwo"\n', ";"),
        ("id,text\n", ","),
        ("sep=|\nid|a,b\nx|1,2\n", "|"),
    ],
)
def test_marks_inside_values_are_no_delimiters(tmp_path: Path, content: str, delimiter: str) -> None:
    info = FileInfo()
    assert len(read(write(tmp_path / "i.csv", content), info=info).columns) == 4
    assert info.delimiter == delimiter


def test_a_named_delimiter_is_used(tmp_path: Path) -> None:
    for content, name, text in (("id#text\na#x, y\n", "#", "x, y"), ("id\ttext\na\tx\n", "tab", "x")):
        file = write(tmp_path / "i.csv", content)
        assert read(file, info=FileInfo(delimiter=name))["text"].to_list() == [text]
    for wrong in ("", '"', "\n"):
        with pytest.raises(DataError, match=r"delimiter .* cannot be used"):
            read(write(tmp_path / "i.csv", "id,text\n"), info=FileInfo(delimiter=wrong))


Cells = list[str | float | None]
STYLES = {"timestamp": 1, "clock": 2}
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
CONTENT = "application/vnd.openxmlformats-officedocument.spreadsheetml"
WORKBOOK = {
    "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types"><Default Extension="rels" '
    'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{CONTENT}.sheet.main+xml"/>'
    f'<Override PartName="/xl/sheet.xml" ContentType="{CONTENT}.worksheet+xml"/>'
    f'<Override PartName="/xl/styles.xml" ContentType="{CONTENT}.styles+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="r1" '
    f'Type="{OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}">'
    '<sheets><sheet name="S" sheetId="1" r:id="r1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
    f'<Relationship Id="r1" Type="{OFFICE}/worksheet" Target="sheet.xml"/>'
    f'<Relationship Id="r2" Type="{OFFICE}/styles" Target="styles.xml"/></Relationships>',
    "xl/styles.xml": f'<styleSheet xmlns="{MAIN}"><cellXfs count="3"><xf numFmtId="0"/><xf numFmtId="22"/>'
    '<xf numFmtId="21"/></cellXfs></styleSheet>',
}


def make_xlsx(file: Path, rows: list[Cells]) -> Path:
    """Write a workbook of one sheet; a number below `timestamp` is a date, below `clock` a time of day."""

    def cell(place: int, row: int, value: str | float | None) -> str:
        ref = f"{'ABCDEF'[place]}{row}"
        if isinstance(value, str):
            return f'<c r="{ref}" t="inlineStr"><is><t>{value}</t></is></c>'
        style = STYLES.get(str(rows[0][place]), 0)
        return "" if value is None else f'<c r="{ref}" s="{style}"><v>{value}</v></c>'

    lines = ("".join(cell(i, n, value) for i, value in enumerate(row)) for n, row in enumerate(rows, start=1))
    sheet = "".join(f'<row r="{n}">{cells}</row>' for n, cells in enumerate(lines, start=1))
    parts = {
        **WORKBOOK,
        "xl/sheet.xml": f'<worksheet xmlns="{MAIN}"><sheetData>{sheet}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, f'<?xml version="1.0"?>{text}')
    return file


def test_excel_files_are_read_with_their_dates(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    items = make_xlsx(tmp_path / "i.xlsx", [["item_id", "title"], [862, "Lamp"], [863, "Rug"]])
    events: list[Cells] = [["u", 863, 45662.25], [None] * 3, ["u", 862, 45661.5], ["u", 9, 45661]]
    file = make_xlsx(tmp_path / "e.xlsx", [["user_id", "item_id", "timestamp"], *events])
    data = import_table(items, file, tmp_path / "out")
    times = data.events().collect()["timestamp"].dt.to_string("%Y-%m-%d %H:%M").to_list()
    assert [(h.item_ids) for h in data.histories()] == [("862", "863")]
    assert times == ["2025-01-04 12:00", "2025-01-05 06:00"]
    assert data.rejects().collect().select("row", "reason").rows() == [(5, "unknown item")]
    with pytest.raises(DataError, match="cannot be read as an Excel file"):
        import_table(write(tmp_path / "no.xlsx", "x"), items, tmp_path / "out2")


@pytest.mark.parametrize("last", [0.25, "06:00"])  # a column of times alone, and one with texts among them
def test_excel_times_of_day_in_their_own_column_are_joined_or_refused(
    tmp_path: Path, last: str | float
) -> None:
    pytest.importorskip("fastexcel")
    items = make_xlsx(tmp_path / "i.xlsx", [["item_id", "title"], ["a", "Lamp"], ["b", "Rug"]])
    rows: list[Cells] = [["u", "a", 45661, 0.5], ["u", "b", 45661, last]]
    events = make_xlsx(tmp_path / "e.xlsx", [["user_id", "item_id", "timestamp", "clock"], *rows])
    with pytest.raises(DataError, match="--timestamp timestamp,clock to join"):
        import_table(items, events, tmp_path / "out")
    data = import_table(items, events, tmp_path / "out", timestamp="timestamp,clock")
    times = data.events().collect()["timestamp"].dt.to_string("%d %H:%M").to_list()
    assert times == ["04 06:00", "04 12:00"]


def test_excel_files_need_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **options: object) -> object:
        if name == "fastexcel":
            raise ImportError(name)
        return real(name, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"trsr\[xlsx\]"):
        read(write(tmp_path / "i.xlsx", "x"))
