"""What the page can do: add an event, change notes, ask for a profile, delete the user, log in and out.

Every post is checked to come from this server's own page. With htmx the answer is a note and the name of what
changed, and the parts of the page that show it ask anew; without, it leads back to the page.
"""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from trsr.serve.auth import SESSION_SECONDS, Keys
from trsr.serve.gate import OF_PAGE, check_key
from trsr.serve.problems import INVALID, UNKNOWN_USER, Problem
from trsr.serve.records import Event
from trsr.serve.schemas import MAX_NOTES
from trsr.serve.service import Service
from trsr.serve.web.door import COOKIE, KEY_PATH
from trsr.serve.web.forms import read_form
from trsr.serve.web.rendering import HEADERS, link, render
from trsr.serve.web.views import item_view

DONE = {
    "deleted": "The user is deleted, with everything that was known about them.",
    "saved": "The notes are saved; the ranking reads them first.",
    "removed": "The notes are removed.",
    "added": "The event is kept; the profile follows.",
    "asked": "The profile is being written.",
}


def add_actions(router: APIRouter, service: Service, keys: Keys) -> None:
    """Add the addresses that change something to the page's router."""

    @router.post("/page/events")
    async def add_event(request: Request) -> Response:
        form = await read_form(request)
        user_id, item_id = form.new_id("user"), form.id("item")
        event = Event(form.new_id("event_id"), item_id, datetime.now(UTC))
        await service.write(service.add_events, user_id, [event])
        said = f"“{item_view(service, item_id).title}” is in the history now; the profile follows."
        return _answer(request, user_id, "added", said)

    @router.post("/page/notes")
    async def put_notes(request: Request) -> Response:
        form = await read_form(request)
        user_id, text = form.id("user"), form.get("text", "").strip()
        if len(text) > MAX_NOTES:
            raise Problem(
                INVALID, f"The notes have {len(text)} letters; at most {MAX_NOTES} are kept. Shorten them."
            )
        notes = await service.write(service.put_notes, user_id, text)
        return _answer(request, user_id, "saved" if notes.text else "removed")

    @router.post("/page/follow")
    async def follow(request: Request) -> Response:
        user_id = (await read_form(request)).id("user")
        if not await service.write(service.store.request_update, user_id):
            raise Problem(UNKNOWN_USER, f"There is no user {user_id!r}; a first event makes one.")
        return _answer(request, user_id, "asked")

    @router.post("/page/delete")
    async def delete(request: Request) -> Response:
        form = await read_form(request)
        user_id = form.id("user")
        if form.get("sure") != "yes":
            raise Problem(INVALID, "Deleting cannot be undone: tick the box to confirm it.")
        await service.write(service.delete_user, user_id)
        return RedirectResponse(link("/", done="deleted"), 303, headers=HEADERS)

    @router.post(KEY_PATH)
    async def bring_key(request: Request) -> Response:
        key = check_key(keys.find((await read_form(request)).get("key", "")), OF_PAGE)
        answer = RedirectResponse("/", 303, headers=HEADERS)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            COOKIE, keys.log_in(key), SESSION_SECONDS, httponly=True, samesite="strict", secure=secure
        )
        return answer

    @router.post("/page/log-out")
    async def log_out(request: Request) -> Response:
        await read_form(request)
        keys.log_out(request.cookies.get(COOKIE, ""))
        answer = RedirectResponse("/", 303, headers=HEADERS)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer


def _answer(request: Request, user_id: str, done: str, said: str | None = None) -> Response:
    if request.headers.get("hx-request") == "true":
        # The field that was typed in is gone: whoever uses the keyboard goes on from the note.
        values = {"said": said or DONE[done], "focus": done in ("saved", "removed")}
        return render("part_note.html", values, headers={"HX-Trigger": "user-changed"})
    return RedirectResponse(link("/", user=user_id, rank=True, done=done), 303, headers=HEADERS)
