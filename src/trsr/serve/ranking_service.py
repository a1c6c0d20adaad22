"""Rank for an HTTP request: retrieval, the model's queue, explanations.

Computation runs in threads, and waiting for the model blocks none, so the event loop stays free.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from starlette.concurrency import run_in_threadpool

from trsr.errors import CandidateTooLongError, DataError, OverloadedError
from trsr.recommend.prompt import RankingPrompt
from trsr.recommend.ranker import ModelRequest, RankRequest, RerankRequest, ScoredRequest, best_first
from trsr.recommend.recommender import Recommender, named
from trsr.recommend.retrieval import Retriever
from trsr.serve.model_queue import ModelQueue, n_read_at_most
from trsr.serve.schemas import TOO_LARGE, UNKNOWN_FIELDS, UNKNOWN_ITEMS, UNKNOWN_MODEL, Problem
from trsr.types import RankedItem


@dataclass(frozen=True, slots=True)
class UserContext:
    """The user for whom items are ranked.

    Attributes:
        history: Item ids, oldest first.
        profile: The text that the model reads; may be empty.
        source: The profile's origin; `counted` from the items' fields until the model has written one.
        version: Its version, if it is stored.
        n_items: Number of the oldest items that it covers.
        notes: The user's own notes; the model reads them first.
    """

    history: tuple[str, ...]
    profile: str
    source: Literal["model", "counted", "none"]
    version: int | None = None
    n_items: int = 0
    notes: str = ""


@dataclass(frozen=True, slots=True)
class RecommendRequest:
    """A request for the best of `candidates`, or of all items that pass `filters`."""

    candidates: tuple[str, ...] | None = None
    filters: Mapping[str, str] = field(default_factory=dict)
    top_n: int = 10
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token counts: of all candidates' prompts, read by the model, and cut off."""

    prompt: int
    read: int
    cut: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents, best first; `cut` are the indices of truncated ones."""

    places: list[RankedItem]
    tokens: Tokens
    cut: frozenset[int]


class RankingService:
    """Answers ranking requests with one recommender.

    Args:
        recommender: Has the items and builds the prompts.
        queue: Reads the prompts.
        retriever: Finds candidates if the request has none.
        n_ranked: Number of retrieved candidates that the model ranks, or `top_n` if that is more.
        max_candidates: Limit of candidates or documents per request.
        max_tokens: Limit of tokens read per request.
        seconds: Time limit of a request.
    """

    def __init__(
        self,
        recommender: Recommender,
        queue: ModelQueue,
        retriever: Retriever,
        *,
        n_ranked: int,
        max_candidates: int,
        max_tokens: int,
        seconds: float,
    ) -> None:
        self.recommender = recommender
        self.queue = queue
        self.retriever = retriever
        self.n_ranked = n_ranked
        self._max_candidates = max_candidates
        self._max_tokens = max_tokens
        self._seconds = seconds

    async def rerank(self, question: RerankRequest, model: str | None) -> Ranking:
        """Rank texts for a profile text.

        Raises:
            Problem: the request names another model, or has too many documents.
            OverloadedError: the queue is full or the time limit passed.
        """
        name = self.recommender.name
        if model is not None and model != name:
            raise Problem(UNKNOWN_MODEL, f"This server has the model {name!r}; name that or leave it out.")
        self._check_number(len(question.documents), "documents")
        self.queue.check_room()
        ends = time.monotonic() + self._seconds
        prompt = await run_in_threadpool(self.recommender.prompt, question)
        self._check_tokens(n_read_at_most(prompt))
        (scored,) = await self._ask([question], [prompt], ends)
        places = best_first(question.documents, scored.margins, scored.scores)
        return Ranking(places, _tokens([scored]), prompt.cut)

    async def recommend(self, reader: UserContext, wish: RecommendRequest) -> tuple[list[RankedItem], Tokens]:
        """Rank items for a user; return the best `top_n` and the token counts.

        Raises:
            Problem: unknown items or fields, or too many candidates.
            OverloadedError: the queue is full or the time limit passed.
        """
        ends = time.monotonic() + self._seconds
        self.queue.check_room()
        self.check_items(reader.history, self.recommender.catalogue.items)
        if wish.candidates is None:
            candidates = await run_in_threadpool(self.retrieved, reader, wish)
        else:  # a dict look-up needs no thread, and a thread would have to be waited for
            candidates = list(wish.candidates)
            self._check_number(len(candidates), "candidates")
            self.check_items(candidates)
        if not candidates:
            return [], Tokens(0, 0, 0)
        request = RankRequest(reader.history, reader.profile, candidates, reader.notes)
        prompt = await run_in_threadpool(self.recommender.prompt, request)
        n_tokens = n_read_at_most(prompt)
        parts = None
        if wish.explain:
            parts = await run_in_threadpool(self.recommender.leave_one_out, request, candidates[0])
            longest = sorted(map(len, prompt.group.suffixes))[-wish.top_n :]
            n_tokens += len(parts.requests) * (len(prompt.group.prefix) + sum(longest))
        self._check_tokens(n_tokens)
        answers = await self._ask([request], [prompt], ends)
        places = best_first(candidates, answers[0].margins, answers[0].scores)[: wish.top_n]
        if parts is not None:  # leaving a part out for all best items at once reads the shared prefix once
            best = tuple(item.item_id for item in places)
            requests = [replace(part, candidates=best) for part in parts.requests]
            prompts = await run_in_threadpool(lambda: [self.recommender.prompt(one) for one in requests])
            more = await self._ask(requests, prompts, ends)
            margins = np.stack([answer.margins for answer in more], axis=1)
            places = [
                replace(item, explanation=parts.explanation(row))
                for item, row in zip(places, margins, strict=True)
            ]
            answers += more
        return places, _tokens(answers)

    def check_items(self, item_ids: Sequence[str], known: Container[str] | None = None) -> None:
        """Refuse items that are not in `known`, by default the catalogue."""
        known = self.recommender.catalogue if known is None else known
        if unknown := [item_id for item_id in dict.fromkeys(item_ids) if item_id not in known]:
            named = ", ".join(repr(item_id) for item_id in unknown[:10])
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            raise Problem(
                UNKNOWN_ITEMS,
                f"The catalogue does not have {named}{more}; add them with `PUT /v1/items` first.",
                unknown_items=unknown,
            )

    def retrieved(self, reader: UserContext, wish: RecommendRequest) -> list[str]:
        """Return the candidates that the model would rank, in the order of retrieval."""
        n = min(max(self.n_ranked, wish.top_n), self._max_candidates)
        try:
            return self.retriever.top(f"{reader.notes} {reader.profile}", reader.history, n, wish.filters)
        except DataError as error:  # the items are checked, so it is the filter
            raise Problem(UNKNOWN_FIELDS, str(error)) from error

    async def _ask(
        self, questions: Sequence[ModelRequest], prompts: Sequence[RankingPrompt], ends: float
    ) -> list[ScoredRequest]:
        """Return the model's answers, waiting until `ends` (monotonic seconds)."""
        seconds = max(0.0, ends - time.monotonic())
        waiting = asyncio.wrap_future(self.queue.submit(prompts, seconds))
        try:
            return await asyncio.wait_for(waiting, seconds)
        except TimeoutError as error:
            raise OverloadedError(
                f"There was no answer within {self._seconds:g} seconds; try again later.", retry_after=1.0
            ) from error
        except CandidateTooLongError as error:
            raise named(error, questions[error.group]) from error

    def _check_number(self, n: int, what: str) -> None:
        if n > self._max_candidates:
            raise Problem(TOO_LARGE, f"Found {n} {what}; send at most {self._max_candidates}.")

    def _check_tokens(self, n: int) -> None:
        if n > self._max_tokens:
            raise Problem(
                TOO_LARGE,
                f"The request has {n} tokens for the model, at most {self._max_tokens} are allowed; send "
                "fewer or shorter texts.",
            )


def _tokens(answers: Sequence[ScoredRequest]) -> Tokens:
    return Tokens(
        sum(int(answer.n_prompt_tokens.sum()) for answer in answers),
        sum(answer.n_read_tokens for answer in answers),
        answers[0].n_cut_tokens,
    )
