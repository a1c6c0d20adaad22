"""Writes texts with any server that speaks the OpenAI chat API: vLLM, SGLang, llama.cpp, Ollama, hosted.

Many calls are in flight at once, in an event loop on a thread of its own; callers see a plain generator.
Rate limits, server errors, timeouts and cut connections are tried again by the `openai` client (exponential
back-off with jitter; `Retry-After` is honoured up to two minutes). `TRSR_SHOW_REQUESTS=1` prints each request
to stderr, never the key.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import urlsplit

from trsr.errors import EngineError, MissingExtraError
from trsr.llm.answers import OFF, Thinking, answer_or_error, stopped_early, with_thinking, within
from trsr.llm.base import Generation, GenerationParams, PhrasePart, Prompt
from trsr.llm.chat_format import with_system_in_front
from trsr.llm.constrained import grammar as gbnf

try:
    import httpx2
    from openai import (
        APIConnectionError,
        APIStatusError,
        APITimeoutError,
        AsyncOpenAI,
        AuthenticationError,
        BadRequestError,
        NotFoundError,
        OpenAIError,
        PermissionDeniedError,
        UnprocessableEntityError,
    )
except ImportError as _error:
    raise MissingExtraError("openai", "openai") from _error

# A final assistant message is to be continued, not answered (vLLM, SGLang). llama.cpp does so by itself.
_CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
# How servers are told not to think: vLLM, SGLang and llama.cpp; Ollama and hosted models.
_NO_THOUGHTS: dict[str, Any] = {"chat_template_kwargs": OFF, "reasoning_effort": "none"}

# How servers say that the model's chat template has no system role.
_NO_SYSTEM = re.compile(r"\brole|\bsystem\b|developer instruction", re.IGNORECASE)

GrammarField = Literal["llama.cpp", "vllm", "sglang"]
_Waiting = asyncio.Queue[tuple[int, Prompt]]
_Results = queue.SimpleQueue[Generation | Exception]


class OpenAIGenerator:
    """A `TextGenerator` over HTTP.

    Args:
        base_url: For example `http://127.0.0.1:8000/v1`.
        model: The model's name on that server.
        revision: Second half of `model_id`; by default the server's host and port.
        api_key_env: Name of the environment variable that holds the key.
        concurrency: Most calls in flight.
        timeout: Seconds without an answer after which a call is tried again.
        retries: How often a call is tried again.
        grammar: How the server takes a grammar that holds an answer to given phrases; None if it takes none.
        thinking: See `trsr.llm.answers`.
        thinking_tokens: Room for thoughts.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        revision: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 32,
        timeout: float = 120.0,
        retries: int = 5,
        grammar: GrammarField | None = None,
        thinking: Thinking = "off",
        thinking_tokens: int = 2048,
    ) -> None:
        self._base_url = base_url
        self._model = model
        self._revision = revision or urlsplit(base_url).netloc
        self._api_key_env = api_key_env
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._grammar = grammar
        self._thinking: Thinking = thinking
        self._thinking_tokens = thinking_tokens
        self._knows_system = True  # until the server has taken a prompt only without a system turn
        self._refused: set[str] = set()  # fields that the server does not take
        self._stops_early = False  # seen: the stop texts came before an answer had begun

    @property
    def model_id(self) -> str:
        """The model's name and where it runs (or the revision given)."""
        return with_thinking(f"{self._model}@{self._revision}", self._thinking)

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        """Yield one result a prompt in completion order; see `TextGenerator`.

        Raises:
            EngineError: the server cannot be reached, refuses the key or does not know the model.
        """
        if not prompts:
            return
        results: _Results = queue.SimpleQueue()
        main: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[None], _Waiting]] = Future()

        async def answer_all() -> None:
            task = asyncio.current_task()
            assert task is not None
            waiting: _Waiting = asyncio.Queue()
            main.set_result((asyncio.get_running_loop(), task, waiting))
            await self._answer_all(waiting, params, results)

        def run() -> None:
            try:
                asyncio.run(answer_all())
            except asyncio.CancelledError:
                pass  # all is answered, or the caller lost interest
            except Exception as error:
                results.put(error)

        thread = threading.Thread(target=run, name="trsr-openai", daemon=True)
        thread.start()
        loop, task, waiting = main.result()
        n_sent = n_answered = 0
        try:
            while n_answered < len(prompts):
                with contextlib.suppress(RuntimeError):  # the loop has ended: an error is among the results
                    for index in range(n_sent, len(prompts)):
                        loop.call_soon_threadsafe(waiting.put_nowait, (index, prompts[index]))
                n_sent = len(prompts)
                result = results.get()
                if isinstance(result, Exception):
                    raise result
                n_answered += 1
                yield result
        finally:
            with contextlib.suppress(RuntimeError):  # the loop may have ended by itself
                loop.call_soon_threadsafe(task.cancel)
            thread.join()

    def close(self) -> None:
        """Do nothing: connections live only as long as a call of `generate`."""

    async def _answer_all(self, waiting: _Waiting, params: GenerationParams, results: _Results) -> None:
        """Answer what waits with `concurrency` workers, until cancelled."""

        async def worker(client: AsyncOpenAI) -> None:
            while True:
                index, prompt = await waiting.get()
                results.put(await self._answer(client, index, prompt, params))

        client = AsyncOpenAI(
            base_url=self._base_url,
            api_key=os.environ.get(self._api_key_env) or "none",
            timeout=self._timeout,
            max_retries=self._retries,
        )
        try:
            async with client, asyncio.TaskGroup() as workers:
                for _ in range(self._concurrency):
                    workers.create_task(worker(client))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _answer(
        self, client: AsyncOpenAI, index: int, prompt: Prompt, params: GenerationParams
    ) -> Generation:
        """Make one call; what only concerns this prompt becomes a failed result."""
        started = time.perf_counter()
        n_tokens = params.max_new_tokens
        if self._thinking == "strip":
            params = replace(params, max_new_tokens=params.max_new_tokens + self._thinking_tokens)
        try:
            answer = await self._ask_in_roles(client, prompt, params)
            if self._ends_early(answer, prompt, params):
                answer = await self._ask_in_roles(client, prompt, replace(params, stop=()))
        except (OpenAIError, ValueError) as error:
            if fatal := unusable(error, self._base_url, self._model, self._api_key_env):
                raise fatal from error
            return _failed(index, started, explain(error, self._timeout, self._retries))
        try:
            text, usage = _written(answer), answer.usage
            whole = answer.choices[0].finish_reason != "length"
        except (AttributeError, IndexError, TypeError):
            return _failed(index, started, "The server's answer is not a chat completion; check base_url.")
        why = None
        if prompt.parts is None:
            text, why = answer_or_error(text, params.stop, prompt.prefill, whole=whole)
        else:
            text = text.strip().removeprefix(prompt.prefill.strip()).strip()  # some servers repeat it
        n_read, n_written = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        text = within(text, n_tokens)  # whatever limit the server keeps to
        return Generation(index, text, n_read, n_written, time.perf_counter() - started, why)

    def _ends_early(self, answer: Any, prompt: Prompt, params: GenerationParams) -> bool:
        """Return whether a stop text came before the answer had begun, so that it is asked for without."""
        if prompt.parts is not None or not params.stop or self._stops_early:
            return False
        try:
            text, by_stop = _written(answer), answer.choices[0].finish_reason == "stop"
        except (AttributeError, IndexError, TypeError):
            return False
        self._stops_early = by_stop and bool(text.strip()) and stopped_early(text, prompt.prefill)
        return self._stops_early

    async def _ask_in_roles(self, client: AsyncOpenAI, prompt: Prompt, params: GenerationParams) -> Any:
        """Send one request; with the system text in front of the user's where the server has no such role."""
        moved = replace(prompt, messages=with_system_in_front(prompt.messages))
        if not self._knows_system:
            return await self._ask(client, moved, params)
        try:
            return await self._ask(client, prompt, params)
        except BadRequestError as error:
            if moved == prompt or not _NO_SYSTEM.search(str(error)):
                raise
            answer = await self._ask(client, moved, params)
            self._knows_system = False
            return answer

    async def _ask(self, client: AsyncOpenAI, prompt: Prompt, params: GenerationParams) -> Any:
        """Send one request, without the fields that the server has refused."""
        extra = dict(_CONTINUE) if prompt.prefill and not self._thinks(prompt) else {}
        extra |= {} if self._thinks(prompt) else _NO_THOUGHTS
        if self._refused & set(_CONTINUE):
            extra = {name: value for name, value in extra.items() if name not in _CONTINUE}
        extra = {name: value for name, value in extra.items() if name not in self._refused}
        request = self._request(prompt, params, extra)
        if os.environ.get("TRSR_SHOW_REQUESTS") == "1":
            print(json.dumps(request, ensure_ascii=False), file=sys.stderr, flush=True)
        try:
            return await client.chat.completions.create(**request)
        except (BadRequestError, UnprocessableEntityError) as error:
            refused = {field for field in extra if field in str(error)}
            if not refused:
                raise
            self._refused |= refused
            return await self._ask(client, prompt, params)

    def _thinks(self, prompt: Prompt) -> bool:
        return self._thinking == "strip" and prompt.parts is None

    def _request(self, prompt: Prompt, params: GenerationParams, extra: dict[str, Any]) -> dict[str, Any]:
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        if prompt.prefill and not self._thinks(prompt):
            messages.append({"role": "assistant", "content": prompt.prefill})
        request: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
        }
        if params.temperature > 0:
            request["seed"] = params.seed
        if params.frequency_penalty:
            request["frequency_penalty"] = params.frequency_penalty
        if params.stop and not self._stops_early:
            request["stop"] = list(params.stop)
        if prompt.parts is not None:
            extra = extra | self._grammar_field(prompt.parts)
        if extra:
            request["extra_body"] = extra
        return request

    def _grammar_field(self, parts: Sequence[PhrasePart]) -> dict[str, Any]:
        rule = gbnf(parts)
        match self._grammar:
            case "llama.cpp":
                return {"grammar": rule}
            case "vllm":
                return {"structured_outputs": {"grammar": rule}}
            case "sglang":
                return {"ebnf": rule}
            case None:
                raise EngineError(
                    "Answers are to be held to given phrases, and nothing says how the server takes a "
                    "grammar: set engine.grammar to llama.cpp, vllm or sglang, or summary.grounded to false."
                )


