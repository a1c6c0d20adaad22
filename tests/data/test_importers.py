"""Configurations of importers, limits on refused rows, and the report of an import."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from importing import import_amazon_m2, import_mind, import_movielens, import_table
from pydantic import TypeAdapter, ValidationError

from trsr.data.dataset import Dataset
from trsr.data.importers import ImportConfig, import_summary, import_warnings, summary_lines
from trsr.errors import DataError

CONFIG: TypeAdapter[ImportConfig] = TypeAdapter(ImportConfig)
GOOD = "".join(f"u,a,2025-01-{day:02}\n" for day in range(1, 20))
HEAD = "user_id,item_id,timestamp\n"


def shop(folder: Path, events: str, **options: object) -> Dataset:
    (folder / "i.csv").write_text("item_id,title\na,Lamp\nb,Rug\n")
    (folder / "e.csv").write_text(events)
    return import_table(folder / "i.csv", folder / "e.csv", folder / "d", **{"overwrite": True, **options})


@pytest.mark.parametrize("kind", ["mind", "amazon-m2", "amazon-reviews", "movielens"])
def test_each_kind_leads_to_its_importer(tmp_path: Path, kind: str) -> None:
    config = CONFIG.validate_python({"kind": kind, "source": str(tmp_path / "nowhere")})
    with pytest.raises(DataError, match="nowhere"):
        config.run(tmp_path / "out")


@pytest.mark.parametrize(
    "config",
    [
        *({"kind": "nothing"}, {"kind": "mind"}, {"kind": "mind", "source": ".", "newz": 1}),
        *({"kind": "mind", "source": ".", "max_rejects": share} for share in (-0.1, 1.1, float("nan"))),
        *({"kind": "movielens", "source": ".", "min_rating": n} for n in (float("nan"), float("inf"))),
    ],
)
def test_a_wrong_configuration_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CONFIG.validate_python(config)


def test_options_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    for options, words in (
        ({"max_rejects": 2}, "Found max_rejects = 2; input should be less than or equal to 1"),
        ({"usre_id": "who"}, "Found usre_id = 'who'; extra inputs are not permitted"),
    ):
        with pytest.raises(DataError, match=words):
            shop(tmp_path, HEAD, **options)
    with pytest.raises(DataError, match="Found min_rating = nan; input should be a finite number"):
        import_movielens(tmp_path, tmp_path / "out", min_rating=float("nan"))


def test_a_table_is_imported_from_a_configuration(tmp_path: Path) -> None:
    shop(tmp_path, "user_id,item_id\nu,a\n")
    files = {"items": str(tmp_path / "i.csv"), "events": str(tmp_path / "e.csv")}
    config = CONFIG.validate_python({"kind": "table", "name": "mine", "text_fields": "title", **files})
    info = Dataset.open(config.run(tmp_path / "out")).info
    assert (info.name, info.text_fields) == ("mine", ["title"])


def test_every_kind_takes_the_options_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text("movieId#title#genres\n1#Lampe à huile#x\n", encoding="cp1252")
    (tmp_path / "ratings.csv").write_text("userId#movieId#rating#timestamp\n7#1#4#13.01.2000\n")
    options = {"delimiter": "#", "encoding": "latin-1", "time_format": "day-first"}
    data = import_movielens(tmp_path, tmp_path / "d", **options)
    assert data.catalogue()["1"].fields["title"] == "Lampe à huile"
    assert data.info.times is not None
    assert data.info.times.forms == {"day-first": 1}


def test_more_unreadable_rows_than_allowed_end_the_import(tmp_path: Path) -> None:
    events = f"{HEAD}{GOOD}u,b,soon\nu\n"
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


def test_references_to_unknown_items_are_counted_apart(tmp_path: Path) -> None:
    data = shop(tmp_path, f"{HEAD}{GOOD}u,z,2025-01-01\n")
    file = data.info.files["e.csv"]
    assert (file.references, file.unreadable_share, file.reference_share) == (1, 0.0, 0.05)
    assert any("5.0% of the references (1)" in sentence for sentence in import_warnings(data.info))


@pytest.mark.parametrize(
    ("events", "options", "histories", "words"),
    [
        (f"{HEAD}u,a,2025-01-01\nu,b,\n", {}, "a", ["50.0% of the entries (1) have no time"]),
        (
            f"{HEAD}u,a,2025-01-01\nu,b,\n",
            {"keep_untimed": True},
            "ab",
            ["1 events have no time; their 1 users"],
        ),
        (f"{HEAD}u,a,2\nu,b,1\n", {}, "ba", ["are no dates", "--time-format"]),
        (
            "user_id,item_id,kaufdatum,n\nu,a,2025-01-02,1\nu,b,2025-01-01,2\n",
            {},
            "ab",
            ["no time column was recognized", "--timestamp (these look like times: kaufdatum)"],
        ),
        (
            "user_id,item_id,kaufdatum\nu,a,2025-01-02\nu,b,2025-01-01\n",
            {"timestamp": "kaufdatum"},
            "ba",
            [],
        ),
        ("user_id,item_id,when,time\nu,a,1,\nu,b,2,\n", {}, "ab", ["the time column time is empty"]),
        (f"{HEAD}u,a,1970-01-01\n", {}, "a", ["often a missing time written as 0"]),
    ],
)
def test_import_warns_of_missing_or_doubtful_times(
    tmp_path: Path, events: str, options: dict[str, object], histories: str, words: list[str]
) -> None:
    data = shop(tmp_path, events, **options)
    assert ["".join(h.item_ids) for h in data.histories()] == [histories]
    warnings = import_warnings(data.info)
    assert len(warnings) == bool(words)
    assert all(word in warnings[0] for word in words)


def test_kinds_without_event_times_give_no_warning(tmp_path: Path) -> None:
    (tmp_path / "products_train.csv").write_text("id,locale,title\nB1,UK,Lamp\nB2,UK,Rug\n")
    (tmp_path / "sessions_train.csv").write_text("prev_items,next_item,locale\n['B1'],B2,UK\n")
    assert import_warnings(import_amazon_m2(tmp_path, tmp_path / "m2").info) == []
    (tmp_path / "news.tsv").write_text("N1\ts\tg\tLamp\tA\tu\t[]\t[]\n")
    (tmp_path / "behaviors.tsv").write_text("1\tU1\t\tN1\tN1-1\n2\tU2\t11/12/2019 9:05:58 AM\tN1\tN1-1\n")
    assert import_warnings(import_mind(tmp_path, tmp_path / "mind").info) == []


def test_summary_names_columns_and_a_guessed_encoding(tmp_path: Path) -> None:
    files = tmp_path / "i.csv", tmp_path / "e.csv"
    files[0].write_bytes("id,title\na,Café\n".encode("cp1252"))
    files[1].write_text("session_id,visitorid,item\ns,v,a\n")
    data = import_table(*files, tmp_path / "d")
    assert [h.user_id for h in data.histories()] == ["v"]
    _, items, events = summary_lines(data.info)
    assert "item id from id, cp1252 (guessed; --encoding names another)" in items
    assert "user id from visitorid (not session_id), item id from item," in events
    files[0].write_bytes("id,title\na,Café\n".encode("mac-roman"))
    named = import_table(*files, tmp_path / "n", encoding="mac-roman")
    assert named.catalogue()["a"].fields["title"] == "Café"
    assert "guessed" not in "".join(summary_lines(named.info))


@pytest.mark.parametrize(
    ("columns", "rows", "named"),
    [
        ("date,time", "u,a,2025-01-02,09:00\nu,b,2025-01-02,08:00\n", "date, time"),
        (
            "date,clock",
            "u,a,2025-01-02 00:00:00,09:00\nu,b,2025-01-02T00:00,08:00\n",
            "--timestamp date,clock",
        ),
        ("Datum,Uhrzeit", "u,a,15.05.2025,10:00\nu,b,15.05.2025,9:00\n", "--timestamp Datum,Uhrzeit"),
    ],
)
def test_dates_with_separate_times_of_day_are_not_read_alone(
    tmp_path: Path, columns: str, rows: str, named: str
) -> None:
    events = f"user_id,item_id,{columns}\n{rows}"
    with pytest.raises(DataError, match=named):
        shop(tmp_path, events)
    assert [h.item_ids for h in shop(tmp_path, events, timestamp=columns).histories()] == [("b", "a")]
    shop(tmp_path, events, timestamp=columns.partition(",")[0])


@pytest.mark.parametrize(("name", "value"), [("duration", "03:10"), ("n", "42:10")])
def test_a_duration_is_no_time_of_day(tmp_path: Path, name: str, value: str) -> None:
    data = shop(tmp_path, f"user_id,item_id,date,{name}\nu,a,2025-01-02,12:34\nu,b,2025-01-01,{value}\n")
    assert [h.item_ids for h in data.histories()] == [("b", "a")]
