"""`trsr store`, and `--store` of commands that write summaries: files and databases, never a password."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import yaml
from conftest import Answer, tiny_run
from helpers import stored_call
from postgres_server import PASSWORD

from trsr.data.synthetic import SyntheticConfig, generate
from trsr.summarize.store import open_store

Trsr = Callable[..., Answer]
SECRETS = (PASSWORD, "s3cr")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with open_store(tmp_path / "s.sqlite") as store:
        store.put(stored_call("a"))
        store.put(stored_call("b", None))
        store.add([stored_call("c", created_at=5.0), stored_call("d", model="other@2")])
    return tmp_path / "s.sqlite"


def test_stats_count_by_model(trsr: Trsr, file: Path) -> None:
    facts = json.loads(trsr("store", "stats", file, "--json").out)
    assert (facts["n_texts"], facts["n_failed"], facts["n_generated_tokens"]) == (3, 1, 20)
    assert [(part["model"], part["n_texts"]) for part in facts["parts"]] == [("fake@1", 2), ("other@2", 1)]
    shown = trsr("store", "stats", file).out
    assert "other@2, template hash" in shown
    assert "from 1970-01-01 to 20" in shown
    assert "All: 3 texts, 1 failed, " in shown


def test_rows_go_through_parquet_to_another_store_and_twice_is_once(
    trsr: Trsr, file: Path, tmp_path: Path
) -> None:
    parquet, target = tmp_path / "out" / "s.parquet", tmp_path / "new.sqlite"
    assert json.loads(trsr("store", "export", file, parquet, "--json").out)["rows"] == 4
    assert json.loads(trsr("store", "import", parquet, target, "--json").out)["new_rows"] == 4
    assert trsr("store", "import", parquet, target).out == f"new rows: 0, store: {target}\n"
    with open_store(file) as old, open_store(target) as new:
        assert list(old.rows()) == list(new.rows())


def test_a_file_goes_to_a_database_named_by_the_environment(
    trsr: Trsr, file: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRSR_TEST_STORE", postgres_url)
    moved = trsr("store", "import", file, "$TRSR_TEST_STORE")
    assert moved.out.startswith("new rows: 4, store: postgresql://trsr@127.0.0.1:")
    assert not any(secret in moved.out + moved.err for secret in SECRETS)
    back = trsr("store", "export", "$TRSR_TEST_STORE", tmp_path / "back.parquet", "--json")
    assert json.loads(back.out)["rows"] == 4
    gone = trsr("store", "gc", "${TRSR_TEST_STORE}", "--failed", "--delete", "--json")
    assert json.loads(gone.out)["removed"] == 1


def test_garbage_is_counted_first_and_removed_on_demand(trsr: Trsr, file: Path) -> None:
    counted = trsr("store", "gc", file, "--older-than", "30", "--model", "fake@1")
    assert counted.out.startswith("would be removed: 1, bytes now: ")
    assert json.loads(trsr("store", "stats", file, "--json").out)["n_texts"] == 3
    removed = trsr("store", "gc", file, "--older-than", "30", "--model", "fake@1", "--delete", "--json")
    assert json.loads(removed.out)["removed"] == 1
    assert json.loads(trsr("store", "stats", file, "--json").out)["n_texts"] == 2
    assert json.loads(trsr("store", "gc", file, "--template", "ha", "--json").out)["would_be_removed"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stats", "no.sqlite"], "There is no summary store no.sqlite; check the path."),
        (["stats", "mysql://me:pw@h/d"], "store: found 'mysql://me@h/d', expected a file or postgresql://"),
        (["gc", "FILE"], "No rows are selected; give --failed, --model"),
        (["import", "no.parquet", "FILE"], "no.parquet cannot be read as Parquet"),
        (["import", "no.sqlite", "FILE"], "There is no summary store no.sqlite"),
    ],
)
def test_a_mistake_is_one_sentence(trsr: Trsr, file: Path, arguments: list[str], said: str) -> None:
    answer = trsr("store", *[str(file) if argument == "FILE" else argument for argument in arguments])
    assert answer.code == 2
    assert answer.err.startswith(f"Error: {said}")
    assert answer.err.count("\n") == 1
    assert not Path("no.sqlite").exists()


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_summarize_keeps_its_texts_in_the_database(
    trsr: Trsr, postgres_url: str, tmp_path: Path, method: str
) -> None:
    data = tmp_path / "shop"
    generate(SyntheticConfig(n_users=6, n_items=200, min_history=11, max_history=14, mean_history=12), data)
    options = ("--engine", "fake", "--method", method, "--json", "--store")
    first = json.loads(trsr("summarize", data, *options, postgres_url).out)
    again = json.loads(trsr("summarize", data, *options, postgres_url).out)
    local = json.loads(trsr("summarize", data, *options, tmp_path / "s.sqlite").out)
    assert first["calls_made"] == local["calls_made"] > 0
    assert again["calls_made"] == 0
    here, there = pl.read_parquet(data / "profiles.parquet"), pl.read_parquet(tmp_path / "profiles.parquet")
    assert here.equals(there)


@pytest.fixture
def summarized(trsr: Trsr, postgres_url: str, tiny_model: Path, tmp_path: Path) -> tuple[Path, Path, Answer]:
    """A run without a model, whose summaries are in a database: its configuration, folder and output."""
    config = tmp_path / "c.yaml"
    settings = tiny_run(tiny_model, train=None, rankers=["random", "recency"])
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    out = tmp_path / "out"
    return config, out, trsr("run", config, "--out", out, "--store", postgres_url)


def test_a_run_keeps_its_texts_in_the_database_and_its_password_nowhere(
    trsr: Trsr, summarized: tuple[Path, Path, Answer], postgres_url: str, tmp_path: Path
) -> None:
    config, out, answer = summarized
    assert answer.code == 0, answer.err
    assert not (out / "summaries.sqlite").exists()
    with open_store(postgres_url) as store:
        assert store.stats()[0].n_texts > 10
    password = postgres_url.partition("@")[0].rpartition(":")[2]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"config.yaml", "env.json", "log.jsonl", "report.html"}
    for secret in (*SECRETS, password):
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        assert secret not in answer.out + answer.err
    assert yaml.safe_load((out / "config.yaml").read_text())["store"].startswith(
        "postgresql://trsr@127.0.0.1"
    )
    # The same run, named otherwise, is taken up; a second one writes nothing.
    assert trsr("run", config, "--out", out, "--set", f"store={postgres_url}").code == 0
    assert trsr("run", config, "--out", tmp_path / "second", "--store", postgres_url).code == 0
    assert json.loads((tmp_path / "second" / "stages.json").read_text())["summarize"]["calls_made"] == 0
    shutil.rmtree(tmp_path / "second")


def test_a_run_whose_database_is_away_makes_no_folder(
    trsr: Trsr, config_file: Path, postgres_url: str, tmp_path: Path
) -> None:
    away = f"{postgres_url.rpartition('@')[0]}@127.0.0.1:1/db"
    answer = trsr("run", config_file, "--out", tmp_path / "out", "--store", away)
    assert answer.code == 2
    assert "The summary store postgresql://trsr@127.0.0.1:1/db cannot be used" in answer.err
    assert answer.err.count("\n") == 1
    assert not any(secret in answer.err for secret in SECRETS)
    assert not (tmp_path / "out").exists()


def test_a_wrong_store_in_the_configuration_shows_no_password(
    trsr: Trsr, config_file: Path, tmp_path: Path
) -> None:
    for place in ("mysql://me:s3cret@h/d", "postgresql://me:s3cret$NO_SUCH_VARIABLE@h/d"):
        answer = trsr("run", config_file, "--out", tmp_path / "out", "--store", place)
        assert answer.code == 2
        assert "s3cr" not in answer.err
