"""The engines a configuration can name, and `open_generator`, which starts one.

Each engine's own module is imported only when it is opened, so a configuration can be checked without any
model library.
"""

from __future__ import annotations

import importlib.util
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from trsr.errors import MissingExtraError
from trsr.llm.answers import Thinking
from trsr.llm.base import LabelScorer, TextGenerator

Scoring = Literal["auto", "vllm", "sglang", "top_logprobs"]

# Which package each engine needs, and the extra that brings it.
REQUIRED_PACKAGES: dict[str, tuple[str, str] | None] = {
    "fake": None,
    "llamacpp": ("xllamacpp", "llamacpp"),
    "openai": ("openai", "openai"),
    "transformers": ("transformers", "hf"),
}


class _Engine(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _as_text(given: object) -> object:
    """Return what was meant: YAML reads `off` as false."""
    return "off" if given is False else given


class _Thinking(_Engine):
    thinking: Annotated[Thinking, BeforeValidator(_as_text)] = "off"
    """What a reasoning model does before it answers. `off`: it is told not to think (`enable_thinking` of its
    chat template; over HTTP `chat_template_kwargs` and `reasoning_effort`, as far as the server takes them).
    `strip`: it may, and its thoughts are cut from the answer. Thoughts never become a summary."""
    thinking_tokens: int = Field(default=2048, ge=1)
    """Tokens beside those of the answer that `strip` leaves for thoughts."""


IN_FLIGHT = {"llamacpp": "n_parallel", "openai": "concurrency", "transformers": "max_rows"}
"""The setting of each engine that bounds how many prompts it works on at the same time."""


class FakeEngine(_Engine):
    """Deterministic texts made from the prompt's own words; for tests and dry runs."""

    kind: Literal["fake"] = "fake"
    delay: float = Field(default=0.0, ge=0)
    """Seconds that each call takes."""
    log: str | None = None
    """A file that gets a line at the beginning of each call, in JSON: its key, the time, the process."""


class LlamaCppEngine(_Thinking):
    """llama.cpp in this process, for GGUF models on a CPU."""

    kind: Literal["llamacpp"] = "llamacpp"
    model: str = "smollm2-135m"
    """`smollm2-135m`, the path of a `.gguf` file, or `OWNER/NAME/FILE.gguf` on the hub."""
    n_parallel: int = Field(default=16, ge=1)
    """Slots: prompts worked on at the same time."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Longest prompt; memory grows with `n_parallel * max_prompt_tokens`."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; by default `OMP_NUM_THREADS`, which Ray sets for its workers, else the physical cores this
    process may use."""


class OpenAIEngine(_Thinking):
    """Any server that speaks the OpenAI chat API: vLLM, SGLang, llama.cpp, Ollama, hosted."""

    kind: Literal["openai"] = "openai"
    base_url: str
    """For example `http://127.0.0.1:8000/v1`."""
    model: str
    """The model's name on that server."""
    revision: str | None = None
    """What stands behind the @ in the model id; by default the server's host and port. Set it to keep
    summaries when the same model moves to another address, or to part them when the model changes."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; a server without keys needs none."""
    concurrency: int = Field(default=32, ge=1)
    """Most calls in flight."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds until a call is given up and tried again."""
    retries: int = Field(default=5, ge=0)
    """How often a failed call is tried again."""
    grammar: Literal["llama.cpp", "vllm", "sglang"] | None = None
    """How the server takes a grammar, which grounded summaries need."""
    scoring: Scoring = "auto"
    """How the server scores labels: vLLM's `/generative_scoring`, SGLang's `/v1/score`, or the top logprobs
    of a completion. `auto` asks the server what it is."""
    top_logprobs: int = Field(default=20, ge=2)
    """Tokens whose logprob is asked for when scoring by `top_logprobs`. A label that is not among them is an
    error; servers have a limit (vLLM: `--max-logprobs`)."""


class TransformersEngine(_Thinking):
    """Hugging Face transformers in this process, on a GPU or a CPU."""

    kind: Literal["transformers"] = "transformers"
    model: str = "smollm2-135m"
    """`smollm2-135m`, a model folder, or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 where the device computes in it, else float32."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    max_batch_tokens: int = Field(default=16384, ge=1)
    """Positions of one batch, padding and new tokens included; memory grows with it."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Longest prompt."""
    max_rows: int | None = Field(default=None, ge=1)
    """Most texts written at the same time; by default as many as `max_batch_tokens` has room for."""


EngineConfig = Annotated[
    FakeEngine | LlamaCppEngine | OpenAIEngine | TransformersEngine, Field(discriminator="kind")
]

DEFAULT_ENGINE: EngineConfig = TransformersEngine()
"""Writes summaries unless another is named: the faster of the two local ones, on every machine.

On a GPU because llama.cpp runs on the CPU here. On a CPU because a summary's prompt is far longer than its
answer, and transformers reads what all prompts begin with once and the rest in large products, where
llama.cpp reads every prompt whole (`trsr bench summarize` measures both). The rule looks at nothing, so two
runs on one machine never differ in the engine.
"""


def open_generator(config: EngineConfig) -> TextGenerator:
    """Start the engine that `config` describes; the caller closes it.

    Raises:
        MissingExtraError: the engine's package is not installed.
        ModelError: its model is unknown or cannot be loaded.
    """
    require_package(config.kind)
    match config:
        case FakeEngine():
            from trsr.llm.fake import FakeGenerator

            return FakeGenerator(delay=config.delay, log=config.log)
        case LlamaCppEngine():
            from trsr.llm.llamacpp import LlamaCppGenerator

            return LlamaCppGenerator(**config.model_dump(exclude={"kind"}))
        case OpenAIEngine():
            from trsr.llm.openai import OpenAIGenerator

            return OpenAIGenerator(**config.model_dump(exclude={"kind", "scoring", "top_logprobs"}))
        case TransformersEngine():
            from trsr.llm.generation import TransformersGenerator

            return TransformersGenerator(**config.model_dump(exclude={"kind"}))


def open_remote_scorer(config: OpenAIEngine) -> LabelScorer:
    """Return the scorer over the server that `config` describes; nothing is asked yet.

    Raises:
        MissingExtraError: the client's package is not installed.
    """
    require_package(config.kind)
    from trsr.llm.remote_scoring import RemoteScorer

    return RemoteScorer(
        **config.model_dump(exclude={"kind", "revision", "grammar", "thinking", "thinking_tokens"})
    )


def n_thought_tokens(config: EngineConfig) -> int:
    """Return how many tokens a call may write beside those of its answer."""
    return 0 if isinstance(config, FakeEngine) or not thinks(config) else config.thinking_tokens


def thinks(config: EngineConfig) -> bool:
    """Return whether the model may think before it answers."""
    return not isinstance(config, FakeEngine) and config.thinking == "strip"


def require_package(kind: str) -> None:
    """Check that the package an engine needs is installed, without importing it.

    Raises:
        MissingExtraError: it is not.
    """
    required = REQUIRED_PACKAGES[kind]
    if required and importlib.util.find_spec(required[0]) is None:
        raise MissingExtraError(*required)
