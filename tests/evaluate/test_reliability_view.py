"""The report says whether scores can be believed, before and after calibration."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from score_rows import make_scores

from trsr.evaluate.evaluation import evaluate
from trsr.evaluate.rendering import templates
from trsr.evaluate.report import report_view
from trsr.evaluate.report_views import ReportContext, reliability_view
from trsr.recommend.calibration import Calibration


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    """Metrics of a calibrated ranker, `good`, and of one whose scores are the sigmoid, `noise`."""
    scores = make_scores(n_examples=40)
    better = pl.Series(Calibration("platt", 2.0, -5.0).apply(scores["margin"].to_numpy()))
    scores = scores.with_columns(
        score=pl.when(pl.col("ranker") == "good").then(better).otherwise(pl.col("score"))
    )
    return evaluate(scores, protocol={"protocol": "sampled"}, probabilistic=["good", "noise"])


def test_every_set_of_scores_has_a_row_and_every_ranker_a_plot(metrics: dict[str, Any]) -> None:
    view = reliability_view(metrics)
    assert view is not None
    assert [row["name"] for row in view["rows"]] == ["good, not calibrated", "good", "noise"]
    raw, after = (row["cells"][2]["value"] for row in view["rows"][:2])
    assert float(after) < float(raw)
    assert view["sentences"] == [
        f"Calibration, fitted on validation users, takes good's ece from {raw} to {after} and its "
        f"logloss from {view['rows'][0]['cells'][0]['value']} to {view['rows'][1]['cells'][0]['value']}."
    ]
    assert len(view["plots"]) == 2
    assert view["chance"][2] == "–"


def test_both_reports_have_the_section(metrics: dict[str, Any]) -> None:
    view = report_view(metrics, ReportContext("t", "c", "y"))
    for name in ("report.md.j2", "report.html.j2"):
        text = templates().get_template(name).render(view)
        assert "Can the scores be believed" in text
        assert "on the diagonal" in text
        assert "good, not calibrated" in text


def test_without_probabilities_there_is_no_section(metrics: dict[str, Any]) -> None:
    plain = {key: value for key, value in metrics.items() if key != "calibration"}
    assert reliability_view(plain) is None
    text = templates().get_template("report.md.j2").render(report_view(plain, ReportContext("t", "c", "y")))
    assert "believed" not in text
