"""The page's addresses: whole pages, the parts that htmx requests, and forms.

Parts that need the model are requested after the page has loaded. Without JavaScript the page's links include
them in the page: `rank`, `edit`, `explain`, `compare` and `find` in the query of `/`.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from trsr.data.values import id_fault
from trsr.errors import OverloadedError
from trsr.serve import views
from trsr.serve.middleware import COOKIE, PAGE_SCOPES, check_key, check_user
from trsr.serve.schemas import BAD_REQUEST, INVALID, KEY_PATH, MAX_NOTES, WRONG_ORIGIN, EventIn, Problem
from trsr.serve.service import Service, unknown_user
from trsr.serve.settings import SESSION_SECONDS, Keys
from trsr.serve.views import ASSETS, PAGE_HEADERS, Asset, ItemView, link, render, render_part

N_USERS = 50
N_FOUND = 8
_MAX_FIELDS = 20
DONE = {
    "deleted": "The user is deleted, with all their data.",
    "saved": "The notes are saved; the ranking reads them first.",
    "removed": "The notes are removed.",
    "added": "The event is saved; the profile will be updated.",
    "requested": "The profile is being written.",
}
Text = Annotated[str, Query(max_length=256)]
Items = Annotated[list[str], Query(max_length=50)]


def page_router(service: Service, keys: Keys) -> APIRouter:
    """Return the page's routes; those that need the model wait for it without blocking a thread."""
    router = APIRouter(include_in_schema=False)
    for asset in ASSETS.values():
        router.add_api_route(asset.path, _give(asset), methods=["GET"])
    _add_parts(router, service)
    _add_forms(router, service)
    _add_sessions(router, keys)

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
        values = {
            "model": service.model_name,
            "has_keys": bool(keys),
            "query": q,
            "done": DONE.get(done),
        }
        if not user:
            users = await run_in_threadpool(_users, service, q, request.state.key.user_prefix)
            return render("home", {**values, **users})
        view = await run_in_threadpool(views.user_view, service, user)
        values |= {"view": view, "profile": view.profile, "notes": view.notes, "user_id": user, "edit": edit}
        values |= {"find": find, "found": await run_in_threadpool(_found, service, find)}
        values |= {"ranking": None, "busy": None}
        if rank or explain:
            try:
                values["ranking"] = await views.ranking_view(service, user, (), explain or None)
            except OverloadedError as error:
                values["busy"] = math.ceil(error.retry_after)
        if values["ranking"] is None:
            values["retrieved"] = await run_in_threadpool(views.retrieved_view, service, user)
        values["comparison"] = await views.comparison_view(service, user) if compare else None
        return render("user", values)

    return router


def _add_parts(router: APIRouter, service: Service) -> None:
    @router.get("/page/nothing")
    async def nothing() -> HTMLResponse:
        return HTMLResponse("")

    @router.get("/page/users")
    def users(request: Request, q: Text = "") -> HTMLResponse:
        return render_part("users", _users(service, q, request.state.key.user_prefix))

    @router.get("/page/profile")
    def profile(user: str, seen: Text = "") -> Response:
        view = views.user_view(service, user).profile
        if seen == view.seen:
            return Response(status_code=204)  # the page polls while an update is pending
        headers = {"HX-Trigger": "profile-changed"} if seen else {}
        return render_part("profile", {"profile": view, "user_id": user}, headers=headers)

    @router.get("/page/notes")
    def notes(user: str) -> HTMLResponse:
        return render_part("notes", {"notes": service.user(user).notes, "user_id": user})

    @router.get("/page/editor")
    def editor(user: str) -> HTMLResponse:
        return render_part("editor", {"notes": service.user(user).notes, "user_id": user})

    @router.get("/page/history")
    def history(user: str) -> HTMLResponse:
        return render_part("history", {"view": views.user_view(service, user)})

    @router.get("/page/items")
    def items(user: str, find: Text = "") -> HTMLResponse:
        return render_part("found", {"user_id": user, "find": find, "found": _found(service, find)})

    @router.get("/page/ranking")
    async def ranking(user: str, before: Items = []) -> HTMLResponse:  # noqa: B006
        try:
            view = await views.ranking_view(service, user, before)
        except OverloadedError as error:
            retrieved = await run_in_threadpool(views.retrieved_view, service, user)
            busy = {"retrieved": retrieved, "busy": math.ceil(error.retry_after), "user_id": user}
            return render_part("retrieved", busy)
        return render_part("ranking", {"ranking": view, "user_id": user})

    @router.get("/page/why")
    async def why(user: str, item: str) -> HTMLResponse:
        return render_part("why", {"why": await views.why_view(service, user, item)})

    @router.get("/page/compare")
    async def compare(user: str) -> HTMLResponse:
        view = await views.comparison_view(service, user)
        return render_part("compare", {"comparison": view, "user_id": user})


