"""Ranking over HTTP: documents for a profile, and items for a user.

These wait for the model without holding a thread.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence

from fastapi import APIRouter, Request

from trsr.serve.explaining import Explanation
from trsr.serve.gate import check_user
from trsr.serve.problems import (
    OVERLOADED,
    TOO_LONG,
    UNKNOWN_FIELDS,
    UNKNOWN_ITEMS,
    UNKNOWN_MODEL,
    UNKNOWN_USER,
    refusals,
)
from trsr.serve.questions import TextAsk
from trsr.serve.ranking import Ranked, Tokens, Wish
from trsr.serve.schemas import (
    ApiVersion,
    BilledUnits,
    DocumentOut,
    ExplanationOut,
    Meta,
    MovedByItem,
    MovedBySentence,
    RecommendedItem,
    RecommendIn,
    RecommendOut,
    RerankIn,
    RerankOut,
    RerankResult,
    Usage,
    UsedProfile,
    document_text,
)
from trsr.serve.service import Service


def ranking_router(service: Service) -> APIRouter:
    """Return `/v1/rerank`, the same under `/v2/rerank`, and `/v1/recommend`."""
    router = APIRouter(tags=["ranking"])

    @router.post("/v1/rerank", responses=refusals(UNKNOWN_MODEL, TOO_LONG, OVERLOADED))
    @router.post("/v2/rerank", responses=refusals(UNKNOWN_MODEL, TOO_LONG, OVERLOADED))
    async def rerank(body: RerankIn, request: Request) -> RerankOut:
        """Rank documents for a profile; clients of Cohere's and Jina's rerank work unchanged."""
        texts = [document_text(document, body.rank_fields) for document in body.documents]
        answer = await service.rerank(TextAsk(body.query, texts, body.max_tokens_per_doc), body.model)
        results = [
            RerankResult(
                index=place.index,
                relevance_score=place.score,
                document=_document(body, place.index, texts) if body.return_documents else None,
                truncated=place.index in answer.cut,
            )
            for place in answer.places[: body.top_n]
        ]
        return RerankOut(
            id=uuid.uuid4().hex,
            model=service.model_name,
            results=results,
            calibrated=service.calibrated,
            usage=_usage(answer.tokens),
            meta=Meta(
                api_version=ApiVersion(version="2" if request.url.path == "/v2/rerank" else "1"),
                billed_units=BilledUnits(search_units=math.ceil(len(texts) / 100)),
            ),
        )

    @router.post(
        "/v1/recommend",
        responses=refusals(UNKNOWN_USER, UNKNOWN_ITEMS, UNKNOWN_FIELDS, TOO_LONG, OVERLOADED),
    )
    async def recommend(body: RecommendIn, request: Request) -> RecommendOut:
        """Rank the given candidates, or the best of the catalogue, for a user or a history.

        Without candidates, the items that share most words with notes, profile and recent items are ranked,
        those of the history left out. `explain` leaves out each recent item and each sentence of the notes
        and of the profile in turn and says how the margin of each answer changes.
        """
        if body.user_id is not None:
            check_user(request, body.user_id)
        wish = Wish(
            candidates=None if body.candidates is None else tuple(body.candidates),
            filters=body.filter or {},
            top_n=body.top_n,
            explain=body.explain,
        )
        whom = tuple(body.history or ()) if body.user_id is None else body.user_id
        answer = await service.recommend(whom, wish)
        reader = answer.reader
        return RecommendOut(
            model=service.model_name,
            user_id=body.user_id,
            profile=UsedProfile(
                source=reader.source,
                version=reader.version,
                n_items=reader.n_items,
                notes=bool(reader.notes),
            ),
            results=[_item(ranked) for ranked in answer.results],
            calibrated=service.calibrated,
            usage=_usage(answer.tokens),
        )

    return router


def _document(body: RerankIn, index: int, texts: Sequence[str]) -> DocumentOut:
    sent = body.documents[index]
    return DocumentOut.model_validate({**(sent if isinstance(sent, dict) else {}), "text": texts[index]})


def _usage(tokens: Tokens) -> Usage:
    return Usage(
        prompt_tokens=tokens.prompt,
        total_tokens=tokens.prompt,
        read_tokens=tokens.read,
        cut_tokens=tokens.cut,
    )


def _item(ranked: Ranked) -> RecommendedItem:
    return RecommendedItem(
        item_id=ranked.item_id,
        rank=ranked.rank,
        score=ranked.score,
        margin=ranked.margin,
        explanation=None if ranked.explanation is None else _explanation(ranked.explanation),
    )


def _explanation(explanation: Explanation) -> ExplanationOut:
    return ExplanationOut(
        without_item=[MovedByItem(item_id=i, margin_moved=moved) for i, moved in explanation.without_item],
        without_note=[_sentence(*moved) for moved in explanation.without_note],
        without_sentence=[_sentence(*moved) for moved in explanation.without_sentence],
    )


def _sentence(text: str, moved: float) -> MovedBySentence:
    return MovedBySentence(sentence=text, margin_moved=moved)
