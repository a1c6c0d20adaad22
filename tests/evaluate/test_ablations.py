"""Every value of a swept setting stands beside the run's own, with the difference to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from trsr.evaluate.evaluation import evaluate
from trsr.evaluate.leaderboard import ablation_views, ablations, sentence

N_EXAMPLES, N_CANDIDATES = 60, 8


def scores(strengths: dict[str, float]) -> pl.DataFrame:
    """Return scores of rankers that see the truth through noise; the larger the strength, the better."""
    noise = np.random.default_rng(0)
    rows = []
    for ranker, strength in strengths.items():
        for example in range(N_EXAMPLES):
            for candidate in range(N_CANDIDATES):
                label = int(candidate == example % N_CANDIDATES)
                margin = float(strength * label + noise.normal())
                name = f"{example:03d}"
                rows.append((name, f"u{name}", f"i{candidate}", label, ranker, margin, None, 1, 0))
    columns = ["example_id", "user_id", "item_id", "label", "ranker", "margin", "score"]
    return pl.DataFrame(rows, [*columns, "n_prompt_tokens", "n_cut_tokens"], orient="row")


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    found = evaluate(scores({"llm": 2.0, "n_recent=0": 0.0, "n_recent=5": 2.0, "random": 0.0}), protocol={})
    sweep = {"prompt.n_recent": {"0": "n_recent=0", "3": "llm", "5": "n_recent=5"}}
    return found | {"sweep": sweep, "own_ranker": "llm"}


def test_a_run_without_a_sweep_has_no_ablations(metrics: dict[str, Any]) -> None:
    assert ablations({k: v for k, v in metrics.items() if k != "sweep"}) == []


def test_each_value_has_its_metrics_and_its_difference_to_the_runs_own(metrics: dict[str, Any]) -> None:
    (one,) = ablations(metrics)
    assert (one.setting, one.values, one.own) == ("prompt.n_recent", ("0", "3", "5"), "3")
    assert one.metrics == ("recall@3", "mrr@10", "auc")
    for values, ranker in zip(one.effects, ("n_recent=0", "llm", "n_recent=5"), strict=True):
        for metric, effect in zip(one.metrics, values, strict=True):
            of = {name: metrics["rankers"][name][metric]["value"] for name in (ranker, "llm")}
            assert effect.value == of[ranker]
            assert [effect.low, effect.high] == metrics["rankers"][ranker][metric]["ci95"]
            if ranker == "llm":
                assert effect.difference is effect.p is None
            else:
                assert effect.difference == pytest.approx(of[ranker] - of["llm"], abs=2e-6)
                assert effect.p is not None


def test_only_what_is_told_apart_is_called_so(metrics: dict[str, Any]) -> None:
    (one,) = ablations(metrics)
    said = sentence(one)
    assert said.startswith("Told apart from 3, this run's own: 0 on recall@3 (-0.")
    assert " 5 on " not in said
    (view,) = ablation_views(metrics)
    assert [row["name"] for row in view["rows"]] == ["0", "3 (own)", "5"]
    assert [row["cells"][0]["apart"] for row in view["rows"]] == [True, False, False]
    assert "p < 0.001" in view["rows"][0]["cells"][0]["interval"]


def test_nothing_told_apart_is_said_so(metrics: dict[str, Any]) -> None:
    alike = metrics | {"sweep": {"prompt.n_recent": {"3": "llm", "5": "n_recent=5"}}}
    assert sentence(ablations(alike)[0]) == "No value is told apart from 3, this run's own."


def test_the_runs_own_value_is_that_of_the_ranker_named_so(metrics: dict[str, Any]) -> None:
    (one,) = ablations(metrics | {"own_ranker": "n_recent=0"})
    assert one.own == "0"
    assert [row[0].difference is None for row in one.effects] == [True, False, False]
