"""A run records the quality of its profiles and the features of its examples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import open_experiment

from trsr.errors import MissingExtraError
from trsr.evaluation.profile_quality import fold
from trsr.evaluation.slices import interest_shift
from trsr.experiment import evaluating
from trsr.experiment.evaluating import (
    evaluate_scores,
    example_features,
    profile_facts,
    profile_frame,
    targets_in_history,
)
from trsr.experiment.experiment import Experiment
from trsr.experiment.stages import run_stages
from trsr.summarize.counted import field_values, title_words

TITLE = "Profile quality"
MakeExperiment = Callable[..., Experiment]


@pytest.fixture
def experiment(small_run: MakeExperiment) -> MakeExperiment:
    """Makes or opens the run of a method, ranked without a language model."""

    def make(method: str, run: bool = True) -> Experiment:
        made = small_run(method, summary={"method": method, "max_field_tokens": 6, "max_new_tokens": 8})
        if run:
            run_stages(made)
        return made

    return make


@pytest.fixture
def finished(finished_run: Path) -> Experiment:
    return open_experiment(finished_run / "config.yaml", finished_run)


def read(experiment: Experiment) -> tuple[dict[str, Any], str]:
    folder = experiment.folder.path
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics, (folder / "report.html").read_text()


def test_metrics_and_reports_tell_what_written_profiles_are_worth(experiment: MakeExperiment) -> None:
    metrics, page = read(experiment("recurrent"))
    found = metrics["profiles"]
    assert (found["method"], found["examples"]) == ("recurrent", 12)
    assert {"grounding", "coverage", "words", "change", "auc", "mrr", "auc_gain"} <= set(found["measures"])
    for name, entry in found["measures"].items():
        low, high = entry["ci95"]
        assert low <= entry["value"] <= high, name
    assert TITLE in page
    assert "auc_gain" in page


def test_invented_profiles_are_listed_with_their_words_in_a_folded_table(experiment: MakeExperiment) -> None:
    made = experiment("recurrent")
    file = made.folder.path / "profiles.parquet"
    first = made.splits.test[0].example_id
    text = "This person likes Zorblax <b>and</b> Quuxville."
    invented = pl.when(pl.col("example_id") == first).then(pl.lit(text)).otherwise(pl.col("text"))
    pl.read_parquet(file).with_columns(invented.alias("text")).write_parquet(file)
    # Without the store the change cannot be found; with it the leakage check finds it.
    Path(made.store_place).unlink()
    again = experiment("recurrent", run=False)
    evaluate_scores(again)
    metrics, page = read(again)
    listed = next(one for one in metrics["profiles"]["worst"] if one["example_id"] == first)
    assert {"Zorblax", "Quuxville"} <= set(listed["ungrounded"])
    assert listed["value"] == 0
    assert "Zorblax &lt;b&gt;" in page
    assert "<b>and" not in page


def test_without_profiles_the_section_is_left_out(experiment: MakeExperiment) -> None:
    metrics, page = read(experiment("none"))
    assert "profiles" not in metrics
    assert TITLE not in page


def test_a_counted_profile_is_wholly_grounded_and_has_no_summaries_of_blocks(
    experiment: MakeExperiment,
) -> None:
    found = read(experiment("counted"))[0]["profiles"]
    assert found["measures"]["grounding"]["value"] == 1
    assert found["measures"]["coverage"]["value"] > 0.3
    assert "change" not in found["measures"]
    assert found["worst"] == []


def test_only_the_summaries_of_blocks_are_compared_with_one_another(experiment: MakeExperiment) -> None:
    made = experiment("hierarchical")
    source_of = evaluating._source_maker(made)
    for example in made.splits.test:
        n_blocks = len(made.summarizer.blocks(example.history))
        assert n_blocks > 1
        assert list(source_of(example).versions) == made.summary_texts[example.example_id][:n_blocks]
        assert len(made.summary_texts[example.example_id]) > n_blocks, "a merge follows them"


def test_the_frame_is_the_templates_own_words_without_its_worked_examples(experiment: MakeExperiment) -> None:
    frame = profile_frame(experiment("recurrent"))
    assert {fold(word) for word in ("known", "before", "products", "title")} <= frame.words
    assert fold("Coilguard") in frame.example_words - frame.words
    assert frame.prefill == "This shopper buys"


def test_without_bm25s_the_rest_is_still_measured(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise MissingExtraError("bm25s", "baselines")

    made = experiment("counted")
    monkeypatch.setattr(evaluating, "predictive_values", missing)
    found = profile_facts(made)
    assert found is not None
    assert "grounding" in found["measures"]
    assert "auc" not in found["measures"]


def test_every_test_example_has_its_traits(finished: Experiment) -> None:
    features = example_features(finished)
    items = finished.splits.training_events["item_id"].to_list()
    catalogue, fields = finished.dataset.catalogue(), finished.dataset.info.category_fields
    assert len(features) == 12
    for example in finished.splits.test:
        one = features[example.example_id]
        target = example.candidates[example.labels.index(1)]
        assert one.history_length == len(example.history)
        assert one.target_count == items.count(target)
        assert one.shift == interest_shift([field_values(catalogue[i], fields) for i in example.history])
    assert len({one.shift for one in features.values()}) > 3
    assert len({one.target_count for one in features.values()}) > 1


def test_without_categories_words_of_titles_stand_for_interests(finished: Experiment) -> None:
    finished.summarizer = dataclasses.replace(finished.summarizer, category_fields=())
    features, catalogue = example_features(finished), finished.dataset.catalogue()
    for example in finished.splits.test:
        words = [title_words(catalogue[i], finished.summarizer.title_field) for i in example.history]
        assert any(words)
        assert features[example.example_id].shift == interest_shift(words)


def test_targets_in_their_own_history_are_counted_once_an_example(finished: Experiment) -> None:
    assert targets_in_history([finished]) == 0
    first, *rest = finished.splits.test
    target = first.candidates[first.labels.index(1)]
    leaky = dataclasses.replace(first, history=(*first.history, target))
    finished.splits = dataclasses.replace(finished.splits, test=[leaky, *rest])
    assert targets_in_history([finished, finished]) == 1
