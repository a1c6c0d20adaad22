"""Engines are chosen by configuration and opened lazily."""

import inspect
import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from trsr.cli.summarize import summarize
from trsr.errors import MissingExtraError
from trsr.experiment.config import RunConfig
from trsr.llm.engines import (
    DEFAULT_ENGINE,
    EngineConfig,
    FakeEngine,
    LlamaCppEngine,
    OpenAIEngine,
    TransformersEngine,
)
from trsr.llm.opening import open_generator

adapter: TypeAdapter[EngineConfig] = TypeAdapter(EngineConfig)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"kind": "fake"}, FakeEngine),
        ({"kind": "llamacpp", "n_parallel": 4}, LlamaCppEngine),
        ({"kind": "openai", "base_url": "http://127.0.0.1:8000/v1", "model": "m"}, OpenAIEngine),
        ({"kind": "transformers"}, TransformersEngine),
    ],
)
def test_the_kind_chooses_the_configuration(content: dict[str, object], kind: type) -> None:
    assert type(adapter.validate_python(content)) is kind


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "vllm"},
        {"kind": "fake", "pause": 1},
        {"kind": "fake", "delay": -1},
        {"kind": "llamacpp", "n_parallel": 0},
        {"kind": "openai", "model": "m"},
        {"kind": "transformers", "dtype": "int3"},
    ],
)
def test_unknown_kinds_fields_and_values_are_refused(content: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        adapter.validate_python(content)


def test_engines_that_load_nothing_are_opened_by_their_configuration() -> None:
    assert open_generator(FakeEngine()).model_id == "fake@1"
    assert open_generator(OpenAIEngine(base_url="http://gpu1/v1", model="m")).model_id == "m@gpu1"
    assert open_generator(LlamaCppEngine()).model_id.startswith("smollm2-135m@")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"trsr\[llamacpp\]"):
        open_generator(LlamaCppEngine())


def test_configurations_are_checked_without_any_model_library() -> None:
    heavy = "{'torch', 'transformers', 'openai', 'xllamacpp', 'huggingface_hub'}"
    code = f"import sys, trsr.llm.engines, trsr.llm.models; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_default_engine_is_one_and_the_same_everywhere() -> None:
    chosen = inspect.signature(summarize, eval_str=True).parameters["engine"]
    assert chosen.default == DEFAULT_ENGINE.kind == "transformers"
    assert DEFAULT_ENGINE.kind in str(chosen.annotation.__metadata__[0].help)
    assert RunConfig.model_fields["engine"].default == DEFAULT_ENGINE == TransformersEngine()
