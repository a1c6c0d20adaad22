"""Fusion in a run: fitted on validation examples alone, the language model asked no second time."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest.mock import Mock

import polars as pl
import pytest

from trsr.errors import DataError
from trsr.experiment import ranking
from trsr.experiment.baselines import make_baseline
from trsr.experiment.config import RankerName
from trsr.experiment.experiment import Workbench
from trsr.experiment.ranking import make_fusion, rank_candidates


@pytest.fixture
def bench(bench: Workbench) -> Workbench:
    """A copy of a finished run whose `llm` parts are still there, with fusion named first."""
    run = bench.folder.path
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


def test_all_baselines_of_the_run_are_joined_with_and_without_llm(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    rankers = ("fusion_no_llm", "random", "embedding", "popularity", "llm", "fusion_all")
    bench.config = bench.config.model_copy(update={"rankers": rankers})
    make = Mock(side_effect=make_baseline)
    monkeypatch.setattr(ranking, "make_baseline", make)
    rank_candidates(bench)
    assert [call.args[1] for call in make.call_args_list] == ["embedding"]  # once for three rankers
    saved = {name: json.loads((bench.folder.path / f"{name}.json").read_text()) for name in rankers[::5]}
    assert list(saved["fusion_all"]["weights"]) == ["llm", "embedding", "popularity"]
    assert list(saved["fusion_no_llm"]["weights"]) == ["embedding", "popularity"]
    scores = pl.read_parquet(bench.folder.path / "scores.parquet")
    of = {str(name): scores.filter(ranker=name)["margin"].to_numpy() for name in rankers}
    for name, content in saved.items():
        parts = sum(w / content["scales"][n] * of[n] for n, w in content["weights"].items())
        assert of[name] == pytest.approx(parts, abs=1e-5)


def test_a_run_that_is_given_more_rankers_joins_them_too(bench: Workbench) -> None:
    def rank(*rankers: RankerName) -> list[str]:
        bench.config = bench.config.model_copy(update={"rankers": rankers})
        rank_candidates(bench)
        return list(json.loads((bench.folder.path / "fusion_all.json").read_text())["weights"])

    assert rank("llm", "popularity", "fusion_all") == ["llm", "popularity"]
    assert rank("llm", "popularity", "bm25", "fusion_all") == ["llm", "popularity", "bm25"]
    scores = pl.read_parquet(bench.folder.path / "scores.parquet")
    assert scores["ranker"].unique(maintain_order=True).to_list() == list(bench.config.rankers)


@pytest.mark.parametrize("name", ["fusion", "fusion_all", "fusion_no_llm"])
def test_the_labels_of_the_test_change_nothing(bench: Workbench, name: RankerName) -> None:
    examples = bench.splits.test
    before = [answer.margins.tolist() for answer in make_fusion(bench, name).rank(examples)]
    weights = (bench.folder.path / f"{name}.json").read_bytes()
    turned = [replace(e, labels=tuple(1 - label for label in e.labels)) for e in examples]
    for part in (bench.folder.path / "scores.parts").glob("*.parquet"):
        pl.read_parquet(part).with_columns(label=1 - pl.col("label")).write_parquet(part)
    after = [answer.margins.tolist() for answer in make_fusion(bench, name).rank(turned)]
    assert after == before
    assert (bench.folder.path / f"{name}.json").read_bytes() == weights


def test_without_the_model_it_says_what_is_missing(bench: Workbench) -> None:
    (bench.folder.path / "valid_scores.parquet").unlink()
    with pytest.raises(DataError, match="is missing, from which fusion learns"):
        make_fusion(bench)


def test_without_validation_examples_there_is_nothing_to_join(bench: Workbench) -> None:
    bench.splits = replace(bench.splits, valid=[])
    with pytest.raises(DataError, match="no validation examples, from which fusion_no_llm learns"):
        make_fusion(bench, "fusion_no_llm")
