"""Bad input as a user meets it: one clear sentence and exit code 2, or a row in rejects.parquet.

Mistakes in a configuration, a model or a run folder are in `test_experiment`.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Answer, tiny_run
from helpers import full_disk, read_only, temporary_folder

from trsr.data.dataset import Dataset

Trsr = Callable[..., Answer]
ITEMS = "item_id,title\na,Lamp\nb,Rug\nc,Box\n"
EVENTS = "user_id,item_id,timestamp\nu,a,100\nu,b,200\nv,c,100\n"


@pytest.fixture
def load(trsr: Trsr, tmp_path: Path) -> Callable[..., Answer]:
    """Runs `trsr import table` on two files with the given contents, into `tmp_path/data`."""

    def run(items: str | bytes = ITEMS, events: str | bytes = EVENTS, *options: str) -> Answer:
        names = ("items.csv", "events.csv")
        for name, content in zip(names, (items, events), strict=True):
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        files = ("--items", tmp_path / names[0], "--events", tmp_path / names[1])
        return trsr("import", "table", *files, "--out", tmp_path / "data", *options)

    return run


def assert_one_sentence(answer: Answer, *words: str) -> None:
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("Error: ")
    assert answer.err.endswith(".\n")
    assert answer.err.count("\n") == 1
    for word in words:
        assert word in answer.err


def rejected(folder: Path) -> list[tuple[str, int, str]]:
    rejects = Dataset.open(folder / "data").rejects().select("file", "row", "reason")
    return rejects.sort("file", "row").collect().rows()


def histories(folder: Path) -> dict[str, tuple[str, ...]]:
    return {history.user_id: history.item_ids for history in Dataset.open(folder / "data").histories()}


def test_a_missing_column_is_one_sentence_with_the_option_that_names_it(
    load: Callable[..., Answer], tmp_path: Path
) -> None:
    assert_one_sentence(load(events="who,item_id\nu,a\n"), "found who, item_id", "--user-id")
    assert_one_sentence(load(items="name\nLamp\n"), "found name", "--item-id")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("empty", ["items", "events"])
def test_an_empty_file_is_one_sentence(load: Callable[..., Answer], empty: str) -> None:
    assert_one_sentence(load(**{empty: ""}), f"{empty}.csv is empty", "expected at least one row")


def test_an_empty_compressed_file_is_one_sentence(trsr: Trsr, tmp_path: Path) -> None:
    (tmp_path / "i.csv.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "e.csv").write_text(EVENTS)
    files = ("--items", tmp_path / "i.csv.gz", "--events", tmp_path / "e.csv")
    assert_one_sentence(trsr("import", "table", *files, "--out", tmp_path / "d"), "i.csv.gz is empty")


def test_bytes_that_are_not_utf8_are_a_rejected_row_and_in_the_header_a_sentence(
    load: Callable[..., Answer], tmp_path: Path
) -> None:
    assert load(ITEMS.encode() + b"d,caf\xff\n", EVENTS, "--max-rejects", "0.3").code == 0
    assert rejected(tmp_path) == [("items.csv", 5, "not UTF-8")]
    assert_one_sentence(load(b"\xff" + ITEMS.encode(), EVENTS, "--overwrite"), "header line", "encoding")
    assert histories(tmp_path) == {"u": ("a", "b"), "v": ("c",)}, "the dataset made before is kept"


def test_a_description_of_a_megabyte_goes_through_and_is_cut_in_the_prompt(
    load: Callable[..., Answer], trsr: Trsr, tmp_path: Path
) -> None:
    assert load(items=f"item_id,title\na,{'lamp ' * 200_000}\nb,Rug\nc,Box\n").code == 0
    assert len(Dataset.open(tmp_path / "data").catalogue()["a"].fields["title"]) == 10**6 - 1
    answer = trsr("summarize", tmp_path / "data", "--engine", "fake", "--show", "u")
    assert answer.code == 0
    assert len(answer.out) < 2000


def test_an_item_without_text_is_counted_and_never_shown(
    load: Callable[..., Answer], trsr: Trsr, tmp_path: Path
) -> None:
    assert "items without text: 1\n" in load(items="item_id,title\na,Lamp\nb,\nc,Box\n").out
    answer = trsr("summarize", tmp_path / "data", "--engine", "fake", "--show", "u")
    assert "User u: 1 items" in answer.out
    assert "(no description)" not in answer.out


def test_a_dataset_without_any_text_is_one_sentence(
    load: Callable[..., Answer], trsr: Trsr, tmp_path: Path
) -> None:
    assert load(items="item_id,title\na,\nb,NaN\nc, \n").code == 0
    answer = trsr("summarize", tmp_path / "data", "--engine", "fake")
    assert_one_sentence(answer, "no user with items that have text")
    assert not (tmp_path / "data" / "profiles.parquet").exists()


def test_a_user_with_one_event_has_a_profile_and_too_many_of_them_is_one_sentence(
    load: Callable[..., Answer], trsr: Trsr, tmp_path: Path, tiny_model: Path
) -> None:
    assert load().code == 0
    shown = trsr("summarize", tmp_path / "data", "--engine", "fake", "--show", "v")
    assert "User v: 1 items in 1 blocks" in shown.out
    content = tiny_run(tiny_model, data={"kind": "folder", "path": str(tmp_path / "data")})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    answer = trsr("rank", tmp_path / "c.yaml", "--out", tmp_path / "run", "--dry-run")
    assert answer.code == 2
    assert answer.err.splitlines()[-1] == (
        "Error: Only 0 users can be used, but 8 for training, 3 for validation and 12 for the test are "
        "requested; lower these numbers or the limits on history."
    )


@pytest.mark.parametrize("file", ["items.parquet", "events.parquet"])
def test_a_damaged_dataset_is_one_sentence(
    load: Callable[..., Answer], trsr: Trsr, tmp_path: Path, file: str
) -> None:
    assert load().code == 0
    path = tmp_path / "data" / file
    path.write_bytes(path.read_bytes()[:100])
    assert_one_sentence(trsr("summarize", tmp_path / "data", "--engine", "fake"), f"{file} is damaged")


@pytest.mark.parametrize("limit", ["-1", "0"])
def test_a_limit_below_one_is_a_wrong_use(
    load: Callable[..., Answer], trsr: Trsr, tmp_path: Path, limit: str
) -> None:
    assert load().code == 0
    answer = trsr("summarize", tmp_path / "data", "--engine", "fake", "--limit", limit)
    assert answer.code == 2
    assert "--limit" in answer.err


def test_a_summary_store_of_a_newer_version_is_one_sentence_and_left_alone(
    load: Callable[..., Answer], trsr: Trsr, tmp_path: Path
) -> None:
    assert load().code == 0
    command = ("summarize", tmp_path / "data", "--engine", "fake", "--json")
    made = json.loads(trsr(*command).out)["calls_made"]
    assert made > 0
    store = tmp_path / "data" / "summaries.sqlite"

    def set_version(version: int) -> None:
        with sqlite3.connect(store) as db:
            db.execute(f"PRAGMA user_version = {version}")
        db.close()

    set_version(99)
    assert_one_sentence(trsr(*command), "version 99", "update trsr or name another file")
    set_version(1)
    assert json.loads(trsr(*command).out)["calls_made"] == 0, "nothing is lost"


def test_a_full_disk_during_an_import_is_one_sentence_and_the_old_dataset_stays(
    load: Callable[..., Answer], trsr: Trsr, tmp_path: Path
) -> None:
    assert load().code == 0
    files = ("--items", tmp_path / "items.csv", "--events", tmp_path / "events.csv")
    again = ("import", "table", *files, "--out", tmp_path / "data", "--overwrite")
    with full_disk():
        assert_one_sentence(trsr(*again), "nothing was changed there", "free some space")
    assert histories(tmp_path) == {"u": ("a", "b"), "v": ("c",)}
    assert trsr(*again).code == 0


def test_a_full_disk_during_summaries_is_one_sentence_and_keeps_what_was_written(
    trsr: Trsr, tmp_path: Path
) -> None:
    (tmp_path / "i.csv").write_text("item_id,title\n" + "".join(f"i{i},Lamp {i}\n" for i in range(600)))
    (tmp_path / "e.csv").write_text("user_id,item_id\n" + "".join(f"u{i},i{i}\n" for i in range(600)))
    files = ("--items", tmp_path / "i.csv", "--events", tmp_path / "e.csv", "--out", tmp_path / "d")
    assert trsr("import", "table", *files).code == 0
    command = ("summarize", tmp_path / "d", "--engine", "fake")
    with full_disk(240_000):
        assert_one_sentence(trsr(*command), "free space", "run the same command again")
    answer = json.loads(trsr(*command, "--json").out)
    assert 0 < answer["calls_made"] < answer["calls"] == 600
    assert answer["calls_made"] + answer["calls_from_store"] == 600


def test_a_read_only_folder_is_one_sentence(load: Callable[..., Answer], trsr: Trsr, tmp_path: Path) -> None:
    assert load().code == 0
    with temporary_folder() as folder:
        for name in ("items.csv", "events.csv"):
            shutil.copy(tmp_path / name, folder)
        shutil.copytree(tmp_path / "data", folder / "data")
        files = ("--items", folder / "items.csv", "--events", folder / "events.csv")
        with read_only(folder):
            answer = trsr("import", "table", *files, "--out", folder / "new")
            assert_one_sentence(answer, "Cannot write next to", "choose another --out")
            command = ("summarize", folder / "data", "--engine", "fake")
            answer = trsr(*command, "--store", folder / "s.sqlite")
            assert_one_sentence(answer, "cannot be written", "writable folder")
        assert sorted(path.name for path in folder.iterdir()) == ["data", "events.csv", "items.csv"]
        assert trsr(*command).code == 0
