"""Counts the tokens of prompts as an engine will, without starting it.

Where the engine's tokenizer is not at hand (no model library, or a model that only a server has), a rough
count stands in, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trsr.errors import MissingExtraError, ModelError
from trsr.llm import models
from trsr.llm.answers import Thinking, with_thinking
from trsr.llm.base import Prompt, Tokenizer
from trsr.llm.chat_format import ChatTokenizer
from trsr.llm.engines import (
    EngineConfig,
    FakeEngine,
    LlamaCppEngine,
    OpenAIEngine,
    TransformersEngine,
    thinks,
)

if TYPE_CHECKING:
    from trsr.llm.transformers import HfTokenizer

CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """Counts a prompt's tokens.

    Attributes:
        count: A prompt to its tokens.
        how: Says in words by what.
        exact: Whether the engine counts the same.
        model: Whose tokenizer it is; empty for none.
    """

    count: Callable[[Prompt], int]
    how: str
    exact: bool
    model: str = ""


class RoughTokenizer:
    """A reversible `Tokenizer` without a model: every four characters are a token; chats are in ChatML."""

    has_chat_template = True
    prompt_version = 1
    answer_blank = ""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._ids: dict[str, int] = {}

    @property
    def special_texts(self) -> tuple[str, ...]:
        """None: nothing is counted differently from other text."""
        return ()

    def encode(self, text: str) -> list[int]:
        """Return one id for every four characters."""
        ids = []
        for start in range(0, len(text), CHARACTERS_A_TOKEN):
            piece = text[start : start + CHARACTERS_A_TOKEN]
            if piece not in self._ids:
                self._ids[piece] = len(self._pieces)
                self._pieces.append(piece)
            ids.append(self._ids[piece])
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt; there is no BOS."""
        return self.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids."""
        return "".join(self._pieces[i] for i in token_ids)

    def render_chat(self, prompt: Prompt, *, think: bool = True) -> str:  # noqa: ARG002
        """Return the prompt in ChatML, which has no think block."""
        turns = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in prompt.messages)
        return f"{turns}<|im_start|>assistant\n{prompt.prefill}"


def engine_model_id(config: EngineConfig) -> str:
    """Return the `model_id` that the engine would have, without loading it.

    Raises:
        ModelError: the model is unknown, or its tokenizer cannot be read here.
        MissingExtraError: it is on the hub, and the extra `hf` is not installed.
    """
    match config:
        case FakeEngine():
            from trsr.llm.fake import FakeGenerator

            return FakeGenerator.model_id
        case OpenAIEngine():
            found = f"{config.model}@{config.revision or urlsplit(config.base_url).netloc}"
            return with_thinking(found, config.thinking)
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


def text_model_id(model: str, tokenizer: ChatTokenizer, thinking: Thinking) -> str:
    """Return the model id under which the texts of transformers' engine are kept.

    Texts that answer prompts of version 2 are not those of version 1. `+thinking` never had version 1.
    """
    changed = thinking == "off" and tokenizer.text_prompt_version == 2
    return with_thinking(models.model_id(model) + "+prompt2" * changed, thinking)


def find_tokenizer(name: str) -> HfTokenizer | None:
    """Return the tokenizer of a model; None where it is not on this machine, or no library to read it.

    Nothing is downloaded.
    """
    try:
        if not models.model_files(name):
            return None
        from trsr.llm.transformers import HfTokenizer
    except (ImportError, MissingExtraError, ModelError):
        return None
    return HfTokenizer(models.hf_folder(name))


def token_counter(config: EngineConfig, tokenizer: str | None = None, *, rough: bool = False) -> TokenCounter:
    """Return what counts as the engine does.

    Args:
        config: The engine.
        tokenizer: The model whose tokenizer is used; by default that of the engine's own model.
        rough: Whether to do without a tokenizer.

    Raises:
        ModelError: a tokenizer was named and is not on this machine.
    """
    if isinstance(config, FakeEngine) and tokenizer is None:
        from trsr.llm.fake import n_words

        return TokenCounter(n_words, "words, as the fake engine counts", exact=True)
    name = tokenizer or ("" if isinstance(config, FakeEngine) else config.model)
    thinking = thinks(config)
    found = None if rough else find_tokenizer(name)
    if found is None and tokenizer is not None:
        raise ModelError(
            f"The tokenizer of {tokenizer!r} is not on this machine or the extra `hf` is not installed; "
            "name a model folder or leave --tokenizer out."
        )
    if found is None:
        how = f"{CHARACTERS_A_TOKEN} characters a token, for want of the tokenizer of {name}"
        return TokenCounter(_counting(RoughTokenizer(), thinking), how, exact=False)
    return TokenCounter(_counting(found, thinking), f"the tokenizer of {name}", exact=True, model=name)


def _counting(tokenizer: Tokenizer, thinking: bool) -> Callable[[Prompt], int]:
    return lambda prompt: len(tokenizer.encode_prompt(rendered(tokenizer, prompt, thinking)))


def rendered(tokenizer: Tokenizer, prompt: Prompt, thinking: bool) -> str:
    """Return the text that an engine reads.

    A model that thinks cannot go on from given words, so these are left out. Another one is told not to, and
    so is one whose answer is held to phrases.
    """
    if thinking and prompt.parts is None:
        return tokenizer.render_chat(replace(prompt, prefill=""))
    return tokenizer.render_chat(prompt, think=False)
