"""Open the engine of a configuration, or find its model id, context and token counts without opening it.

Each engine's own module is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trsr.errors import EngineError, MissingExtraError, ModelError
from trsr.llm import models
from trsr.llm.base import LabelScorer, Prompt, TextGenerator
from trsr.llm.chat_format import rendered, text_model_id, with_thinking
from trsr.llm.engines import (
    EngineConfig,
    FakeEngine,
    LlamaCppEngine,
    OpenAIEngine,
    TransformersEngine,
    n_thought_tokens,
    require_package,
)
from trsr.llm.fake import CHARACTERS_A_TOKEN, FakeGenerator, RoughTokenizer, n_words

if TYPE_CHECKING:
    from trsr.llm.transformers import HfTokenizer


def open_generator(config: EngineConfig) -> TextGenerator:
    """Start the engine that `config` describes; the caller closes it.

    Raises:
        MissingExtraError: the engine's package is not installed.
        ModelError: its model is unknown or cannot be loaded.
    """
    require_package(config.kind)
    match config:
        case FakeEngine():
            return FakeGenerator(delay=config.delay, log=config.log)
        case LlamaCppEngine():
            from trsr.llm.llamacpp import LlamaCppGenerator

            return LlamaCppGenerator(config)
        case OpenAIEngine():
            from trsr.llm.openai import OpenAIGenerator

            return OpenAIGenerator(config)
        case TransformersEngine():
            from trsr.llm.generation import TransformersGenerator

            return TransformersGenerator(**config.model_dump(exclude={"kind"}))


def open_remote_scorer(config: OpenAIEngine) -> LabelScorer:
    """Return a label scorer over the server that `config` describes; no request is made yet.

    Raises:
        MissingExtraError: the client's package is not installed.
    """
    require_package(config.kind)
    from trsr.llm.remote_scoring import RemoteScorer

    return RemoteScorer(config)


def engine_model_id(config: EngineConfig) -> str:
    """Return the `model_id` that the engine would have, without loading it.

    Raises:
        ModelError: the model is unknown, or its tokenizer cannot be read here.
        MissingExtraError: it is on the hub, and the extra `hf` is not installed.
    """
    match config:
        case FakeEngine():
            return FakeGenerator.model_id
        case OpenAIEngine():
            return config.served_model_id
        case LlamaCppEngine():
            return with_thinking(models.model_id(config.model), config.thinking)
        case TransformersEngine():
            tokenizer = find_tokenizer(config.model)
            if tokenizer is None:
                raise ModelError(
                    f"The tokenizer of {config.model!r} is not on this machine or the extra `hf` is not "
                    "installed, so the keys of its texts are unknown; get both."
                )
            return text_model_id(config.model, tokenizer, config.thinking)


def engine_context(config: EngineConfig) -> int | None:
    """Return the context length of the engine's model, in tokens; None if unknown.

    Raises:
        ModelError, MissingExtraError: as `context_length`.
    """
    match config:
        case FakeEngine():
            return None
        case LlamaCppEngine():
            return models.gguf_context(models.gguf_file(config.model))
        case TransformersEngine():
            return models.context_length(config.model)
        case OpenAIEngine():
            return server_context(config)


def server_context(server: OpenAIEngine) -> int | None:
    """Return the `max_model_len` that a server (vLLM, SGLang) reports; None if it does not."""
    try:
        from trsr.llm.openai import list_models

        listed = list_models(server.model_copy(update={"timeout": 10.0, "retries": 0}))
    except (MissingExtraError, EngineError):
        return None
    found = [model.get("max_model_len") for model in listed if model.get("id") == server.model]
    return next((length for length in found if isinstance(length, int) and length > 0), None)


def find_tokenizer(name: str) -> HfTokenizer | None:
    """Return a model's tokenizer; None if it or its library is not on this machine. Downloads nothing."""
    try:
        if not models.model_files(name):
            return None
        from trsr.llm.transformers import HfTokenizer
    except (ImportError, MissingExtraError, ModelError):
        return None
    return HfTokenizer(models.hf_folder(name))


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """Counts a prompt's tokens.

    Attributes:
        count: Returns the number of tokens of a prompt.
        how: Describes the counter in words.
        exact: Whether the engine counts the same.
        model: The tokenizer's model; empty for none.
    """

    count: Callable[[Prompt], int]
    how: str
    exact: bool
    model: str = ""


def token_counter(config: EngineConfig, tokenizer: str | None = None, *, rough: bool = False) -> TokenCounter:
    """Return a counter that counts as the engine does, or roughly if its tokenizer is not on this machine.

    Args:
        config: The engine.
        tokenizer: The model whose tokenizer is used; by default the engine's model.
        rough: Whether to count without a tokenizer.

    Raises:
        ModelError: a tokenizer was named and is not on this machine.
    """
    if isinstance(config, FakeEngine) and tokenizer is None:
        return TokenCounter(n_words, "words, as the fake engine counts", exact=True)
    name = tokenizer or ("" if isinstance(config, FakeEngine) else config.model)
    found = None if rough else find_tokenizer(name)
    if found is None and tokenizer is not None:
        raise ModelError(
            f"The tokenizer of {tokenizer!r} is not on this machine or the extra `hf` is not installed; "
            "name a model folder or leave --tokenizer out."
        )
    thinking, counting = n_thought_tokens(config) > 0, found or RoughTokenizer()

    def count(prompt: Prompt) -> int:
        return len(counting.encode_prompt(rendered(counting, prompt, thinking)))

    if found is None:
        how = f"{CHARACTERS_A_TOKEN} characters a token, for want of the tokenizer of {name}"
        return TokenCounter(count, how, exact=False)
    return TokenCounter(count, f"the tokenizer of {name}", exact=True, model=name)
