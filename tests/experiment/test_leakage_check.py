"""A run whose profiles, examples or learned scores have seen a target ends with an error, not metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import open_experiment

from trsr.errors import LeakageError
from trsr.experiment import stages
from trsr.experiment.evaluating import evaluate_scores
from trsr.experiment.experiment import Experiment
from trsr.experiment.leakage import check_run
from trsr.experiment.stages import run_stages
from trsr.splitting.split import build_examples
from trsr.summarize.summarizer import write_profiles
from trsr.types import History

N_EXAMPLES = 8 + 3 + 12


def plant(file: Path, edit: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the rows of a Parquet file."""
    frame = pl.read_parquet(file)
    rows = frame.to_dicts()
    edit(rows)
    pl.DataFrame(rows, schema=frame.schema).write_parquet(file)


def test_leakage_entry_counts_what_was_checked(finished_run: Path) -> None:
    leakage = json.loads((finished_run / "metrics.json").read_text())["leakage"]
    assert leakage == {
        "found": 0,
        "checked": {
            "examples": N_EXAMPLES,
            "training_and_validation_rows": 8 + 3,
            "profiles": N_EXAMPLES,
            "scores_learned_from": 3 * 6,
        },
    }
    assert "leakage check" in (finished_run / "report.html").read_text().lower()


def test_profiles_are_functions_of_their_histories(run_copy: Path) -> None:
    experiment = open_experiment(run_copy / "config.yaml", run_copy)
    histories = [History(e.user_id, e.history) for e in experiment.summarized_examples()]
    again = write_profiles(histories, experiment.summarizer, experiment.config.engine, experiment.store_place)
    assert again.progress.n_calls_made == 0
    assert [one.text for one in again.profiles] == list(experiment.profiles.values())


def swap(rows: list[dict[str, Any]]) -> None:
    rows[20].update({name: rows[19][name] for name in ("text", "key", "texts")})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows[20].update(n_items=rows[20]["n_items"] + 1), "has seen"),
        (swap, "is not in its history"),
        (lambda rows: rows[20].update(text="They will buy clay pots."), "not the text that the store has"),
    ],
)
def test_profile_of_other_items_is_found(
    run_copy: Path, edit: Callable[[list[dict[str, Any]]], object], message: str
) -> None:
    plant(run_copy / "profiles.parquet", edit)
    with pytest.raises(LeakageError, match=f"1 leaks were found, the first: the profile .*{message}"):
        check_run(open_experiment(run_copy / "config.yaml", run_copy))


def test_check_without_the_store_makes_none(run_copy: Path) -> None:
    (run_copy / "summaries.sqlite").unlink()
    assert check_run(open_experiment(run_copy / "config.yaml", run_copy))["found"] == 0
    assert not (run_copy / "summaries.sqlite").exists()


def test_test_scores_that_calibration_learns_from_are_found(run_copy: Path) -> None:
    test = pl.read_parquet(run_copy / "scores.parquet").filter(ranker="llm").head(6)
    file = run_copy / "valid_scores.parquet"
    pl.concat([pl.read_parquet(file), test]).write_parquet(file)
    with pytest.raises(LeakageError, match=r"valid_scores\.parquet holds the example"):
        check_run(open_experiment(run_copy / "config.yaml", run_copy))


def test_leak_ends_the_evaluation_before_any_metric(run_copy: Path) -> None:
    def see_the_target(rows: list[dict[str, Any]]) -> None:
        target = rows[0]["candidates"][rows[0]["labels"].index(1)]
        rows[0]["history"] = [*rows[0]["history"][1:], target]

    plant(run_copy / "examples" / "test.parquet", see_the_target)
    (run_copy / "metrics.json").unlink()
    with pytest.raises(LeakageError, match=r"leaks? .*found, the first: the history of the example"):
        evaluate_scores(open_experiment(run_copy / "config.yaml", run_copy))
    assert not (run_copy / "metrics.json").exists()


@pytest.mark.parametrize("summary", [{"method": "counted"}, {"method": "recurrent", "counts": True}])
def test_profile_with_other_counts_is_found(
    small_run: Callable[..., Experiment], tmp_path: Path, summary: dict[str, Any]
) -> None:
    experiment = small_run("run", summary=summary)
    run_stages(experiment, "summarize")
    assert check_run(experiment)["found"] == 0
    plant(tmp_path / "run" / "profiles.parquet", lambda rows: rows[0].update(text=rows[0]["text"] + " (9)"))
    with pytest.raises(LeakageError, match="the profile of the example"):
        check_run(experiment)


def test_examples_that_leak_end_the_stage_that_makes_them(
    small_run: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(*arguments: Any) -> Any:
        splits = build_examples(*arguments)
        splits.train.append(splits.test[0])
        return splits

    monkeypatch.setattr(stages, "build_examples", leaky)
    experiment = small_run("run")
    with pytest.raises(LeakageError, match="the training example"):
        run_stages(experiment, "examples")
    assert "examples" not in experiment.folder.stages()


def test_each_point_of_a_users_history_has_its_own_profile(
    small_run: Callable[..., Experiment], tmp_path: Path
) -> None:
    protocol = {"kind": "temporal", "min_history": 3, "valid_quantile": 0.5, "test_quantile": 0.7}
    negatives = {"kind": "uniform", "n_train": 2, "n_test": 5}
    experiment = small_run("run", protocol={**protocol, "negatives": negatives})
    run_stages(experiment)
    in_two = {e.user_id for e in experiment.splits.valid} & {e.user_id for e in experiment.splits.test}
    assert in_two, "users are ranked in several stretches"
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["leakage"]["found"] == 0
    for example in [*experiment.splits.valid, *experiment.splits.test]:
        profile = experiment.summarizer.profile_without_llm(History(example.user_id, example.history)).text
        assert experiment.profiles[example.example_id] == profile
