"""The dry run shows the very prompt that the ranking would score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trsr.experiment.config import RunConfig
from trsr.experiment.experiment import Workbench
from trsr.experiment.ranking import describe_prompt
from trsr.experiment.run_folder import RunFolder
from trsr.experiment.stages import run_stages
from trsr.llm.fake import FakeTokenizer


def bench(path: Path, until: str, **prompt: Any) -> Workbench:
    config = RunConfig.model_validate(
        {
            "name": "test",
            "data": {"kind": "synthetic", "n_users": 12, "n_items": 200},
            "protocol": {"kind": "sampled", "min_history": 4, "max_history": 40, "n_valid": 1, "n_test": 2},
            "engine": {"kind": "fake"},
            "prompt": {"max_tokens": 4096, **prompt},
            "train": None,
            "rankers": ["random"],
        }
    )
    made = Workbench(RunFolder(path, config, "trsr rank --dry-run"))
    run_stages(made, until)
    made.tokenizer = FakeTokenizer()
    return made


@pytest.fixture(scope="module")
def summarised(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return bench(tmp_path_factory.mktemp("dry") / "run", "summarize")


def test_the_prompt_shown_is_the_prompt_built(summarised: Workbench) -> None:
    shown = describe_prompt(summarised)
    example = summarised.splits.test[0]
    profile = summarised.profiles[example.example_id]
    built = summarised.builder.build(example.history, profile, example.candidates)
    assert shown["prompt"] == FakeTokenizer().decode(built.group.prefix + built.group.suffixes[0])
    assert profile in shown["prompt"]
    assert shown["profile"] == "written"
    assert shown["user"] == example.user_id


def test_counts_add_up_and_nothing_is_cut_where_all_fits(summarised: Workbench) -> None:
    shown = describe_prompt(summarised)
    n_tokens = len(FakeTokenizer().encode(shown["prompt"]))
    assert shown["prefix_tokens"] + shown["candidate_tokens"] == n_tokens <= shown["max_tokens"]
    assert (shown["recent_items_cut"], shown["tokens_cut"]) == (0, 0)
    assert shown["candidates"] == len(summarised.splits.test[0].candidates)
    assert shown["answers"] == "'yes' (258), 'no' (259)"


def test_without_summaries_the_prompt_has_no_profile_and_says_so(tmp_path: Path) -> None:
    shown = describe_prompt(bench(tmp_path / "run", "examples"))
    assert shown["profile"].startswith("not written yet")
    assert "Profile:" not in shown["prompt"].partition("<|im_start|>user")[2]


def test_what_the_budget_cut_is_shown(tmp_path: Path) -> None:
    shown = describe_prompt(bench(tmp_path / "run", "summarize", max_tokens=900))
    assert shown["tokens_cut"] > 0
    assert shown["recent_items_cut"] > 0
    assert shown["prefix_tokens"] + shown["candidate_tokens"] <= 900
