"""How text files are written, found out or named, and how much of one may be refused."""

from __future__ import annotations

import builtins
import zipfile
from pathlib import Path

import polars as pl
import pytest
from importing import import_amazon_m2, import_mind, import_movielens, import_table

from trsr.data import text_lines
from trsr.data.dataset import Dataset
from trsr.data.import_info import FileInfo
from trsr.data.importers import import_summary, import_warnings, summary_lines
from trsr.data.readers import read_frames
from trsr.data.text_lines import ROW
from trsr.errors import DataError, MissingExtraError

ITEMS = "item_id;title\na;Café, Übermaß\nb;Thé\n"


def read(file: Path, content: str | bytes, text: FileInfo | None = None, **options: object) -> pl.DataFrame:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return pl.concat(read_frames(file, lambda *_: None, text or FileInfo(), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [7, 2**20])
@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32"),
        ("cp1252", "cp1252"),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_encoding_and_line_ends_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, found: str, line_end: str, batch: int
) -> None:
    monkeypatch.setattr(text_lines, "BATCH_BYTES", batch)
    text = FileInfo()
    table = read(tmp_path / "i.csv", ITEMS.replace("\n", line_end).encode(encoding), text)
    assert table["title"].to_list() == ["Café, Übermaß", "Thé"]
    assert table[ROW].to_list() == [2, 3]
    assert (text.encoding, text.delimiter) == (found, ";")


def test_a_named_encoding_is_used_and_an_unknown_one_refused(tmp_path: Path) -> None:
    cyrillic = "item_id,title\na,Привет\n".encode("cp1251")
    assert read(tmp_path / "i.csv", cyrillic, FileInfo(encoding="cp1251"))["title"].to_list() == ["Привет"]
    assert read(tmp_path / "i.csv", cyrillic).is_empty()  # no western words: refused by line, not guessed
    for unknown in ("klingon", "rot13", "base64"):
        with pytest.raises(DataError, match="no text encoding"):
            read(tmp_path / "i.csv", cyrillic, FileInfo(encoding=unknown))


def test_a_line_that_the_encoding_cannot_hold_is_refused_alone(tmp_path: Path) -> None:
    content = (
        "item_id,title\na,x\nb,".encode("utf-16-le") + b"\x00\xd8" + "\nc,z\n".encode("utf-16-le") + b"d"
    )
    refused: list[str] = []
    (tmp_path / "i.csv").write_bytes(content)
    frames = list(read_frames(tmp_path / "i.csv", lambda _rows, reason: refused.append(reason), FileInfo()))
    assert pl.concat(frames)["item_id"].to_list() == ["a", "c"]
    assert "not UTF-16-LE" in refused


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "::"])
@pytest.mark.parametrize("name", ["i.csv", "i.tsv", "i.txt"])
def test_the_delimiter_is_found_whatever_the_suffix(tmp_path: Path, name: str, delimiter: str) -> None:
    rows = [["item_id", "title", "price"], ["a", "one. two", "3.5"], ["b", "x", "4"]]
    text = FileInfo()
    table = read(tmp_path / name, "\n".join(delimiter.join(row) for row in rows), text)
    assert table["title"].to_list() == ["one. two", "x"]
    assert text.delimiter == delimiter


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
def test_marks_inside_of_values_are_no_delimiters(tmp_path: Path, content: str, delimiter: str) -> None:
    text = FileInfo()
    assert len(read(tmp_path / "i.csv", content, text).columns) == 4
    assert text.delimiter == delimiter


def test_a_named_delimiter_is_used(tmp_path: Path) -> None:
    assert read(tmp_path / "i.csv", "id#text\na#x, y\n", FileInfo(delimiter="#"))["text"].to_list() == [
        "x, y"
    ]
    assert read(tmp_path / "i.csv", "id\ttext\na\tx\n", FileInfo(delimiter="tab"))["text"].to_list() == ["x"]
    for wrong in ("", '"', "\n"):
        with pytest.raises(DataError, match=r"delimiter .* cannot be used"):
            read(tmp_path / "i.csv", "id,text\n", FileInfo(delimiter=wrong))


CELL_STYLES = {"timestamp": 1, "clock": 2}


