"""The stage between training and ranking: scored once, fitted, saved in the model, used by ranking."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from trsr.errors import RunMismatchError
from trsr.experiment import ranking
from trsr.experiment import stages as calibrating
from trsr.experiment.evaluating import evaluate_scores
from trsr.experiment.experiment import Experiment
from trsr.experiment.ranking import rank_candidates
from trsr.experiment.stages import calibrate
from trsr.recommend.calibration import Calibration, CalibrationFit
from trsr.recommend.model_folder import read_adapter_info
from trsr.recommend.ranker import SCORES, score_table, sigmoid

PLATT = Calibration("platt", 0.5, -1.5)


def llm_rows(experiment: Experiment) -> pl.DataFrame:
    return pl.read_parquet(experiment.folder.path / "scores.parquet").filter(ranker="llm")


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three validation users are too few for a fit: this one is given."""
    fit = CalibrationFit(PLATT, "platt is given", {"raw": 1.0, "platt": 0.5}, 30, 30)
    monkeypatch.setattr(calibrating, "fit_calibration", lambda *_, **__: fit)


def test_a_run_scores_its_validation_examples_and_says_why_it_is_not_calibrated(finished_run: Path) -> None:
    scores = pl.read_parquet(finished_run / "valid_scores.parquet")
    valid = pl.read_parquet(finished_run / "examples" / "valid.parquet")
    assert dict(scores.schema) == SCORES
    assert scores["example_id"].unique(maintain_order=True).to_list() == valid["example_id"].to_list()
    assert scores["ranker"].unique().to_list() == ["llm"]
    assert scores["score"].to_list() == pytest.approx(sigmoid(scores["margin"].to_numpy()).tolist())
    assert not (finished_run / "valid_scores.parts").exists()
    facts = json.loads((finished_run / "stages.json").read_text())["calibrate"]
    assert "too few" in facts["calibration"]
    assert read_adapter_info(finished_run / "model").calibration is None
    assert "not calibrated" in (finished_run / "report.html").read_text()


def test_ranking_uses_the_calibration_of_the_model_and_leaves_margins_and_others_alone(
    experiment: Experiment, finished_run: Path, fitted: None
) -> None:
    facts = calibrate(experiment)
    assert (facts["a"], facts["b"]) == (0.5, -1.5)
    assert read_adapter_info(experiment.folder.path / "model").calibration == PLATT
    assert json.loads((experiment.folder.path / "calibration.json").read_text())["calibration"] == asdict(
        PLATT
    )
    rank_candidates(experiment)
    before = pl.read_parquet(finished_run / "scores.parquet")
    after = pl.read_parquet(experiment.folder.path / "scores.parquet")
    assert after.drop("score").equals(before.drop("score"))
    assert after.filter(pl.col("ranker") != "llm").equals(before.filter(pl.col("ranker") != "llm"))
    llm = after.filter(ranker="llm")
    np.testing.assert_allclose(llm["score"], PLATT.apply(llm["margin"].to_numpy()))
    evaluate_scores(experiment)
    metrics = json.loads((experiment.folder.path / "metrics.json").read_text())
    assert set(metrics["calibration"]["llm"]) == {"raw", "calibrated"}
    assert set(metrics["calibration"]["llm_zero_shot"]) == {"raw"}
    assert metrics["rankers"]["llm"]["ece"] == metrics["calibration"]["llm"]["calibrated"]["ece"]
    old = json.loads((finished_run / "metrics.json").read_text())
    for name in ("auc", "mrr@10"):
        assert metrics["rankers"]["llm"][name] == old["rankers"]["llm"][name], "no order has changed"


def test_killed_between_parts_it_scores_only_what_is_missing(
    experiment: Experiment, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (experiment.folder.path / "valid_scores.parquet").unlink()
    monkeypatch.setattr(ranking, "EXAMPLES_A_PART", 1)
    scored: list[str] = []
    whole, stop_after = score_table, 2

    def counted(ranker: Any, examples: Any, name: str | None = None) -> pl.DataFrame:
        if len(scored) == stop_after:
            raise KeyboardInterrupt
        scored.extend(example.example_id for example in examples)
        return whole(ranker, examples, name)

    monkeypatch.setattr(ranking, "score_table", counted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(experiment)
    assert len(list((experiment.folder.path / "valid_scores.parts").glob("*.parquet"))) == 2
    stop_after = 99
    calibrate(experiment)
    assert scored == [example.example_id for example in experiment.splits.valid], "each is scored once"
    again, before = (
        pl.read_parquet(run / "valid_scores.parquet") for run in (experiment.folder.path, finished_run)
    )
    # Users that are read together may change each other's last digits, on some processors.
    assert_frame_equal(again, before, rel_tol=0, abs_tol=1e-5)
    calibrate(experiment)
    assert len(scored) == 3, "scores that are there are read"


def test_without_training_or_validation_examples_nothing_is_scored(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "make_ranker", lambda *_: pytest.fail("a model was loaded"))
    (experiment.folder.path / "valid_scores.parquet").unlink()
    experiment.splits.valid.clear()
    assert calibrate(experiment) == {"calibration": "none: there are no validation examples"}
    experiment.config = experiment.config.model_copy(update={"train": None})
    assert calibrate(experiment) == {}


def test_a_calibration_that_makes_no_sense_is_refused(experiment: Experiment) -> None:
    file = experiment.folder.path / "model" / "trsr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"calibration": {"a": 1.0, "b": 0.0}}))
    with pytest.raises(RunMismatchError, match=r"calibration\.kind: Field required"):
        rank_candidates(experiment)
