"""`trsr run`, `train`, `rank`, `evaluate`: whole commands on an experiment that takes seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import yaml
from conftest import Answer, tiny_run

Trsr = Callable[..., Answer]


@pytest.fixture
def run(run_copy: Path) -> Path:
    return run_copy


def assert_one_sentence(answer: Answer, *words: str) -> None:
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("Error: ")
    assert answer.err.count("\n") == 1
    for word in words:
        assert word in answer.err


def test_a_finished_run_is_printed_as_a_table(trsr: Trsr, config_file: Path, run: Path) -> None:
    answer = trsr("run", config_file, "--out", run)
    assert answer.code == 0
    for word in ("recall@3", "llm_zero_shot", "bm25", "12 test users"):
        assert word in answer.out
    assert str(run / "report.html") in answer.out.replace("\n", "")


def test_json_is_the_metrics_file_and_nothing_else(trsr: Trsr, config_file: Path, run: Path) -> None:
    answer = trsr("run", config_file, "--out", run, "--json")
    assert json.loads(answer.out) == json.loads((run / "metrics.json").read_text())


def test_train_prints_the_model_folder_or_its_note(trsr: Trsr, config_file: Path, run: Path) -> None:
    assert str(run / "model") in trsr("train", config_file, "--out", run).out
    note = json.loads(trsr("train", config_file, "--out", run, "--json").out)
    assert note["template"] == "products"


def test_rank_prints_where_the_scores_are(trsr: Trsr, config_file: Path, run: Path) -> None:
    assert str(run / "scores.parquet") in trsr("rank", config_file, "--out", run).out
    answer = trsr("rank", config_file, "--out", run, "--json")
    assert json.loads(answer.out) == {"scores": str(run / "scores.parquet")}


def test_train_without_training_says_what_to_change(trsr: Trsr, tiny_model: Path, tmp_path: Path) -> None:
    content = tiny_run(tiny_model, train=None, rankers=["random"], summary={"method": "none"})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    assert_one_sentence(trsr("train", tmp_path / "c.yaml", "--out", tmp_path / "out"), "train", "null")


def test_only_train_is_done_by_several_processes(
    trsr: Trsr, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in ("run", "rank"):
        assert_one_sentence(trsr(command, config_file, "--out", tmp_path / "out"), "trsr train")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_prompt_with_token_counts(trsr: Trsr, config_file: Path, run: Path) -> None:
    answer = trsr("rank", config_file, "--out", run, "--dry-run")
    assert answer.code == 0
    for word in ("<|im_start|>assistant", "prefix_tokens", "candidate_tokens", "tokens_cut", "'yes'", "'no'"):
        assert word in answer.out
    facts = json.loads(trsr("rank", config_file, "--out", run, "--dry-run", "--json").out)
    assert facts["prefix_tokens"] + facts["candidate_tokens"] <= facts["max_tokens"] == 320
    assert facts["candidates"] == 6
    assert facts["profile"] == "written"
    assert "Profile:" in facts["prompt"]


def test_a_dry_run_needs_no_summary_and_loads_no_model(
    trsr: Trsr, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trsr.llm.transformers.load_causal_lm", lambda *_, **__: pytest.fail("loaded"))
    answer = trsr("rank", config_file, "--out", tmp_path / "new", "--dry-run", "--json")
    facts = json.loads(answer.out)
    assert "not written yet" in facts["profile"]
    assert "Profile:" not in facts["prompt"]
    assert not (tmp_path / "new" / "summaries.sqlite").exists()


def test_evaluate_makes_metrics_and_report_again(trsr: Trsr, run: Path) -> None:
    before = (run / "metrics.json").read_bytes()
    for name in ("metrics.json", "report.html"):
        (run / name).unlink()
    answer = trsr("evaluate", run, "--json")
    assert json.loads(answer.out) == json.loads(before)
    assert (run / "metrics.json").read_bytes() == before
    assert (run / "report.html").exists()


def test_a_report_made_again_names_every_command_and_each_difference(trsr: Trsr, run: Path) -> None:
    (first,) = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps([first | {"commit": "0123456789ab"}]))
    assert trsr("evaluate", run).code == 0
    report = (run / "report.html").read_text()
    assert f"<code>{first['command']}\ntrsr evaluate {run}</code>" in report
    assert "made in 2 sessions that differ in commit, versions or machine" in report
    assert "0123456789ab" in report


def test_printing_a_finished_run_writes_nothing(trsr: Trsr, config_file: Path, run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert trsr("run", config_file, "--out", run).code == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


FILES = (
    "stages.json",
    "env.json",
    "metrics.json",
    "scores.parquet",
    "profiles.parquet",
    "examples/test.parquet",
    "training.json",
    "model/adapter_model.safetensors",
)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_run_is_named_and_made_again_once_it_is_removed(
    trsr: Trsr, config_file: Path, run: Path, name: str
) -> None:
    file, whole = run / name, (run / name).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    (run / "report.html").unlink()
    assert_one_sentence(trsr("evaluate", run), str(file), "damaged", "remove it", "the same command again")
    file.unlink()
    answer = trsr("run", config_file, "--out", run)
    assert answer.code == 0
    if name not in ("stages.json", "env.json"):
        assert f"{name} is missing: this stage and all later ones run again" in answer.err
    if name not in ("stages.json", "env.json", "training.json", "model/adapter_model.safetensors"):
        assert file.read_bytes() == whole


def test_a_file_of_a_run_that_was_changed_is_named(trsr: Trsr, config_file: Path, run: Path) -> None:
    scores = pl.read_parquet(run / "scores.parquet")
    scores.with_columns(pl.col("margin") + 1).write_parquet(run / "scores.parquet")
    for command in (("run", config_file, "--out", run), ("evaluate", run)):
        assert_one_sentence(trsr(*command), "scores.parquet", "'rank'", "sha256")


def test_evaluate_without_scores_says_what_to_do(trsr: Trsr, tmp_path: Path) -> None:
    assert_one_sentence(trsr("evaluate", tmp_path), "scores.parquet", "trsr run")


def test_every_mistake_of_a_configuration_is_reported(trsr: Trsr, config_file: Path, tmp_path: Path) -> None:
    answer = trsr(
        *("run", config_file, "--out", tmp_path / "r"),
        *("--set", "prompt.n_recent=-1", "--set", "train.epochz=3"),
    )
    assert answer.code == 2
    lines = answer.err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("Error: ") for line in lines)
    assert "n_recent" in answer.err
    assert "epochz" in answer.err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "change",
    ["recommender.model=./no/such/model", "engine={kind: transformers, model: ./no/such/model}"],
)
def test_an_unknown_model_is_one_sentence_before_anything_is_made(
    trsr: Trsr, config_file: Path, tmp_path: Path, change: str
) -> None:
    answer = trsr("run", config_file, "--out", tmp_path / "r", "--set", change)
    assert_one_sentence(answer, "There is no model './no/such/model'", "smollm2-135m")
    assert not (tmp_path / "r").exists()


def test_a_model_that_cannot_be_had_is_found_out_before_summaries_are_paid_for(
    trsr: Trsr, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trsr.experiment.stages.write_profiles", lambda *_: pytest.fail("paid"))
    answer = trsr("run", config_file, "--out", tmp_path / "r", "--set", "recommender.model=no/such")
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith("Error: The model 'no/such' (revision main) is not cached")
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("change", "word"), [("recommender.dtype=float99", "float99"), ("recommender.device=tpu9", "tpu9")]
)
def test_an_unknown_device_or_precision_is_one_sentence(
    trsr: Trsr, config_file: Path, tmp_path: Path, change: str, word: str
) -> None:
    answer = trsr(
        "train", config_file, "--out", tmp_path / "r", "--set", change, "--set", "summary.method=none"
    )
    assert answer.code == 2
    assert word in answer.err.splitlines()[-1]
    assert answer.err.splitlines()[-1].startswith("Error: ")


@pytest.fixture
def tiny_demo(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with the experiment that takes seconds."""
    monkeypatch.setattr("trsr.experiment.dataset_profiles.CONFIG_FILE", config_file)


