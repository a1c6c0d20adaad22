"""A whole experiment in seconds: its files, byte-exact repetition, and no work done twice."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import forget, open_experiment

from trsr.data.synthetic import SyntheticConfig, generate
from trsr.errors import RunMismatchError
from trsr.experiment import stages
from trsr.experiment.evaluating import cut_sentences
from trsr.experiment.experiment import Experiment
from trsr.experiment.stages import FILES, STAGES, run_stages
from trsr.recommend.model_folder import read_adapter_info

MakeExperiment = Callable[..., Experiment]
RANKERS = ("random", "popularity", "recency", "bm25", "llm_zero_shot", "llm")


def test_a_run_leaves_every_file_of_the_design_and_nothing_half_done(finished_run: Path) -> None:
    found = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    assert found >= {
        "config.yaml",
        "env.json",
        "log.jsonl",
        "examples/train.parquet",
        "examples/valid.parquet",
        "examples/test.parquet",
        "summaries.sqlite",
        "model/adapter_model.safetensors",
        "model/adapter_config.json",
        "model/tokenizer.json",
        "model/trsr.json",
        "model/README.md",
        "scores.parquet",
        "metrics.json",
        "report.html",
    }
    assert not [name for name in found if "partial" in name or ".new" in name or "checkpoint" in name]
    assert not (finished_run / "scores.parts").exists()


def test_every_stage_is_marked_in_order_with_its_facts(finished_run: Path) -> None:
    facts = json.loads((finished_run / "stages.json").read_text())
    assert list(facts) == list(STAGES)
    hashes = {stage: set(facts[stage].pop("sha256", ())) for stage in STAGES}
    assert hashes == {stage: set(FILES.get(stage, ())) for stage in STAGES}
    assert facts["examples"] | {"seconds": 0} == {"seconds": 0, "train": 8, "valid": 3, "test": 12}
    assert facts["train"] | {"seconds": 0} == {"seconds": 0, "users": 8, "steps": 8}
    lines = [json.loads(line) for line in (finished_run / "log.jsonl").read_text().splitlines()]
    events = [(line["stage"], line["event"]) for line in lines]
    assert events == [(stage, event) for stage in STAGES for event in ("start", "done")]


def test_scores_hold_every_candidate_of_every_ranker(finished_run: Path) -> None:
    scores = pl.read_parquet(finished_run / "scores.parquet")
    assert scores.columns[:9] == [
        "example_id",
        "user_id",
        "item_id",
        "label",
        "ranker",
        "margin",
        "score",
        "n_prompt_tokens",
        "n_cut_tokens",
    ]
    assert scores.height == 12 * 6 * len(RANKERS)
    assert scores["ranker"].unique(maintain_order=True).to_list() == list(RANKERS)
    assert scores.group_by("ranker", "example_id").agg(pl.col("label").sum())["label"].unique().to_list() == [
        1
    ]
    llm = scores.filter(pl.col("ranker").str.starts_with("llm"))
    assert llm["score"].is_between(0, 1).all()
    assert llm["n_prompt_tokens"].is_between(20, 320).all()
    others = scores.filter(~pl.col("ranker").str.starts_with("llm"))
    assert others["score"].is_null().all()
    zero_shot, tuned = (scores.filter(ranker=name)["margin"].to_list() for name in ("llm_zero_shot", "llm"))
    assert zero_shot != tuned, "the adapter is in use"


def test_metrics_name_every_ranker_with_values_and_intervals(finished_run: Path, tiny_model: Path) -> None:
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert set(metrics["rankers"]) == set(RANKERS)
    assert metrics["counts"]["users"] == 12
    assert metrics["counts"]["candidates"] == 72
    for values in metrics["rankers"].values():
        low, high = values["recall@3"]["ci95"]
        assert 0 <= low <= values["recall@3"]["value"] <= high <= 1
    assert "logloss" in metrics["rankers"]["llm"]
    assert "logloss" not in metrics["rankers"]["bm25"]
    info = read_adapter_info(finished_run / "model")
    assert (info.base_model, info.prompt["n_recent"]) == (str(tiny_model), 2)


def test_field_cuts_are_in_scores_metrics_and_report(finished_run: Path) -> None:
    kept = json.loads((finished_run / "field_cuts.json").read_text(encoding="utf-8"))
    assert set(kept) == {"prompt", "summary"}
    metrics = json.loads((finished_run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["field_cuts"] == kept
    scores = pl.read_parquet(finished_run / "scores.parquet").filter(pl.col("ranker") == "llm")
    n_cut = scores.filter(pl.col("n_cut_tokens") > 0).height
    assert metrics["counts"]["cut_prompts"] == n_cut > 0
    (sentence,) = cut_sentences({"prompt": kept["prompt"]})
    assert sentence.startswith("prompt.max_field_tokens (6) cut ")
    assert sentence in (finished_run / "report.html").read_text(encoding="utf-8")


def test_cut_sentences_name_the_fields_that_were_cut() -> None:
    desc = {"texts": 300, "cut_texts": 288, "tokens": 1000, "cut_tokens": 700}
    title = {"texts": 300, "cut_texts": 0, "tokens": 900, "cut_tokens": 0}
    assert cut_sentences({"prompt": {"cap": 64, "fields": {"title": title, "desc": desc}}}) == [
        "prompt.max_field_tokens (64) cut desc: 288 of 300 texts cut, 70% of their tokens."
    ]


def test_profiles_are_written_once_for_each_example(finished_run: Path) -> None:
    profiles = pl.read_parquet(finished_run / "profiles.parquet")
    assert profiles.height == profiles["example_id"].n_unique() == 8 + 3 + 12
    assert profiles["text"].str.len_chars().min() > 0  # type: ignore[operator]
    with sqlite3.connect(finished_run / "summaries.sqlite") as db:
        calls, attempts, failed = db.execute(
            "SELECT count(*), sum(n_attempts), count(error) FROM summaries"
        ).fetchone()
    facts = json.loads((finished_run / "stages.json").read_text())["summarize"]
    assert (calls, attempts, failed) == (facts["calls_made"], facts["calls_made"], 0)


def test_a_second_run_with_the_same_seed_gives_the_same_metrics_to_the_byte(
    config_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    experiment = open_experiment(config_file, tmp_path / "again")
    run_stages(experiment)
    for name in ("metrics.json", "training.json"):
        assert (tmp_path / "again" / name).read_bytes() == (finished_run / name).read_bytes()
    ours, theirs = (pl.read_parquet(run / "scores.parquet") for run in (tmp_path / "again", finished_run))
    assert ours.equals(theirs)


def test_finished_stages_are_not_repeated(
    config_file: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: Experiment) -> dict[str, Any]:
        raise AssertionError("repeated")

    monkeypatch.setattr(stages, "STAGES", dict.fromkeys(STAGES, never))
    said: list[str] = []
    run_stages(open_experiment(config_file, run_copy), notify=said.append)
    assert said == []


def test_a_run_can_be_made_stage_by_stage(config_file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run_stages(open_experiment(config_file, tmp_path / "r"), "examples", said.append)
    assert [line.split(":")[0] for line in said] == ["data", "examples"]
    assert not (tmp_path / "r" / "summaries.sqlite").exists()
    run_stages(open_experiment(config_file, tmp_path / "r"), "summarize", said.append)
    assert [line.split(":")[0] for line in said] == ["data", "examples", "summarize"]
    run_stages(open_experiment(config_file, tmp_path / "r"), "summarize", said.append)
    assert len(open_experiment(config_file, tmp_path / "r").folder.sessions()) == 2, (
        "the last one found no work"
    )


def test_known_summaries_are_not_asked_for_again(config_file: Path, run_copy: Path) -> None:
    forget(run_copy, "summarize")
    before = (run_copy / "profiles.parquet").read_bytes()
    run_stages(open_experiment(config_file, run_copy), "summarize")
    facts = json.loads((run_copy / "stages.json").read_text())["summarize"]
    assert (facts["calls_made"], facts["calls_from_store"]) == (0, facts["calls"])
    assert (run_copy / "profiles.parquet").read_bytes() == before


def test_a_kill_while_checkpoints_are_removed_does_not_train_again(
    config_file: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(run_copy, "train", "calibrate", "rank", "evaluate")
    (run_copy / "checkpoints" / "checkpoint-8").mkdir(parents=True)
    (run_copy / "checkpoints" / "checkpoint-8" / "trainer_state.json").write_text('{"global_step": 8}')
    monkeypatch.setattr(stages, "_train", lambda *_: pytest.fail("trained again"))
    run_stages(open_experiment(config_file, run_copy), "train")
    assert not (run_copy / "checkpoints").exists()
    assert json.loads((run_copy / "stages.json").read_text())["train"]["steps"] == 8


@pytest.mark.parametrize("method", ["none", "counted", "hierarchical"])
def test_every_method_of_summaries_serves(small_run: MakeExperiment, method: str) -> None:
    made = small_run(method, summary={"method": method})
    run_stages(made)
    assert not (made.folder.path / "model").exists()
    texts = pl.read_parquet(made.folder.path / "profiles.parquet")["text"].to_list()
    assert all(texts) if method != "none" else not any(texts)


def test_the_impressions_protocol_serves(small_run: MakeExperiment, tmp_path: Path) -> None:
    run_stages(small_run("shown", protocol={"kind": "impressions", "n_valid": 4, "n_test": 8}))
    assert set(json.loads((tmp_path / "shown" / "metrics.json").read_text())["rankers"]) == {"random", "bm25"}


def test_a_dataset_folder_is_taken_as_it_is(small_run: MakeExperiment, tmp_path: Path) -> None:
    run_stages(small_run("first"), "data")
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "first" / "data").iterdir())
    run_stages(small_run("second", data={"kind": "folder", "path": str(tmp_path / "first" / "data")}))
    assert not (tmp_path / "second" / "data").exists()
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "first" / "data").iterdir()) == before
    run_stages(small_run("first"))
    assert (tmp_path / "second" / "scores.parquet").read_bytes() == (
        tmp_path / "first" / "scores.parquet"
    ).read_bytes()


def test_a_run_whose_dataset_was_changed_meanwhile_is_refused(
    small_run: MakeExperiment, tmp_path: Path
) -> None:
    data = tmp_path / "made" / "data"
    run_stages(small_run("made"), "data")
    run_stages(small_run("run", data={"kind": "folder", "path": str(data)}), "examples")
    before = (tmp_path / "run" / "stages.json").read_bytes()
    generate(SyntheticConfig(n_users=50, n_items=250), data, overwrite=True)
    experiment = small_run("run", data={"kind": "folder", "path": str(data)})
    with pytest.raises(RunMismatchError, match=r"The dataset in .* was changed after .*run began with it"):
        run_stages(experiment)
    assert (tmp_path / "run" / "stages.json").read_bytes() == before
