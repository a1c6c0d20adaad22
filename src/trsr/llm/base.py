"""The seam between `trsr` and language models: two protocols and the values they exchange.

An engine is anything with `generate` (write a text) or `score` (margin between two answers). Engines hold the
model; callers hold the prompts. Nothing here imports a model library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Sharing = Literal["auto", "rows", "padded", "blocks", "separate"]
"""How candidates share the reading of their prefix, see `trsr.llm.prefix_attention`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class PhrasePart:
    """One part of an answer that is held to given phrases, with commas between them.

    Attributes:
        phrases: The only phrases it may be made of, at least one, without commas and semicolons.
        n_phrases: How many different ones it says; all, if there are fewer.
        lead: What stands between the part before and this one, after a semicolon: `before that`.
    """

    phrases: tuple[str, ...]
    n_phrases: int
    lead: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked.

    Attributes:
        messages: Turns of a chat.
        prefill: The first words, put into its mouth; the generated text does not repeat them.
        parts: What the answer has to be made of, part by part; None for anything. An engine that cannot hold
            this refuses the prompt.
    """

    messages: tuple[Message, ...]
    prefill: str = ""
    parts: tuple[PhrasePart, ...] | None = None


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """How to write: greedy unless `temperature` > 0.

    Attributes:
        max_new_tokens: Cap on the generated tokens, at least 1.
        temperature: 0 for greedy decoding.
        frequency_penalty: Taken from a token's logit for each time it was already written (0 to 2); small
            models repeat themselves without it.
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
        index: The prompt's place in the sequence given to `generate`.
        text: Generated text, white space at both ends removed.
        n_prompt_tokens: Tokens read.
        n_generated_tokens: Tokens written.
        seconds: Wall-clock time of the call, or its share of a batch.
        error: One sentence, when the call failed for good; None otherwise.
        more: Whether another result arrived together with this one: it comes next, without waiting and
            whatever the caller does, so that results can be kept together. False promises nothing.
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


class Tokenizer(Protocol):
    """Text to token ids and back; special tokens in `encode` are only those written in the text."""

    @property
    def special_texts(self) -> tuple[str, ...]:
        """The texts that `encode` turns into special tokens, those of the chat format among them."""
        ...

    @property
    def prompt_version(self) -> int:
        """1 where prompts are those of `trsr` before version 2, else 2.

        Version 2 begins with the BOS that the tokenizer adds by itself, gives models without a chat template
        an answer cue, models without a system role that text in front of the user's, closes think blocks
        before the answer, and reads a candidate without a blank of the tokenizer's own before it, but an
        answer with the blank that the chat template writes there.
        """
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether turns are written in a chat format; else they are paragraphs."""
        ...

    @property
    def answer_blank(self) -> str:
        """A blank where the chat format has one before an answer, else nothing."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text that goes on another one, with no token added around it."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Return the token ids of a text that begins a prompt: with one BOS, if the tokenizer adds it."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids, special tokens included."""
        ...

    def render_chat(self, prompt: Prompt, *, think: bool = True) -> str:
        """Return the whole prompt as the model's chat format writes it, ending where the answer begins.

        Args:
            prompt: The turns.
            think: False closes the think block of a model that has one, so that the answer itself comes next.

        Raises:
            ModelError: the chat template fails, or does not keep the text of a turn.
        """
        ...


@runtime_checkable
class TextGenerator(Protocol):
    """Writes texts. Results come in completion order, one for each prompt, failed ones included."""

    @property
    def model_id(self) -> str:
        """The model's name and revision, as it enters a summary's key: `NAME@REVISION`."""
        ...

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        """Yield one `Generation` a prompt as each is finished.

        `prompts` may grow while the caller takes results: what was appended after one result is answered too,
        so that a caller whose next prompts depend on earlier answers keeps the engine full. A prompt is not
        read again after its result, so that the caller need not keep it.

        Raises:
            EngineError: the engine as a whole is unusable (a single failed call is a result with `error`).
        """
        ...

    def close(self) -> None:
        """Give back memory, threads and ports; safe to call twice."""
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
    """Return the sha256 (hex) that names a generation: rendered prompt, model and parameters.

    Hashed is the JSON of all three, sorted by name. Calls of one kind differ in their last message, so what
    stands before it is written and hashed once.
    """
    # By hand: `asdict` copies every value, which took longer than all the rest of a call.
    last = [{"role": m.role, "content": m.content} for m in prompt.messages[-1:]]
    rest: dict[str, Any] = {"messages": last, "prefill": prompt.prefill}
    if prompt.parts is not None:
        rest["parts"] = [asdict(part) for part in prompt.parts]
    hashed = _begun(model_id, params, prompt.messages[:-1]).copy()
    hashed.update(f"{_ENCODER.encode(rest).removeprefix(_MESSAGES)}}}".encode())
    return hashed.hexdigest()


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False)
_MESSAGES = '{"messages": ['


@lru_cache(maxsize=256)
def _begun(model_id: str, params: GenerationParams, messages: tuple[Message, ...]) -> hashlib._Hash:
    """Hash what stands before the last message of a prompt."""
    head = _ENCODER.encode({"model": model_id, "params": asdict(params)}).removesuffix("}")
    before = "".join(f"{_ENCODER.encode(asdict(message))}, " for message in messages)
    return hashlib.sha256(f'{head}, "prompt": {_MESSAGES}{before}'.encode())
