"""Lines, CSV records and frames of raw files (`rawlines`, `rawcsv`, `rawtables`)."""

from __future__ import annotations

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

from trsr.data import text_lines
from trsr.data.import_info import FileInfo
from trsr.data.readers import read_frames
from trsr.data.text_lines import RAW, ROW, split_records
from trsr.errors import DataError


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


def test_csv_with_quotes_newlines_and_a_byte_order_mark(tmp_path: Path) -> None:
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
    lines = [
        "id,text",
        *(f'{i},"some\ntext {i}"' if i % 3 == 0 else f"{i},plain" for i in range(20)),
        '20,"open',
    ]
    file = write(tmp_path / "a.csv", "\n".join(lines))
    refused = Refused()
    table = read(file, refused)
    assert table["id"].to_list() == [str(i) for i in range(20)]
    assert table.filter(pl.col("id") == "7")[ROW].item() == 2 + 7 + 3
    assert [reason for _, _, reason in refused] == ["broken quote"]


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=8),
            min_size=2,
            max_size=2,
        ),
        min_size=1,
    ),
    st.integers(1, 5),
)
def test_whatever_a_csv_writer_writes_is_read_back(rows: list[list[str]], size: int) -> None:
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


def test_tsv_takes_quotes_as_letters_unless_told(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", 'id\ttext\n1\t"so said he\n2\t"x"\n')
    assert read(file)["text"].to_list() == ['"so said he', '"x"']
    refused = Refused()
    assert read(file, refused, quotes=True)["text"].to_list() == ["x"]
    assert len(refused) == 1


@pytest.mark.parametrize(
    ("content", "texts", "quotes"),
    [
        ('"id"\t"text"\n"1"\t"a ""b"""\n"2"\t"c\nd"\n', ['a "b"', "c\nd"], True),  # all are quoted
        ('id\ttext\n1\t"a, b"\n2\tc\n3\t5" nail\n', ["a, b", "c", '5" nail'], True),  # only where needed
        ('id\ttext\n1\t"a"\n2\tc\n', ['"a"', "c"], False),  # a quotation
        ('id\ttext\n1\t"a, b"\n2\t"c"\n3\td\n', ['"a, b"', '"c"', "d"], False),  # one without need
        ('id\ttext\n1\t"a, b"\n2\t"c" said d\n', ['"a, b"', '"c" said d'], False),
        ('id\ttext\n1\t"a\n2\tb"\n', ['"a', 'b"'], False),  # from one to the other is no field
    ],
)
def test_quotes_of_a_tsv_are_read_as_such_where_it_uses_them_throughout(
    tmp_path: Path, content: str, texts: list[str], quotes: bool
) -> None:
    info = FileInfo()
    assert read(write(tmp_path / "a.tsv", content), info=info)["text"].to_list() == texts
    assert info.quotes == quotes


def test_one_broken_quote_among_many_costs_one_row_of_a_tsv(tmp_path: Path) -> None:
    rows = "".join(f'{n}\t"a, b"\n' for n in range(40))
    refused = Refused()
    table = read(write(tmp_path / "a.tsv", f'id\ttext\n{rows}x\t"open\n'), refused)
    assert table["text"].to_list() == ["a, b"] * 40
    assert [reason for _, _, reason in refused] == ["broken quote"]


def test_a_txt_file_with_commas_may_have_quotes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", 'id,text\n1,"a, b"\n2,"c, d"\n')
    assert read(file)["text"].to_list() == ["a, b", "c, d"]


def test_gzip_is_read_under_any_name_and_other_bytes_are_named(tmp_path: Path) -> None:
    for name in ("a.csv", "a.tsv", "a.jsonl"):
        content = '{"id": "1"}\n' if name.endswith("jsonl") else "id\n1\n"
        assert read(write(tmp_path / name, gzip.compress(content.encode())))["id"].to_list() == ["1"]
    parquet = io.BytesIO()
    pl.DataFrame({"id": [1]}).write_parquet(parquet)
    archive = io.BytesIO()
    zipfile.ZipFile(archive, "w").writestr("a.csv", "id\n1\n")
    for data, words in {
        parquet.getvalue(): "no text but holds Parquet; rename it to .parquet",
        gzip.compress(parquet.getvalue()): "holds Parquet",
        archive.getvalue(): r"holds a zip archive; unpack it, or rename it to .xlsx",
        bz2.compress(b"id\n1\n"): "holds bzip2 data",
        lzma.compress(b"id\n1\n"): "holds xz data",
        gzip.compress(gzip.compress(b"id\n1\n")): "gzip data inside of gzip data",
    }.items():
        for name in ("b.csv", "b.tsv", "b.jsonl"):
            with pytest.raises(DataError, match=words):
                read(write(tmp_path / name, data))


@pytest.mark.usefixtures("small_batches")
def test_a_line_that_is_not_utf8_is_refused_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", b"id\ttext\n1\tgood\n2\tb\xffd\n3\tgood too\n")
    refused = Refused()
    assert read(file, refused)["id"].to_list() == ["1", "3"]
    assert refused == [(3, "2\tb\\xffd", "not UTF-8")]


def test_another_number_of_columns_is_refused(tmp_path: Path) -> None:
    for name, content in (("a.tsv", "a\tb\n1\t2\n1\t2\t3\n"), ("a.csv", 'a,b\n"1",2\n1,2,"3"\n')):
        refused = Refused()
        assert len(read(write(tmp_path / name, content), refused)) == 1
        assert [(row, reason) for row, _, reason in refused] == [
            (3, "another number of columns than the header")
        ]


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
    file = write(tmp_path / "a.jsonl", "\n".join(json.dumps(r) for r in records) + "\n")
    table = read(file)
    assert table["id"].to_list() == ["1", "2"]
    assert table["f"].to_list() == ["2", None]
    assert table["n"].to_list() == [None, None]
    assert table["l"].to_list() == [["a", "b"], None]
    assert table["d"].to_list() == [["k: v"], None]
    assert table["b"].to_list() == [None, "True"]
    assert table["t"].to_list() == ["x", "\ufffd half"]


def test_lines_that_are_no_json_object_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"id": 1}\n{"id": 2\n[3]\n' + "[" * 100_000 + "\n\n{}\n")
    refused = Refused()
    assert read(file, refused)["id"].to_list() == ["1", None]
    assert [(row, reason) for row, _, reason in refused] == [(i, "not a JSON object") for i in (2, 3, 4)]


@pytest.mark.usefixtures("small_batches")
def test_a_json_key_that_a_batch_lacks_is_null_there(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"id": 1, "user": "u"}\n{"id": 2}\n{"id": 3, "more": 4}\n')
    assert read(file)["user"].to_list() == ["u", None, None]


def test_gzip_is_read_and_a_cut_one_is_one_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(b"id,t\n1,x\n")
    assert read(write(tmp_path / "a.csv.gz", whole))["t"].to_list() == ["x"]
    for damaged in (whole[:-6], b"no gzip"):
        with pytest.raises(DataError, match="damaged gzip"):
            read(write(tmp_path / "b.csv.gz", damaged))


def test_parquet_columns_become_text(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "id": [1, 2],
            "f": [3.0, float("nan")],
            "when": [datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)] * 2,
            "items": [[1, 2], []],
            "s": [{"k": 1}, None],
            "day": [date(2020, 2, 29), None],
            "span": [timedelta(days=1), None],
            "levels": [[["a"], ["b", None]], None],
            "grid": pl.Series([[[1, 2], [3, 4]]] * 2, dtype=pl.Array(pl.Int8, (2, 2))),
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    table = read(tmp_path / "a.parquet")
    moment, grid = "1970-01-01 00:00:01.000000+00:00", ["1", "2", "3", "4"]
    assert table.drop(RAW).rows() == [
        (1, "1", "3", moment, ["1", "2"], '{"k": 1}', "2020-02-29", "P1D", ["a", "b", None], grid),
        (2, "2", None, moment, [], None, None, None, None, grid),
    ]
    assert '"id":"1"' in table[RAW][0]


def test_bytes_in_parquet_are_text_where_they_are_utf8_and_refused_elsewhere(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "id": [b"a", b"b", b"\xff", None, b"c"],
            "tags": [[b"x", None], None, [b"x"], [], [b"y", b"caf\xe9"]],
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    refused = Refused()
    table = read(tmp_path / "a.parquet", refused)
    assert table.select(ROW, "id", "tags").rows() == [
        (1, "a", ["x", None]),
        (2, "b", None),
        (4, None, []),
    ]
    assert [(row, reason) for row, _, reason in refused] == [(3, "not UTF-8"), (5, "not UTF-8")]
    assert "caf\\\\xe9" in refused[1][1]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_an_empty_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="is empty"):
        read(write(tmp_path / name, ""))


def test_files_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    pl.DataFrame({"a": []}).write_parquet(tmp_path / "empty.parquet")
    for file, words in {
        tmp_path / "none.csv": "no file",
        tmp_path / "none.parquet": "no file",
        write(tmp_path / "a.zip", "x"): "unknown suffix",
        write(tmp_path / "a.parquet", "x"): "cannot be read as Parquet",
        tmp_path / "empty.parquet": "is empty",
        write(tmp_path / "list.json", '[{"id": 1}]'): "one JSON list",
        write(tmp_path / "a.jsonl", "no json\n"): "no JSON object",
        write(tmp_path / "b.csv", b"\xff\xfe\n1\n"): "no readable header",
        write(tmp_path / "c.csv", "id,id\n1,2\n"): "more than one column called 'id'",
        write(tmp_path / "d.csv", "\nid\n"): "no readable header",
        write(tmp_path / "f.csv", '{"id": 1}\n'): "holds JSON; rename it to .jsonl",
        write(tmp_path / "e.csv", 'id,"text\n1,x\n'): "broken quote in its header line",
    }.items():
        with pytest.raises(DataError, match=words):
            read(file)


def test_a_folder_in_place_of_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "x.csv")
