"""What a run says of its profiles: in `metrics.json`, in both reports, and for runs made before it could."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import tiny_run

from trsr.errors import MissingExtraError
from trsr.evaluate.profile_quality import fold
from trsr.experiment import evaluating
from trsr.experiment.config import load_config
from trsr.experiment.evaluating import evaluate_scores, profile_facts, profile_frame
from trsr.experiment.experiment import Workbench
from trsr.experiment.run_folder import RunFolder
from trsr.experiment.stages import run_stages

TITLE = "What the profiles are worth"
Bench = Callable[..., Workbench]


@pytest.fixture
def bench(tiny_model: Path, tmp_path: Path) -> Bench:
    """Makes or opens the run of a method, ranked without a language model."""

    def make(method: str, run: bool = True, **summary: Any) -> Workbench:
        settings = {"method": method, "max_field_tokens": 6, "max_new_tokens": 8, **summary}
        content = tiny_run(tiny_model, train=None, rankers=["random", "bm25"], summary=settings)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
        out = tmp_path / f"out-{method}"
        made = Workbench(RunFolder(out, load_config(tmp_path / "config.yaml"), "trsr run"))
        if run:
            run_stages(made)
        return made

    return make


def read(bench: Workbench) -> tuple[dict[str, Any], str]:
    folder = bench.folder.path
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics, (folder / "report.html").read_text()


def test_metrics_and_reports_tell_what_written_profiles_are_worth(bench: Bench) -> None:
    metrics, page = read(bench("recurrent"))
    found = metrics["profiles"]
    assert (found["method"], found["examples"]) == ("recurrent", 12)
    assert {"grounding", "coverage", "words", "change", "auc", "mrr", "auc_gain"} <= set(found["measures"])
    for name, entry in found["measures"].items():
        low, high = entry["ci95"]
        assert low <= entry["value"] <= high, name
    assert TITLE in page
    assert "auc_gain" in page


def test_invented_profiles_are_listed_with_their_words_in_a_folded_table(bench: Bench) -> None:
    made = bench("recurrent")
    file = made.folder.path / "profiles.parquet"
    first = made.splits.test[0].example_id
    text = "This person likes Zorblax <b>and</b> Quuxville."
    invented = pl.when(pl.col("example_id") == first).then(pl.lit(text)).otherwise(pl.col("text"))
    pl.read_parquet(file).with_columns(invented.alias("text")).write_parquet(file)
    # Without the store nobody can tell that it was not written so; with it the leakage check would.
    Path(made.store_place).unlink()
    again = bench("recurrent", run=False)
    evaluate_scores(again)
    metrics, page = read(again)
    listed = next(one for one in metrics["profiles"]["worst"] if one["example_id"] == first)
    assert {"Zorblax", "Quuxville"} <= set(listed["ungrounded"])
    assert listed["value"] == 0
    assert "Zorblax &lt;b&gt;" in page
    assert "<b>and" not in page


def test_without_profiles_the_section_is_left_out(bench: Bench) -> None:
    metrics, page = read(bench("none"))
    assert "profiles" not in metrics
    assert TITLE not in page


def test_a_counted_profile_is_wholly_grounded_and_has_no_summaries_of_blocks(bench: Bench) -> None:
    found = read(bench("counted"))[0]["profiles"]
    assert found["measures"]["grounding"]["value"] == 1
    assert found["measures"]["coverage"]["value"] > 0.3
    assert "change" not in found["measures"]
    assert found["worst"] == []


def test_a_run_from_before_is_evaluated_again_with_the_same_result(bench: Bench) -> None:
    made = bench("hierarchical")
    metrics = read(made)[0]
    old = {key: value for key, value in metrics.items() if key != "profiles"}
    made.folder.write_json("metrics.json", old)
    evaluate_scores(bench("hierarchical", run=False))
    assert read(made)[0] == metrics


def test_only_the_summaries_of_blocks_are_compared_with_one_another(bench: Bench) -> None:
    made = bench("hierarchical")
    source_of = evaluating._source_maker(made)
    for example in made.splits.test:
        n_blocks = len(made.summariser.blocks(example.history))
        assert n_blocks > 1
        assert list(source_of(example).versions) == made.summary_texts[example.example_id][:n_blocks]
        assert len(made.summary_texts[example.example_id]) > n_blocks, "a merge stands behind them"


def test_the_frame_is_the_templates_own_words_without_its_worked_examples(bench: Bench) -> None:
    frame = profile_frame(bench("recurrent"))
    assert {fold(word) for word in ("known", "before", "products", "title")} <= frame.words
    assert fold("Coilguard") in frame.example_words - frame.words
    assert frame.prefill == "This shopper buys"


def test_without_bm25s_the_rest_is_still_measured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MissingExtraError("bm25s", "baselines")

    made = bench("counted")
    monkeypatch.setattr(evaluating, "predictive_values", missing)
    found = profile_facts(made)
    assert found is not None
    assert "grounding" in found["measures"]
    assert "auc" not in found["measures"]
