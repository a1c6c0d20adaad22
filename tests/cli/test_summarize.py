"""`trsr summarize`: profiles for the users of a dataset folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from conftest import Answer

from trsr.data.dataset import Dataset
from trsr.data.synthetic import SyntheticConfig, generate

Trsr = Callable[..., Answer]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    generate(
        SyntheticConfig(n_users=12, n_items=200, min_history=11, max_history=14, mean_history=12), folder
    )
    return folder


@pytest.fixture
def user(data: Path) -> str:
    return next(iter(Dataset.open(data).histories())).user_id


def test_the_first_call_writes_and_the_second_knows(trsr: Trsr, data: Path, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "s.sqlite", "--engine", "fake", "--json")
    first = json.loads(trsr("summarize", data, *store).out)
    assert first["profiles"] == 12
    assert first["calls_made"] == first["calls"] > 12
    again = json.loads(trsr("summarize", data, *store).out)
    assert (again["calls_made"], again["calls_from_store"]) == (0, first["calls"])
    profiles = pl.read_parquet(tmp_path / "profiles.parquet")
    assert profiles["user_id"].n_unique() == 12


def test_facts_are_printed_for_people(trsr: Trsr, data: Path, tmp_path: Path) -> None:
    answer = trsr("summarize", data, "--engine", "fake", "--store", tmp_path / "s.sqlite", "--limit", "3")
    assert answer.code == 0
    assert "profiles: 3" in answer.out


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_one_user_is_shown_in_full(trsr: Trsr, data: Path, user: str, tmp_path: Path, method: str) -> None:
    options = ("--engine", "fake", "--store", tmp_path / "s.sqlite", "--method", method, "--show", user)
    answer = trsr("summarize", data, *options)
    assert answer.code == 0
    history = next(h for h in Dataset.open(data).histories() if h.user_id == user)
    assert answer.out.count("  - ") == len(history)
    for text in (f"User {user}", "Block 1", "Block 2", "Summary 1 (first)", "Profile"):
        assert text in answer.out
    assert ("added:" in answer.out) == (method == "recurrent")
    assert ("merge of 1, 2" in answer.out) == (method == "hierarchical")
    assert not (tmp_path / "profiles.parquet").exists()


def test_blocks_have_the_size_asked_for(trsr: Trsr, data: Path, user: str, tmp_path: Path) -> None:
    options = ("--engine", "fake", "--store", tmp_path / "s.sqlite", "--show", user, "--block-size", "20")
    answer = trsr("summarize", data, *options)
    assert "Block 1 (open)" in answer.out
    assert "Block 2" not in answer.out


def test_the_tiny_model_writes_profiles(trsr: Trsr, data: Path, tiny_model: Path, tmp_path: Path) -> None:
    answer = trsr(
        *("summarize", data, "--engine", "transformers", "--model", tiny_model, "--limit", "2"),
        *("--store", tmp_path / "s.sqlite", "--json"),
    )
    assert json.loads(answer.out)["generated_tokens"] > 0


def test_methods_without_a_model_need_none(trsr: Trsr, data: Path, tmp_path: Path) -> None:
    options = ("--store", tmp_path / "s.sqlite", "--model", "./no/such/model", "--json")
    assert json.loads(trsr("summarize", data, "--method", "counted", *options).out)["calls"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--show", "nobody"], ["nobody"]),
        (["--method", "magic"], ["magic", "recurrent"]),
        (["--engine", "steam"], ["steam", "llamacpp"]),
        (["--block-size", "0"], ["block_size"]),
        (["--engine", "transformers", "--model", "./no/such/model"], ["./no/such/model"]),
    ],
)
def test_a_wrong_option_is_one_sentence(
    trsr: Trsr, data: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    engine = [] if "--engine" in options else ["--engine", "fake"]
    answer = trsr("summarize", data, "--store", tmp_path / "s.sqlite", *engine, *options)
    assert answer.code == 2
    assert answer.err.startswith("Error: ")
    assert answer.err.count("\n") == 1
    for word in words:
        assert word in answer.err


def test_a_folder_that_is_no_dataset_is_one_sentence(trsr: Trsr, tmp_path: Path) -> None:
    answer = trsr("summarize", tmp_path, "--engine", "fake")
    assert answer.code == 2
    assert answer.err.count("\n") == 1
