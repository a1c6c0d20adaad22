"""Writes texts with llama.cpp inside this process: GGUF models on a CPU, many prompts at once.

The server lives in the process (`xllamacpp`), keeps `n_parallel` slots busy by continuous batching, and is
started by the first prompt, so a run that needs no new text loads nothing. What else is in the batch hardly
changes a greedy text, and with one slot there is nothing else; `open_server` says more. The frequency penalty
is left out: llama.cpp counts the prompt's words as written too, and would turn the text away from what it is
about.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trsr.errors import MissingExtraError, ModelError
from trsr.llm import models
from trsr.llm.answers import Thinking, answer_or_error, stopped_early, with_thinking
from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.chat_format import ChatTokenizer
from trsr.llm.constrained import grammar
from trsr.llm.context import gguf_context
from trsr.llm.token_counts import rendered

try:
    import xllamacpp
except ImportError as _error:
    raise MissingExtraError("xllamacpp", "llamacpp") from _error


class LlamaCppGenerator:
    """A `TextGenerator` over an in-process llama.cpp server.

    Args:
        model: See `models.gguf_file`.
        n_parallel: Slots, at least 1.
        max_prompt_tokens: Longest prompt in tokens, chat format included; a longer one is a failed result.
        threads: CPU threads; by default `OMP_NUM_THREADS`, which Ray sets to a worker's share of its machine,
            else the physical cores this process may use.
        thinking: See `trsr.llm.answers`.
        thinking_tokens: Room for thoughts.

    Raises:
        ModelError: there is no such model, or it has no GGUF file.
    """

    def __init__(
        self,
        model: str = models.EMBEDDED_MODEL,
        *,
        n_parallel: int = 16,
        max_prompt_tokens: int = 1024,
        threads: int | None = None,
        thinking: Thinking = "off",
        thinking_tokens: int = 2048,
    ) -> None:
        self._gguf = models.gguf_file(model)
        self._model_id = with_thinking(models.model_id(model), thinking)
        self._thinks = thinking == "strip"
        self._thinking_tokens = thinking_tokens
        self._stops_early = False  # seen: the stop texts came before an answer had begun
        self._n_parallel = n_parallel
        self._max_prompt_tokens = max_prompt_tokens
        self._context = gguf_context(self._gguf)
        self._threads = threads or default_threads()
        self._server: Any = None
        self._tokenizer: LlamaCppTokenizer | None = None
        self._room = 0  # new tokens that a slot of the running server has room for

    @property
    def model_id(self) -> str:
        """The model's name and the hash of its file."""
        return self._model_id

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        """Yield one result a prompt in completion order; see `TextGenerator`.

        Raises:
            ModelError: the model cannot be loaded.
        """
        if not prompts:
            return
        if self._thinks:
            params = replace(params, max_new_tokens=params.max_new_tokens + self._thinking_tokens)
        server = self._running(params.max_new_tokens)
        pool = ThreadPoolExecutor(self._n_parallel, thread_name_prefix="trsr-llamacpp")
        try:
            running: set[Future[Generation]] = set()
            n_sent = 0
            while running or n_sent < len(prompts):
                for index in range(n_sent, len(prompts)):
                    running.add(pool.submit(self._call, server, index, prompts[index], params))
                n_sent = len(prompts)
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for call in done:
                    yield call.result()
        finally:
            # What waits is dropped; what runs cannot be interrupted and is waited for.
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Stop the server, its threads and its port; safe to call twice."""
        self._server = self._tokenizer = None  # llama.cpp stops when the object dies

    def _running(self, max_new_tokens: int) -> Any:
        """Return the server, started again when its slots have no room for so many new tokens."""
        if self._server is None or max_new_tokens > self._room:
            self.close()
            self._room = max(max_new_tokens, 128)
            self._server = open_server(
                self._gguf,
                n_parallel=self._n_parallel,
                slot_tokens=self._max_prompt_tokens + self._room,
                threads=self._threads,
            )
            self._tokenizer = LlamaCppTokenizer(self._server, self._model_id)
        return self._server

    def _call(self, server: Any, index: int, prompt: Prompt, params: GenerationParams) -> Generation:
        assert self._tokenizer is not None
        started = time.perf_counter()
        request = {
            "prompt": rendered(self._tokenizer, prompt, self._thinks),  # llama.cpp puts the BOS before it
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "seed": params.seed,
            "stop": [] if self._stops_early else list(params.stop),
            "cache_prompt": False,
        }
        if prompt.parts is not None:
            request["grammar"] = grammar(prompt.parts)
        answer = server.handle_completions(request)
        early = "error" not in answer and stopped_early(_text(answer), prompt.prefill)
        if early and prompt.parts is None and request["stop"]:
            self._stops_early |= bool(_text(answer).strip())
            answer = server.handle_completions(request | {"stop": []})
        seconds = time.perf_counter() - started
        if "error" in answer:
            n_read = int(answer["error"].get("n_prompt_tokens", 0))
            error = self._too_long(n_read) if n_read else f"llama.cpp refused the prompt: {answer['error']}."
            return Generation(index, "", n_read, 0, seconds, error)
        n_read, n_written = (int(answer["usage"][key]) for key in ("prompt_tokens", "completion_tokens"))
        if n_read > self._max_prompt_tokens:
            return Generation(index, "", n_read, n_written, seconds, self._too_long(n_read))
        if self._context is not None and n_read + params.max_new_tokens > self._context:
            error = (
                f"The prompt has {n_read} tokens and its text up to {params.max_new_tokens}, but the model "
                f"reads at most {self._context}: shorten the items, or use another model."
            )
            return Generation(index, "", n_read, n_written, seconds, error)
        written, why = _text(answer).strip(), None
        if prompt.parts is None:
            whole = n_written < params.max_new_tokens
            written, why = answer_or_error(written, params.stop, prompt.prefill, whole=whole)
        return Generation(index, written, n_read, n_written, seconds, why)

    def _too_long(self, n_tokens: int) -> str:
        return (
            f"The prompt has {n_tokens} tokens, but a slot holds {self._max_prompt_tokens}: "
            "shorten the items, or raise max_prompt_tokens."
        )


def _text(answer: dict[str, Any]) -> str:
    return "" if "error" in answer else str(answer["choices"][0]["text"])


def open_server(gguf: Path, *, n_parallel: int, slot_tokens: int, threads: int) -> Any:
    """Start llama.cpp's server in this process, on a free loopback port; it stops when the object dies.

    It also answers the OpenAI API at `listening_address + "/v1"`.

    Flash attention and the reuse of earlier prompts are off: with them, a greedy text depends on which other
    prompts happen to be in the batch or were in the slot before. What is left: prompts of several slots are
    read together, and one that is a token longer than another was seen to get other last digits, which can
    change a greedy text. With `n_parallel=1` two runs of one seed are equal.

    Args:
        gguf: The model file.
        n_parallel: Slots.
        slot_tokens: Prompt and new tokens that one slot holds.
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
    # An object that dies before its loop has begun to run waits for that loop for ever.
    server.handle_completions({"prompt": ".", "max_tokens": 1})
    return server