@pytest.mark.usefixtures("tiny_demo")
def test_the_demo_shows_both_summarizers_the_metrics_and_what_to_try_next(trsr: Trsr, run: Path) -> None:
    answer = trsr("demo", "--out", run)
    assert answer.code == 0
    places = [answer.out.index(text) for text in ("Recurrent", "Hierarchical", "recall@3", "report.html")]
    assert places == sorted(places)
    for text in ("Block 1", "(update of 1)", "Profile"):
        assert text in answer.out
    commands = [line.split()[1] for line in answer.out.splitlines() if line.startswith("  trsr ")]
    assert commands == ["rank", "summarize", "run", "serve"]
    assert json.loads(trsr("demo", "--out", run, "--json").out)["counts"]["users"] == 12


def test_several_seeds_are_run_and_pooled(trsr: Trsr, config_file: Path, tmp_path: Path) -> None:
    cheap = ("--set", "train=null", "--set", "rankers=[random, popularity]", "--set", "summary.method=none")
    answer = trsr("run", config_file, "--out", tmp_path / "r", "--seeds", "2", *cheap)
    assert answer.code == 0
    assert "seed 7: rank" in answer.err
    assert "seed 8: rank" in answer.err
    for words in ("popularity", "corrected p < 0.05", str(tmp_path / "r" / "report.html")):
        assert words in answer.out.replace("\n", " ") or words in answer.out.replace("\n", "")
    assert json.loads((tmp_path / "r" / "metrics.json").read_text())["seeds"] == [7, 8]
    assert_one_sentence(trsr("run", config_file, "--out", tmp_path / "r", *cheap), "holds no run")
    assert trsr("run", config_file, "--out", tmp_path / "r", "--seeds", "1", *cheap).code == 2
