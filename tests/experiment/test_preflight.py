"""Mistakes in a model are found before hours of work, and only if the model is used."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_run
from helpers import read_only, temporary_folder
from scripted_server import scripted, send

from trsr.errors import ConfigError, ModelError
from trsr.experiment.config import RunConfig
from trsr.experiment.cost_plan import Rates, plan_experiment
from trsr.experiment.experiment import Experiment
from trsr.experiment.preflight import check_models, check_server
from trsr.experiment.run_folder import RunFolder
from trsr.experiment.stages import run_stages
from trsr.llm.engines import OpenAIEngine
from trsr.recommend.prompt import PromptConfig

NOWHERE = {"model": "./no/such/model"}
WITHOUT_LLM = {"train": None, "rankers": ["bm25"]}


def config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate({"name": "test", "data": {"kind": "synthetic"}, **settings})


SERVED = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"}


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"recommender": NOWHERE}, True),
        ({"recommender": NOWHERE, "train": None, "rankers": ["llm_zero_shot"]}, True),
        ({"engine": {"kind": "transformers", **NOWHERE}}, True),
        ({"engine": {"kind": "llamacpp", **NOWHERE}, **WITHOUT_LLM}, True),
        ({}, False),
        ({"recommender": NOWHERE, **WITHOUT_LLM}, False),
        ({"engine": {"kind": "transformers", **NOWHERE}, "summary": {"method": "counted"}}, False),
        ({"engine": SERVED | NOWHERE}, False),
        ({"engine": {"kind": "fake"}, "recommender": {"model": "OWNER/NAME"}}, False),
    ],
)
def test_unknown_models_are_refused_where_they_are_loaded(settings: dict[str, Any], refused: bool) -> None:
    expected = pytest.raises(ModelError, match=r"There is no model '\./no/such/model'")
    with expected if refused else nullcontext():
        check_models(config(**settings))


def test_a_model_that_may_not_be_looked_into_is_one_sentence() -> None:
    with temporary_folder() as folder:
        (folder / "locked").mkdir(mode=0)
        chosen = config(recommender={"model": str(folder / "locked" / "model")})
        with (
            read_only(folder),
            pytest.raises(ModelError, match=r"cannot be read \(Permission denied\); check"),
        ):
            check_models(chosen)


def tiny(model: Path, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(tiny_run(model, rankers=["llm"], **changes))


def run_until_summaries(chosen: RunConfig, folder: Path) -> None:
    run_stages(Experiment(RunFolder(folder, chosen, "trsr run")), "summarize")


def test_all_that_is_wrong_with_a_model_is_said_at_once_before_any_summary(
    tiny_model: Path, two_token_model: Path, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    chosen = tiny(
        two_token_model,
        engine={"kind": "fake", "log": str(log)},
        prompt={"max_tokens": 9000},
        train={"lora": {"target_modules": ["query_key_value"]}},
        variants={"wide": {"recommender.model": str(tiny_model), "train.lora.target_modules": "gate_up"}},
    )
    with pytest.raises(ConfigError) as caught:
        run_until_summaries(chosen, tmp_path / "run")
    said = "\n".join(caught.value.problems)
    assert "is 3 tokens for this model" in said
    assert f"found 9000, but the model {str(two_token_model)!r} reads at most" in said
    assert f"found 9000, but the model {str(tiny_model)!r} reads at most" in said
    assert "no layers 'query_key_value'" in said
    assert "no layers 'gate_up'" in said
    assert not log.exists()


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (
            {"max_prompt_tokens": 60},
            r"engine.max_prompt_tokens: found 60, but a prompt for summaries has \d+",
        ),
        (
            {"thinking": "strip", "thinking_tokens": 5000},
            r"its text up to 5008, but the model .* at most 4096",
        ),
    ],
)
def test_a_prompt_for_summaries_that_cannot_be_read_is_refused(
    engine: dict[str, Any], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    chosen = tiny(tiny_model, engine={"kind": "transformers", "model": str(tiny_model), **engine})
    with pytest.raises(ConfigError, match=said):
        run_until_summaries(chosen, tmp_path / "run")


def test_a_plan_is_refused_as_the_run_would_be(tiny_model: Path) -> None:
    rates = Rates(None, None, 24.0)
    with pytest.raises(ConfigError, match="max_tokens: found 9000"):
        plan_experiment(tiny(tiny_model, prompt={"max_tokens": 9000}), rates=rates)
    with pytest.raises(ModelError, match="There is no model"):
        plan_experiment(tiny(tiny_model, recommender=NOWHERE), rates=rates)
    unknown = tiny(Path("OWNER/NAME"), engine={"kind": "transformers", "model": "OWNER/NAME"})
    notes = plan_experiment(unknown, rates=rates)["notes"]
    assert any(note.startswith("The model 'OWNER/NAME' is not on this machine") for note in notes)
    assert any(note.startswith("The store is not read: The tokenizer of 'OWNER/NAME'") for note in notes)


def test_a_server_that_reads_less_than_the_prompts_is_refused() -> None:
    body = json.dumps({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 1000}]})
    with scripted(lambda handler, _: send(handler, 200, body)) as server:
        engine = OpenAIEngine(base_url=server.url, model="m")
        check_server(engine, PromptConfig(max_tokens=1000))
        with pytest.raises(ConfigError, match="found 1024, but the model 'm' reads at most 1000"):
            check_server(engine, PromptConfig(max_tokens=1024))


def test_four_bits_need_a_gpu_and_are_refused_before_any_summary(tiny_model: Path, tmp_path: Path) -> None:
    recommender = {"model": str(tiny_model), "device": "cpu", "quantization": "4bit"}
    with pytest.raises(ModelError, match="needs an NVIDIA GPU, but the device is cpu"):
        run_until_summaries(tiny(tiny_model, recommender=recommender), tmp_path / "run")
