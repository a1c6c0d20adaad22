from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from importing import import_mind

from trsr.data import text_lines
from trsr.data.schema import IMPRESSIONS
from trsr.data.validate import validate_dataset
from trsr.data.values import ID_RULE
from trsr.errors import DataError

NEWS = [
    'N1\tsport\tsoccer\t"Cup" final tonight\tTwo teams meet.\t\t[]\t[]',
    "N2\tfood\tbread\tRye at home\t\thttp://x\t[]\t[]",
    "N3\t\t\t\t\t\t[]\t[]",
]
BEHAVIORS = [
    "1\tU1\t11/12/2019 2:14:46 PM\tN1 N9 N2\tN1-0 N8-1",
    "2\tU1\t11/13/2019 2:14:46 AM\tN1 N9 N2\tN2-1",
    "3\tU2\t11/13/2019 2:14:46 AM\t\tN2-0 N1-0",
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return mind_files(tmp_path)


def mind_files(tmp_path: Path, news: list[str] = NEWS, behaviors: list[str] = BEHAVIORS) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir(exist_ok=True)
    (folder / "news.tsv").write_text("".join(line + "\n" for line in news))
    (folder / "behaviors.tsv").write_text("".join(line + "\n" for line in behaviors))
    return folder


def test_impressions_stay_as_logged_and_each_history_becomes_events_once(
    tmp_path: Path, source: Path
) -> None:
    data = import_mind(source, tmp_path / "out")
    shown = data.impressions()
    assert shown is not None
    assert shown.collect_schema() == IMPRESSIONS
    time = datetime(2019, 11, 12, 14, 14, 46, tzinfo=UTC)
    first = ("1", "U1", time, ["N1", "N9", "N2"], ["N1", "N8"], [False, True])
    assert shown.collect().rows()[0] == first
    assert shown.collect()["history"].to_list()[2] == []
    assert data.events().collect().rows() == [("U1", "N1", 0, None), ("U1", "N2", 1, None)]
    assert data.rejects().collect().rows() == [("behaviors.tsv", 1, "history entry without a news row", "N9")]
    assert data.info.counts["impressions"] == 3
    assert data.info.counts["history_positions"] == 6
    assert data.info.counts["items_without_text"] == 1
    assert dict(data.catalogue()["N1"].fields)["title"] == '"Cup" final tonight'
    assert list(validate_dataset(data.path)) == []


def test_the_longest_history_of_a_user_counts_and_others_are_counted(tmp_path: Path) -> None:
    rows = ["1\tU1\t\tN1\tN1-0", "2\tU1\t\tN2 N1\tN1-0", "3\tU1\t\tN1 N2\tN1-0", "4\tU1\t\tN2 N1\tN1-0"]
    data = import_mind(mind_files(tmp_path, behaviors=rows), tmp_path / "out")
    assert [h.item_ids for h in data.histories()] == [("N2", "N1")]
    assert data.info.counts["repeated_histories"] == 3
    assert data.info.counts["other_histories"] == 2


def test_rows_without_a_user_become_users_of_their_own(tmp_path: Path) -> None:
    rows = ["1\tU_UNKNOWN\t\tN1\tN1-0", "2\tU_UNKNOWN\t\tN2\tN1-0", "3\t\t\tN2\tN1-0"]
    data = import_mind(mind_files(tmp_path, behaviors=rows), tmp_path / "out")
    users = {h.user_id: h.item_ids for h in data.histories()}
    assert users == {"U_UNKNOWN:1": ("N1",), "U_UNKNOWN:2": ("N2",), "U_UNKNOWN:3": ("N2",)}


def test_rows_that_cannot_be_used_are_refused_each_with_its_reason(tmp_path: Path) -> None:
    bad = ["1\tU1\t\tN1", "\tU1\t\tN1\tN1-0", "5\tU1\tnoon\tN1\tN1-0", "6\tU1\t\tN1\tN1 N2"]
    bad += ["7\tU1\t\tN1\t", BEHAVIORS[0], "9\tU\u202e1\t\tN1\tN1-0"]
    data = import_mind(mind_files(tmp_path, behaviors=[*BEHAVIORS, *bad]), tmp_path / "out", max_rejects=1)
    assert data.info.counts["impressions"] == 3
    rejects = data.rejects().filter(pl.col("reason") != "history entry without a news row").collect()
    assert rejects.select("row", "reason").rows() == [
        (4, "another number of columns than the header"),
        (5, "no impression id"),
        (10, f"user id with {ID_RULE}"),
        (6, "time cannot be read"),
        (7, "candidates without labels, as in MIND's test files"),
        (8, "candidates are not of the form NEWS-0 or NEWS-1"),
        (9, "impression id seen before"),
    ]
    assert sorted(rejects["raw"]) == sorted(bad)


def test_a_first_line_of_another_width_is_refused_and_a_whole_file_too(tmp_path: Path) -> None:
    short = BEHAVIORS[0].partition("\t")[2]
    data = import_mind(mind_files(tmp_path, behaviors=[short, *BEHAVIORS]), tmp_path / "out", max_rejects=0.5)
    assert data.info.counts["impressions"] == 3
    words = "has 4 columns, expected 5: impression_id, user_id, time, history, candidates; check"
    with pytest.raises(DataError, match=words):
        import_mind(mind_files(tmp_path, behaviors=[short, short]), tmp_path / "none")


def test_batches_change_nothing(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = import_mind(source, tmp_path / "whole")
    monkeypatch.setattr(text_lines, "BATCH_BYTES", 60)
    monkeypatch.setattr("trsr.data.mind._HISTORY_ROWS", 1)
    pieces = import_mind(source, tmp_path / "pieces")
    assert whole.info.sha256["events.parquet"] == pieces.info.sha256["events.parquet"]
    assert whole.info.counts == pieces.info.counts
    assert whole.items().collect().equals(pieces.items().collect())


def test_a_missing_file_an_empty_file_and_a_wrong_field_are_one_sentence(
    tmp_path: Path, source: Path
) -> None:
    with pytest.raises(DataError, match=r"no file .*news.tsv"):
        import_mind(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="no text field 'body'"):
        import_mind(source, tmp_path / "out", text_fields=["body"])
    (source / "behaviors.tsv").write_text("")
    with pytest.raises(DataError, match=r"behaviors.tsv is empty"):
        import_mind(source, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


@pytest.mark.real_data
@pytest.mark.skipif("TRSR_REAL_DATA" not in os.environ, reason="TRSR_REAL_DATA does not name the real data")
def test_real_mind_has_its_published_counts(tmp_path: Path) -> None:
    real = Path(os.environ["TRSR_REAL_DATA"]) / "mind_small"
    data = import_mind(real, tmp_path / "out")
    counts = data.info.counts
    found = [counts[what] for what in ("items", "impressions", "users", "events")]
    assert found == [5618, 5000, 4492, 86565]
    with (real / "click_histories_with_text.jsonl").open() as lines:
        expected = {row["user_id"]: tuple(row["items"]) for row in map(json.loads, lines)}
    assert {h.user_id: h.item_ids for h in data.histories()} == expected
    assert data.rejects_by_reason() == {"behaviors.tsv: history entry without a news row": 52367}
    assert list(validate_dataset(data.path)) == []
    single = import_mind(real, tmp_path / "full-text", behaviors="impressions_full_text.tsv")
    assert (single.info.counts["impressions"], single.info.counts["users"]) == (100, 100)


def test_markers_of_missing_values_are_missing(tmp_path: Path) -> None:
    rows = ["1\tNULL\t\\N\tnan\tN1-0", "2\tNone\tNA\tN1\tN2-1", "N/A\tU\t\tN1\tN1-0", *BEHAVIORS[1:]]
    news = [*NEWS, "N4\tNone\tNULL\tnull\tNA\t\t[]\t[]", "NA\ta\tb\tc\td\t\t[]\t[]"]
    data = import_mind(mind_files(tmp_path, news, rows), tmp_path / "out", max_rejects=1)
    shown = data.impressions()
    assert shown is not None
    found = shown.select("user_id", "timestamp", "history").head(2).collect()
    assert found.rows() == [("U_UNKNOWN:1", None, []), ("U_UNKNOWN:2", None, ["N1"])]
    assert dict(data.catalogue()["N4"].fields) == {}
    assert data.info.counts["texts_that_say_missing"] == 4
    missing = {"behaviors.tsv: no impression id": 1, "news.tsv: no item id": 1}
    assert missing.items() <= data.rejects_by_reason().items()


def test_a_header_line_is_no_news_and_no_impression(tmp_path: Path) -> None:
    header = "news_id\tcategory\tsubcategory\ttitle\tabstract\turl\te\tf"
    behaviors = ["impression_id\tuser_id\ttime\thistory\timpressions", *BEHAVIORS]
    data = import_mind(mind_files(tmp_path, [header, *NEWS], behaviors), tmp_path / "out")
    assert list(data.catalogue()) == ["N1", "N2", "N3"]
    assert data.info.counts["impressions"] == 3
    assert data.rejects_by_reason() == {
        "behaviors.tsv: history entry without a news row": 1,
        "behaviors.tsv: the header line again": 1,
        "news.tsv: the header line again": 1,
    }
