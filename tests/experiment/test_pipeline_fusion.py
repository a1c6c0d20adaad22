"""Fusion in a run: fitted on validation examples alone, without a second call of the language model."""

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
from trsr.experiment.experiment import Experiment
from trsr.experiment.ranking import make_fusion, rank_candidates


@pytest.fixture
def experiment(experiment: Experiment) -> Experiment:
    """A copy of a finished run whose `llm` parts are still there, with fusion named first."""
    run = experiment.folder.path
    experiment.config = experiment.config.model_copy(update={"rankers": ("fusion", "bm25", "llm")})
    (run / "scores.parts").mkdir()
    rows = pl.read_parquet(run / "scores.parquet").filter(ranker="llm")
    rows[:60].write_parquet(run / "scores.parts" / "llm-000000.parquet")
    rows[60:].write_parquet(run / "scores.parts" / "llm-000010.parquet")
    return experiment


def test_it_is_ranked_last_reads_what_llm_ranked_and_saves_its_weights(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "_llm_ranker", lambda *_: pytest.fail("the language model was called again"))
    rank_candidates(experiment)
    scores = pl.read_parquet(experiment.folder.path / "scores.parquet")
    assert scores["ranker"].unique(maintain_order=True).to_list() == ["fusion", "bm25", "llm"]
    fusion = scores.filter(ranker="fusion")
    assert fusion["item_id"].to_list() == scores.filter(ranker="llm")["item_id"].to_list()
    assert fusion["score"].null_count() == 72
    saved = json.loads((experiment.folder.path / "fusion.json").read_text())
    names = ["llm", "popularity", "popularity_decayed", "recency", "bm25"]
    assert list(saved["weights"]) == names


def test_all_baselines_of_the_run_are_joined_with_and_without_llm(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    rankers = ("fusion_no_llm", "random", "embedding", "popularity", "llm", "fusion_all")
    experiment.config = experiment.config.model_copy(update={"rankers": rankers})
    make = Mock(side_effect=make_baseline)
    monkeypatch.setattr(ranking, "make_baseline", make)
    rank_candidates(experiment)
    assert [call.args[1] for call in make.call_args_list] == ["embedding"]  # once for three rankers
    saved = {name: json.loads((experiment.folder.path / f"{name}.json").read_text()) for name in rankers[::5]}
    assert list(saved["fusion_all"]["weights"]) == ["llm", "embedding", "popularity"]
    assert list(saved["fusion_no_llm"]["weights"]) == ["embedding", "popularity"]
    scores = pl.read_parquet(experiment.folder.path / "scores.parquet")
    of = {str(name): scores.filter(ranker=name)["margin"].to_numpy() for name in rankers}
    for name, content in saved.items():
        parts = sum(w / content["scales"][n] * of[n] for n, w in content["weights"].items())
        assert of[name] == pytest.approx(parts, abs=1e-5)


def test_a_run_that_is_given_more_rankers_joins_them_too(experiment: Experiment) -> None:
    def rank(*rankers: RankerName) -> list[str]:
        experiment.config = experiment.config.model_copy(update={"rankers": rankers})
        rank_candidates(experiment)
        return list(json.loads((experiment.folder.path / "fusion_all.json").read_text())["weights"])

    assert rank("llm", "popularity", "fusion_all") == ["llm", "popularity"]
    assert rank("llm", "popularity", "bm25", "fusion_all") == ["llm", "popularity", "bm25"]
    scores = pl.read_parquet(experiment.folder.path / "scores.parquet")
    assert scores["ranker"].unique(maintain_order=True).to_list() == list(experiment.config.rankers)


@pytest.mark.parametrize("name", ["fusion", "fusion_all", "fusion_no_llm"])
def test_the_labels_of_the_test_change_nothing(experiment: Experiment, name: RankerName) -> None:
    examples = experiment.splits.test
    before = [answer.margins.tolist() for answer in make_fusion(experiment, name).rank(examples)]
    weights = (experiment.folder.path / f"{name}.json").read_bytes()
    turned = [replace(e, labels=tuple(1 - label for label in e.labels)) for e in examples]
    for part in (experiment.folder.path / "scores.parts").glob("*.parquet"):
        pl.read_parquet(part).with_columns(label=1 - pl.col("label")).write_parquet(part)
    after = [answer.margins.tolist() for answer in make_fusion(experiment, name).rank(turned)]
    assert after == before
    assert (experiment.folder.path / f"{name}.json").read_bytes() == weights


def test_without_the_model_it_says_what_is_missing(experiment: Experiment) -> None:
    (experiment.folder.path / "valid_scores.parquet").unlink()
    with pytest.raises(DataError, match="is missing, from which fusion learns"):
        make_fusion(experiment)


def test_without_validation_examples_there_is_nothing_to_join(experiment: Experiment) -> None:
    experiment.splits = replace(experiment.splits, valid=[])
    with pytest.raises(DataError, match="no validation examples, from which fusion_no_llm learns"):
        make_fusion(experiment, "fusion_no_llm")
