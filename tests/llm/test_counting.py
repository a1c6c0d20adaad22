"""Tokens and model ids known beforehand are those that the engines then report."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.errors import ModelError
from trsr.llm.base import GenerationParams, Message, Prompt
from trsr.llm.context import find_tokenizer
from trsr.llm.engines import EngineConfig, FakeEngine, LlamaCppEngine, OpenAIEngine, TransformersEngine
from trsr.llm.fake import RoughTokenizer
from trsr.llm.opening import engine_model_id, open_generator, token_counter

PROMPTS = [
    Prompt((Message("system", "You answer."), Message("user", text)), prefill)
    for text in ("Hi", "Products, oldest first:\n- Title: Café “Ärger”, 6 inches", "lamps " * 60)
    for prefill in ("", "This shopper buys")
]
SERVER = OpenAIEngine(base_url="http://127.0.0.1:9/v1", model="org/model")


def reported(config: EngineConfig) -> tuple[str, list[int]]:
    engine = open_generator(config)
    try:
        results = sorted(engine.generate(PROMPTS, GenerationParams(max_new_tokens=1)), key=lambda r: r.index)
        return engine.model_id, [result.n_prompt_tokens for result in results]
    finally:
        engine.close()


def foretold(config: EngineConfig) -> tuple[str, list[int]]:
    counter = token_counter(config)
    assert counter.exact
    return engine_model_id(config), [counter.count(prompt) for prompt in PROMPTS]


def test_the_fake_engine_counts_what_was_foretold() -> None:
    assert foretold(FakeEngine()) == reported(FakeEngine())


def test_transformers_counts_what_was_foretold(tiny_model: Path) -> None:
    config = TransformersEngine(model=str(tiny_model), device="cpu")
    assert foretold(config) == reported(config)


@pytest.mark.slow
@pytest.mark.model
def test_llama_cpp_counts_what_was_foretold() -> None:
    config = LlamaCppEngine(n_parallel=2)
    assert foretold(config) == reported(config)


def test_a_server_has_its_model_id_without_being_asked() -> None:
    for config in (SERVER, SERVER.model_copy(update={"revision": "7"})):
        assert engine_model_id(config) == open_generator(config).model_id


def test_a_model_that_is_not_here_is_counted_roughly_and_says_so() -> None:
    counter = token_counter(SERVER)
    assert not counter.exact
    assert counter.how == "4 characters a token, for want of the tokenizer of org/model"
    assert counter.count(PROMPTS[4]) == pytest.approx(
        sum(len(m.content) for m in PROMPTS[4].messages) / 4, rel=0.3
    )


def test_another_tokenizer_can_be_named(tiny_model: Path) -> None:
    named = token_counter(SERVER, str(tiny_model))
    own = token_counter(TransformersEngine(model=str(tiny_model)))
    assert named.exact
    assert [named.count(p) for p in PROMPTS] == [own.count(p) for p in PROMPTS]
    with pytest.raises(ModelError, match="The tokenizer of 'org/nothing' is not on this machine"):
        token_counter(SERVER, "org/nothing")
    assert find_tokenizer("./no/such/folder") is None


@given(st.text())
def test_the_rough_tokenizer_loses_nothing(text: str) -> None:
    tokenizer = RoughTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == -(-len(text) // 4)
