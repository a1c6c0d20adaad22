"""Generate text on servers with an OpenAI API: vLLM, SGLang, llama.cpp, Ollama, hosted.

Concurrent calls run in an event loop on its own thread; callers see a plain generator. The `openai` client
retries rate limits, server errors, timeouts and cut connections (exponential back-off with jitter;
`Retry-After` up to two minutes).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from trsr.errors import EngineError, MissingExtraError
from trsr.llm.base import Generation, GenerationParams, PhrasePart, Prompt
from trsr.llm.chat_format import NO_THINKING, answer_in, answer_or_error, with_system_in_front, within
from trsr.llm.constrained import grammar as gbnf
from trsr.llm.engines import OpenAIEngine

try:
    import httpx2
    import openai
except ImportError as _error:
    raise MissingExtraError("openai", "openai") from _error

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def call_each(
    server: OpenAIEngine,
    jobs: Sequence[_Job],
    call: Callable[[openai.AsyncOpenAI, int, _Job], Awaitable[_Result]],
) -> Iterator[_Result]:
    """Yield the result of one call per job in completion order; `jobs` may grow meanwhile.

    At most `server.concurrency` calls run at once. The first exception of a call cancels the others and is
    raised here; closing the iterator cancels them too.
    """
    if not jobs:
        return
    results: queue.SimpleQueue[_Result | Exception] = queue.SimpleQueue()
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any], asyncio.Queue[tuple[int, _Job]]]]
    started = Future()

    async def work(client: openai.AsyncOpenAI, waiting: asyncio.Queue[tuple[int, _Job]]) -> None:
        while True:
            results.put(await call(client, *await waiting.get()))

    async def main() -> None:
        task, waiting = asyncio.current_task(), asyncio.Queue[tuple[int, _Job]]()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task, waiting))
        client = openai.AsyncOpenAI(
            base_url=server.base_url,
            api_key=os.environ.get(server.api_key_env) or "none",
            timeout=server.timeout,
            max_retries=server.retries,
        )
        async with client, asyncio.TaskGroup() as workers:
            for _ in range(server.concurrency):
                workers.create_task(work(client, waiting))

    def run() -> None:
        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass  # all is answered, or the caller has closed the iterator
        except Exception as error:
            results.put(error.exceptions[0] if isinstance(error, ExceptionGroup) else error)

    thread = threading.Thread(target=run, name="trsr-openai", daemon=True)
    thread.start()
    loop, task, waiting = started.result()
    n_sent = n_answered = 0
    try:
        while n_answered < len(jobs):
            with contextlib.suppress(RuntimeError):  # the loop has ended with an error among the results
                for index in range(n_sent, len(jobs)):
                    loop.call_soon_threadsafe(waiting.put_nowait, (index, jobs[index]))
            n_sent = len(jobs)
            result = results.get()
            if isinstance(result, Exception):
                raise result
            n_answered += 1
            yield result
    finally:
        with contextlib.suppress(RuntimeError):  # the loop may have ended
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def _fatal(error: Exception, server: OpenAIEngine) -> EngineError | None:
    """Return an error that concerns all calls to a server; None if only this call has failed."""
    url = server.base_url
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return EngineError(
            f"The server {url} refused the key ({error.status_code}): "
            f"set the environment variable {server.api_key_env}."
        )
    if isinstance(error, openai.NotFoundError):
        return EngineError(
            f"The server {url} knows no model {server.model!r} or no such API (404): "
            "check base_url (it usually ends in /v1) and model."
        )
    if isinstance(error, openai.APIConnectionError) and isinstance(error.__cause__, httpx2.ConnectError):
        return EngineError(
            f"The server {url} cannot be reached: start it, or check base_url.", retryable=True
        )
    return None


def _explain(error: Exception, server: OpenAIEngine) -> str:
    tries = f"after {server.retries + 1} tries"
    if isinstance(error, openai.APITimeoutError):
        return (
            f"The server did not answer within {server.timeout:g} s, {tries}: "
            "raise timeout or lower concurrency."
        )
    if isinstance(error, openai.APIConnectionError):
        return f"The connection to the server broke before the answer was whole, {tries}."
    if isinstance(error, openai.APIStatusError):
        again = tries if error.status_code in {408, 409, 429} or error.status_code >= 500 else "at once"
        body = error.body.get("message") if isinstance(error.body, dict) else None
        reason = " ".join(str(body or error.response.text or "no reason given").split())
        return f"The server answered {error.status_code}, {again}: {reason[:300].rstrip('.')}."
    return "The server's answer is not JSON; check base_url."


def list_models(server: OpenAIEngine) -> list[dict[str, Any]]:
    """Return the server's list of its models.

    Raises:
        EngineError: the server cannot be reached, or has no such list.
    """
    (answer,) = call_each(server, [None], lambda client, *_: ask_json(server, client, "/models"))
    try:
        return [dict(model) for model in answer["data"]]
    except (KeyError, TypeError, ValueError) as error:
        raise unexpected(server, "a list of models") from error


async def ask_json(
    server: OpenAIEngine, client: openai.AsyncOpenAI, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the JSON object of a GET, or of a POST of `body`.

    Raises:
        EngineError: there is no answer, or it is not a JSON object.
    """
    try:
        if body is None:
            answer: Any = await client.get(path, cast_to=object)
        else:
            answer = await client.post(path, body=body, cast_to=object)
    except (openai.OpenAIError, ValueError) as error:
        raise _fatal(error, server) or EngineError(_explain(error, server)) from error
    if not isinstance(answer, dict):
        raise unexpected(server, "a JSON object")
    return answer


