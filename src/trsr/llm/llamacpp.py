"""Generate text with llama.cpp in this process: GGUF models on a CPU, many prompts at once."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trsr.errors import MissingExtraError, ModelError
from trsr.llm import models
from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.chat_format import Tokenizer, answer_in, answer_or_error, rendered, with_thinking
from trsr.llm.constrained import grammar
from trsr.llm.engines import LlamaCppEngine
from trsr.llm.models import gguf_context

try:
    import xllamacpp
except ImportError as _error:
    raise MissingExtraError("xllamacpp", "llamacpp") from _error


class LlamaCppGenerator:
    """A `TextGenerator` over an in-process llama.cpp server with continuous batching (`xllamacpp`).

    The first prompt starts the server. The frequency penalty is not applied: llama.cpp would count the words
    of the prompt too. With one slot, equal seeds give equal texts; with more, the rest of the batch can
    rarely change a greedy text (see `open_server`).

    Raises:
        ModelError: there is no such model, or it has no GGUF file.
    """

    def __init__(self, config: LlamaCppEngine) -> None:
        self._config = config
        self._gguf = models.gguf_file(config.model)
        self._context = gguf_context(self._gguf)
        self._thinks = config.thinking == "strip"
        self._stops_early = False  # a stop text once came before the answer began
        self._server: Any = None
        self._tokenizer: LlamaCppTokenizer | None = None
        self._room = 0  # new tokens that fit a slot of the running server
        self.model_id = with_thinking(models.model_id(config.model), config.thinking)

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        """Yield one result per prompt in completion order; see `TextGenerator`.

        Raises:
            ModelError: the model cannot be loaded.
        """
        if not prompts:
            return
        n_new = params.max_new_tokens + (self._config.thinking_tokens if self._thinks else 0)
        self._start(n_new)
        pool = ThreadPoolExecutor(self._config.n_parallel, thread_name_prefix="trsr-llamacpp")
        try:
            running: set[Future[Generation]] = set()
            n_sent = 0
            while running or n_sent < len(prompts):
                for index in range(n_sent, len(prompts)):
                    running.add(pool.submit(self._answer, index, prompts[index], params, n_new))
                n_sent = len(prompts)
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for call in done:
                    yield call.result()
        finally:
            # Waiting calls are dropped; running ones cannot be interrupted.
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Stop the server, its threads and its port; safe to call twice."""
        self._server = self._tokenizer = None  # llama.cpp stops when the object dies

    def _start(self, n_new: int) -> None:
        """Start the server, or restart it if its slots are too small for `n_new` new tokens."""
        if self._server is not None and n_new <= self._room:
            return
        self.close()
        self._room = max(n_new, 128)
        self._server = open_server(
            self._gguf,
            n_parallel=self._config.n_parallel,
            slot_tokens=self._config.max_prompt_tokens + self._room,
            threads=self._config.threads or default_threads(),
        )
        self._tokenizer = LlamaCppTokenizer(self._server, self.model_id)

    def _answer(self, index: int, prompt: Prompt, params: GenerationParams, n_new: int) -> Generation:
        assert self._tokenizer is not None
        server, free, started = self._server, prompt.parts is None, time.perf_counter()
        request = {
            "prompt": rendered(self._tokenizer, prompt, self._thinks),  # llama.cpp adds the BOS
            "max_tokens": n_new,
            "temperature": params.temperature,
            "seed": params.seed,
            "stop": [] if self._stops_early else list(params.stop),
            "cache_prompt": False,
        }
        if prompt.parts is not None:
            request["grammar"] = grammar(prompt.parts)
        answer = server.handle_completions(request)
        if free and request["stop"] and "error" not in answer:
            text = str(answer["choices"][0]["text"])
            if not answer_in(text, prefilled=bool(prompt.prefill)):  # a stop text came before the answer
                self._stops_early |= bool(text.strip())
                answer = server.handle_completions(request | {"stop": []})

        def result(text: str, n_read: int, n_written: int, error: str | None) -> Generation:
            return Generation(index, text, n_read, n_written, time.perf_counter() - started, error)

        if "error" in answer:
            n_read = int(answer["error"].get("n_prompt_tokens", 0))
            refused = f"llama.cpp refused the prompt: {answer['error']}."
            return result("", n_read, 0, self._too_long(n_read) if n_read else refused)
        n_read, n_written = (int(answer["usage"][key]) for key in ("prompt_tokens", "completion_tokens"))
        if n_read > self._config.max_prompt_tokens:
            return result("", n_read, n_written, self._too_long(n_read))
        if self._context is not None and n_read + n_new > self._context:
            error = (
                f"The prompt has {n_read} tokens and its text up to {n_new}, but the model "
                f"reads at most {self._context}: shorten the items, or use another model."
            )
            return result("", n_read, n_written, error)
        text, why = str(answer["choices"][0]["text"]).strip(), None
        if free:
            text, why = answer_or_error(text, params.stop, prompt.prefill, whole=n_written < n_new)
        return result(text, n_read, n_written, why)

    def _too_long(self, n_tokens: int) -> str:
        return (
            f"The prompt has {n_tokens} tokens, but a slot holds {self._config.max_prompt_tokens}: "
            "shorten the items, or raise max_prompt_tokens."
        )