def make_xlsx(file: Path, rows: list[list[str | float | None]]) -> Path:
    """Write a workbook of one sheet; a number below `timestamp` is a date, below `clock` a time of day."""

    def cell(place: int, row: int, value: str | float | None) -> str:
        ref = f"{'ABCDEF'[place]}{row}"
        if value is None:
            return ""
        if isinstance(value, str):
            return f'<c r="{ref}" t="inlineStr"><is><t>{value}</t></is></c>'
        return f'<c r="{ref}" s="{CELL_STYLES.get(str(rows[0][place]), 0)}"><v>{value}</v></c>'

    sheet = "".join(
        f'<row r="{n}">{"".join(cell(i, n, value) for i, value in enumerate(row))}</row>'
        for n, row in enumerate(rows, start=1)
    )
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    rels = "http://schemas.openxmlformats.org/package/2006/relationships"
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    content = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": (
            '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            '<Default Extension="rels" '
            'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/xl/workbook.xml" ContentType="{content}.sheet.main+xml"/>'
            f'<Override PartName="/xl/sheet.xml" ContentType="{content}.worksheet+xml"/>'
            f'<Override PartName="/xl/styles.xml" ContentType="{content}.styles+xml"/></Types>'
        ),
        "_rels/.rels": (
            f'<Relationships xmlns="{rels}"><Relationship Id="r1" Type="{kind}/officeDocument" '
            'Target="xl/workbook.xml"/></Relationships>'
        ),
        "xl/workbook.xml": (
            f'<workbook xmlns="{main}" xmlns:r="{kind}">'
            '<sheets><sheet name="S" sheetId="1" r:id="r1"/></sheets></workbook>'
        ),
        "xl/_rels/workbook.xml.rels": (
            f'<Relationships xmlns="{rels}">'
            f'<Relationship Id="r1" Type="{kind}/worksheet" Target="sheet.xml"/>'
            f'<Relationship Id="r2" Type="{kind}/styles" Target="styles.xml"/></Relationships>'
        ),
        "xl/styles.xml": (
            f'<styleSheet xmlns="{main}"><cellXfs count="3"><xf numFmtId="0"/><xf numFmtId="22"/>'
            '<xf numFmtId="21"/></cellXfs></styleSheet>'
        ),
        "xl/sheet.xml": f'<worksheet xmlns="{main}"><sheetData>{sheet}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, f'<?xml version="1.0"?>{text}')
    return file


def test_excel_files_are_read_with_their_dates(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    items = make_xlsx(tmp_path / "i.xlsx", [["item_id", "title"], [862, "Lamp"], [863, "Rug"]])
    rows: list[list[str | float | None]] = [
        ["user_id", "item_id", "timestamp"],
        ["u", 863, 45662.25],
        [None] * 3,
        ["u", 862, 45661.5],
        ["u", 9, 45661],
    ]
    data = import_table(items, make_xlsx(tmp_path / "e.xlsx", rows), tmp_path / "out")
    (history,) = data.histories()
    assert history.item_ids == ("862", "863")
    assert [str(time) for time in history.timestamps or ()] == [
        "2025-01-04 12:00:00+00:00",
        "2025-01-05 06:00:00+00:00",
    ]
    assert data.rejects().collect().select("row", "reason").rows() == [(5, "unknown item")]
    (tmp_path / "no.xlsx").write_text("x")
    with pytest.raises(DataError, match="cannot be read as an Excel file"):
        import_table(tmp_path / "no.xlsx", items, tmp_path / "out2")


def test_times_of_day_in_an_excel_column_of_their_own_are_joined_or_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    items = make_xlsx(tmp_path / "i.xlsx", [["item_id", "title"], ["a", "Lamp"], ["b", "Rug"]])
    rows: list[list[str | float | None]] = [
        ["user_id", "item_id", "timestamp", "clock"],
        ["u", "a", 45661, 0.5],
        ["u", "b", 45661, 0.25],
    ]
    for last in (0.25, "06:00"):  # a column of times alone, and one with texts among them
        rows[-1][-1] = last
        events = make_xlsx(tmp_path / "e.xlsx", rows)
        with pytest.raises(DataError, match="--timestamp timestamp,clock to join"):
            import_table(items, events, tmp_path / "out", overwrite=True)
        data = import_table(items, events, tmp_path / "out", timestamp="timestamp,clock", overwrite=True)
        times = data.events().collect()["timestamp"].dt.to_string("%d %H:%M").to_list()
        assert times == ["04 06:00", "04 12:00"]


def test_excel_files_need_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **options: object) -> object:
        if name == "fastexcel":
            raise ImportError(name)
        return real(name, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "i.xlsx").write_text("x")
    with pytest.raises(MissingExtraError, match=r"trsr\[xlsx\]"):
        list(read_frames(tmp_path / "i.xlsx", lambda *_: None, FileInfo()))


