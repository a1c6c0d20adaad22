"""Both reports say for which users and items a ranker works, and what the profile adds there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from score_rows import make_scores

from trsr.evaluate.evaluation import summarise
from trsr.evaluate.per_example import measure, metric_list
from trsr.evaluate.report import write_report
from trsr.evaluate.report_views import ReportContext, slice_views
from trsr.evaluate.slices import Traits


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    traits = {f"e{i}": Traits(10, i % 20, i / 60 if i >= 10 else None) for i in range(60)}
    return summarise(
        measure(make_scores(), metric_list((3,))),
        protocol={},
        compared=["recall@3", "auc"],
        traits=traits,
        slice_pair=("good", "noise"),
    )


def test_each_way_to_cut_has_its_rule_its_table_and_its_effects(metrics: dict[str, Any]) -> None:
    target, interest = slice_views(metrics, ["good", "noise", "constant"], "recall@3", ["recall@3", "auc"])
    assert target["names"] == ["cold", "warm"], "and all histories have one length"
    assert target["examples"] == ["30", "30"]
    assert "fewer than 10" in target["rule"]
    assert "neither" not in target["rule"]
    assert interest["rule"].endswith("10 examples are in neither.")
    assert [row["name"] for row in target["rows"]] == ["good", "noise", "constant"]
    assert [row["name"] for row in target["effects"]["rows"]] == ["recall@3", "auc"]
    cell = target["effects"]["rows"][1]["cells"][0]
    assert cell["value"].startswith("+0.")
    assert "p < 0.001" in cell["interval"]
    assert cell["apart"]
    assert len(target["plots"]) == 2


def test_both_reports_show_them(metrics: dict[str, Any], tmp_path: Path) -> None:
    for path in write_report(tmp_path, metrics=metrics, context=ReportContext("t", "c", "")):
        text = path.read_text(encoding="utf-8").replace("\\", "").replace("&#39;", "'")
        for words in ("For which users and items", "Cold and warm targets", "recent-shift", "good - noise"):
            assert words in text


def test_only_as_many_rankers_are_drawn_as_there_are_colours(metrics: dict[str, Any]) -> None:
    many = {f"r{i:02d}": metrics["rankers"]["good"] for i in range(12)}
    parts = [part | {"rankers": many, "comparisons": []} for part in metrics["slices"]["target"]]
    (view,) = slice_views(metrics | {"slices": {"target": parts}}, list(many), "recall@3", ["recall@3"])
    assert len(view["rows"]) == 12
    assert view["effects"] is None
    drawn = {color for color in (f"var(--s{i})" for i in range(8)) if color in view["plots"][0]}
    assert len(drawn) == 8
    assert view["plots"][0].count("var(--s0)") == view["plots"][0].count("var(--s7)"), "one ranker each"
