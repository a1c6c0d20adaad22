"""The JSON API: users with their events and notes, items, rankings, and health."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Path, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from trsr.errors import TrsrError
from trsr.recommend.ranker import RerankRequest
from trsr.serve import schemas
from trsr.serve.middleware import Metrics, check_user
from trsr.serve.ranking_service import RecommendRequest, Tokens
from trsr.serve.schemas import Problem, refusals
from trsr.serve.service import Service
from trsr.types import Explanation, Item

RECENT_SECONDS = 60.0
"""With an answer of the model this recent, no probe is sent."""
PROBE_SECONDS = 5.0
"""Time limit of a probe of the model."""
KEEP_SECONDS = 1.0
"""How long a result is cached: the address is open, and each check writes."""


class Readiness:
    """Checks whether one service is ready. Not thread-safe."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._result: schemas.Ready | Problem | None = None
        self._checked = self._answered = float("-inf")
        self._n_answered = 0.0

    def check(self) -> schemas.Ready:
        """Return the result, at most `KEEP_SECONDS` old.

        Raises:
            Problem: a part does not work: `part` is profiles, database or model.
        """
        if self._result is None or time.monotonic() - self._checked > KEEP_SECONDS:
            try:
                self._result = self._check_parts()
            except Problem as problem:
                self._result = problem
            self._checked = time.monotonic()
        if isinstance(self._result, Problem):
            raise self._result
        return self._result

    def _check_parts(self) -> schemas.Ready:
        service = self._service
        if not service.updates_profiles:
            message = "The thread that updates them is not running; restart the server."
            raise _not_ready("profiles", message)
        try:
            service.store.check()
            waited = service.store.facts()["oldest_pending_seconds"]
        except TrsrError as error:
            raise _not_ready("database", str(error.__cause__ or error)) from error
        self._check_model()
        failure = service.updater.last_failure
        return schemas.Ready(
            model_answered_seconds=round(time.monotonic() - self._answered, 1),
            oldest_pending_seconds=round(waited, 1),
            # The address is open: hide the engine's URL.
            engine_failure=failure and re.sub(r"\w+://\S+", "...", failure),
        )

    def _check_model(self) -> None:
        """Probe the model unless it has answered recently."""
        queue, now = self._service.ranker.queue, time.monotonic()
        before, self._n_answered = self._n_answered, queue.facts()["questions"]
        if self._n_answered > before and now - self._checked < RECENT_SECONDS:
            self._answered = now
        if now - self._answered < RECENT_SECONDS:
            return
        try:
            prompt = self._service.ranker.recommender.prompt(RerankRequest("probe", ["probe"]))
            queue.submit([prompt], PROBE_SECONDS).result(PROBE_SECONDS)
        except FutureTimeoutError as error:
            message = f"It did not answer a probe within {PROBE_SECONDS:g} seconds."
            raise _not_ready("model", message) from error
        except TrsrError as error:
            raise _not_ready("model", str(error)) from error
        self._answered = time.monotonic()
        self._n_answered += 1


def _not_ready(part: str, why: str) -> Problem:
    return Problem(schemas.NOT_READY, f"Not working: {part}. {why}", retry_after=5.0, part=part)


