"""Who beats whom in words, and in both reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from score_rows import make_scores

from trsr.evaluate.evaluation import evaluate
from trsr.evaluate.leaderboard import Standing, p_value, standings
from trsr.evaluate.report import write_report
from trsr.evaluate.report_views import ReportContext


def pair(a: str, b: str, p: float | None, metric: str = "auc", **changes: Any) -> dict[str, Any]:
    numbers = {"difference": 0.2, "ci95": [0.1, 0.3], "p": p, "p_holm": p, "effect_size": 0.5}
    return {"metric": metric, "a": a, "b": b, **numbers, **changes}


def one(pairs: list[dict[str, Any]], values: dict[str, float], metric: str = "auc") -> Standing:
    rankers = {name: {metric: {"value": value, "ci95": [None, None]}} for name, value in values.items()}
    (found,) = standings({"comparisons": pairs, "rankers": rankers})
    return found


def test_the_best_ranker_stands_against_each_other_one_best_first() -> None:
    pairs = [pair("b", "c", 0.5), pair("a", "c", 0.001), pair("a", "b", 0.2)]
    found = one(pairs, {"c": 0.4, "a": 0.8, "b": 0.6})
    assert found.best == "a"
    assert [(rival.name, rival.verdict) for rival in found.rivals] == [
        ("b", "not told apart"),
        ("c", "beaten"),
    ]
    assert found.sentence == "a beats c on auc (corrected p < 0.05); it is not told apart from b."


@pytest.mark.parametrize(
    ("p_b", "p_c", "sentence"),
    [
        (0.01, 0.02, "a beats every other ranker on auc (corrected p < 0.05)."),
        (0.05, None, "a is first on auc, but is not told apart from b and c."),
    ],
)
def test_the_sentence_claims_what_the_test_shows_and_no_more(
    p_b: float, p_c: float | None, sentence: str
) -> None:
    pairs = [pair("a", "b", p_b), pair("a", "c", p_c), pair("b", "c", 1.0)]
    assert one(pairs, {"a": 0.8, "b": 0.6, "c": 0.4}).sentence == sentence


def test_two_rankers_are_named() -> None:
    assert one([pair("a", "b", 0.01)], {"a": 1, "b": 0}).sentence == "a beats b on auc (corrected p < 0.05)."


def test_being_ahead_is_positive_where_lower_is_better() -> None:
    pairs = [pair("a", "b", 0.01, "logloss", difference=-0.2, ci95=[-0.3, -0.1], effect_size=-0.5)]
    (rival,) = one(pairs, {"a": 0.2, "b": 0.4}, "logloss").rivals
    assert (rival.name, rival.ahead, rival.low, rival.high, rival.effect_size) == ("b", 0.2, 0.1, 0.3, 0.5)


def test_a_pair_that_is_level_when_rounded_is_found_from_either_side() -> None:
    (rival,) = one([pair("b", "a", 0.9, difference=0.0, ci95=[-0.1, 0.2])], {"a": 0.5, "b": 0.5}).rivals
    assert (rival.name, rival.ahead, rival.low, rival.high) == ("b", 0.0, -0.2, 0.1)


def test_unknown_numbers_stay_unknown_and_beat_nobody() -> None:
    nothing = pair("a", "b", None, difference=None, ci95=[None, None], effect_size=None)
    (rival,) = one([nothing], {"a": 0.5, "b": 0.5}).rivals
    assert (rival.ahead, rival.low, rival.high, rival.effect_size, rival.beaten) == (
        None,
        None,
        None,
        None,
        False,
    )


@pytest.mark.parametrize(("p", "text"), [(None, "–"), (0.0004, "< 0.001"), (0.0412, "0.041"), (1.0, "1.000")])
def test_no_p_value_is_written_as_zero(p: float | None, text: str) -> None:
    assert p_value(p) == text


def test_both_reports_say_who_beats_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trsr.evaluate.report._plots", lambda *_: {"bars": [], "training": []})
    metrics = evaluate(make_scores(), protocol={})
    for path in write_report(tmp_path, metrics=metrics, context=ReportContext("t", "c", "")):
        text = path.read_text(encoding="utf-8").replace("\\", "").replace("&lt;", "<")
        assert "Who beats whom" in text
        assert text.count("good beats every other ranker on recall@3 (corrected p < 0.05).") == 2, (
            "on top too"
        )
        assert "good is ahead by" in text
        assert "Not told apart does not mean equal" in text
    metrics["comparisons"] = []
    for path in write_report(tmp_path, metrics=metrics, context=ReportContext("t", "c", "")):
        assert "Who beats whom" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("mrr@10", "it needs examples with a chosen candidate"),
        ("auc", "it needs examples with a chosen and an unchosen candidate"),
        ("logloss", "it needs a score for every candidate"),
    ],
)
def test_without_a_value_no_ranker_is_first(metric: str, why: str) -> None:
    nothing = pair("a", "b", None, metric, difference=None, ci95=[None, None], effect_size=None)
    rankers = {name: {metric: {"value": None, "ci95": [None, None]}} for name in "ab"}
    (found,) = standings({"comparisons": [nothing], "rankers": rankers})
    assert found.sentence == f"No example has a value of {metric}, so no ranker is first: {why}."
    assert [rival.verdict for rival in found.rivals] == ["no value"]


def test_a_report_without_a_truth_names_no_winner(tmp_path: Path) -> None:
    scores = make_scores().with_columns(pl.lit(0).cast(pl.Int64).alias("label"))
    metrics = evaluate(scores, protocol={"protocol": "sampled"})
    metrics["counts"]["targets_in_history"] = 3
    write_report(tmp_path, metrics=metrics, context=ReportContext("A run", "trsr run", "seed: 0\n"))
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "nothing can be said of the rankers" in text
        assert "Who beats whom" not in text
        assert "examples a target stands in the history that the rankers read" in text
