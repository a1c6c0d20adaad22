"""Claims hold, fail or stay open by what a run measured, each corrected for the others of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from score_rows import make_scores

from trsr.evaluate.evaluation import evaluate
from trsr.evaluate.leaderboard import verdicts
from trsr.evaluate.report import write_report
from trsr.evaluate.report_views import ReportContext


def pair(a: str, b: str, p: float | None, difference: float = 0.1, metric: str = "mrr@10") -> dict[str, Any]:
    ends = [difference - 0.05, difference + 0.05]
    return {
        "metric": metric,
        "a": a,
        "b": b,
        "difference": difference,
        "ci95": ends,
        "p": p,
        "p_holm": 1.0,
        "effect_size": 0.2,
    }


def metrics(*pairs: dict[str, Any], **values: float) -> dict[str, Any]:
    """Return the content of a file with these comparisons; rankers have .5 unless said otherwise."""
    named = {name: {p["metric"]: {"value": 0.5} for p in pairs} for p in pairs for name in (p["a"], p["b"])}
    return {"comparisons": pairs, "rankers": named | {n: {"mrr@10": {"value": v}} for n, v in values.items()}}


def test_a_claim_is_told_from_the_side_it_is_made_from() -> None:
    zero_shot, sasrec = verdicts(
        metrics(pair("llm", "llm_zero_shot", 0.001), pair("sasrec", "llm", 0.002), sasrec=1)
    )
    assert (zero_shot.words, zero_shot.amount) == ("holds", "+0.100 [+0.050, +0.150]")
    assert (sasrec.words, sasrec.amount) == ("the opposite holds", "-0.100 [-0.150, -0.050]")


def test_p_is_corrected_for_the_claims_that_the_run_answers_and_for_nothing_else() -> None:
    asked = (pair("llm", "llm_no_profile", 0.02), pair("llm_counted", "llm", 0.03), pair("llm", "bm25", 0.9))
    first, second = verdicts(metrics(*asked))
    assert (first.words, second.words) == ("holds", "the opposite holds")
    assert first.p == second.p == pytest.approx(0.04)
    (alone,) = verdicts(metrics(asked[1]))
    assert alone.p == 0.03


def test_a_sweep_answers_for_the_way_to_summarise_and_the_number_of_recent_items() -> None:
    asked = (
        pair("llm", "method=hierarchical", 0.001),
        pair("n_recent=0", "llm", 0.5),
        pair("llm", "n_recent=1", 0.5),
        pair("n_recent=5", "llm", 0.5, 0.02),
    )
    found = verdicts(metrics(*asked, **{"n_recent=5": 0.6}))
    assert [(one.claim.split()[0], one.other, one.amount[:6]) for one in found] == [
        ("Recurrent", "method=hierarchical", "+0.100"),
        ("Recent", "n_recent=0", "-0.100"),
        ("The", "n_recent=5", "-0.020"),
    ]


def test_the_best_of_the_sequential_models_is_the_one_to_beat() -> None:
    asked = (pair("gru4rec", "llm", 0.5), pair("llm", "sasrec", 0.5))
    (one,) = verdicts(metrics(*asked, gru4rec=0.7, sasrec=0.5))
    assert (one.other, one.words) == ("gru4rec", "not told apart")


def test_what_is_unknown_is_not_told_apart_and_counts_for_no_other_claim() -> None:
    unknown = pair("llm", "llm_no_profile", None) | {"difference": None, "ci95": [None, None]}
    first, second = verdicts(metrics(unknown, pair("llm", "llm_counted", 0.04)))
    assert (first.words, first.amount, second.p) == ("not told apart", "–", 0.04)


def test_the_order_of_the_best_candidates_is_what_counts() -> None:
    asked = (pair("llm", "llm_counted", 0.5, metric="recall@3"), pair("llm", "llm_counted", 0.01))
    assert [one.metric for one in verdicts(metrics(*asked))] == ["mrr@10"]
    (one,) = verdicts(metrics(asked[0]))
    assert one.metric == "recall@3"


def test_both_reports_say_which_claims_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trsr.evaluate.report._plots", lambda *_: {"bars": [], "training": []})
    named = pl.col("ranker").replace({"good": "llm", "noise": "llm_zero_shot"})
    found = evaluate(make_scores().with_columns(named), protocol={})
    for path in write_report(tmp_path, metrics=found, context=ReportContext("t", "c", "")):
        text = path.read_text(encoding="utf-8").replace("\\", "")
        assert "Which claims hold" in text
        assert "Fine-tuning ranks better than the model as it came" in text
        assert "no profile" not in text
    for path in write_report(
        tmp_path, metrics=found | {"comparisons": []}, context=ReportContext("t", "c", "")
    ):
        assert "Which claims hold" not in path.read_text(encoding="utf-8")