def open_server(gguf: Path, *, n_parallel: int, slot_tokens: int, threads: int) -> Any:
    """Start llama.cpp's server in this process, on a free loopback port; it stops when the object dies.

    It also answers the OpenAI API at `listening_address + "/v1"`.

    Flash attention and prompt reuse are off: with them, a greedy text depends on other prompts of the batch
    or slot. Prompts of several slots are still read together, which can change last digits; with
    `n_parallel=1`, runs of one seed are equal.

    Args:
        gguf: The model file.
        n_parallel: Slots.
        slot_tokens: Prompt and new tokens per slot.
        threads: CPU threads.

    Raises:
        ModelError: llama.cpp cannot load the file.
    """
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_parallel = n_parallel
    params.n_ctx = n_parallel * slot_tokens  # llama.cpp divides it among the slots
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.fit_params = False
    params.warmup = False
    params.verbosity = 0
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise ModelError(
            f"llama.cpp could not load {gguf} ({error}): check that it is a whole GGUF file and that "
            f"{n_parallel} slots of {slot_tokens} tokens fit into memory."
        ) from error
    # A server deleted before its loop runs would wait for the loop for ever.
    server.handle_completions({"prompt": ".", "max_tokens": 1})
    return server


class LlamaCppTokenizer(Tokenizer):
    """The tokenizer and chat format of a GGUF file, which can differ from the original model's.

    llama.cpp writes ChatML for a file without a chat template, and adds the BOS itself.

    Args:
        server: See `open_server`.
        name: Of the model, for messages.
        special_texts: Texts of special tokens, which the server does not list.
    """

    has_chat_template = True

    def __init__(self, server: Any, name: str, special_texts: tuple[str, ...] = ()) -> None:
        self._server = server
        self.name = name
        self.special_texts = special_texts

    def token_ids(self, text: str, *, adds_special: bool) -> list[int]:
        """Return llama.cpp's own ids of a text, with or without the special tokens it adds by itself."""
        request = {"content": text, "add_special": adds_special, "parse_special": True}
        return [int(token) for token in ask_server(self._server, "/tokenize", request)["tokens"]]

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a text that begins a prompt, after the BOS that the server adds."""
        return [*self.leading_ids, *self.token_ids(text, adds_special=False)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids, special tokens included."""
        return str(ask_server(self._server, "/detokenize", {"tokens": list(token_ids)})["content"])

    def apply_template(self, turns: list[dict[str, str]], variables: dict[str, Any]) -> str:
        """Return turns as the file's chat template writes them, ending where the answer begins."""
        request = {"messages": turns, "chat_template_kwargs": variables}
        answer = ask_server(self._server, "/apply-template", request)
        if "prompt" not in answer:
            error = answer.get("error", answer)
            raise ModelError(str(error.get("message", error)))
        return str(answer["prompt"])


def ask_server(server: Any, path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return a server's JSON answer over its loopback port, bypassing any proxy."""
    address = urlsplit(server.listening_address)
    connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(request), {"Content-Type": "application/json"})
        return dict(json.loads(connection.getresponse().read()))
    finally:
        connection.close()


def default_threads() -> int:
    """Return `OMP_NUM_THREADS` if it is a number above 0, else the physical cores available.

    llama.cpp's threads spin while waiting: two workers that each use all cores are slower than one.
    """
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdecimal() and int(named):
        return int(named)
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 2) // 2)
    allowed = os.sched_getaffinity(0)
    topology = "/sys/devices/system/cpu/cpu{}/topology/core_cpus_list"
    try:  # hyper-threads of one core share a list
        return len({Path(topology.format(cpu)).read_text(encoding="ascii") for cpu in allowed})
    except OSError:
        return len(allowed)
