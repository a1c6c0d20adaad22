"""`trsr bench serve` asks a real server in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer


@pytest.mark.slow
def test_a_served_run_is_measured_against_its_engine(trsr: Callable[..., Answer], finished_run: Path) -> None:
    options = (
        "--users",
        "4",
        "--seconds",
        "2",
        "--clients",
        "3",
        "--candidates",
        "5",
        "--catalogue",
        "50",
        "--json",
    )
    answer = trsr("bench", "serve", finished_run, *options)
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert (result["users"], result["candidates"], result["clients"]) == (4, 5, 3)
    for load in ("one_client", "several_clients"):
        assert result[load]["requests"] > 0
        assert result[load]["errors"] == 0
        assert result[load]["p50_s"] <= result[load]["p95_s"] <= result[load]["p99_s"]
    assert 0 < result["put_item"]["p50_s"] <= result["put_item"]["p99_s"]
    assert result["cache_hit_rate"] == 1.0, "every user was asked about before"
    assert result["p95_over_engine_p95"] > 0
    assert result["throughput_over_engine"] > 0


def test_more_candidates_than_items_are_refused(trsr: Callable[..., Answer], finished_run: Path) -> None:
    answer = trsr("bench", "serve", finished_run, "--candidates", "5000")
    assert answer.code == 2
    assert "lower --candidates" in answer.err
