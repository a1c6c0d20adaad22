"""`trsr compare`: output for people and machines, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import Answer

Trsr = Callable[..., Answer]


def save(folder: Path, *, lift: float, examples: range = range(60)) -> Path:
    """Write the scores of `llm`, better with more `lift`, and of `random`."""
    rng = np.random.default_rng(0)
    frames = []
    for ranker, added in (("llm", lift), ("random", 0.0)):
        label = np.tile([1, 0, 0, 0, 0], len(examples))
        margin = rng.normal(size=len(label)) + added * label
        frames.append(
            pl.DataFrame(
                {
                    "user_id": [f"u{i}" for i in examples for _ in range(5)],
                    "item_id": [f"i{j}" for _ in examples for j in range(5)],
                    "label": label,
                    "ranker": ranker,
                    "margin": margin,
                }
            )
        )
    folder.mkdir()
    pl.concat(frames).write_parquet(folder / "scores.parquet")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [save(tmp_path / "weak", lift=0.0), save(tmp_path / "strong", lift=3.0)]


def test_two_runs_are_compared_in_tables_with_a_verdict(trsr: Trsr, runs: list[Path]) -> None:
    answer = trsr("compare", *runs)
    assert answer.code == 0
    for words in ("60 users, 60 examples", "strong/llm", "weak/random", "corrected p", "chance"):
        assert words in answer.out
    for metric in ("recall@3", "mrr@10", "auc"):
        assert f"strong/llm beats every other ranker on {metric} (corrected p < 0.05)." in answer.out


def test_json_holds_values_and_every_pair(trsr: Trsr, runs: list[Path]) -> None:
    found = json.loads(trsr("compare", *runs, "--ranker", "llm", "--metric", "auc", "--json").out)
    (pair,) = found["comparisons"]
    assert (pair["metric"], pair["a"], pair["b"]) == ("auc", "strong/llm", "weak/llm")
    assert pair["p_holm"] < 0.01 < pair["ci95"][0]
    assert list(found["rankers"]["weak/llm"]) == ["auc"]
    assert found["protocol"]["examples_left_out"] == 0


def test_every_pair_is_shown_when_asked_for(trsr: Trsr, runs: list[Path]) -> None:
    assert "a - b" not in trsr("compare", *runs, "--metric", "auc").out
    assert "auc: a - b" in trsr("compare", *runs, "--metric", "auc", "--pairs").out


def test_a_seed_changes_intervals_and_nothing_else_does(trsr: Trsr, runs: list[Path]) -> None:
    first, again, other = (
        trsr("compare", *order, "--metric", "auc", "--seed", seed, "--json").out
        for order, seed in ((runs, "1"), (runs, "1"), (runs, "2"))
    )
    assert first == again != other
    turned = json.loads(trsr("compare", *runs[::-1], "--metric", "auc", "--seed", "1", "--json").out)
    assert turned["comparisons"] == json.loads(first)["comparisons"]


def test_examples_that_differ_are_refused_or_left_out(trsr: Trsr, runs: list[Path], tmp_path: Path) -> None:
    other = save(tmp_path / "fewer", lift=1.0, examples=range(10, 65))
    answer = trsr("compare", runs[0], other)
    assert (answer.code, answer.out) == (2, "")
    assert "15 of 65 examples differ" in answer.err
    assert answer.err.count("\n") == 1
    answer = trsr("compare", runs[0], other, "--common", "--ranker", "llm", "--metric", "auc")
    assert answer.code == 0
    assert "Only the 50 examples that all runs share; left out: 15." in answer.out
    found = json.loads(trsr("compare", runs[0], other, "--common", "--json").out)
    assert found["protocol"]["examples_left_out"] == 15
    assert found["counts"]["examples"] == 50


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--metric", "map@3"], "map@3"),
        (["--ranker", "nobody"], "nobody"),
        (["missing"], "missing"),
    ],
)
def test_bad_input_is_one_sentence(
    trsr: Trsr, runs: list[Path], tmp_path: Path, arguments: list[str], word: str
) -> None:
    paths = [str(tmp_path / part) if part == "missing" else part for part in arguments]
    answer = trsr("compare", *runs, *paths)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("Error: ")
    assert answer.err.count("\n") == 1
    assert word in answer.err


def test_names_are_shown_as_they_are_written(trsr: Trsr, tmp_path: Path) -> None:
    run = save(tmp_path / "run", lift=2.0)
    file = run / "scores.parquet"
    pl.read_parquet(file).with_columns(pl.col("ranker").replace("llm", "[red]llm[/]")).write_parquet(file)
    answer = trsr("compare", run, "--metric", "auc", "--pairs")
    assert answer.code == 0
    assert answer.out.count("[red]llm[/]") == 3


def test_a_metric_without_a_value_has_no_winner(trsr: Trsr, tmp_path: Path) -> None:
    file = save(tmp_path / "every", lift=2.0) / "scores.parquet"
    pl.read_parquet(file).with_columns(label=pl.lit(1)).write_parquet(file)
    answer = trsr("compare", file, "--metric", "mrr@10", "--metric", "auc")
    assert answer.code == 0
    assert "No example has a value of auc, so no ranker is first: it needs examples with a chosen and an" in (
        " ".join(answer.out.split())
    )
    assert "first on auc" not in answer.out