def ranking_router(service: Service) -> APIRouter:
    """Return the routes `/v1/rerank`, `/v2/rerank` (the same) and `/v1/recommend`."""
    router = APIRouter(tags=["ranking"])
    described = refusals(schemas.UNKNOWN_MODEL, schemas.TOO_LONG, schemas.OVERLOADED)

    @router.post("/v1/rerank", responses=described)
    @router.post("/v2/rerank", responses=described)
    async def rerank(body: schemas.RerankIn, request: Request) -> schemas.RerankOut:
        """Rank documents for a profile; compatible with Cohere's and Jina's rerank clients."""
        texts = [schemas.document_text(document, body.rank_fields) for document in body.documents]
        question = RerankRequest(body.query, texts, body.max_tokens_per_doc)
        answer = await service.ranker.rerank(question, body.model)
        results = [
            schemas.RerankResult(
                index=place.index,
                relevance_score=place.score,
                document=_document(body, place.index, texts) if body.return_documents else None,
                truncated=place.index in answer.cut,
            )
            for place in answer.places[: body.top_n]
        ]
        return schemas.RerankOut(
            id=uuid.uuid4().hex,
            model=service.model_name,
            results=results,
            calibrated=service.calibrated,
            usage=_usage(answer.tokens),
            meta=schemas.Meta(
                api_version=schemas.ApiVersion(version="2" if request.url.path == "/v2/rerank" else "1"),
                billed_units=schemas.BilledUnits(search_units=math.ceil(len(texts) / 100)),
            ),
        )

    @router.post(
        "/v1/recommend",
        responses=refusals(
            schemas.UNKNOWN_USER,
            schemas.UNKNOWN_ITEMS,
            schemas.UNKNOWN_FIELDS,
            schemas.TOO_LONG,
            schemas.OVERLOADED,
        ),
    )
    async def recommend(body: schemas.RecommendIn, request: Request) -> schemas.RecommendOut:
        """Rank the given candidates, or the best of the catalogue, for a user or a history.

        Without candidates, ranks the items that share most words with notes, profile and recent items, except
        items of the history. `explain` leaves out each recent item and each sentence of notes and profile in
        turn, and returns how each result's margin changes.
        """
        if body.user_id is not None:
            check_user(request, body.user_id)
        wish = RecommendRequest(
            candidates=None if body.candidates is None else tuple(body.candidates),
            filters=body.filter or {},
            top_n=body.top_n,
            explain=body.explain,
        )
        whom = tuple(body.history or ()) if body.user_id is None else body.user_id
        reader, results, tokens = await service.recommend(whom, wish)
        return schemas.RecommendOut(
            model=service.model_name,
            user_id=body.user_id,
            profile=schemas.UsedProfile(
                source=reader.source,
                version=reader.version,
                n_items=reader.n_items,
                notes=bool(reader.notes),
            ),
            results=[
                schemas.RecommendedItem(
                    item_id=ranked.item_id,
                    rank=ranked.rank,
                    score=ranked.score,
                    margin=ranked.margin,
                    explanation=None if ranked.explanation is None else _explanation(ranked.explanation),
                )
                for ranked in results
            ],
            calibrated=service.calibrated,
            usage=_usage(tokens),
        )

    return router


def _document(body: schemas.RerankIn, index: int, texts: Sequence[str]) -> schemas.DocumentOut:
    sent = body.documents[index]
    fields = sent if isinstance(sent, dict) else {}
    return schemas.DocumentOut.model_validate({**fields, "text": texts[index]})


def _usage(tokens: Tokens) -> schemas.Usage:
    return schemas.Usage(
        prompt_tokens=tokens.prompt,
        total_tokens=tokens.prompt,
        read_tokens=tokens.read,
        cut_tokens=tokens.cut,
    )


def _explanation(explanation: Explanation) -> schemas.ExplanationOut:
    def moved(sentences: Sequence[tuple[str, float]]) -> list[schemas.MovedBySentence]:
        return [schemas.MovedBySentence(sentence=text, margin_moved=by) for text, by in sentences]

    return schemas.ExplanationOut(
        without_item=[
            schemas.MovedByItem(item_id=item, margin_moved=by) for item, by in explanation.without_item
        ],
        without_note=moved(explanation.without_note),
        without_sentence=moved(explanation.without_sentence),
    )


ItemId = Annotated[schemas.KnownId, Path(description="The item's id.")]


