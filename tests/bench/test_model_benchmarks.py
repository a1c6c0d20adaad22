"""`trsr bench score` and `trsr bench train` measure equal results of the ways they compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer

from trsr.bench.models import growth_ratio

Command = Callable[..., Answer]
SMALL = ("--prefix-tokens", "40", "--candidate-tokens", "6", "--repeats", "1", "--device", "cpu", "--json")


def test_scoring_is_measured_against_both_slow_ways(trsr: Command, tiny_model: Path) -> None:
    answer = trsr(
        "bench", "score", "--model", tiny_model, "--candidates", "7,14,28", "--slow-candidates", "3", *SMALL
    )
    assert answer.code == 0, answer.err
    (line,) = answer.out.splitlines()
    result = json.loads(line)
    assert result["max_abs_margin_difference"] <= 1e-4
    assert result["slow_ways_timed_on_candidates"] == 3
    assert result["candidates"] == 7
    assert result["padded_pointwise_s"] > result["pointwise_s"] > 0
    for slow, speedup in (("padded_pointwise_s", "padded"), ("pointwise_s", "pointwise")):
        ratio = result[slow] / result["shared_prefix_s"]
        assert result[f"speedup_vs_{speedup}"] == pytest.approx(ratio, rel=0.1)
    assert result["fraction_of_gemm_peak"] == pytest.approx(
        result["model_gflops"] / result["gemm_gflops"], abs=0.2
    )
    assert [row["candidates"] for row in result["growth"]] == [7, 14, 28]
    assert isinstance(result["growth_ratio"], float)
    assert result["cached_prefix_candidates"] == 5
    assert result["cached_s"] > 0
    assert result["peak_memory_mb"] > 0


def test_growth_is_compared_with_the_line_through_the_first_two_times() -> None:
    assert growth_ratio([7, 14, 28], [1.0, 2.0, 4.0]) == pytest.approx(1)
    assert growth_ratio([10, 20, 40], [1.5, 2.0, 6.0]) == pytest.approx(2)
    assert growth_ratio([1, 2, 3, 101], [1.0, 1.01, 5.0, 1.0]) == pytest.approx(0.5)


@pytest.mark.slow
def test_prompts_longer_than_the_padded_way_takes_have_no_padded_time(
    trsr: Command, tiny_model: Path
) -> None:
    long = ("--prefix-tokens", "2045", "--candidate-tokens", "6", "--repeats", "1", "--slow-candidates", "1")
    answer = trsr("bench", "score", "--model", tiny_model, "--candidates", "3", *long, "--json")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert result["padded_pointwise_s"] is None
    assert result["speedup_vs_padded"] is None
    assert result["pointwise_s"] > 0
    assert result["max_abs_margin_difference"] <= 1e-4


@pytest.mark.slow
def test_the_slow_ways_can_be_left_out(
    trsr: Command, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trsr.bench.models._slow_ways", lambda *_: pytest.fail("timed"))
    options = ("--candidates", "3", "--slow-candidates", "0", *SMALL)
    answer = trsr("bench", "score", "--model", tiny_model, *options, "--json")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert result["slow_ways_timed_on_candidates"] == 0
    assert (
        result["pointwise_s"] is result["speedup_vs_pointwise"] is result["max_abs_margin_difference"] is None
    )
    assert result["shared_prefix_s"] > 0
    assert result["peak_memory_mb"] > 0


def test_training_is_measured_against_separate_sequences(trsr: Command, tiny_model: Path) -> None:
    answer = trsr("bench", "train", "--model", tiny_model, "--candidates", "4", "--users", "2", *SMALL)
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert 0 < result["max_rel_grad_difference"] <= 1e-4
    assert result["speedup_by_token_count"] == pytest.approx(4 * 46 / (40 + 4 * 6), abs=0.01)
    assert result["speedup_vs_pointwise"] > 0
    assert result["users"] == 2


@pytest.mark.parametrize("candidates", ["0", "5,x", ""])
def test_a_count_of_candidates_that_is_none_is_refused(trsr: Command, candidates: str) -> None:
    answer = trsr("bench", "score", "--candidates", candidates)
    assert answer.code == 2
    assert "--candidates: found" in answer.err