def unexpected(server: OpenAIEngine, expected: str) -> EngineError:
    """Return the error for an answer of an unexpected shape."""
    return EngineError(
        f"The server {server.base_url} did not answer with {expected}: check base_url and scoring."
    )


# Requests the continuation of a final assistant message (vLLM, SGLang); llama.cpp continues it by default.
_CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
# Disables thinking: in vLLM, SGLang and llama.cpp; in Ollama and hosted models.
_NO_THOUGHTS: dict[str, Any] = {"chat_template_kwargs": NO_THINKING, "reasoning_effort": "none"}
# Error messages about a chat template without a system role.
_NO_SYSTEM = re.compile(r"\brole|\bsystem\b|developer instruction", re.IGNORECASE)


class OpenAIGenerator:
    """A `TextGenerator` over HTTP; it remembers which fields and roles the server refuses."""

    def __init__(self, config: OpenAIEngine) -> None:
        self._config = config
        self._knows_system = True  # until the server accepts a prompt only without a system turn
        self._refused: set[str] = set()  # fields that the server does not accept
        self._stops_early = False  # a stop text once came before the answer began

    @property
    def model_id(self) -> str:
        """The model's name and its server (or the configured revision)."""
        return self._config.served_model_id

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        """Yield one result per prompt in completion order; see `TextGenerator`.

        Raises:
            EngineError: the server cannot be reached, refuses the key or does not know the model.
        """
        return call_each(
            self._config, prompts, lambda client, index, prompt: self._answer(client, index, prompt, params)
        )

    def close(self) -> None:
        """Do nothing: `generate` closes its connections."""

    async def _answer(
        self, client: openai.AsyncOpenAI, index: int, prompt: Prompt, params: GenerationParams
    ) -> Generation:
        """Make one call; an error that concerns only this prompt becomes a failed result."""
        started, config = time.perf_counter(), self._config

        def failed(error: str) -> Generation:
            return Generation(index, "", 0, 0, time.perf_counter() - started, error)

        n_new = params.max_new_tokens
        if config.thinking == "strip":
            params = replace(params, max_new_tokens=n_new + config.thinking_tokens)
        try:
            answer = await self._ask(client, prompt, params)
            if self._ended_early(answer, prompt, params):
                answer = await self._ask(client, prompt, replace(params, stop=()))
        except (openai.OpenAIError, ValueError) as error:
            if fatal := _fatal(error, config):
                raise fatal from error
            return failed(_explain(error, config))
        if (found := _text_and_end(answer)) is None:
            return failed("The server's answer is not a chat completion; check base_url.")
        text, end = found
        why = None
        if prompt.parts is None:
            text, why = answer_or_error(text, params.stop, prompt.prefill, whole=end != "length")
        else:
            text = text.strip().removeprefix(prompt.prefill.strip()).strip()  # some servers repeat it
        usage = answer.usage
        n_read, n_written = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        text = within(text, n_new)  # the server may ignore the limit
        return Generation(index, text, n_read, n_written, time.perf_counter() - started, why)

    def _ended_early(self, answer: Any, prompt: Prompt, params: GenerationParams) -> bool:
        """Return whether a stop text came before the answer began."""
        found = _text_and_end(answer)
        if found is None or prompt.parts is not None or not params.stop or self._stops_early:
            return False
        text, end = found
        begun = bool(answer_in(text, prefilled=bool(prompt.prefill)))
        early = end == "stop" and bool(text.strip()) and not begun
        self._stops_early |= early
        return early

    async def _ask(self, client: openai.AsyncOpenAI, prompt: Prompt, params: GenerationParams) -> Any:
        """Send a prompt; repeat it without the fields or the system role that the server refuses."""
        moved = replace(prompt, messages=with_system_in_front(prompt.messages))
        in_front = not self._knows_system
        while True:
            request = self._request(moved if in_front else prompt, params)
            try:
                answer = await client.chat.completions.create(**request)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                learned = {*_CONTINUE, *_NO_THOUGHTS} & set(request.get("extra_body", ()))
                if refused := {field for field in learned if field in str(error)}:
                    self._refused |= refused | (set(_CONTINUE) if refused & set(_CONTINUE) else set())
                    continue
                bad_role = isinstance(error, openai.BadRequestError) and _NO_SYSTEM.search(str(error))
                if in_front or moved == prompt or not bad_role:
                    raise
                in_front = True
            else:
                if in_front:
                    self._knows_system = False
                return answer

    def _request(self, prompt: Prompt, params: GenerationParams) -> dict[str, Any]:
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        extra: dict[str, Any] = {}
        if self._config.thinking == "off" or prompt.parts is not None:
            extra |= _NO_THOUGHTS
            if prompt.prefill:
                messages.append({"role": "assistant", "content": prompt.prefill})
                extra |= _CONTINUE
        extra = {field: value for field, value in extra.items() if field not in self._refused}
        request: dict[str, Any] = {
            "model": self._config.model,
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
            extra |= self._grammar_field(prompt.parts)
        if extra:
            request["extra_body"] = extra
        return request

    def _grammar_field(self, parts: Sequence[PhrasePart]) -> dict[str, Any]:
        match self._config.grammar:
            case "llama.cpp":
                return {"grammar": gbnf(parts)}
            case "vllm":
                return {"structured_outputs": {"grammar": gbnf(parts)}}
            case "sglang":
                return {"ebnf": gbnf(parts)}
            case None:
                raise EngineError(
                    "Answers must consist of given phrases, but the server's grammar field is unknown: "
                    "set engine.grammar to llama.cpp, vllm or sglang, or summary.grounded to false."
                )


def _text_and_end(answer: Any) -> tuple[str, str] | None:
    """Return a chat completion's thoughts and text, and its finish reason; None if it is not one."""
    try:
        message, end = answer.choices[0].message, answer.choices[0].finish_reason
        text = message.content or ""
    except (AttributeError, IndexError, TypeError):
        return None
    fields = ("reasoning_content", "reasoning")  # vLLM, SGLang, llama.cpp; Ollama and newer servers
    thoughts = next((found for name in fields if isinstance(found := getattr(message, name, None), str)), "")
    if thoughts.strip():
        text = f"<think>{thoughts}{'</think>' if text.strip() else ''}{text}"
    return text, end