def shop(folder: Path, events: str, **options: object) -> Dataset:
    (folder / "i.csv").write_text("item_id,title\na,Lamp\nb,Rug\n")
    (folder / "e.csv").write_text(events)
    return import_table(folder / "i.csv", folder / "e.csv", folder / "d", **options)


GOOD = "".join(f"u,a,2025-01-{day:02}\n" for day in range(1, 20))


def test_more_unreadable_rows_than_allowed_end_the_import(tmp_path: Path) -> None:
    events = f"user_id,item_id,timestamp\n{GOOD}u,b,soon\nu\n"
    with pytest.raises(
        DataError, match=r"e.csv: 9\..% of the rows cannot be used .*1 for 'time cannot be read'.*5.0%"
    ) as e:
        shop(tmp_path, events)
    assert not (tmp_path / "d").exists()
    assert "--time-format" in str(e.value)
    kept = pl.read_parquet(tmp_path / "d.rejects.parquet")
    assert str(tmp_path / "d.rejects.parquet") in str(e.value)
    assert kept.select("row", "raw").rows() == [(22, "u"), (21, "u,b,soon")]
    data = shop(tmp_path, events, max_rejects=0.1)
    assert import_summary(data)["files"]["e.csv"]["unreadable_share"] == pytest.approx(1 / 21 + 1 / 20)  # type: ignore[index]
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(DataError, match="expected 0 to 1"):
            shop(tmp_path, events, max_rejects=share, overwrite=True)


def test_references_to_unknown_items_are_counted_apart(tmp_path: Path) -> None:
    data = shop(tmp_path, f"user_id,item_id,timestamp\n{GOOD}u,z,2025-01-01\n")
    file = data.info.files["e.csv"]
    assert (file.references, file.unreadable_share, file.reference_share) == (1, 0.0, 0.05)
    assert any("5.0% of the references (1)" in sentence for sentence in import_warnings(data.info))


def test_rows_without_a_time_are_no_unreadable_rows(tmp_path: Path) -> None:
    data = shop(tmp_path, "user_id,item_id,timestamp\nu,a,2025-01-01\nu,b,\n")
    assert [h.item_ids for h in data.histories()] == [("a",)]
    assert any("50.0% of the entries (1) have no time" in sentence for sentence in import_warnings(data.info))
    kept = import_table(tmp_path / "i.csv", tmp_path / "e.csv", tmp_path / "kept", keep_untimed=True)
    assert any("1 events have no time; their 1 users" in sentence for sentence in import_warnings(kept.info))


def test_a_table_without_a_time_column_names_the_likely_ones(tmp_path: Path) -> None:
    data = shop(tmp_path, "user_id,item_id,kaufdatum,n\nu,a,2025-01-02,1\nu,b,2025-01-01,2\n")
    (sentence,) = import_warnings(data.info)
    assert "no time column was recognized" in sentence
    assert "--timestamp (these look like times: kaufdatum)" in sentence
    named = import_table(tmp_path / "i.csv", tmp_path / "e.csv", tmp_path / "n", timestamp="kaufdatum")
    assert [h.item_ids for h in named.histories()] == [("b", "a")]
    assert import_warnings(named.info) == []


def test_dates_at_midnight_are_mere_dates_beside_times_of_day(tmp_path: Path) -> None:
    events = "user_id,item_id,date,clock\nu,a,2025-01-02 00:00:00,09:00\nu,b,2025-01-02T00:00,08:00\n"
    with pytest.raises(DataError, match="--timestamp date,clock"):
        shop(tmp_path, events)
    assert [h.item_ids for h in shop(tmp_path, events, timestamp="date,clock").histories()] == [("b", "a")]


