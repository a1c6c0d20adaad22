"""`trsr bench summarize` counts the engines' work; speeds depend on the machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Answer

from trsr.bench import summarizing
from trsr.bench.summarizing import (
    BLOCK_SIZE,
    installed_engines,
    local_engine,
    measure_engine,
    news_readers,
)
from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.engines import LlamaCppEngine
from trsr.llm.fake import FakeGenerator
from trsr.summarize.user_plan import BoundSummarizer
from trsr.types import History

USERS, CALLS = 5, 3
Workload = tuple[BoundSummarizer, list[History]]


class SlowEngine(FakeGenerator):
    """Runs waiting calls together: 10 ms, 1 ms per prompt, 1 ms per token it may write, by its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waves: list[int] = []

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        n_seen = 0
        while n_seen < len(prompts):
            wave = prompts[n_seen:]
            self.waves.append(len(wave))
            self.now += 0.01 + 0.001 * len(wave) + 0.001 * params.max_new_tokens
            for result in super().generate(wave, params):
                yield replace(result, index=n_seen + result.index)
            n_seen += len(wave)


class TimedEngine(SlowEngine):
    @property
    def reading_seconds(self) -> float:
        return self.now / 4


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return news_readers(tmp_path_factory.mktemp("bench") / "news", USERS, CALLS)


def test_every_user_has_one_full_block_per_call(workload: Workload) -> None:
    summarizer, histories = workload
    assert len(histories) == USERS
    for history in histories:
        blocks = summarizer.blocks(history.item_ids)
        assert [len(block.item_ids) for block in blocks] == [BLOCK_SIZE] * CALLS


def test_rates_follow_from_counts_and_seconds(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SlowEngine()
    monkeypatch.setattr("time.perf_counter", lambda: engine.now)
    found = measure_engine(engine, *workload, single_users=2)
    new = workload[0].config.max_new_tokens
    together = CALLS * (0.01 + 0.001 * USERS + 0.001 * new)
    one = 0.01 + 0.001 + 0.001 * new
    assert found["calls"] == USERS * CALLS
    assert found["seconds"] == pytest.approx(together, abs=1e-3)
    assert found["calls_per_s"] == pytest.approx(USERS * CALLS / together, rel=1e-3)
    for kind in ("prompt", "generated"):
        assert found[f"{kind}_tokens_per_s"] == pytest.approx(found[f"{kind}_tokens"] / together, rel=1e-2)
    assert found["single"]["calls"] == 2 * CALLS
    assert found["single"]["seconds"] == pytest.approx(2 * CALLS * one, abs=1e-3)
    assert found["single"]["estimated_seconds_for_all_calls"] == pytest.approx(USERS * CALLS * one, abs=1e-3)
    assert found["speedup_vs_single"] == pytest.approx(USERS * CALLS * one / together, abs=0.01)
    assert "reading_seconds" not in found
    # One user to load the model, all of them together, two one by one.
    assert engine.waves == [1] * CALLS + [USERS] * CALLS + [1] * 2 * CALLS


def test_an_engine_that_times_its_reading_has_rates_of_both(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TimedEngine()
    monkeypatch.setattr("time.perf_counter", lambda: engine.now)
    found = measure_engine(engine, *workload, single_users=1)
    assert found["reading_seconds"] == pytest.approx(found["seconds"] / 4, abs=1e-3)
    writing = found["seconds"] - found["reading_seconds"]
    assert found["writing_tokens_per_s"] == pytest.approx(found["generated_tokens"] / writing, rel=1e-2)


def test_only_installed_engines_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "xllamacpp" or None)
    assert installed_engines() == ["llamacpp"]


def test_the_command_prints_one_json_object(trsr: Callable[..., Answer]) -> None:
    answer = trsr("bench", "summarize", "--engines", "fake", "--users", "3", "--json")
    assert answer.code == 0, answer.err
    (line,) = answer.out.splitlines()
    result = json.loads(line)
    assert result["users"] == 3
    assert result["faster_engine"] == "fake"
    assert result["engines"]["fake"]["calls"] == 3 * result["calls_per_user"]


def test_command_without_engines_names_what_to_install(
    trsr: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summarizing, "installed_engines", list)
    answer = trsr("bench", "summarize")
    assert answer.code == 2
    assert "trsr[hf]" in answer.err


def test_an_engine_that_is_not_local_is_refused_before_any_is_measured(
    trsr: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summarizing, "measure_engine", lambda *_: pytest.fail("measured"))
    answer = trsr("bench", "summarize", "--engines", "transformers,openai", "--users", "1")
    assert answer.code == 2
    assert "found 'openai', expected transformers or llamacpp" in answer.err


def test_a_real_engine_is_measured(trsr: Callable[..., Answer], tiny_model: Path) -> None:
    options = ("--users", "2", "--calls", "1", "--single-users", "1")
    answer = trsr("bench", "summarize", "--engines", "transformers", "--model", tiny_model, *options)
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["engines"]["transformers"]["generated_tokens"] > 0


def test_each_engine_has_the_requested_calls_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summarizing, "require_package", lambda _kind: None)
    assert local_engine("transformers", "m", 5).model_dump()["max_rows"] == 5
    assert local_engine("llamacpp", "m", 5).model_dump()["n_parallel"] == 5
    assert local_engine("llamacpp", "m") == LlamaCppEngine(model="m")
