"""The engines a configuration can name; checked without importing any model library."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from trsr.errors import MissingExtraError
from trsr.llm.chat_format import Thinking, with_thinking

REQUIRED_PACKAGES: dict[str, tuple[str, str] | None] = {
    "fake": None,
    "llamacpp": ("xllamacpp", "llamacpp"),
    "openai": ("openai", "openai"),
    "transformers": ("transformers", "hf"),
}
"""The package that each engine needs, and the extra that installs it."""

IN_FLIGHT = {"llamacpp": "n_parallel", "openai": "concurrency", "transformers": "max_rows"}
"""The setting of each engine that limits its concurrent prompts."""


class _Engine(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Thinking(_Engine):
    # YAML reads `off` as false.
    thinking: Annotated[Thinking, BeforeValidator(lambda given: "off" if given is False else given)] = "off"
    """Whether a reasoning model thinks before it answers. `off` disables thinking (`enable_thinking` of the
    chat template; over HTTP `chat_template_kwargs` and `reasoning_effort`, if the server accepts them).
    `strip` allows it and cuts the thoughts from the answer. Thoughts never become a summary."""
    thinking_tokens: int = Field(default=2048, ge=1)
    """Tokens that `strip` allows for thoughts, in addition to the answer."""


class FakeEngine(_Engine):
    """Deterministic texts made from the prompt's own words; for tests and dry runs."""

    kind: Literal["fake"] = "fake"
    delay: float = Field(default=0.0, ge=0)
    """Seconds that each call takes."""
    log: str | None = None
    """A file that gets one JSON line at the start of each call: its key, time and process."""


class LlamaCppEngine(_Thinking):
    """llama.cpp in this process, for GGUF models on a CPU."""

    kind: Literal["llamacpp"] = "llamacpp"
    model: str = "smollm2-135m"
    """`smollm2-135m`, the path of a `.gguf` file, or `OWNER/NAME/FILE.gguf` on the hub."""
    n_parallel: int = Field(default=16, ge=1)
    """Slots: concurrent prompts."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Longest prompt, chat format included; memory grows with `n_parallel * max_prompt_tokens`."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; by default `OMP_NUM_THREADS` (set by Ray for its workers), else the physical cores
    available to this process."""


class OpenAIEngine(_Thinking):
    """Any server that speaks the OpenAI chat API: vLLM, SGLang, llama.cpp, Ollama, hosted."""

    kind: Literal["openai"] = "openai"
    base_url: str
    """For example `http://127.0.0.1:8000/v1`."""
    model: str
    """The model's name on that server; for label scoring with vLLM, a LoRA adapter's name works too."""
    revision: str | None = None
    """The part of the model id after the @; by default the server's host and port. Set it to reuse summaries
    when the same model moves to another address, or to separate them when the model changes."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; a server without keys needs none."""
    concurrency: int = Field(default=32, ge=1)
    """Maximum concurrent calls."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds without an answer before a call is retried."""
    retries: int = Field(default=5, ge=0)
    """Retries of a failed call."""
    grammar: Literal["llama.cpp", "vllm", "sglang"] | None = None
    """The server's grammar field, needed for grounded summaries."""
    scoring: Literal["auto", "vllm", "sglang", "top_logprobs"] = "auto"
    """How the server scores labels: vLLM's `/generative_scoring`, SGLang's `/v1/score`, or the top logprobs
    of a completion. `auto` detects the server."""
    top_logprobs: int = Field(default=20, ge=2)
    """Number of logprobs requested when scoring by `top_logprobs`. A label missing from them is an error;
    servers have a limit (vLLM: `--max-logprobs`)."""

    @property
    def served_model_id(self) -> str:
        """The id under which texts of this server are stored."""
        revision = self.revision or urlsplit(self.base_url).netloc
        return with_thinking(f"{self.model}@{revision}", self.thinking)


class TransformersEngine(_Thinking):
    """Hugging Face transformers in this process, on a GPU or a CPU."""

    kind: Literal["transformers"] = "transformers"
    model: str = "smollm2-135m"
    """`smollm2-135m`, a model folder, or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 if the device supports it, else float32."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    max_batch_tokens: int = Field(default=16384, ge=1)
    """Positions per batch, including padding and new tokens; memory grows with it."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Longest prompt."""
    max_rows: int | None = Field(default=None, ge=1)
    """Most concurrent texts; by default as many as fit `max_batch_tokens`."""


EngineConfig = Annotated[
    FakeEngine | LlamaCppEngine | OpenAIEngine | TransformersEngine, Field(discriminator="kind")
]

DEFAULT_ENGINE: EngineConfig = TransformersEngine()
"""The faster local engine for summaries on GPUs and CPUs (`trsr bench summarize`), which reads the common
beginning of all prompts once. It is the same on every machine: texts do not depend on the machine."""


def n_thought_tokens(config: EngineConfig) -> int:
    """Return the tokens that a call may write in addition to its answer."""
    return config.thinking_tokens if isinstance(config, _Thinking) and config.thinking == "strip" else 0


def require_package(kind: str) -> None:
    """Check that the package an engine needs is installed, without importing it.

    Raises:
        MissingExtraError: it is not.
    """
    required = REQUIRED_PACKAGES[kind]
    if required and importlib.util.find_spec(required[0]) is None:
        raise MissingExtraError(*required)
