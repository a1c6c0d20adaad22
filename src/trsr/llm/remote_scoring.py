"""Scores labels with a model behind HTTP: vLLM, SGLang, or any server that tells top logprobs by token id.

Prompts go as token ids, so a server sees exactly the tokens that training and local scoring saw; where it
says how many it has read, that is compared. No margin is ever made up: a label without a number is an
error with its count. Calls are tried again by the `openai` client (exponential back-off with jitter).
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trsr.errors import EngineError, MissingExtraError, MissingLabelsError
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.engines import Scoring

try:
    from openai import NotFoundError, OpenAI, OpenAIError

    from trsr.llm.openai import explain, unusable
except ImportError as _error:
    raise MissingExtraError("openai", "openai") from _error

# What servers call themselves in the list of their models.
_OWNERS: dict[str, Scoring] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "top_logprobs"}
_SUFFIXES_A_CALL = 32
_SURE = 0.999  # above it 1 - p loses digits, and the other label's probability is asked for
_NO_LOGPROB = -9000.0  # vLLM writes -9999 for minus infinity
_Margin = float | None


@dataclass(frozen=True, slots=True)
class _Call:
    """Suffixes `start` and following of group `index`, asked for in one request."""

    index: int
    start: int
    group: ScoringGroup


class RemoteScorer:
    """A `LabelScorer` over HTTP.

    Args:
        base_url: For example `http://127.0.0.1:8000/v1`.
        model: The model's name on that server; with vLLM also that of a LoRA adapter.
        api_key_env: Name of the environment variable that holds the key.
        concurrency: Most calls in flight.
        timeout: Seconds without an answer after which a call is tried again.
        retries: How often a call is tried again.
        scoring: How the server scores; `auto` asks it once for the list of its models, which says what it is.
        top_logprobs: Tokens told of a completion; only for the scoring of that name.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 32,
        timeout: float = 120.0,
        retries: int = 5,
        scoring: Scoring = "auto",
        top_logprobs: int = 20,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._model = model
        self._api_key_env = api_key_env
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._scoring: Scoring = scoring
        self._top_logprobs = top_logprobs

    def score(
        self, groups: Sequence[ScoringGroup], labels: LabelTokens
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield (group index, margins (n_suffixes,)) as groups are finished; see `LabelScorer`.

        Raises:
            MissingLabelsError: some candidates have no margin; comes after every whole group.
            EngineError: the server cannot be reached, refuses, or answers something else.
        """
        if not groups:
            return
        with self._client() as client:
            ask = self._asker(client)
            yield from self._score(groups, lambda call: ask(client, call, labels))

    def models(self) -> list[dict[str, Any]]:
        """Return the server's list of its models, as it tells it.

        Raises:
            EngineError: the server cannot be reached, or tells none.
        """
        with self._client() as client:
            return self._listed(client)

    def _listed(self, client: OpenAI) -> list[dict[str, Any]]:
        answer = self._request(lambda: client.get("/models", cast_to=object))
        try:
            return [dict(model) for model in answer["data"]]
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange("a list of models") from error

    def _score(
        self, groups: Sequence[ScoringGroup], ask: Callable[[_Call], list[_Margin]]
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        found: list[list[_Margin]] = [[None] * len(group.suffixes) for group in groups]
        calls = self._calls(groups)
        left = [sum(call.index == index for call in calls) for index in range(len(groups))]
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="trsr-scoring")
        try:
            waiting: dict[Future[list[_Margin]], _Call] = {pool.submit(ask, call): call for call in calls}
            while waiting:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    call = waiting.pop(future)
                    margins = future.result()
                    found[call.index][call.start : call.start + len(margins)] = margins
                    left[call.index] -= 1
                    if not left[call.index] and None not in found[call.index]:
                        yield call.index, np.asarray(found[call.index], dtype=np.float32)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        n_missing = sum(margins.count(None) for margins in found)
        if n_missing:
            raise MissingLabelsError(n_missing, sum(map(len, found)), self._top_logprobs)

    def _calls(self, groups: Sequence[ScoringGroup]) -> list[_Call]:
        size = 1 if self._scoring == "top_logprobs" else _SUFFIXES_A_CALL
        return [
            _Call(index, start, ScoringGroup(group.prefix, group.suffixes[start : start + size]))
            for index, group in enumerate(groups)
            for start in range(0, len(group.suffixes), size)
        ]

    def _client(self) -> OpenAI:
        return OpenAI(
            base_url=self._base_url,
            api_key=os.environ.get(self._api_key_env) or "none",
            timeout=self._timeout,
            max_retries=self._retries,
        )

    def _asker(self, client: OpenAI) -> Callable[[OpenAI, _Call, LabelTokens], list[_Margin]]:
        if self._scoring == "auto":
            self._scoring = self._detect(client)
        match self._scoring:
            case "vllm":
                return self._ask_vllm
            case "sglang":
                return self._ask_sglang
            case _:
                return self._ask_top_logprobs

    def _detect(self, client: OpenAI) -> Scoring:
        """Ask the server what it is.

        Raises:
            EngineError: it does not say.
        """
        owners = {str(model.get("owned_by")) for model in self._listed(client)}
        known = {_OWNERS[owner] for owner in owners if owner in _OWNERS}
        if len(known) != 1:
            raise EngineError(
                f"The server {self._base_url} does not say how it scores labels (its models are owned by "
                f"{', '.join(sorted(owners)) or 'nobody'}): set scoring to vllm, sglang or top_logprobs."
            )
        return known.pop()

    def _ask_vllm(self, client: OpenAI, call: _Call, labels: LabelTokens) -> list[_Margin]:
        """Return log(p / (1 - p)) of the softmax over both labels; where p is near 1, from its complement."""
        chances = self._vllm_chances(client, call.group, labels.positive, labels.negative)
        margins = [_logit(chance) for chance in chances]
        sure = [place for place, chance in enumerate(chances) if chance > _SURE]
        if sure:
            group = ScoringGroup(call.group.prefix, tuple(call.group.suffixes[place] for place in sure))
            others = self._vllm_chances(client, group, labels.negative, labels.positive)
            for place, chance in zip(sure, others, strict=True):
                margins[place] = -_logit(chance)
        return list(margins)

    def _vllm_chances(self, client: OpenAI, group: ScoringGroup, first: int, second: int) -> list[float]:
        """Return the probability of the first label among two, one a suffix."""
        body = self._body(group) | {"label_token_ids": [first, second], "apply_softmax": True}
        # It lies beside /v1, not under it.
        answer = self._post(client, f"{self._base_url.removesuffix('/v1')}/generative_scoring", body)
        self._check_read(answer, sum(len(group.prefix) + len(suffix) for suffix in group.suffixes))
        try:
            by_index = {int(one["index"]): float(one["score"]) for one in answer["data"]}
            return [by_index[place] for place in range(len(group.suffixes))]
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange("an answer of vLLM's /generative_scoring") from error

    def _ask_sglang(self, client: OpenAI, call: _Call, labels: LabelTokens) -> list[_Margin]:
        """Return the difference of the logs of both labels' probabilities."""
        body = self._body(call.group) | {
            "label_token_ids": [labels.positive, labels.negative],
            "apply_softmax": False,
        }
        answer = self._post(client, "/score", body)
        self._check_read(answer, sum(len(call.group.prefix) + len(suffix) for suffix in call.group.suffixes))
        try:
            pairs = [(float(positive), float(negative)) for positive, negative in answer["scores"]]
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange("an answer of SGLang's /v1/score") from error
        if len(pairs) != len(call.group.suffixes):
            raise self._strange(f"scores of {len(call.group.suffixes)} candidates")
        return [_log(positive) - _log(negative) for positive, negative in pairs]

    def _ask_top_logprobs(self, client: OpenAI, call: _Call, labels: LabelTokens) -> list[_Margin]:
        """Return the difference of both labels' logprobs; None where one is not told."""
        (suffix,) = call.group.suffixes
        prompt = [*call.group.prefix, *suffix]
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": self._top_logprobs,
            "return_tokens_as_token_ids": True,  # vLLM; llama.cpp tells the ids anyway
        }
        answer = self._post(client, "/completions", body)
        self._check_read(answer, len(prompt))
        told = self._logprobs_by_id(answer)
        positive, negative = told.get(labels.positive), told.get(labels.negative)
        return [None if positive is None or negative is None else positive - negative]

    def _logprobs_by_id(self, answer: Any) -> dict[int, float]:
        """Return the logprobs of the first new token by id, as llama.cpp or vLLM write them.

        Raises:
            EngineError: tokens are told by their texts, of which two may be equal, or not at all.
        """
        try:
            told = answer["choices"][0]["logprobs"]
            if "content" in told:
                listed = [(one["id"], one["logprob"]) for one in told["content"][0]["top_logprobs"]]
            else:
                named = told["top_logprobs"][0].items()
                listed = [(name.removeprefix("token_id:"), value) for name, value in named]
                if not all(name.startswith("token_id:") for name, _ in named):
                    raise KeyError("id")
            return {int(token): float(value) for token, value in listed if value > _NO_LOGPROB}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(
                f"The server {self._base_url} tells no logprobs by token id, so its labels cannot be told "
                "apart from tokens of the same text: score with vLLM, SGLang or llama.cpp."
            ) from error

    def _body(self, group: ScoringGroup) -> dict[str, Any]:
        items = [list(suffix) for suffix in group.suffixes]
        return {"model": self._model, "query": list(group.prefix), "items": items, "item_first": False}

    def _post(self, client: OpenAI, path: str, body: dict[str, Any]) -> Any:
        if os.environ.get("TRSR_SHOW_REQUESTS") == "1":
            print(json.dumps(body), file=sys.stderr, flush=True)
        return self._request(lambda: client.post(path, body=body, cast_to=object))

    def _request(self, ask: Callable[[], Any]) -> Any:
        try:
            answer = ask()
        except (OpenAIError, ValueError) as error:
            if isinstance(error, NotFoundError) and self._scoring in {"vllm", "sglang"}:
                raise EngineError(
                    f"The server {self._base_url} knows no model {self._model!r}, or no label scoring of "
                    f"{self._scoring} (404): check model, update the server, or set scoring to top_logprobs."
                ) from error
            if fatal := unusable(error, self._base_url, self._model, self._api_key_env):
                raise fatal from error
            raise EngineError(explain(error, self._timeout, self._retries)) from error
        if not isinstance(answer, dict):
            raise self._strange("a JSON object")
        return answer

    def _check_read(self, answer: Any, n_sent: int) -> None:
        """Compare the tokens that the server says it has read with those sent."""
        usage = answer.get("usage")
        n_read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if n_read is not None and n_read != n_sent:
            raise EngineError(
                f"The server {self._base_url} read {n_read} prompt tokens where {n_sent} were sent, so it "
                "adds or cuts some: raise its context length, and let it add no special tokens."
            )

    def _strange(self, expected: str) -> EngineError:
        return EngineError(
            f"The server {self._base_url} answered something else than {expected}: "
            "check base_url and scoring."
        )


def _log(chance: float) -> float:
    """Return the log of a probability above 0.

    Raises:
        EngineError: it is none.
    """
    if not 0.0 < chance <= 1.0 + 1e-6:
        raise EngineError(
            f"The server gave a label the probability {chance:g}, of which there is no margin: "
            "check that it serves the right model, or set scoring to top_logprobs."
        )
    return math.log(chance)


def _logit(chance: float) -> float:
    return _log(chance) - math.log1p(-min(chance, 1.0 - 2.0**-53))
