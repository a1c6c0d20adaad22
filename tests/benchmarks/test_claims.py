"""Claims hold, fail or stay open by what a run measured, each corrected for the others of the run."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

VERDICTS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "claims.py"))["verdicts"]


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


def test_claim_uses_the_side_of_its_ranker() -> None:
    zero_shot, sasrec = VERDICTS(
        metrics(pair("llm", "llm_zero_shot", 0.001), pair("sasrec", "llm", 0.002), sasrec=1)
    )
    assert (zero_shot.words, zero_shot.amount) == ("holds", "+0.100 [+0.050, +0.150]")
    assert (sasrec.words, sasrec.amount) == ("the opposite holds", "-0.100 [-0.150, -0.050]")


def test_p_is_corrected_for_the_answered_claims() -> None:
    asked = (pair("llm", "llm_no_profile", 0.02), pair("llm_counted", "llm", 0.03), pair("llm", "bm25", 0.9))
    first, second = VERDICTS(metrics(*asked))
    assert (first.words, second.words) == ("holds", "the opposite holds")
    assert first.p == second.p == pytest.approx(0.04)
    (alone,) = VERDICTS(metrics(asked[1]))
    assert alone.p == 0.03


def test_sweep_answers_method_and_recent_items() -> None:
    asked = (
        pair("llm", "method=hierarchical", 0.001),
        pair("n_recent=0", "llm", 0.5),
        pair("llm", "n_recent=1", 0.5),
        pair("n_recent=5", "llm", 0.5, 0.02),
    )
    found = VERDICTS(metrics(*asked, **{"n_recent=5": 0.6}))
    assert [(one.claim.split()[0], one.other, one.amount[:6]) for one in found] == [
        ("Recurrent", "method=hierarchical", "+0.100"),
        ("Recent", "n_recent=0", "-0.100"),
        ("The", "n_recent=5", "-0.020"),
    ]


def test_claim_compares_with_the_best_sequential_model() -> None:
    asked = (pair("gru4rec", "llm", 0.5), pair("llm", "sasrec", 0.5))
    (one,) = VERDICTS(metrics(*asked, gru4rec=0.7, sasrec=0.5))
    assert (one.other, one.words) == ("gru4rec", "no significant difference")


def test_unknown_difference_is_not_counted() -> None:
    unknown = pair("llm", "llm_no_profile", None) | {"difference": None, "ci95": [None, None]}
    first, second = VERDICTS(metrics(unknown, pair("llm", "llm_counted", 0.04)))
    assert (first.words, first.amount, second.p) == ("no significant difference", "–", 0.04)


def test_claim_prefers_metrics_of_the_top() -> None:
    asked = (pair("llm", "llm_counted", 0.5, metric="recall@3"), pair("llm", "llm_counted", 0.01))
    assert [one.metric for one in VERDICTS(metrics(*asked))] == ["mrr@10"]
    (one,) = VERDICTS(metrics(asked[0]))
    assert one.metric == "recall@3"
