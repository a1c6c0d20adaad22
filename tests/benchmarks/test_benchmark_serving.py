"""The benchmark of serving times a real server in a process of its own."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

import pytest

from trsr.errors import InputError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # its scripts use one another
MEASURE = runpy.run_path(str(BENCHMARKS / "serving.py"))["measure"]


def options(run: Path, candidates: int = 5) -> argparse.Namespace:
    small = {"users": 4, "seconds": 2, "clients": 3, "catalogue": 50}
    return argparse.Namespace(model_or_run=run, data=None, candidates=candidates, **small)


@pytest.mark.slow
def test_serving_is_compared_with_the_engine(finished_run: Path) -> None:
    result = MEASURE(options(finished_run))
    assert (result["users"], result["candidates"], result["clients"]) == (4, 5, 3)
    for load in ("one_client", "several_clients"):
        assert result[load]["requests"] > 0
        assert result[load]["errors"] == 0
        assert result[load]["p50_s"] <= result[load]["p95_s"] <= result[load]["p99_s"]
    assert 0 < result["put_item"]["p50_s"] <= result["put_item"]["p99_s"]
    assert result["cache_hit_rate"] == 1.0, "every user had a request before"
    assert result["p95_over_engine_p95"] > 0
    assert result["throughput_over_engine"] > 0


def test_too_many_candidates_are_refused(finished_run: Path) -> None:
    with pytest.raises(InputError, match="lower --candidates"):
        MEASURE(options(finished_run, candidates=5000))