def _written(answer: Any) -> str:
    """Return what a completion holds: its answer, with its thoughts before it where a server parts them.

    Raises:
        AttributeError, IndexError, TypeError: it is no chat completion.
    """
    message = answer.choices[0].message
    fields = ("reasoning_content", "reasoning")  # vLLM, SGLang, llama.cpp; Ollama and newer servers
    thoughts = next((text for name in fields if isinstance(text := getattr(message, name, None), str)), "")
    text = message.content or ""
    return f"<think>{thoughts}{'</think>' if text.strip() else ''}{text}" if thoughts.strip() else text


def unusable(error: Exception, base_url: str, model: str, api_key_env: str) -> EngineError | None:
    """Return the error that ends all calls to a server; None if only this call has failed."""
    if isinstance(error, AuthenticationError | PermissionDeniedError):
        return EngineError(
            f"The server {base_url} refused the key ({error.status_code}): "
            f"set the environment variable {api_key_env}."
        )
    if isinstance(error, NotFoundError):
        return EngineError(
            f"The server {base_url} knows no model {model!r} or no such API (404): "
            "check base_url (it usually ends in /v1) and model."
        )
    if isinstance(error, APIConnectionError) and isinstance(error.__cause__, httpx2.ConnectError):
        return EngineError(
            f"The server {base_url} cannot be reached: start it, or check base_url.", retryable=True
        )
    return None


def explain(error: Exception, timeout: float, retries: int) -> str:
    """Say in one sentence why a call failed for good."""
    tries = f"after {retries + 1} tries"
    if isinstance(error, APITimeoutError):
        waited = f"within {timeout:g} s, {tries}"
        return f"The server did not answer {waited}: raise timeout or lower concurrency."
    if isinstance(error, APIConnectionError):
        return f"The connection to the server broke before the answer was whole, {tries}."
    if isinstance(error, APIStatusError):
        again = tries if error.status_code in {408, 409, 429} or error.status_code >= 500 else "at once"
        return f"The server answered {error.status_code}, {again}: {_reason(error)}."
    return "The server's answer is not JSON; check base_url."


def _reason(error: APIStatusError) -> str:
    """Return the server's own words, one line of at most 300 characters."""
    body = error.body
    words = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(words or error.response.text or "no reason given").split())[:300].rstrip(".")


def _failed(index: int, started: float, error: str) -> Generation:
    return Generation(index, "", 0, 0, time.perf_counter() - started, error)