@pytest.mark.parametrize("column", ["duration,03:10", "n,42:10"])
def test_a_duration_is_no_time_of_day(tmp_path: Path, column: str) -> None:
    name, value = column.split(",")
    data = shop(tmp_path, f"user_id,item_id,date,{name}\nu,a,2025-01-02,12:34\nu,b,2025-01-01,{value}\n")
    assert [h.item_ids for h in data.histories()] == [("b", "a")]


def test_the_summary_says_which_columns_were_read_and_that_the_encoding_was_guessed(tmp_path: Path) -> None:
    files = tmp_path / "i.csv", tmp_path / "e.csv"
    files[0].write_bytes("id,title\na,Café\n".encode("cp1252"))
    files[1].write_text("session_id,visitorid,item\ns,v,a\n")
    data = import_table(*files, tmp_path / "d")
    assert [h.user_id for h in data.histories()] == ["v"]
    items, events = summary_lines(data.info)[1:]
    assert "item id from id, cp1252 (guessed; --encoding names another)" in items
    assert "user id from visitorid (not session_id), item id from item," in events
    files[0].write_bytes("id,title\na,Café\n".encode("mac-roman"))
    named = import_table(*files, tmp_path / "n", encoding="mac-roman")
    assert named.catalogue()["a"].fields["title"] == "Café"
    assert "guessed" not in "".join(summary_lines(named.info))


def test_a_date_and_a_time_of_day_can_be_joined(tmp_path: Path) -> None:
    events = "user_id,item_id,date,time\nu,a,2025-01-02,09:00\nu,b,2025-01-02,08:00\n"
    with pytest.raises(DataError, match="date, time"):
        shop(tmp_path, events)
    assert [h.item_ids for h in shop(tmp_path, events, timestamp="date,time").histories()] == [("b", "a")]


def test_every_kind_takes_the_options_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text("movieId#title#genres\n1#Lampe à huile#x\n", encoding="cp1252")
    (tmp_path / "ratings.csv").write_text("userId#movieId#rating#timestamp\n7#1#4#13.01.2000\n")
    data = import_movielens(
        tmp_path, tmp_path / "d", delimiter="#", encoding="latin-1", time_format="day-first"
    )
    assert data.catalogue()["1"].fields["title"] == "Lampe à huile"
    assert data.info.times is not None
    assert data.info.times.forms == {"day-first": 1}


def test_numbers_that_are_no_times_order_the_histories_and_are_said_to_be_none(tmp_path: Path) -> None:
    data = shop(tmp_path, "user_id,item_id,timestamp\nu,a,2\nu,b,1\n")
    assert [(h.item_ids, h.timestamps) for h in data.histories()] == [(("b", "a"), None)]
    (sentence,) = import_warnings(data.info)
    assert "are no dates" in sentence
    assert "--time-format" in sentence


def test_kinds_of_data_without_times_of_events_are_not_warned_of(tmp_path: Path) -> None:
    (tmp_path / "products_train.csv").write_text("id,locale,title\nB1,UK,Lamp\nB2,UK,Rug\n")
    (tmp_path / "sessions_train.csv").write_text("prev_items,next_item,locale\n['B1'],B2,UK\n")
    assert import_warnings(import_amazon_m2(tmp_path, tmp_path / "m2").info) == []
    (tmp_path / "news.tsv").write_text("N1\ts\tg\tLamp\tA\tu\t[]\t[]\n")
    (tmp_path / "behaviors.tsv").write_text("1\tU1\t\tN1\tN1-1\n2\tU2\t11/12/2019 9:05:58 AM\tN1\tN1-1\n")
    assert import_warnings(import_mind(tmp_path, tmp_path / "mind").info) == []


def test_an_empty_time_column_is_said_to_be_empty(tmp_path: Path) -> None:
    (sentence,) = import_warnings(shop(tmp_path, "user_id,item_id,when,time\nu,a,1,\nu,b,2,\n").info)
    assert "the time column time is empty" in sentence
