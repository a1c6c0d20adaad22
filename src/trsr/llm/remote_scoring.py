"""Score labels on a server: vLLM, SGLang, or any that returns top logprobs by token id."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from openai import AsyncOpenAI, NotFoundError

from trsr.errors import EngineError, MissingLabelsError
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.engines import OpenAIEngine
from trsr.llm.openai import ask_json, call_each, list_models, unexpected

# The `owned_by` of the models of a server.
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "top_logprobs"}
_SUFFIXES_A_CALL = 32
_SURE = 0.999  # above it 1 - p loses digits, and the other label's probability is requested
_NO_LOGPROB = -9000.0  # vLLM writes -9999 for minus infinity


@dataclass(frozen=True, slots=True)
class _Call:
    """Suffixes `start` and following of group `index`, scored in one request."""

    index: int
    start: int
    group: ScoringGroup


class RemoteScorer:
    """A `LabelScorer` over HTTP.

    Prompts are sent as token ids, so a server reads exactly the tokens of training and local scoring; the
    number of tokens that it reports is checked.
    """

    def __init__(self, config: OpenAIEngine) -> None:
        self._config = config
        self._scoring = config.scoring

    def score(
        self, groups: Sequence[ScoringGroup], labels: LabelTokens
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield (group index, margins (n_suffixes,)) as groups are finished; see `LabelScorer`.

        Raises:
            MissingLabelsError: some candidates have no margin; raised after all complete groups.
            EngineError: the server cannot be reached, refuses, or gives an unexpected answer.
        """
        if not groups:
            return
        if self._scoring == "auto":
            self._scoring = self._detect()
        size = 1 if self._scoring == "top_logprobs" else _SUFFIXES_A_CALL
        calls = [
            _Call(index, start, ScoringGroup(group.prefix, group.suffixes[start : start + size]))
            for index, group in enumerate(groups)
            for start in range(0, len(group.suffixes), size)
        ]
        ask = {"vllm": self._ask_vllm, "sglang": self._ask_sglang}.get(self._scoring, self._ask_top_logprobs)

        async def answer(client: AsyncOpenAI, _: int, call: _Call) -> tuple[_Call, list[float | None]]:
            return call, await ask(client, call, labels)

        found: list[list[float | None]] = [[None] * len(group.suffixes) for group in groups]
        n_waiting = [-(-len(group.suffixes) // size) for group in groups]
        for call, margins in call_each(self._config, calls, answer):
            found[call.index][call.start : call.start + len(margins)] = margins
            n_waiting[call.index] -= 1
            if not n_waiting[call.index] and None not in found[call.index]:
                yield call.index, np.asarray(found[call.index], dtype=np.float32)
        if n_missing := sum(margins.count(None) for margins in found):
            raise MissingLabelsError(n_missing, sum(map(len, found)), self._config.top_logprobs)

    def _detect(self) -> Any:
        """Detect the kind of server from its list of models.

        Raises:
            EngineError: the list does not show it.
        """
        owners = {str(model.get("owned_by")) for model in list_models(self._config)}
        known = {_OWNERS[owner] for owner in owners if owner in _OWNERS}
        if len(known) != 1:
            raise EngineError(
                f"The server {self._config.base_url} does not show how it scores labels (its models are "
                f"owned by {', '.join(sorted(owners)) or 'no one'}): set scoring to vllm, sglang or "
                "top_logprobs."
            )
        return known.pop()

    async def _ask_vllm(self, client: AsyncOpenAI, call: _Call, labels: LabelTokens) -> list[float | None]:
        """Return log(p / (1 - p)) of the softmax over both labels; if p is near 1, from its complement."""
        chances = await self._vllm_chances(client, call, labels.positive, labels.negative)
        margins: list[float | None] = [_logit(chance) for chance in chances]
        if sure := [place for place, chance in enumerate(chances) if chance > _SURE]:
            suffixes = tuple(call.group.suffixes[place] for place in sure)
            again = replace(call, group=ScoringGroup(call.group.prefix, suffixes))
            others = await self._vllm_chances(client, again, labels.negative, labels.positive)
            for place, chance in zip(sure, others, strict=True):
                margins[place] = -_logit(chance)
        return margins

    async def _vllm_chances(self, client: AsyncOpenAI, call: _Call, first: int, second: int) -> list[float]:
        """Return the probability of the first of two labels, one per suffix."""
        url = self._config.base_url.rstrip("/").removesuffix("/v1")  # it is not under /v1
        labels = {"label_token_ids": [first, second], "apply_softmax": True}
        answer = await self._post(client, f"{url}/generative_scoring", call, labels | _items(call))
        try:
            by_index = {int(one["index"]): float(one["score"]) for one in answer["data"]}
            return [by_index[place] for place in range(len(call.group.suffixes))]
        except (KeyError, TypeError, ValueError) as error:
            raise unexpected(self._config, "an answer of vLLM's /generative_scoring") from error

    async def _ask_sglang(self, client: AsyncOpenAI, call: _Call, labels: LabelTokens) -> list[float | None]:
        """Return the difference of both labels' log probabilities."""
        body = {"label_token_ids": [labels.positive, labels.negative], "apply_softmax": False}
        answer = await self._post(client, "/score", call, body | _items(call))
        try:
            pairs = [(float(positive), float(negative)) for positive, negative in answer["scores"]]
        except (KeyError, TypeError, ValueError) as error:
            raise unexpected(self._config, "an answer of SGLang's /v1/score") from error
        if len(pairs) != len(call.group.suffixes):
            raise unexpected(self._config, f"scores of {len(call.group.suffixes)} candidates")
        return [_log(positive) - _log(negative) for positive, negative in pairs]

    async def _ask_top_logprobs(
        self, client: AsyncOpenAI, call: _Call, labels: LabelTokens
    ) -> list[float | None]:
        """Return the difference of both labels' logprobs; None if one is missing."""
        (suffix,) = call.group.suffixes
        body = {
            "prompt": [*call.group.prefix, *suffix],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": self._config.top_logprobs,
            "return_tokens_as_token_ids": True,  # vLLM; llama.cpp gives the ids anyway
        }
        by_id = self._logprobs_by_id(await self._post(client, "/completions", call, body))
        positive, negative = by_id.get(labels.positive), by_id.get(labels.negative)
        return [None if positive is None or negative is None else positive - negative]

    def _logprobs_by_id(self, answer: Any) -> dict[int, float]:
        """Return the logprobs of the first new token by id, from an answer of llama.cpp or vLLM.

        Raises:
            EngineError: tokens are not named by id, and their texts are not unique.
        """
        try:
            logprobs = answer["choices"][0]["logprobs"]
            if "content" in logprobs:
                listed = [(one["id"], one["logprob"]) for one in logprobs["content"][0]["top_logprobs"]]
            else:
                named = logprobs["top_logprobs"][0].items()
                listed = [(name.removeprefix("token_id:"), value) for name, value in named]
                if not all(name.startswith("token_id:") for name, _ in named):
                    raise KeyError("id")
            return {int(token): float(value) for token, value in listed if value > _NO_LOGPROB}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(
                f"The server {self._config.base_url} gives no logprobs by token id, so its labels cannot be "
                "distinguished from tokens of the same text: score with vLLM, SGLang or llama.cpp."
            ) from error

    async def _post(self, client: AsyncOpenAI, path: str, call: _Call, body: dict[str, Any]) -> Any:
        """Send the request of a call and check the number of tokens that the server has read."""
        server = self._config
        try:
            answer = await ask_json(server, client, path, {"model": server.model, **body})
        except EngineError as error:
            if isinstance(error.__cause__, NotFoundError) and self._scoring != "top_logprobs":
                raise EngineError(
                    f"The server {server.base_url} knows no model {server.model!r}, or no label scoring of "
                    f"{self._scoring} (404): check model, update the server, or set scoring to top_logprobs."
                ) from error
            raise
        usage = answer.get("usage")
        n_read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        n_sent = sum(len(call.group.prefix) + len(suffix) for suffix in call.group.suffixes)
        if n_read is not None and n_read != n_sent:
            raise EngineError(
                f"The server {server.base_url} read {n_read} prompt tokens where {n_sent} were sent, "
                "so it adds or cuts some: raise its context length, and let it add no special tokens."
            )
        return answer


def _items(call: _Call) -> dict[str, Any]:
    items = [list(suffix) for suffix in call.group.suffixes]
    return {"query": list(call.group.prefix), "items": items, "item_first": False}


def _log(chance: float) -> float:
    """Return the log of a probability.

    Raises:
        EngineError: it is not above 0 and at most 1.
    """
    if not 0.0 < chance <= 1.0 + 1e-6:
        raise EngineError(
            f"The server gave a label the probability {chance:g}, for which there is no margin: "
            "check that it serves the right model, or set scoring to top_logprobs."
        )
    return math.log(chance)


def _logit(chance: float) -> float:
    return _log(chance) - math.log1p(-min(chance, 1.0 - 2.0**-53))
