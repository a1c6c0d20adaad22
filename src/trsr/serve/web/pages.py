"""The page's addresses to look at: the whole page, and the parts of it that htmx asks for.

What needs the model is asked for after the page is there. Without JavaScript the same parts come inside the
page, by its links: `rank`, `edit`, `explain`, `compare` and `find` in the query of `/`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, Response

from trsr.errors import OverloadedError
from trsr.serve.auth import Keys
from trsr.serve.service import Service
from trsr.serve.web.actions import DONE, add_actions
from trsr.serve.web.assets import ASSETS, HEADERS, Asset
from trsr.serve.web.rankings import comparison_view, ranking_view, retrieved_view, why_view
from trsr.serve.web.rendering import render
from trsr.serve.web.views import ItemView, item_view, user_view

N_USERS = 50
N_FOUND = 8
Text = Annotated[str, Query(max_length=256)]
Items = Annotated[list[str], Query(max_length=50)]


def page_router(service: Service, keys: Keys) -> APIRouter:
    """Return the page's addresses; those that need the model wait for it without holding a thread."""
    router = APIRouter(include_in_schema=False)
    for asset in ASSETS.values():
        router.add_api_route(asset.path, _give(asset), methods=["GET"])
    add_actions(router, service, keys)
    _add_parts(router, service)

    @router.get("/")
    async def page(
        request: Request,
        user: str = "",
        q: Text = "",
        find: Text = "",
        explain: str = "",
        done: Text = "",
        rank: bool = False,
        edit: bool = False,
        compare: bool = False,
    ) -> HTMLResponse:
        frame: dict[str, Any] = {
            "model": service.model_name,
            "has_keys": bool(keys),
            "query": q,
            "done": DONE.get(done),
        }
        if not user:
            users = await run_in_threadpool(_users, service, q, request.state.key.user_prefix)
            return render("home.html", {**frame, **users})
        view = await run_in_threadpool(user_view, service, user)
        values: dict[str, Any] = {"view": view, "profile": view.profile, "user_id": user, "edit": edit}
        values["notes"] = view.notes
        values["find"] = find
        values["found"] = await run_in_threadpool(_found, service, find)
        values["event_id"] = _event_id()
        ranked = rank or bool(explain)
        values["busy"] = values["ranking"] = None
        try:
            values["ranking"] = await ranking_view(service, user, (), explain or None) if ranked else None
        except OverloadedError as error:
            values["busy"] = math.ceil(error.retry_after)
        if values["ranking"] is None:
            values["retrieved"] = await run_in_threadpool(retrieved_view, service, user)
        values["comparison"] = await comparison_view(service, user) if compare else None
        return render("user.html", {**frame, **values})

    return router


def _add_parts(router: APIRouter, service: Service) -> None:
    @router.get("/page/nothing")
    async def nothing() -> HTMLResponse:
        return HTMLResponse("")

    @router.get("/page/users")
    def users(request: Request, q: Text = "") -> HTMLResponse:
        return render("part_users.html", _users(service, q, request.state.key.user_prefix))

    @router.get("/page/profile")
    def profile(user: str, seen: Text = "") -> Response:
        view = user_view(service, user).profile
        if seen == view.seen:
            return Response(status_code=204)  # asked again and again while an update waits
        headers = {"HX-Trigger": "profile-changed"} if seen else {}
        return render("part_profile.html", {"profile": view, "user_id": user}, headers=headers)

    @router.get("/page/notes")
    def notes(user: str) -> HTMLResponse:
        return render("part_notes.html", {"notes": user_view(service, user).notes, "user_id": user})

    @router.get("/page/editor")
    def editor(user: str) -> HTMLResponse:
        return render("part_editor.html", {"notes": user_view(service, user).notes, "user_id": user})

    @router.get("/page/history")
    def history(user: str) -> HTMLResponse:
        return render("part_history.html", {"view": user_view(service, user), "user_id": user})

    @router.get("/page/items")
    def items(user: str, find: Text = "") -> HTMLResponse:
        values = {"user_id": user, "find": find, "found": _found(service, find), "event_id": _event_id()}
        return render("part_found.html", values)

    @router.get("/page/ranking")
    async def ranking(user: str, before: Items = []) -> HTMLResponse:  # noqa: B006
        try:
            view = await ranking_view(service, user, before)
        except OverloadedError as error:
            retrieved = await run_in_threadpool(retrieved_view, service, user)
            busy = {"retrieved": retrieved, "busy": math.ceil(error.retry_after), "user_id": user}
            return render("part_retrieved.html", busy)
        return render("part_ranking.html", {"ranking": view, "user_id": user, "event_id": _event_id()})

    @router.get("/page/why")
    async def why(user: str, item: str) -> HTMLResponse:
        return render("part_why.html", {"why": await why_view(service, user, item), "user_id": user})

    @router.get("/page/compare")
    async def compare(user: str) -> HTMLResponse:
        view = await comparison_view(service, user)
        return render("part_compare.html", {"comparison": view, "user_id": user})


def _users(service: Service, query: str, prefix: str) -> dict[str, Any]:
    """Return the users with the query in their ids and the prefix first, one of exactly this id first."""
    found = service.store.users(query, N_USERS + 1, prefix)
    exact = [query] if query.startswith(prefix) and service.store.history(query) is not None else []
    users = list(dict.fromkeys([*exact, *found]))
    return {"users": users[:N_USERS], "more": len(users) > N_USERS, "query": query}


def _found(service: Service, words: str) -> list[ItemView]:
    """Return the items that fit some words best, one of exactly this id first; none for no words."""
    if not words.strip():
        return []
    exact = [words] if words in service.catalogue else []
    found = service.ranker.retriever.top(words, (), N_FOUND)
    return [item_view(service, name) for name in list(dict.fromkeys([*exact, *found]))[:N_FOUND]]


def _event_id() -> str:
    """Return a name for the next event; a form that is sent twice counts once."""
    return f"page:{uuid4()}"


def _give(asset: Asset) -> Any:
    async def give() -> Response:
        return Response(asset.content, media_type=asset.media_type, headers=HEADERS)

    return give
