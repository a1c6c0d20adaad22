"""`trsr plan` and `trsr summarize --dry-run`: numbers for people and machines; nothing asked or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer

from trsr.data.synthetic import SyntheticConfig, generate

Trsr = Callable[..., Answer]
RATES = ("--tokens-per-second", "20000", "--price-per-million", "0.05")


def test_an_experiment_is_planned_for_people(trsr: Trsr, config_file: Path) -> None:
    answer = trsr("plan", config_file, *RATES)
    assert answer.code == 0, answer.err
    head = answer.out.splitlines()[0].split("  ")
    assert [word.strip() for word in head if word] == [
        *("stage", "calls", "tokens read", "tokens written", "hours", "machines", "money"),
    ]
    for stage in ("summarize", "train", "rank llm", "all"):
        assert any(line.startswith(stage) for line in answer.out.splitlines())
    assert "words, as the fake engine counts" in answer.out
    assert "Store: at most about" in answer.out


def test_ten_million_users_on_a_server(trsr: Trsr, config_file: Path, tiny_model: Path) -> None:
    options = ("--users", "10_000_000", "--engine", "vllm", *RATES, "--daily-events", "0.5", "--json")
    facts = json.loads(trsr("plan", config_file, *options).out)
    assert facts["users"] == 10_000_000
    rows = {row["stage"]: row for row in facts["stages"]}
    assert 20_000_000 < rows["summarize"]["calls"] < 40_000_000  # two to four blocks of five items
    assert rows["rank llm"]["calls"] == 60_000_000
    assert rows["summarize"]["written"] == 8 * rows["summarize"]["calls"]
    tokens = rows["summarize"]["read"] + rows["summarize"]["written"]
    assert rows["summarize"]["hours"] == pytest.approx(tokens / 20_000 / 3600)
    assert rows["summarize"]["money"] == pytest.approx(tokens / 1e6 * 0.05)
    assert rows["all"]["machines"] == pytest.approx(rows["all"]["hours"] / 24, abs=1)
    assert facts["each_day"]["calls"] == 5_000_000
    assert facts["each_day"]["money"] < rows["summarize"]["money"]
    assert facts["store_bytes_at_most"] > 1e9
    assert any(f"the tokenizer of {tiny_model}" in note for note in facts["notes"])


def test_the_data_can_be_another_folder_and_the_store_is_looked_into(
    trsr: Trsr, config_file: Path, finished_run: Path
) -> None:
    options = ("plan", config_file, "--data", finished_run / "data", "--json")
    new = json.loads(trsr(*options).out)
    known = json.loads(trsr(*options, "--store", finished_run / "summaries.sqlite").out)
    assert new["calls_to_make"] > 0
    assert (known["calls"], known["calls_to_make"]) == (new["calls"], 0)
    assert known["stages"][0]["hours"] is None


def test_a_dry_run_writes_nothing(trsr: Trsr, tmp_path: Path) -> None:
    data = tmp_path / "shop"
    generate(SyntheticConfig(n_users=8, n_items=200, min_history=11, max_history=14, mean_history=12), data)
    before = sorted(path.name for path in data.iterdir())
    told = trsr("summarize", data, "--engine", "fake", "--dry-run", *RATES)
    assert told.code == 0, told.err
    assert told.out.startswith("stage")
    facts = json.loads(trsr("summarize", data, "--engine", "fake", "--dry-run", "--json").out)
    assert sorted(path.name for path in data.iterdir()) == before
    done = json.loads(trsr("summarize", data, "--engine", "fake", "--json").out)
    assert (facts["profiles"], facts["calls"], facts["calls_to_make"]) == (
        done["profiles"],
        done["calls"],
        done["calls_made"],
    )
    again = json.loads(trsr("summarize", data, "--engine", "fake", "--dry-run", "--json").out)
    assert again["calls_to_make"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "steam"], "steam"),
        (["--tokenizer", "./nowhere"], "The tokenizer of './nowhere' is not on this machine"),
        (["--data", "./nowhere"], "There is no dataset folder nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(trsr: Trsr, config_file: Path, options: list[str], said: str) -> None:
    answer = trsr("plan", config_file, *options)
    assert answer.code == 2
    assert said in answer.err
    assert answer.err.count("\n") == 1
