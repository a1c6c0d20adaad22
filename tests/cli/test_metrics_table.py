"""Numbers for people."""

from __future__ import annotations

from typing import Any

import pytest

from trsr.cli.experiment import _number, print_metrics


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, ".500"), (1.0, "1.000"), (10.053, "10.053"), (0.0, ".000"), (None, "")]
)
def test_numbers_lose_their_leading_zero_and_nothing_else(value: float | None, text: str) -> None:
    assert _number(value) == text


def test_rankers_come_best_first_with_their_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    def values(middle: float) -> dict[str, Any]:
        return {name: {"value": middle, "ci95": [middle - 0.1, middle + 0.1]} for name in ("recall@3", "auc")}

    metrics = {
        "rankers": {"worse": values(0.25), "better": values(0.75)},
        "protocol": {"chance": {"recall@3": 0.125}},
        "counts": {"users": 3, "candidates": 12},
    }
    print_metrics(metrics)
    out = capsys.readouterr().out
    assert out.index("chance") < out.index("better") < out.index("worse")
    for text in ("3 test users", ".125", ".750", ".65-.85"):
        assert text in out


def test_whether_scores_can_be_believed_stands_there(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"value": 0.0456, "ci95": [0.03, 0.06]}
    names = ("recall@3", "recall@10", "mrr@5", "mrr@10", "auc", "logloss", "brier", "ece")
    metrics = {
        "rankers": {"llm": dict.fromkeys(names, entry)},
        "protocol": {"chance": {}},
        "counts": {"users": 3, "candidates": 12},
    }
    print_metrics(metrics)
    head = next(line for line in capsys.readouterr().out.splitlines() if "ranker" in line)
    assert "ece" in head
    assert "recall@3" in head
    assert "brier" not in head


def test_a_metric_without_a_value_is_left_blank(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = {"value": None, "ci95": [None, None]}
    metrics = {
        "rankers": {"one": {"auc": nothing, "recall@3": nothing}},
        "protocol": {},
        "counts": {"users": 1, "candidates": 1},
    }
    print_metrics(metrics)
    assert "None" not in capsys.readouterr().out
