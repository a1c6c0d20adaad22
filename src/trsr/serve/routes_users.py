"""Users over HTTP: their events, what is known of them, their notes, and forgetting them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from trsr.serve.problems import NOT_ERASED, UNKNOWN_ITEMS, UNKNOWN_USER, refusals
from trsr.serve.records import Event, Notes, Profile
from trsr.serve.schemas import (
    BlockOut,
    EventOut,
    EventsIn,
    EventsOut,
    HistoryEntry,
    Id,
    KnownId,
    NotesIn,
    NotesOut,
    ProfileOut,
    UserOut,
    UsersAsked,
    UsersOut,
)
from trsr.serve.service import Service

_USER = "/v1/users/{user_id:path}"
UserId = Annotated[KnownId, Path(description="Of the user.")]
NewUserId = Annotated[Id, Path(description="Of the user; made by their first event.")]


def users_router(service: Service) -> APIRouter:
    """Return the addresses of `/v1/users`."""
    router = APIRouter(tags=["users"])

    @router.get("/v1/users", responses=refusals())
    def list_users(request: Request, asked: Annotated[UsersAsked, Query()]) -> UsersOut:
        """Return the users that the key reaches, sorted by id."""
        prefix = request.state.key.user_prefix
        found = service.store.users(asked.query, asked.limit + 1, prefix, asked.after)
        page = found[: asked.limit]
        return UsersOut(user_ids=page, after=page[-1] if len(found) > len(page) else None)

    @router.post(_USER + "/events", status_code=202, responses=refusals(UNKNOWN_ITEMS))
    async def add_events(user_id: NewUserId, body: EventsIn) -> EventsOut:
        """Add events to a user's history; once this is answered, they are kept.

        An event with a known `event_id` changes nothing, so a request can be sent again. Events are kept in
        the order of arrival. The profile follows in the background.
        """
        events = [Event(event.event_id, event.item_id, event.timestamp) for event in body.events]
        new = await service.write(service.add_events, user_id, events)
        answers = [
            EventOut(event_id=event.event_id, item_id=event.item_id, new=is_new)
            for event, is_new in zip(events, new, strict=True)
        ]
        return EventsOut(user_id=user_id, n_new=sum(new), events=answers)

    @router.get(_USER, responses=refusals(UNKNOWN_USER))
    def get_user(user_id: UserId) -> UserOut:
        """Return a user's history, blocks with their summaries, notes, and every version of the profile."""
        user = service.user(user_id)
        versions = [_profile(profile) for profile in user.profiles]
        return UserOut(
            user_id=user_id,
            history=[
                HistoryEntry(
                    position=event.position,
                    event_id=event.event_id,
                    item_id=event.item_id,
                    timestamp=event.timestamp,
                )
                for event in user.events
            ],
            blocks=[
                BlockOut(
                    index=block.index,
                    start=block.start,
                    item_ids=list(block.item_ids),
                    complete=block.complete,
                    summary=summary,
                )
                for block, summary in user.blocks
            ],
            notes=_notes(user.notes) if user.notes else None,
            profile=versions[-1] if versions else None,
            versions=versions,
            pending=user.update is not None,
        )

    @router.put(_USER + "/notes", responses=refusals(UNKNOWN_USER))
    async def put_notes(user_id: UserId, body: NotesIn) -> NotesOut:
        """Keep what a user writes about themselves; rankings read it first, and no update changes it.

        An empty text removes the notes.
        """
        return _notes(await service.write(service.put_notes, user_id, body.text))

    @router.delete(_USER, status_code=204, responses=refusals(UNKNOWN_USER, NOT_ERASED))
    async def delete_user(user_id: UserId) -> None:
        """Forget a user: events, notes, profiles, and the summaries that no other user has.

        When this is answered, none of their bytes is left in the database's files.
        """
        await service.write(service.delete_user, user_id)

    return router


def _notes(notes: Notes) -> NotesOut:
    return NotesOut(text=notes.text, updated_at=notes.updated_at)


def _profile(profile: Profile) -> ProfileOut:
    return ProfileOut(
        version=profile.version,
        text=profile.text,
        n_items=profile.n_items,
        created_at=profile.created_at,
    )
