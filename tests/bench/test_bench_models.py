"""`trsr bench score` and `train` compare ways with equal results; counts follow their formulas."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Answer
from tiny_models import random_model

from trsr.bench import models
from trsr.bench.models import growth_ratio
from trsr.llm.base import ScoringGroup

CPU = torch.device("cpu")
SMALL = ("--prefix-tokens", "40", "--candidate-tokens", "6", "--repeats", "1", "--device", "cpu", "--json")
Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(trsr: Callable[..., Answer], tiny_model: Path) -> Bench:
    def run(command: str, *options: str) -> dict[str, Any]:
        answer = trsr("bench", command, "--model", tiny_model, *options)
        assert answer.code == 0, answer.err
        (line,) = answer.out.splitlines()
        result: dict[str, Any] = json.loads(line)
        return result

    return run


def test_scoring_is_measured_against_both_slow_ways(bench: Bench) -> None:
    result = bench("score", "--candidates", "7,14,28", "--slow-candidates", "3", *SMALL)
    assert result["max_abs_margin_difference"] <= 1e-4
    assert result["slow_ways_timed_on_candidates"] == 3
    assert result["candidates"] == 7
    assert result["padded_pointwise_s"] > result["pointwise_s"] > 0
    for slow, speedup in (("padded_pointwise_s", "padded"), ("pointwise_s", "pointwise")):
        ratio = result[slow] / result["shared_prefix_s"]
        assert result[f"speedup_vs_{speedup}"] == pytest.approx(ratio, rel=0.1)
    fraction = result["model_gflops"] / result["gemm_gflops"]
    assert result["fraction_of_gemm_peak"] == pytest.approx(fraction, abs=0.2)
    assert [row["candidates"] for row in result["growth"]] == [7, 14, 28]
    assert isinstance(result["growth_ratio"], float)
    assert result["cached_prefix_candidates"] == 5
    assert result["cached_s"] > 0
    assert result["peak_memory_mb"] > 0


@pytest.mark.slow
def test_prompts_over_the_padded_length_have_no_padded_time(bench: Bench) -> None:
    long = ("--prefix-tokens", "2045", "--candidate-tokens", "6", "--repeats", "1", "--slow-candidates", "1")
    result = bench("score", "--candidates", "3", *long, "--json")
    assert result["padded_pointwise_s"] is result["speedup_vs_padded"] is None
    assert result["pointwise_s"] > 0
    assert result["max_abs_margin_difference"] <= 1e-4


@pytest.mark.slow
def test_the_slow_ways_can_be_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trsr.bench.models._slow_ways", lambda *_: pytest.fail("timed"))
    result = bench("score", "--candidates", "3", "--slow-candidates", "0", *SMALL)
    assert result["slow_ways_timed_on_candidates"] == 0
    names = ("pointwise_s", "speedup_vs_pointwise", "max_abs_margin_difference")
    assert [result[name] for name in names] == [None] * 3
    assert result["shared_prefix_s"] > 0


def test_training_is_measured_against_separate_sequences(bench: Bench) -> None:
    result = bench("train", "--candidates", "4", "--users", "2", *SMALL)
    assert 0 < result["max_rel_grad_difference"] <= 1e-4
    assert result["speedup_by_token_count"] == pytest.approx(4 * 46 / (40 + 4 * 6), abs=0.01)
    assert result["speedup_vs_pointwise"] > 0
    assert result["users"] == 2


@pytest.mark.parametrize("candidates", ["0", "5,x", ""])
def test_invalid_candidate_count_is_refused(trsr: Callable[..., Answer], candidates: str) -> None:
    answer = trsr("bench", "score", "--candidates", candidates)
    assert answer.code == 2
    assert "--candidates: found" in answer.err


def test_growth_is_compared_with_the_line_through_the_first_two_times() -> None:
    assert growth_ratio([7, 14, 28], [1.0, 2.0, 4.0]) == pytest.approx(1)
    assert growth_ratio([10, 20, 40], [1.5, 2.0, 6.0]) == pytest.approx(2)
    assert growth_ratio([1, 2, 3, 101], [1.0, 1.01, 5.0, 1.0]) == pytest.approx(0.5)


@pytest.mark.parametrize(("name", "n_embeddings"), [("llama", 2), ("gemma3_text", 1)])
def test_parameters_outside_the_embedding_are_those_of_the_layers(name: str, n_embeddings: int) -> None:
    model = random_model(name)
    whole = sum(p.numel() for p in model.parameters())
    assert models.body_parameters(model) == whole - 64 * 32 * n_embeddings


def test_operations_count_shared_tokens_once_and_attended_pairs() -> None:
    model = random_model("llama")  # two layers, four heads of 8
    group = ScoringGroup((1, 2, 3), ((4, 5), (6,)))
    pairs = (1 + 2 + 3) + (4 + 5) + 4
    expected = 2 * models.body_parameters(model) * 6 + 4 * 2 * 4 * 8 * pairs
    assert models.forward_flops(model, [group]) == expected
    assert models.forward_flops(model, [group, group]) == 2 * expected


def test_random_groups_have_their_shape_and_are_equal_each_time() -> None:
    model = random_model("llama")
    groups, again = (models.random_groups(model, 2, 5, 3, candidates=4) for _ in range(2))
    assert [len(g.prefix) for g in groups] == [5, 5]
    assert [[len(s) for s in g.suffixes] for g in groups] == [[3] * 4] * 2
    assert groups[0] != groups[1]
    assert groups == again
    assert max(max(g.prefix) for g in groups) < 64


def test_the_median_leaves_the_first_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0])  # three timed runs of 5, 1 and 3 seconds
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    runs: list[int] = []
    assert models.median_seconds(lambda: runs.append(1), CPU, 3) == 3.0
    assert len(runs) == 4
