"""Ranking in parts: existing parts are kept, foreign ones refused; `--dry-run` shows the prompt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from trsr.errors import ModelError, RunMismatchError
from trsr.experiment import ranking
from trsr.experiment.config import load_config
from trsr.experiment.experiment import Experiment
from trsr.experiment.ranking import describe_prompt, make_ranker, rank_candidates
from trsr.experiment.stages import run_stages
from trsr.llm.fake import FakeTokenizer
from trsr.recommend.prompt import load_ranking_template
from trsr.recommend.ranker import SCORES, score_table
from trsr.templating import Template


@pytest.fixture
def experiment(experiment: Experiment) -> Experiment:
    """A copy of a finished run, ready to be ranked again."""
    (experiment.folder.path / "scores.parquet").unlink()  # else its scores are kept
    return experiment


def test_ranking_again_gives_the_same_scores(experiment: Experiment, finished_run: Path) -> None:
    facts = rank_candidates(experiment)
    assert facts == {"rankers": 6, "examples": 12}
    again = pl.read_parquet(experiment.folder.path / "scores.parquet")
    assert again.equals(pl.read_parquet(finished_run / "scores.parquet"))
    assert dict(again.schema) == SCORES


def test_parts_that_are_there_are_not_made_again(
    experiment: Experiment, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []
    stop_after = 7
    whole = score_table

    def counted(ranker: Any, examples: Any, name: str | None = None) -> pl.DataFrame:
        if len(made) == stop_after:
            raise KeyboardInterrupt
        made.append((ranker.name, len(examples)))
        return whole(ranker, examples, name)

    monkeypatch.setattr(ranking, "score_table", counted)
    with pytest.raises(KeyboardInterrupt):
        rank_candidates(experiment)
    assert len(list((experiment.folder.path / "scores.parts").glob("*.parquet"))) == 7
    (experiment.folder.path / "scores.parts" / "llm-000000.partial").write_bytes(b"half")
    first, made[:] = list(made), []
    stop_after = 99
    rank_candidates(experiment)
    names = ("random", "popularity", "recency", "bm25", "llm_zero_shot", "llm")
    assert first + made == [(name, n) for name in names for n in (10, 2)]
    again = pl.read_parquet(experiment.folder.path / "scores.parquet")
    assert again.equals(pl.read_parquet(finished_run / "scores.parquet"))
    assert not (experiment.folder.path / "scores.parts").exists()


def test_the_size_of_parts_changes_no_score(
    experiment: Experiment, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "EXAMPLES_A_PART", 5)
    rank_candidates(experiment)
    again, before = (
        pl.read_parquet(run / "scores.parquet") for run in (experiment.folder.path, finished_run)
    )
    # Users that are read together may change each other's last digits, on some processors.
    assert_frame_equal(again, before, rel_tol=0, abs_tol=1e-5)


def test_a_model_trained_on_another_template_is_refused(experiment: Experiment) -> None:
    template = load_ranking_template("products", "products")
    experiment.ranking_template = Template("products", template.source + "\n")
    with pytest.raises(RunMismatchError, match="version of the template 'products', but found"):
        make_ranker(experiment, "llm")
    make_ranker(experiment, "llm_zero_shot")


def test_a_model_trained_on_another_base_model_is_refused(experiment: Experiment) -> None:
    file = experiment.folder.path / "model" / "trsr.json"
    info = json.loads(file.read_text()) | {"base_model_id": "other@1"}
    file.write_text(json.dumps(info))
    with pytest.raises(RunMismatchError, match="trained with other@1"):
        make_ranker(experiment, "llm")


def test_a_folder_without_a_model_is_refused(experiment: Experiment) -> None:
    shutil.rmtree(experiment.folder.path / "model")
    with pytest.raises(RunMismatchError, match="model folder of trsr"):
        make_ranker(experiment, "llm")


def test_the_label_tokens_are_those_the_model_was_trained_on(experiment: Experiment) -> None:
    file = experiment.folder.path / "model" / "trsr.json"
    info = json.loads(file.read_text())
    example = experiment.splits.test[:1]
    (before,) = make_ranker(experiment, "llm").rank(example)
    swapped = {"positive_token": info["negative_token"], "negative_token": info["positive_token"]}
    file.write_text(json.dumps(info | swapped))
    (after,) = make_ranker(experiment, "llm").rank(example)
    assert after.margins.tolist() == (-before.margins).tolist()


def test_a_model_whose_answers_are_several_tokens_is_refused(
    experiment: Experiment, two_token_model: Path, config_file: Path
) -> None:
    config = load_config(config_file, [f"recommender.model={two_token_model}"])
    experiment.config = config
    with pytest.raises(ModelError, match="'yes' is 3 tokens for this model, one is needed"):
        _ = experiment.labels


def made(small_run: Callable[..., Experiment], max_tokens: int) -> Experiment:
    experiment = small_run("run", prompt={"max_tokens": max_tokens})
    run_stages(experiment, "summarize")
    experiment.tokenizer = FakeTokenizer()
    return experiment


def test_the_prompt_shown_is_the_prompt_built(small_run: Callable[..., Experiment]) -> None:
    experiment = made(small_run, 4096)
    shown, example = describe_prompt(experiment), experiment.splits.test[0]
    profile = experiment.profiles[example.example_id]
    group = experiment.builder.build(example.history, profile, example.candidates).group
    assert shown["prompt"] == FakeTokenizer().decode(group.prefix + group.suffixes[0])
    assert profile in shown["prompt"]
    assert (shown["profile"], shown["user"]) == ("written", example.user_id)
    n_tokens = len(FakeTokenizer().encode(shown["prompt"]))
    assert shown["prefix_tokens"] + shown["candidate_tokens"] == n_tokens <= shown["max_tokens"]
    assert (shown["recent_items_cut"], shown["tokens_cut"]) == (0, 0)
    assert shown["candidates"] == len(example.candidates)
    assert shown["answers"] == "'yes' (258), 'no' (259)"


def test_what_the_budget_cut_is_shown(small_run: Callable[..., Experiment]) -> None:
    shown = describe_prompt(made(small_run, 900))
    assert shown["tokens_cut"] > 0
    assert shown["prefix_tokens"] + shown["candidate_tokens"] <= 900
