"""Two engines score the same prompts of a run, and their differences are found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Answer, open_experiment
from scipy.stats import kendalltau  # type: ignore[import-untyped]

from trsr.errors import ConfigError, DataError, MissingLabelsError
from trsr.experiment.engine_check import compare_engines, kendall_tau, parse_engine
from trsr.experiment.experiment import Experiment
from trsr.llm import models
from trsr.llm.engines import LlamaCppEngine, OpenAIEngine, TransformersEngine


@pytest.fixture
def experiment(finished_run: Path) -> Experiment:
    """A finished run, only read."""
    return open_experiment(finished_run / "config.yaml", finished_run)


@pytest.fixture(scope="module")
def llama_url() -> Iterator[str]:
    """The base URL of a real llama.cpp server with the embedded model."""
    from trsr.llm.llamacpp import open_server

    server = open_server(models.gguf_file(models.EMBEDDED_MODEL), n_parallel=2, slot_tokens=400, threads=1)
    yield f"{server.listening_address}/v1"
    del server


def test_an_engine_agrees_with_itself(experiment: Experiment, tiny_model: Path) -> None:
    same = TransformersEngine(model=str(tiny_model), dtype="float32", device="cpu")
    found = compare_engines(experiment, "llm_zero_shot", same, n_prompts=20, tolerance=1e-4)
    assert found.agrees
    assert (found.n_prompts, found.n_users, found.same_tokens, found.same_top) == (20, 4, 1.0, 1.0)
    assert found.kendall_tau == pytest.approx(1.0)
    assert found.max_difference < 1e-4


def test_a_model_without_the_adapter_is_not_the_fine_tuned_one(experiment: Experiment) -> None:
    found = compare_engines(experiment, "llm_zero_shot", "llm", n_prompts=10, tolerance=1e-3)
    assert not found.agrees
    assert found.max_difference >= abs(found.mean_shift)


def test_a_wrong_chat_template_is_found(
    trsr: Callable[..., Answer], finished_run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny_model, wrong)
    for file in wrong.glob("chat_template*"):
        file.unlink()
    settings = json.loads((wrong / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (wrong / "tokenizer_config.json").write_text(json.dumps(settings))
    right = trsr("models", "check", "llm_zero_shot", f"transformers:{tiny_model}", "--run", finished_run)
    assert (right.code, right.err) == (0, "")
    answer = trsr(
        "models", "check", "llm_zero_shot", f"transformers:{wrong}", "--run", finished_run, "--json",
        "--tolerance", "0.1",
    )  # fmt: skip
    found = json.loads(answer.out)
    assert answer.code == 1
    assert found["agrees"] is False
    assert found["same_tokens"] == 0.0
    assert found["max_difference"] > 0.1


@pytest.mark.model
@pytest.mark.slow
def test_labels_that_a_server_does_not_tell_end_the_check(experiment: Experiment, llama_url: str) -> None:
    served = OpenAIEngine(base_url=llama_url, model="smollm2-135m", top_logprobs=2, concurrency=2)
    with pytest.raises(MissingLabelsError, match="For 2 of 2 candidates"):
        compare_engines(experiment, served, "llm_zero_shot", n_prompts=2, tolerance=0.5)


@pytest.mark.model
@pytest.mark.slow
def test_transformers_and_llama_cpp_agree_on_the_embedded_model(experiment: Experiment) -> None:
    cpu = TransformersEngine(dtype="float32", device="cpu")
    found = compare_engines(experiment, cpu, LlamaCppEngine(threads=1), n_prompts=4, tolerance=0.5)
    assert found.same_tokens == 1.0
    assert found.agrees
    assert found.max_difference > 0  # the one computes with 4 bits, the other with their decoded values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("llm", "llm"),
        ("transformers", TransformersEngine()),
        ("llamacpp:a/b:c.gguf", LlamaCppEngine(model="a/b:c.gguf")),
        ("openai:me@http://h:1/v1", OpenAIEngine(model="me", base_url="http://h:1/v1")),
        (
            "{kind: openai, model: m, base_url: 'http://h/v1', top_logprobs: 99}",
            OpenAIEngine(model="m", base_url="http://h/v1", top_logprobs=99),
        ),
    ],
)
def test_engines_are_named_in_a_few_ways(text: str, expected: Any) -> None:
    assert parse_engine(text) == expected


@pytest.mark.parametrize("text", ["fake", "vllm", "openai:m", "{kind: openai, nonsense: 1}", "{"])
def test_what_is_no_engine_that_scores_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_engine(text)


def test_more_prompts_than_there_are_is_refused(experiment: Experiment) -> None:
    with pytest.raises(DataError, match="has 60 prompts"):
        compare_engines(experiment, "llm_zero_shot", "llm", n_prompts=61, tolerance=0.5)


def test_kendalls_tau_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        left, right = rng.integers(0, 4, 6), rng.integers(0, 4, 6)
        assert kendall_tau(left, right) == pytest.approx(kendalltau(left, right).statistic)
    assert kendall_tau([1, 1, 1], [1, 2, 3]) is None