def items_router(service: Service) -> APIRouter:
    """Return the routes of `/v1/items`."""
    router = APIRouter(prefix="/v1/items", tags=["items"])

    @router.put("", responses=refusals(schemas.UNKNOWN_FIELDS))
    async def put_items(body: schemas.ItemsIn) -> schemas.ItemsOut:
        """Add or change items; they can be retrieved and ranked at once."""
        items = [Item(item.item_id, item.fields) for item in body.items]
        n_added = await service.write(service.put_items, items)
        n_items = len({item.item_id for item in body.items})
        return schemas.ItemsOut(n_added=n_added, n_changed=n_items - n_added)

    @router.get("/{item_id:path}", responses=refusals(schemas.UNKNOWN_ITEM))
    def get_item(item_id: ItemId) -> schemas.ItemOut:
        """Return an item."""
        return schemas.ItemOut(item_id=item_id, fields=dict(service.item(item_id).fields))

    @router.delete("/{item_id:path}", status_code=204, responses=refusals(schemas.UNKNOWN_ITEM))
    async def delete_item(item_id: ItemId) -> None:
        """Delete an item, so that it is no longer retrieved, ranked or accepted in events.

        Histories keep its id, and prompts show it without a description.
        """
        await service.write(service.delete_item, item_id)

    return router


def health_router(service: Service, metrics: Metrics) -> APIRouter:
    """Return the routes `/healthz`, `/readyz` and `/metrics`; the first two need no key."""
    router = APIRouter(tags=["operation"])
    readiness = Readiness(service)
    one = CapacityLimiter(1)

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz")
    async def health() -> schemas.Health:
        """Report that the process is alive."""
        return schemas.Health()

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses=refusals(schemas.NOT_READY))
    async def ready() -> schemas.Ready:
        """Check the database, the model and the profile updates.

        The model is probed unless it has answered within the last minute. An error names the `part` that
        does not work: `database`, `model` or `profiles`.
        """
        return await to_thread.run_sync(readiness.check, limiter=one)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={**refusals(), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def read_metrics() -> Response:
        """Return metrics in Prometheus' text format."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


_USER = "/v1/users/{user_id:path}"
UserId = Annotated[schemas.KnownId, Path(description="The user's id.")]
NewUserId = Annotated[schemas.Id, Path(description="The user's id; the first event creates the user.")]


def users_router(service: Service) -> APIRouter:
    """Return the routes of `/v1/users`."""
    router = APIRouter(tags=["users"])

    @router.get("/v1/users", responses=refusals())
    def list_users(request: Request, query: Annotated[schemas.UsersQuery, Query()]) -> schemas.UsersOut:
        """Return the users that the key may access, sorted by id."""
        prefix = request.state.key.user_prefix
        found = service.store.users(query.query, query.limit + 1, prefix, query.after)
        page = found[: query.limit]
        return schemas.UsersOut(user_ids=page, after=page[-1] if len(found) > len(page) else None)

    @router.post(_USER + "/events", status_code=202, responses=refusals(schemas.UNKNOWN_ITEMS))
    async def add_events(user_id: NewUserId, body: schemas.EventsIn) -> schemas.EventsOut:
        """Add events to a user's history; they are on disk when this returns.

        An event with a known `event_id` is ignored, so a request can be repeated. Events are stored in the
        order of arrival. The profile is updated in the background.
        """
        new = await service.write(service.add_events, user_id, body.events)
        answers = [
            schemas.EventOut(event_id=event.event_id, item_id=event.item_id, new=is_new)
            for event, is_new in zip(body.events, new, strict=True)
        ]
        return schemas.EventsOut(user_id=user_id, n_new=sum(new), events=answers)

    @router.get(_USER, responses=refusals(schemas.UNKNOWN_USER))
    def get_user(user_id: UserId) -> schemas.UserOut:
        """Return a user's history, blocks with summaries, notes, and all versions of the profile."""
        return service.user(user_id)

    @router.put(_USER + "/notes", responses=refusals(schemas.UNKNOWN_USER))
    async def put_notes(user_id: UserId, body: schemas.NotesIn) -> schemas.NotesOut:
        """Replace a user's own notes, which rankings read first and updates never change.

        An empty text removes the notes.
        """
        return await service.write(service.put_notes, user_id, body.text)

    @router.delete(_USER, status_code=204, responses=refusals(schemas.UNKNOWN_USER, schemas.NOT_ERASED))
    async def delete_user(user_id: UserId) -> None:
        """Delete a user: events, notes, profiles, and the summaries that no other user has.

        None of their bytes is left in the database's files when this returns.
        """
        await service.write(service.delete_user, user_id)

    return router
