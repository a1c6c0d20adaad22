"""Engines are chosen by configuration; facts known before opening equal those reported by the engine."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from scripted_server import refuse, scripted, send_json

from trsr.cli.summarize import summarize
from trsr.errors import MissingExtraError, ModelError
from trsr.experiment.config import RunConfig
from trsr.llm.base import GenerationParams
from trsr.llm.engines import (
    DEFAULT_ENGINE,
    EngineConfig,
    FakeEngine,
    LlamaCppEngine,
    OpenAIEngine,
    TransformersEngine,
)
from trsr.llm.opening import engine_context, engine_model_id, find_tokenizer, open_generator, token_counter
from trsr.testing.contracts import ask

ADAPTER: TypeAdapter[EngineConfig] = TypeAdapter(EngineConfig)
SERVER = OpenAIEngine(base_url="http://127.0.0.1:9/v1", model="org/model")
PROMPTS = [
    ask(text, prefill=prefill)
    for text in ("Hi", "Products, oldest first:\n- Title: Café “Ärger”, 6 inches", "lamps " * 60)
    for prefill in ("", "This shopper buys")
]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"kind": "fake"}, FakeEngine),
        ({"kind": "llamacpp", "n_parallel": 4}, LlamaCppEngine),
        ({"kind": "openai", "base_url": "http://127.0.0.1:8000/v1", "model": "m"}, OpenAIEngine),
        ({"kind": "transformers", "thinking": False}, TransformersEngine),
        ({"kind": "vllm"}, None),
        ({"kind": "fake", "pause": 1}, None),
        ({"kind": "fake", "delay": -1}, None),
        ({"kind": "llamacpp", "n_parallel": 0}, None),
        ({"kind": "openai", "model": "m"}, None),
        ({"kind": "transformers", "dtype": "int3"}, None),
    ],
)
def test_the_kind_chooses_the_configuration(content: dict[str, object], kind: type | None) -> None:
    if kind:
        assert type(ADAPTER.validate_python(content)) is kind
    else:
        with pytest.raises(ValidationError):
            ADAPTER.validate_python(content)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"trsr\[llamacpp\]"):
        open_generator(LlamaCppEngine())


def test_configurations_are_checked_without_any_model_library() -> None:
    heavy = "{'torch', 'transformers', 'openai', 'xllamacpp', 'huggingface_hub'}"
    code = f"import sys, trsr.llm.opening, trsr.llm.models; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_default_engine_is_one_and_the_same_everywhere() -> None:
    chosen = inspect.signature(summarize, eval_str=True).parameters["engine"]
    assert chosen.default == DEFAULT_ENGINE.kind == "transformers"
    assert DEFAULT_ENGINE.kind in str(chosen.annotation.__metadata__[0].help)
    assert RunConfig.model_fields["engine"].default == DEFAULT_ENGINE == TransformersEngine()


@pytest.mark.parametrize(
    "kind", ["fake", "transformers", pytest.param("llamacpp", marks=[pytest.mark.slow, pytest.mark.model])]
)
def test_an_engine_counts_what_is_counted_without_it(kind: str, tiny_model: Path) -> None:
    model = {"model": str(tiny_model), "device": "cpu"} if kind == "transformers" else {}
    config = ADAPTER.validate_python({"kind": kind, **model})
    counter = token_counter(config)
    engine = open_generator(config)
    results = sorted(engine.generate(PROMPTS, GenerationParams(max_new_tokens=1)), key=lambda r: r.index)
    engine.close()
    assert counter.exact
    assert engine_model_id(config) == engine.model_id
    assert [counter.count(prompt) for prompt in PROMPTS] == [result.n_prompt_tokens for result in results]


@pytest.mark.parametrize(("revision", "known"), [(None, "127.0.0.1:9"), ("7", "7")])
def test_the_model_id_of_a_server_needs_no_request(revision: str | None, known: str) -> None:
    config = SERVER.model_copy(update={"revision": revision})
    assert engine_model_id(config) == open_generator(config).model_id == f"org/model@{known}"


def test_a_model_that_is_not_here_is_counted_roughly_and_says_so() -> None:
    counter = token_counter(SERVER)
    assert not counter.exact
    assert counter.how == "4 characters a token, for want of the tokenizer of org/model"
    n_characters = sum(len(message.content) for message in PROMPTS[4].messages)
    assert counter.count(PROMPTS[4]) == pytest.approx(n_characters / 4, rel=0.3)


def test_another_tokenizer_can_be_named(tiny_model: Path) -> None:
    def counts(config: EngineConfig, *tokenizer: str) -> list[int]:
        return [token_counter(config, *tokenizer).count(prompt) for prompt in PROMPTS]

    assert counts(SERVER, str(tiny_model)) == counts(TransformersEngine(model=str(tiny_model)))
    with pytest.raises(ModelError, match="The tokenizer of 'org/nothing' is not on this machine"):
        counts(SERVER, "org/nothing")


@pytest.mark.parametrize(("facts", "context"), [({"max_model_len": 4096}, 4096), ({}, None), (None, None)])
def test_a_server_says_its_context_or_none(facts: dict[str, Any] | None, context: int | None) -> None:
    listed = send_json({"data": [{"id": "m", "owned_by": "vllm", **(facts or {})}]})
    with scripted(refuse(500) if facts is None else listed) as server:
        config = OpenAIEngine(base_url=server.url, model="m")
        assert engine_context(config) == context
    assert engine_context(config) is None  # it is not there any more


def test_a_tokenizer_that_is_not_here_is_none() -> None:
    assert find_tokenizer("./no/such/folder") is None
