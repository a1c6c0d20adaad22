"""The pages made from recorded results are up to date."""

from __future__ import annotations

import html
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # its scripts use one another
RESULTS = runpy.run_path(str(ROOT / "benchmarks" / "results_page.py"))
SPEED = runpy.run_path(str(ROOT / "benchmarks" / "speed_page.py"))
SCALING = runpy.run_path(str(ROOT / "benchmarks" / "scaling_page.py"))
PROFILES = runpy.run_path(str(ROOT / "benchmarks" / "profile_page.py"))
RUNS: list[dict[str, Any]] = RESULTS["read_runs"]()


def test_results_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == RESULTS["page"](RUNS), (
        "docs/results.md is stale: run python benchmarks/results_page.py"
    )


def test_readme_table_is_up_to_date() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == RESULTS["readme"](text, RUNS), "README.md is stale: run python benchmarks/results_page.py"


def test_speed_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert page == SPEED["page"](), "docs/speed.md is stale: run python benchmarks/speed_page.py"
    row = next(row for row in SPEED["read"]("score")["results"] if "growth" in row)
    assert SPEED["drawn"](row) in (ROOT / "docs" / "speed.svg").read_text(encoding="utf-8")


def test_scaling_page_is_up_to_date() -> None:
    record = SCALING["read"]()
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert page == SCALING["page"](record), "docs/scaling.md is stale: run python benchmarks/scaling_page.py"
    assert SCALING["drawn"](record) in html.unescape(
        (ROOT / "docs" / "scaling.svg").read_text(encoding="utf-8")
    )


def test_profiles_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    assert page == PROFILES["page"](), "docs/profiles.md is stale: run python benchmarks/profile_page.py"


def test_profiles_page_has_every_gain_and_measure() -> None:
    page = PROFILES["page"]()
    for one in PROFILES["read"]("older_history")["results"]:
        for added in one["older_items_add_to"].values():
            assert PROFILES["signed"](added["mrr@10"]) in page
    for one in PROFILES["read"]("profiles")["results"]:
        assert RESULTS["cell"](one["measures"]["auc"]) in page
        assert one["command"] in page


def test_run_section_has_rankers_protocol_and_comparisons() -> None:
    record = next(record for record in RUNS if record["name"] == "mind-recurrent")
    text = RESULTS["run_section"](record)
    metrics = record["metrics"]
    for name, values in metrics["rankers"].items():
        low, high = values["mrr@10"]["ci95"]
        value = f"{values['mrr@10']['value']:.3f} [{low:.2f}, {high:.2f}]".replace("0.", ".")
        assert f"| {name} | " in text
        assert value in text
    for fact in ("*chance*", "sampled", "tie rate", "cut rate", "missing-text rate", "corrected p"):
        assert fact in text
    for fact in (record["commit"], record["machine"], metrics["protocol"]["negatives"], "300 test users"):
        assert fact in text
    assert "trsr run configs/mind_recurrent.yaml" in text
    assert "--dry-run" not in text


@pytest.mark.parametrize("where", ["page", "readme_rows"])
def test_page_depends_on_every_number(where: str) -> None:
    changed = json.loads(json.dumps(RUNS))
    changed[0]["metrics"]["rankers"]["llm"]["mrr@10"]["value"] += 0.01
    assert RESULTS[where](changed) != RESULTS[where](RUNS)


def test_comparison_is_flipped_for_the_other_side() -> None:
    pair = {"a": "x", "b": "y", "difference": 0.2, "ci95": [0.1, 0.3], "p_holm": 0.04, "effect_size": 0.5}
    assert RESULTS["against_other"](pair, "x") == ["x", "y", "+0.200 [+0.100, +0.300]", "0.040", "+0.50"]
    assert RESULTS["against_other"](pair, "y") == ["y", "x", "-0.200 [-0.300, -0.100]", "0.040", "-0.50"]


def test_readme_lists_claims_by_run() -> None:
    rankers = {name: {"mrr@10": {"value": value}} for name, value in (("llm", 0.5), ("llm_counted", 0.4))}
    rankers |= {"sasrec": {"mrr@10": {"value": 0.7}}, "bm25": {"mrr@10": {"value": 0.2}}}
    pair = {"metric": "mrr@10", "b": "llm", "p_holm": 0.4, "effect_size": 0.5}
    beaten = pair | {"a": "sasrec", "difference": 0.2, "ci95": [0.1, 0.3], "p": 0.01}
    beats = pair | {"a": "llm_counted", "difference": -0.2, "ci95": [-0.3, -0.1], "p": 0.02}
    both = {"name": "shop", "metrics": {"rankers": rankers, "comparisons": [beaten, beats]}}
    one = {"name": "news", "metrics": {"rankers": rankers, "comparisons": [beats]}}
    lines = RESULTS["readme_claims"]([both, one]).splitlines()
    assert lines[0] == "| claim, on mrr@10 | shop | news |"
    assert lines[2].endswith(
        "| **holds**: +0.200 [+0.100, +0.300], p 0.020 | **holds**: +0.200 [+0.100, +0.300], p 0.020 |"
    )
    assert lines[3].endswith("| **the opposite holds**: -0.200 [-0.300, -0.100], p 0.020 | – |")
    assert len(lines) == 4
    unsure = {"name": "films", "metrics": {"rankers": rankers, "comparisons": [beats | {"p": 0.2}]}}
    assert RESULTS["readme_claims"]([unsure]).endswith("| +0.200 [+0.100, +0.300], p 0.200 |")


def test_command_prefers_the_plain_recipe() -> None:
    tried = "trsr run a.yaml --set seed=1 --out out/a"
    record: dict[str, Any] = {"command": "trsr train a.yaml", "later_sittings": [{"command": tried}]}
    assert RESULTS["command"](record) == tried
    record["later_sittings"].append({"command": "trsr run b.yaml --out out/a"})
    assert RESULTS["command"](record) == "trsr run b.yaml --out out/a"
    assert RESULTS["command"]({"command": "trsr train a.yaml"}) == "trsr train a.yaml"


def test_slice_sentences_list_the_gain_by_slice() -> None:
    pair = {
        "metric": "mrr@10",
        "a": "llm",
        "b": "bare",
        "difference": 0.2,
        "ci95": [0.1, 0.3],
        "p_holm": 0.04,
    }
    part = {"name": "cold", "examples": 12, "comparisons": [{**pair, "effect_size": 0.5}]}
    (said,) = RESULTS["slice_sentences"]({"slices": {"target": [part], "interest": [{"name": "x"}]}})
    assert said == "llm - bare on mrr@10 by target: cold (12) +0.200 [+0.100, +0.300], p 0.040."
