"""Fusion in a run: fitted on validation examples alone, the language model asked no second time."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from trsr.config import load_config
from trsr.errors import ConfigError, DataError
from trsr.pipeline import ranking
from trsr.pipeline.folder import RunFolder
from trsr.pipeline.fusion import make_fusion
from trsr.pipeline.ranking import rank_candidates
from trsr.pipeline.workbench import Workbench


@pytest.fixture
def bench(finished_run: Path, config_file: Path, tmp_path: Path) -> Workbench:
    """A copy of a finished run whose `llm` parts are still there, with fusion named first."""
    run = tmp_path / "copy"
    shutil.copytree(finished_run, run)
    bench = Workbench(RunFolder(run, load_config(config_file), "trsr rank"))
    bench.config = bench.config.model_copy(update={"rankers": ("fusion", "bm25", "llm")})
    (run / "scores.parts").mkdir()
    rows = pl.read_parquet(run / "scores.parquet").filter(ranker="llm")
    rows[:60].write_parquet(run / "scores.parts" / "llm-000000.parquet")
    rows[60:].write_parquet(run / "scores.parts" / "llm-000010.parquet")
    return bench


def test_it_is_ranked_last_reads_what_llm_ranked_and_saves_its_weights(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "_llm_ranker", lambda *_: pytest.fail("the language model was asked again"))
    rank_candidates(bench)
    scores = pl.read_parquet(bench.folder.path / "scores.parquet")
    assert scores["ranker"].unique(maintain_order=True).to_list() == ["fusion", "bm25", "llm"]
    fusion = scores.filter(ranker="fusion")
    assert fusion["item_id"].to_list() == scores.filter(ranker="llm")["item_id"].to_list()
    assert fusion["score"].null_count() == 72
    saved = json.loads((bench.folder.path / "fusion.json").read_text())
    names = ["llm", "popularity", "popularity_decayed", "recency", "bm25"]
    assert list(saved["weights"]) == names


def test_the_labels_of_the_test_change_nothing(bench: Workbench) -> None:
    examples = bench.splits.test
    before = [answer.margins.tolist() for answer in make_fusion(bench).rank(examples)]
    weights = (bench.folder.path / "fusion.json").read_bytes()
    turned = [replace(e, labels=tuple(1 - label for label in e.labels)) for e in examples]
    for part in (bench.folder.path / "scores.parts").glob("*.parquet"):
        pl.read_parquet(part).with_columns(label=1 - pl.col("label")).write_parquet(part)
    after = [answer.margins.tolist() for answer in make_fusion(bench).rank(turned)]
    assert after == before
    assert (bench.folder.path / "fusion.json").read_bytes() == weights


def test_without_the_model_it_says_what_is_missing(bench: Workbench, config_file: Path) -> None:
    (bench.folder.path / "valid_scores.parquet").unlink()
    with pytest.raises(DataError, match="is missing, from which fusion learns"):
        make_fusion(bench)
    with pytest.raises(ConfigError, match="name `llm` too"):
        load_config(config_file, ["rankers=[fusion, bm25]"])
