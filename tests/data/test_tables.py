from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import polars as pl
import pytest

from trsr.data.dataset import Dataset, user_batches, write_dataset
from trsr.data.schema import EVENTS, IMPRESSIONS
from trsr.data.writer import DatasetWriter
from trsr.errors import DataError, OutputError

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
ITEMS = pl.DataFrame({"item_id": ["a", "b"], "title": ["Lamp", None], "brand": ["", "Acme"]})


def events(*rows: tuple[str, str, int, datetime | None]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=EVENTS, orient="row")


def make(path: Path, *rows: tuple[str, str, int, datetime | None], overwrite: bool = False) -> Dataset:
    return write_dataset(
        path,
        name="shop",
        domain="products",
        text_fields=["brand", "title"],
        category_fields=["brand"],
        items=ITEMS,
        events=events(*(rows or (("u", "a", 0, None),))),
        source="a test",
        overwrite=overwrite,
    )


def test_written_tables_are_read_back(tmp_path: Path) -> None:
    made = make(tmp_path / "d", ("u", "b", 1, NOON), ("u", "a", 0, NOON), ("t", "b", 0, None))
    data = Dataset.open(tmp_path / "d")
    assert data.info == made.info
    assert data.info.counts == {"items": 2, "events": 3, "rejects": 0, "users": 2}
    assert data.events().collect().rows() == [("t", "b", 0, None), ("u", "a", 0, NOON), ("u", "b", 1, NOON)]
    assert data.events().collect_schema() == EVENTS
    assert data.impressions() is None


def test_catalogue_leaves_out_empty_fields_and_keeps_the_rendering_order(tmp_path: Path) -> None:
    catalogue = make(tmp_path / "d").catalogue()
    assert {item_id: dict(item.fields) for item_id, item in catalogue.items()} == {
        "a": {"title": "Lamp"},
        "b": {"brand": "Acme"},
    }


def test_histories_have_times_only_where_every_event_has_one(tmp_path: Path) -> None:
    data = make(tmp_path / "d", ("u", "a", 0, NOON), ("u", "b", 1, None), ("v", "a", 0, NOON))
    assert [(h.user_id, h.item_ids, h.timestamps) for h in data.histories()] == [
        ("u", ("a", "b"), None),
        ("v", ("a",), (NOON,)),
    ]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 100])
def test_user_batches_never_cut_a_user(rows: int) -> None:
    users = ["a", "b", "b", "b", "c"]
    batches = list(user_batches(pl.LazyFrame({"user_id": users}), rows))
    assert [user for batch in batches for user in batch["user_id"]] == users
    assert sum(batch["user_id"].n_unique() for batch in batches) == 3


def test_impressions_are_kept(tmp_path: Path) -> None:
    shown = pl.DataFrame(
        [("i", "u", NOON, ["a"], ["a", "b"], [True, False])], schema=IMPRESSIONS, orient="row"
    )
    data = write_dataset(
        tmp_path / "d",
        name="n",
        domain="news",
        text_fields=["title"],
        category_fields=[],
        items=ITEMS,
        events=events(("u", "a", 0, None)).lazy(),
        impressions=shown,
        source="a test",
    )
    table = data.impressions()
    assert table is not None
    assert table.collect().equals(shown)
    assert data.info.counts["impressions"] == 1