class LlamaCppTokenizer(ChatTokenizer):
    """The tokenizer and chat format that llama.cpp reads from a GGUF file, asked of a running server.

    A conversion can change either; asking the server itself is the only way to see it. It writes ChatML for a
    file without a chat template, and no BOS into a text before which it puts one.

    Args:
        server: See `open_server`.
        name: Of the model, for messages.
        special_texts: Texts that stand for special tokens, which the server does not list.
    """

    has_chat_template = True

    def __init__(self, server: Any, name: str, special_texts: tuple[str, ...] = ()) -> None:
        self._server = server
        self.name = name
        self.special_texts = special_texts

    def token_ids(self, text: str, *, adds_special: bool) -> list[int]:
        """Return llama.cpp's own ids of a text, with or without the special tokens it adds by itself."""
        asked = {"content": text, "add_special": adds_special, "parse_special": True}
        return [int(token) for token in ask_server(self._server, "/tokenize", asked)["tokens"]]

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a text that begins a prompt, as the server reads it: behind its BOS."""
        return [*self.leading_ids, *self.token_ids(text, adds_special=False)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids, special tokens included."""
        return str(ask_server(self._server, "/detokenize", {"tokens": list(token_ids)})["content"])

    def apply_template(self, turns: list[dict[str, str]], variables: dict[str, Any]) -> str:
        """Return turns as the file's chat template writes them, ending where the answer begins."""
        asked = {"messages": turns, "chat_template_kwargs": variables}
        answer = ask_server(self._server, "/apply-template", asked)
        if "prompt" not in answer:
            error = answer.get("error", answer)
            raise ModelError(str(error.get("message", error)))
        return str(answer["prompt"])


def ask_server(server: Any, path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return a server's JSON answer to what its in-process interface lacks.

    It goes over the loopback port, and past any proxy.
    """
    address = urlsplit(server.listening_address)
    connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(request), {"Content-Type": "application/json"})
        return dict(json.loads(connection.getresponse().read()))
    finally:
        connection.close()


def default_threads() -> int:
    """Return `OMP_NUM_THREADS` where that is a number from 1, else the physical cores.

    llama.cpp's threads wait by spinning: two workers that each take all cores are slower than one alone.
    """
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdecimal() and int(named) else physical_cores()


def physical_cores() -> int:
    """Return how many physical cores this process may use; hyper-threads of one core do not help."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, (os.cpu_count() or 2) // 2)
    allowed = os.sched_getaffinity(0)
    topology = "/sys/devices/system/cpu/cpu{}/topology/core_cpus_list"
    try:
        return len({Path(topology.format(cpu)).read_text(encoding="ascii") for cpu in allowed})
    except OSError:
        return len(allowed)
