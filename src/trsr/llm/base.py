"""The protocols of language models and the values they exchange; imports no model library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Sharing = Literal["auto", "rows", "padded", "separate"]
"""How candidates share the reading of their prefix, see `trsr.llm.prefix_attention`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class PhrasePart:
    """One part of an answer that consists of given phrases, separated by commas.

    Attributes:
        phrases: The allowed phrases, at least one, without commas and semicolons.
        n_phrases: Number of distinct phrases to write; all if there are fewer.
        lead: Text between the previous part and this one, after a semicolon: `before that`.
    """

    phrases: tuple[str, ...]
    n_phrases: int
    lead: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to a model.

    Attributes:
        messages: Turns of a chat.
        prefill: The first words of the answer; the generated text does not repeat them.
        parts: Phrases that the answer must consist of, part by part; None for free text. An engine that
            cannot enforce this refuses the prompt.
    """

    messages: tuple[Message, ...]
    prefill: str = ""
    parts: tuple[PhrasePart, ...] | None = None


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """Decoding parameters; greedy unless `temperature` > 0.

    Attributes:
        max_new_tokens: Cap on the generated tokens, at least 1.
        temperature: 0 for greedy decoding.
        frequency_penalty: Subtracted from a token's logit per earlier occurrence (0 to 2).
        seed: Only used when sampling.
        stop: Texts that end the generation; they are not part of the result.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to prompt number `index`: a text, or an error and an empty text, never both.

    Attributes:
        index: Position of the prompt in the sequence given to `generate`.
        text: Generated text, white space at both ends removed.
        n_prompt_tokens: Tokens read.
        n_generated_tokens: Tokens written.
        seconds: Wall-clock time of the call, or its share of a batch.
        error: One sentence, when the call failed for good; None otherwise.
        more: Whether the next result is already available; callers may store several at once. False promises
            nothing.
    """

    index: int
    text: str
    n_prompt_tokens: int
    n_generated_tokens: int
    seconds: float
    error: str | None = None
    more: bool = False


@dataclass(frozen=True, slots=True)
class LabelTokens:
    """The ids of the two answer tokens in the exact context of the prompt."""

    positive: int
    negative: int


@dataclass(frozen=True, slots=True)
class ScoringGroup:
    """Candidates that share a prefix, as token ids: prompt i is `prefix + suffixes[i]`."""

    prefix: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]


@runtime_checkable
class TextGenerator(Protocol):
    """Writes texts. Results come in completion order, one per prompt, failed ones included."""

    @property
    def model_id(self) -> str:
        """The model's name and revision, as it enters a summary's key: `NAME@REVISION`."""
        ...

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        """Yield one `Generation` per prompt as each is finished.

        `prompts` may grow while the caller takes results. A prompt is not read again after its result.

        Raises:
            EngineError: the engine as a whole is unusable (a single failed call is a result with `error`).
        """
        ...

    def close(self) -> None:
        """Release memory, threads and ports; safe to call twice."""
        ...


@runtime_checkable
class LabelScorer(Protocol):
    """Scores candidates by the margin logit(positive) - logit(negative) at the answer position."""

    def score(
        self, groups: Sequence[ScoringGroup], labels: LabelTokens
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield (group index, float32 margins of shape (n_suffixes,)) in completion order."""
        ...


def prompt_key(prompt: Prompt, model_id: str, params: GenerationParams) -> str:
    """Return the sha256 (hex) of a generation request: the sorted JSON of prompt, model and parameters."""
    # `asdict` is slower than the hash itself; requests of one kind differ only in their last message.
    last = [{"role": message.role, "content": message.content} for message in prompt.messages[-1:]]
    rest: dict[str, Any] = {"messages": last, "prefill": prompt.prefill}
    if prompt.parts is not None:
        rest["parts"] = [asdict(part) for part in prompt.parts]
    hashed = _hash_beginning(model_id, params, prompt.messages[:-1]).copy()
    hashed.update(f"{_ENCODER.encode(rest).removeprefix(_MESSAGES)}}}".encode())
    return hashed.hexdigest()


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False)
_MESSAGES = '{"messages": ['


@lru_cache(maxsize=256)
def _hash_beginning(model_id: str, params: GenerationParams, messages: tuple[Message, ...]) -> hashlib._Hash:
    head = _ENCODER.encode({"model": model_id, "params": asdict(params)}).removesuffix("}")
    before = "".join(f"{_ENCODER.encode(asdict(message))}, " for message in messages)
    return hashlib.sha256(f'{head}, "prompt": {_MESSAGES}{before}'.encode())