def test_an_existing_folder_is_refused_without_overwrite_and_kept(tmp_path: Path) -> None:
    make(tmp_path / "d", ("u", "a", 0, None))
    with pytest.raises(DataError, match=r"not empty.*--overwrite"):
        make(tmp_path / "d", ("other", "a", 0, None))
    assert [h.user_id for h in Dataset.open(tmp_path / "d").histories()] == ["u"]
    make(tmp_path / "d", ("other", "a", 0, None), overwrite=True)
    assert [h.user_id for h in Dataset.open(tmp_path / "d").histories()] == ["other"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_remains_of_a_killed_import_are_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from trsr.data.writer import DatasetWriter\n"
        f"with DatasetWriter({str(tmp_path / 'd')!r}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".d.partial-")
    with DatasetWriter(tmp_path / "d"):  # an import that runs at the same time is left alone
        make(tmp_path / "d")
        assert len(list(tmp_path.iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_dataset_that_a_killed_import_moved_away_is_put_back_and_then_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old = make(tmp_path / "d").path.rename(tmp_path / f".d.old-{dead.pid}-00000000")
    with pytest.raises(DataError, match="exists and is not empty"):
        make(tmp_path / "d")
    assert not old.exists(), "the old dataset was the only one"
    shutil.copytree(tmp_path / "d", old)
    make(tmp_path / "d", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("exchanged", [True, False])
def test_overwrite_keeps_files_that_no_import_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    if not exchanged:
        monkeypatch.setattr("trsr.storage._exchange", lambda *_: False)
    path = make(tmp_path / "d").path
    (path / "notes").mkdir()
    (path / "notes" / "a.txt").write_text("mine")
    (path / "to_notes").symlink_to("notes")
    (path / "impressions.parquet").write_text("of an older import")
    with sqlite3.connect(path / "summaries.sqlite") as store:
        store.execute("create table t (x)")
        store.execute("insert into t values (1)")
        store.commit()
        make(path, ("other", "a", 0, None), overwrite=True)
        store.execute("insert into t values (2)")
    store.close()
    assert [h.user_id for h in Dataset.open(path).histories()] == ["other"]
    assert (path / "to_notes" / "a.txt").read_text() == "mine"
    assert not (path / "impressions.parquet").exists(), "an import makes it, and the new one made none"
    with sqlite3.connect(path / "summaries.sqlite") as store:
        assert store.execute("select x from t").fetchall() == [(1,), (2,)]
    store.close()
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_overwrite_never_replaces_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="left alone"):
        make(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def stopped() -> None:
        with DatasetWriter(tmp_path / "d") as writer:
            writer.items.append(ITEMS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_one_sentence_and_leaves_the_old_dataset(tmp_path: Path) -> None:
    make(tmp_path / "d")

    def fill_the_disk() -> None:
        with DatasetWriter(tmp_path / "d", overwrite=True) as writer:
            writer.items.folder.mkdir(parents=True)
            (writer.items.folder / "000000.parquet").symlink_to("/dev/full")
            writer.items.append(ITEMS)

    with pytest.raises(OutputError, match="failed: No space left on device; nothing was changed"):
        fill_the_disk()
    assert Dataset.open(tmp_path / "d").info.name == "shop"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_unwritable_path_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="Cannot write next to"):
        make(tmp_path / "file" / "d")
    with pytest.raises(DataError, match="is a file"):
        make(tmp_path / "file")
    denied = PermissionError(13, "Permission denied")
    monkeypatch.setattr(DatasetWriter, "_check_target", Mock(side_effect=denied))
    with pytest.raises(OutputError, match=r"Permission denied; choose"):
        make(tmp_path / "d")


def test_a_dataset_without_events_is_refused_with_the_reason(tmp_path: Path) -> None:
    refused = pl.DataFrame({"file": ["e.csv"], "row": [2], "reason": ["unknown item"], "raw": ["x"]})
    with pytest.raises(DataError, match=r"No event could be read.*1 for 'e.csv: unknown item'"):
        write_dataset(
            tmp_path / "d",
            name="n",
            domain="news",
            text_fields=["title"],
            category_fields=[],
            items=ITEMS,
            events=events(),
            rejects=refused,
            source="a test",
        )


def test_open_names_the_problem(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no dataset folder"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no dataset.json"):
        Dataset.open(tmp_path)
    folder = make(tmp_path / "d").path
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(info | {"schema_version": 99, "new": 1}))
    with pytest.raises(DataError, match="schema version 99"):
        Dataset.open(folder)
    (folder / "dataset.json").write_text(json.dumps(info | {"name": None}))
    with pytest.raises(DataError, match="name:"):
        Dataset.open(folder)
    for damaged in ("{", "[]", "\udcff"):
        (folder / "dataset.json").write_bytes(damaged.encode(errors="surrogateescape"))
        with pytest.raises(DataError, match="is damaged"):
            Dataset.open(folder)
    (folder / "dataset.json").write_text(json.dumps(info))
    ITEMS.select("item_id", title=pl.lit(3)).write_parquet(folder / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet has no column 'brand' of the type String"):
        Dataset.open(folder)
    (folder / "items.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"items.parquet is damaged \(.*\); import again"):
        Dataset.open(folder)
    (folder / "events.parquet").unlink()
    (folder / "items.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks items.parquet"):
        Dataset.open(folder)


@pytest.mark.slow
def test_a_kill_while_a_dataset_is_replaced_leaves_the_old_or_the_new_whole(tmp_path: Path) -> None:
    path = make(tmp_path / "d").path
    (path / "notes.txt").write_text("mine")
    calls = ("_carry_over", "_exchange", "remove_folder")
    for number, call in enumerate(calls):
        code = (
            "import os, signal, sys\n"
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from trsr import storage as files\n"
            "from test_tables import make\n"
            f"def stop(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
            f"files.{call} = stop\n"
            "from pathlib import Path\n"
            f"make(Path({str(path)!r}), ('user{number}', 'a', 0, None), overwrite=True)\n"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
        (history,) = list(Dataset.open(path).histories())
        assert history.user_id == ("u" if call != "remove_folder" else f"user{number}")
        assert (path / "notes.txt").read_text() == "mine"
    make(path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