def _add_forms(router: APIRouter, service: Service) -> None:
    @router.post("/page/events")
    async def add_event(request: Request) -> Response:
        form = await read_form(request)
        for name in ("user", "event_id"):
            if fault := id_fault(form.get(name, "")):
                raise Problem(INVALID, f"{name}: {fault}.")
        user_id, item_id = form["user"], required(form, "item")
        event = EventIn(event_id=form["event_id"], item_id=item_id, timestamp=datetime.now(UTC))
        await service.write(service.add_events, user_id, [event])
        title = views.item_view(service, item_id).title
        return _answer(request, user_id, "added", f"“{title}” is now in the history; the profile follows.")

    @router.post("/page/notes")
    async def put_notes(request: Request) -> Response:
        form = await read_form(request)
        user_id, text = required(form, "user"), form.get("text", "").strip()
        if len(text) > MAX_NOTES:
            raise Problem(INVALID, f"The notes have {len(text)} characters; shorten them to {MAX_NOTES}.")
        notes = await service.write(service.put_notes, user_id, text)
        return _answer(request, user_id, "saved" if notes.text else "removed")

    @router.post("/page/follow")
    async def follow(request: Request) -> Response:
        user_id = required(await read_form(request), "user")
        if not await service.write(service.store.request_update, user_id):
            raise unknown_user(user_id)
        return _answer(request, user_id, "requested")

    @router.post("/page/delete")
    async def delete(request: Request) -> Response:
        form = await read_form(request)
        user_id = required(form, "user")
        if form.get("sure") != "yes":
            raise Problem(INVALID, "Deleting cannot be undone: tick the box to confirm.")
        await service.write(service.delete_user, user_id)
        return RedirectResponse(link("/", done="deleted"), 303, headers=PAGE_HEADERS)


def _add_sessions(router: APIRouter, keys: Keys) -> None:
    @router.post(KEY_PATH)
    async def log_in(request: Request) -> Response:
        key = check_key(keys.find((await read_form(request)).get("key", "")), PAGE_SCOPES)
        answer = RedirectResponse("/", 303, headers=PAGE_HEADERS)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            COOKIE, keys.log_in(key), SESSION_SECONDS, httponly=True, samesite="strict", secure=secure
        )
        return answer

    @router.post("/page/log-out")
    async def log_out(request: Request) -> Response:
        await read_form(request)
        keys.log_out(request.cookies.get(COOKIE, ""))
        answer = RedirectResponse("/", 303, headers=PAGE_HEADERS)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form sent by this server's page.

    Raises:
        Problem: another site sent it, it is not a form, or the caller's key does not reach its user.
    """
    # In addition to SameSite cookies. Browsers send the origin with every POST, so a missing one is refused.
    origin = urlsplit(request.headers.get("origin", ""))
    site = request.headers.get("sec-fetch-site", "same-origin")
    if origin.netloc.lower() != request.headers.get("host", "").lower() or site != "same-origin":
        raise Problem(WRONG_ORIGIN, "Use the forms of this server's page.")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise Problem(BAD_REQUEST, "Send a form (`application/x-www-form-urlencoded`).")
    try:
        body = (await request.body()).decode("ascii")
        pairs = parse_qsl(body, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise Problem(BAD_REQUEST, "The form is not URL-encoded; send it again.") from error
    form = {name: value.replace("\r\n", "\n") for name, value in pairs}
    if "user" in form:
        check_user(request, required(form, "user"))
    return form


def required(form: dict[str, str], name: str) -> str:
    """Return an id field of a form.

    Raises:
        Problem: it is missing or empty.
    """
    if not form.get(name):
        raise Problem(INVALID, f"The field {name!r} is empty; send an id.")
    return form[name]


def _answer(request: Request, user_id: str, done: str, message: str | None = None) -> Response:
    if request.headers.get("hx-request") == "true":
        # The editor has gone: keyboard focus moves to the note.
        values = {"message": message or DONE[done], "focus": done in ("saved", "removed")}
        return render_part("note", values, headers={"HX-Trigger": "user-changed"})
    return RedirectResponse(link("/", user=user_id, rank=True, done=done), 303, headers=PAGE_HEADERS)


def _users(service: Service, query: str, prefix: str) -> dict[str, Any]:
    """Return the users whose ids contain the query and begin with the prefix, an exact match first."""
    found = service.store.users(query, N_USERS + 1, prefix)
    exact = [query] if query.startswith(prefix) and service.store.history(query) else []
    users = list(dict.fromkeys([*exact, *found]))
    return {"users": users[:N_USERS], "more": len(users) > N_USERS, "query": query}


def _found(service: Service, words: str) -> list[ItemView]:
    """Return the items that match the words best, an exact id first; none for an empty query."""
    if not words.strip():
        return []
    exact = [words] if words in service.catalogue else []
    found = service.ranker.retriever.top(words, (), N_FOUND)
    return [views.item_view(service, name) for name in list(dict.fromkeys([*exact, *found]))[:N_FOUND]]


def _give(asset: Asset) -> Any:
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}

    async def give() -> Response:
        return Response(asset.content, media_type=asset.media_type, headers=headers)

    return give
