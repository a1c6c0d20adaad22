"""Counts of the benchmarks follow their formulas."""

from __future__ import annotations

import time

import pytest
import torch
from tiny_models import random_model

from trsr.bench import measure
from trsr.llm.base import ScoringGroup

CPU = torch.device("cpu")


def test_parameters_outside_the_embedding_are_those_of_the_layers() -> None:
    for name, untied in (("llama", True), ("gemma3_text", False)):
        model = random_model(name)
        whole = sum(p.numel() for p in model.parameters())
        assert measure.body_parameters(model) == whole - 64 * 32 * (2 if untied else 1)


def test_operations_count_each_shared_token_once_and_each_pair_that_is_seen() -> None:
    model = random_model("llama")  # two layers, four heads of 8
    group = ScoringGroup((1, 2, 3), ((4, 5), (6,)))
    pairs = (1 + 2 + 3) + (4 + 5) + 4
    expected = 2 * measure.body_parameters(model) * 6 + 4 * 2 * 4 * 8 * pairs
    assert measure.forward_flops(model, [group]) == expected
    assert measure.forward_flops(model, [group, group]) == 2 * expected


def test_random_groups_have_the_asked_shape_and_are_equal_each_time() -> None:
    model = random_model("llama")
    groups = measure.random_groups(model, users=2, n_prefix=5, n_candidate=3, candidates=4)
    assert [len(g.prefix) for g in groups] == [5, 5]
    assert [[len(s) for s in g.suffixes] for g in groups] == [[3] * 4] * 2
    assert groups[0] != groups[1]
    assert groups == measure.random_groups(model, users=2, n_prefix=5, n_candidate=3, candidates=4)
    assert max(max(g.prefix) for g in groups) < 64


def test_the_median_leaves_the_first_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0])  # three timed runs of 5, 1 and 3 seconds
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    runs: list[int] = []
    assert measure.median_seconds(lambda: runs.append(1), CPU, 3) == 3.0
    assert len(runs) == 4


def test_rates_and_memory_are_positive() -> None:
    assert measure.gemm_gflops(CPU, torch.float32, size=64) > 0
    assert measure.peak_memory_mb(CPU) > 1
