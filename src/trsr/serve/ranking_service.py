"""From a question over HTTP to a ranked answer: retrieval, the model's queue, explanations.

The steps that compute run in threads, and what waits for the model holds none, so the event loop stays free.
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
from trsr.serve.problems import TOO_LARGE, UNKNOWN_FIELDS, UNKNOWN_ITEMS, UNKNOWN_MODEL, Problem
from trsr.types import RankedItem


@dataclass(frozen=True, slots=True)
class UserContext:
    """For whom items are ranked.

    Attributes:
        history: Item ids, oldest first.
        profile: The text that the model reads; may be empty.
        source: Who wrote the profile; `counted` is made from the items' fields, until the model has written.
        version: Its version, where it is kept.
        n_items: How many of the oldest items it knows.
        notes: What the user wrote about themselves; the model reads them first.
    """

    history: tuple[str, ...]
    profile: str
    source: Literal["model", "counted", "none"]
    version: int | None = None
    n_items: int = 0
    notes: str = ""


@dataclass(frozen=True, slots=True)
class RecommendRequest:
    """What a caller wants recommended: the best of `candidates`, or of all items that pass `filters`."""

    candidates: tuple[str, ...] | None = None
    filters: Mapping[str, str] = field(default_factory=dict)
    top_n: int = 10
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of all candidates' prompts, those that were really read, and those that did not fit."""

    prompt: int
    read: int
    cut: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates or documents, best first; `cut` are the indices of documents that were cut."""

    places: list[RankedItem]
    tokens: Tokens
    cut: frozenset[int]


class RankingService:
    """Answers ranking questions with one recommender.

    Args:
        recommender: Knows the items and builds the questions.
        queue: Asks them.
        retriever: Finds candidates where none are given.
        n_ranked: How many of them the model reads at least.
        max_candidates: Most candidates or documents of one request.
        max_tokens: Most tokens that the model reads for one request.
        seconds: An answer that takes longer is given up.
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
            Problem: another model is asked for, or there are too many documents.
            OverloadedError: there is no time for it.
        """
        name = self.recommender.name
        if model is not None and model != name:
            raise Problem(UNKNOWN_MODEL, f"This server has the model {name!r}; name it, or none.")
        self._check_number(len(question.documents), "documents")
        self.queue.check_room()
        ends = time.monotonic() + self._seconds
        prompt = await run_in_threadpool(self.recommender.prompt, question)
        self._check_tokens(n_read_at_most(prompt))
        (scored,) = await self._ask([question], [prompt], ends)
        places = best_first(question.documents, scored.margins, scored.scores)
        return Ranking(places, _tokens([scored]), prompt.cut)

    async def recommend(self, reader: UserContext, wish: RecommendRequest) -> tuple[list[RankedItem], Tokens]:
        """Rank items for a reader; return the best `top_n`, and what was read for their places.

        Raises:
            Problem: unknown items or fields, or too many candidates.
            OverloadedError: there is no time for it.
        """
        ends = time.monotonic() + self._seconds
        self.queue.check_room()
        self.check_items(reader.history, self.recommender.catalogue.items)
        if wish.candidates is None:
            candidates = await run_in_threadpool(self.retrieved, reader, wish)
        else:  # a look into a dict needs no thread, and each change of threads waits for its turn
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
        if parts is not None:  # each part is left out for the best items together: it is read once for all
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
        """Refuse items that are not known, by name: not in the catalogue, unless said otherwise."""
        known = self.recommender.catalogue if known is None else known
        if unknown := [item_id for item_id in dict.fromkeys(item_ids) if item_id not in known]:
            named = ", ".join(repr(item_id) for item_id in unknown[:10])
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            raise Problem(
                UNKNOWN_ITEMS,
                f"The catalogue does not have {named}{more}; put them there first.",
                unknown_items=unknown,
            )

    def retrieved(self, reader: UserContext, wish: RecommendRequest) -> list[str]:
        """Return the items that the model would rank, in the order in which they were found."""
        n = min(max(self.n_ranked, wish.top_n), self._max_candidates)
        try:
            return self.retriever.top(f"{reader.notes} {reader.profile}", reader.history, n, wish.filters)
        except DataError as error:  # the items are known, so it is the filter
            raise Problem(UNKNOWN_FIELDS, str(error)) from error

    async def _ask(
        self, questions: Sequence[ModelRequest], prompts: Sequence[RankingPrompt], ends: float
    ) -> list[ScoredRequest]:
        """Wait for the model's answers until `ends` (monotonic seconds)."""
        seconds = max(0.0, ends - time.monotonic())
        waiting = asyncio.wrap_future(self.queue.submit(prompts, seconds))
        try:
            return await asyncio.wait_for(waiting, seconds)
        except TimeoutError as error:
            raise OverloadedError(
                f"There was no answer within {self._seconds:g} seconds; ask again later.", retry_after=1.0
            ) from error
        except CandidateTooLongError as error:
            raise named(error, questions[error.group]) from error

    def _check_number(self, n: int, what: str) -> None:
        if n > self._max_candidates:
            raise Problem(TOO_LARGE, f"Found {n} {what}, at most {self._max_candidates} are ranked at once.")

    def _check_tokens(self, n: int) -> None:
        if n > self._max_tokens:
            raise Problem(
                TOO_LARGE,
                f"The model would have to read {n} tokens, at most {self._max_tokens} are read for one "
                "request; send fewer or shorter texts.",
            )


def _tokens(answers: Sequence[ScoredRequest]) -> Tokens:
    return Tokens(
        sum(int(answer.n_prompt_tokens.sum()) for answer in answers),
        sum(answer.n_read_tokens for answer in answers),
        answers[0].n_cut_tokens,
    )
