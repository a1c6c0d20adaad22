"""Requests with their limits, and answers, as they go over the wire; their docstrings are in OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from trsr.data.values import MAX_ID, id_fault

MAX_EVENTS = 1000
MAX_ITEMS = 1000
MAX_HISTORY = 10_000
MAX_NOTES = 8_000
MAX_TEXT = 200_000
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def _new_id(text: str) -> str:
    if fault := id_fault(text):
        raise ValueError(fault)
    return text


Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID), AfterValidator(_new_id)]
"""An id that a request makes (of a user, an item, an event)."""
KnownId = Annotated[str, StringConstraints(min_length=1)]
"""An id that has to exist: whatever a data set has brought can be named, read and deleted."""
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Field_ = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Time = Annotated[AwareDatetime, Field(ge=_EARLIEST, le=_LATEST)]


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [values]})


_PROFILE: dict[str, Any] = {
    "version": 2,
    "text": "This shopper buys garden tools and clay pots, lately also string lights.",
    "n_items": 10,
    "created_at": "2026-11-23T09:30:00Z",
}


class EventIn(BaseModel):
    """Something a user did with an item; sent twice with the same `event_id`, it counts once."""

    model_config = _example(event_id="order-17", item_id="B001", timestamp="2026-11-23T09:30:00Z")

    event_id: Id
    item_id: KnownId
    timestamp: Time | None = None


class EventsIn(BaseModel):
    """One event or many of a user, oldest first."""

    model_config = _example(events=[{"event_id": "order-17", "item_id": "B001"}])

    events: list[EventIn] = Field(min_length=1, max_length=MAX_EVENTS)


class EventOut(BaseModel):
    """What became of an event; `new` is false where it was known before."""

    event_id: str
    item_id: str
    new: bool


class EventsOut(BaseModel):
    """The events are on disk; the profile follows in the background."""

    user_id: str
    n_new: int
    events: list[EventOut]


class HistoryEntry(BaseModel):
    """An event of a history; position 0 is the oldest."""

    position: int
    event_id: str
    item_id: str
    timestamp: datetime | None


class BlockOut(BaseModel):
    """A consecutive slice of the history, and its summary where one is written."""

    index: int
    start: int
    item_ids: list[str]
    complete: bool
    summary: str | None


class ProfileOut(BaseModel):
    """A version of a profile, written by the model after the oldest `n_items` events."""

    model_config = ConfigDict(json_schema_extra={"examples": [_PROFILE]})

    version: int
    text: str
    n_items: int
    created_at: datetime


class NotesIn(BaseModel):
    """What a user writes about themselves; an empty text removes it."""

    model_config = _example(text="I look for presents now: toys for two children, and books.")

    text: str = Field(max_length=MAX_NOTES)


class NotesOut(BaseModel):
    """A user's notes; empty where they were removed."""

    text: str
    updated_at: datetime


class UserOut(BaseModel):
    """Everything that is known about a user."""

    user_id: str
    history: list[HistoryEntry]
    blocks: list[BlockOut]
    notes: NotesOut | None = Field(description="What the user wrote; null where they wrote nothing.")
    profile: ProfileOut | None = Field(description="The newest version; null until one is written.")
    versions: list[ProfileOut] = Field(description="Oldest first.")
    pending: bool = Field(description="Whether the profile has yet to follow the newest events.")


class UsersQuery(BaseModel):
    """Which users to list."""

    query: str = Field("", description="A part of their ids; letter case counts.")
    limit: int = Field(100, ge=1, le=1000)
    after: str = Field("", description="The id behind which to begin.")


class UsersOut(BaseModel):
    """Users, sorted by id."""

    user_ids: list[str]
    after: str | None = Field(description="Asks for the next ones; null when there are no more.")


class ItemIn(BaseModel):
    """An item's text fields; fields of the catalogue that are left out are empty."""

    model_config = _example(item_id="B001", fields={"title": "Clay pot, 20 cm", "category": "Garden"})

    item_id: Id
    fields: dict[Field_, Text] = Field(max_length=100)


class ItemsIn(BaseModel):
    """Items to add or to change."""

    model_config = _example(items=[{"item_id": "B001", "fields": {"title": "Clay pot, 20 cm"}}])

    items: list[ItemIn] = Field(min_length=1, max_length=MAX_ITEMS)


class ItemOut(BaseModel):
    """An item as it is now."""

    item_id: str
    fields: dict[str, str]


class ItemsOut(BaseModel):
    """How many items were new, and how many were there before."""

    n_added: int
    n_changed: int


def document_text(document: str | Mapping[str, Any], rank_fields: Sequence[str] | None) -> str:
    """Return the text to rank: the document itself, its `text`, or its `rank_fields` as an item is written.

    Raises:
        ValueError: a field is missing or not a text.
    """
    if isinstance(document, str):
        return document
    fields = rank_fields or ("text",)
    if wrong := [name for name in fields if not isinstance(document.get(name), str)]:
        raise ValueError(f"every document that is an object needs a text in its field {wrong[0][:100]!r}")
    labelled = [f"{name.capitalize()}: {document[name]}" for name in fields]
    text = str(document["text"]) if rank_fields is None else "; ".join(labelled)
    if len(text) > MAX_TEXT:
        raise ValueError(f"a document has {len(text)} characters, at most {MAX_TEXT} are read")
    return text


class RerankIn(BaseModel):
    """Documents to rank for a profile, in the form that Cohere and Jina use."""

    model_config = _example(
        model="trsr",
        query="This shopper buys garden tools and clay pots.",
        documents=["Clay pot, 20 cm", "Graphics card", "Garden hose"],
        top_n=2,
    )

    model: str | None = Field(default=None, max_length=500, description="The served one, or none.")
    query: Text = Field(min_length=1, description="The profile.")
    documents: list[Text | dict[Field_, Any]] = Field(
        min_length=1, description="Texts, or objects with a `text` or the `rank_fields`."
    )
    top_n: int | None = Field(default=None, ge=1, description="All by default.")
    return_documents: bool | None = False
    rank_fields: list[Field_] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="What is read of a document's object, in order.",
    )
    max_tokens_per_doc: int | None = Field(
        default=None, ge=1, description="Cut documents to so many tokens, 256 at most."
    )
    max_chunks_per_doc: int | None = Field(default=None, ge=1, description="Ignored: a document is one text.")
    relevant_spans: dict[str, Any] | None = Field(default=None, description="Ignored.")
    priority: int | None = Field(default=None, description="Ignored.")
    truncation: bool | None = Field(default=None, description="Ignored: long documents are cut and marked.")

    @model_validator(mode="after")
    def _texts_there(self) -> Self:
        for document in self.documents:
            if isinstance(document, dict):
                document_text(document, self.rank_fields)
        return self


class DocumentOut(BaseModel):
    """A document as it was sent; of an object, `text` is what was read of it."""

    model_config = ConfigDict(extra="allow")

    text: str


class RerankResult(BaseModel):
    """A document's place: `index` is where it stood in the request, the score is in [0, 1]."""

    index: int
    relevance_score: float
    document: DocumentOut | None = None
    truncated: bool = Field(description="Whether the end of the document was not read.")


class Usage(BaseModel):
    """Tokens of all candidates' whole prompts, and those that the model read: shared parts once or never."""

    prompt_tokens: int
    total_tokens: int
    read_tokens: int
    cut_tokens: int = Field(description="Of the profile and the recent items, what did not fit the prompt.")


class ApiVersion(BaseModel):
    """The version of Cohere's API that the address has."""

    version: str


class BilledUnits(BaseModel):
    """One unit for each hundred documents begun."""

    search_units: int


class Meta(BaseModel):
    """What Cohere's clients read."""

    api_version: ApiVersion
    billed_units: BilledUnits


class RerankOut(BaseModel):
    """The documents, best first."""

    id: str
    model: str
    results: list[RerankResult]
    calibrated: bool = Field(description="Whether scores are calibrated; else they are sigmoid(margin).")
    usage: Usage
    meta: Meta


class RecommendIn(BaseModel):
    """Whom to recommend to, and from what: given candidates, or the catalogue, whole or filtered."""

    model_config = _example(user_id="u1", filter={"category": "Garden"}, top_n=10, explain=False)

    user_id: KnownId | None = None
    history: list[KnownId] | None = Field(
        default=None, max_length=MAX_HISTORY, description="Items, oldest first."
    )
    candidates: list[KnownId] | None = Field(default=None, min_length=1)
    filter: dict[Field_, Text] | None = Field(
        default=None, max_length=20, description="Only items whose fields have these values."
    )
    top_n: int = Field(default=10, ge=1)
    explain: bool = False

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.user_id is None) == (self.history is None):
            raise ValueError("give either user_id or history")
        if self.candidates is not None and self.filter is not None:
            raise ValueError("give either candidates or filter")
        if self.candidates is not None and len(set(self.candidates)) < len(self.candidates):
            raise ValueError("give every candidate once")
        return self


class MovedByItem(BaseModel):
    """How much of a score's margin (in logits) goes when this recent item is left out."""

    item_id: str
    margin_moved: float


class MovedBySentence(BaseModel):
    """How much of a score's margin (in logits) goes when this sentence is left out."""

    sentence: str
    margin_moved: float


class ExplanationOut(BaseModel):
    """What moved a score: above 0 where a part speaks for the item, below 0 where it speaks against it."""

    without_item: list[MovedByItem]
    without_note: list[MovedBySentence] = Field(description="Sentences of the user's notes.")
    without_sentence: list[MovedBySentence]


class RecommendedItem(BaseModel):
    """An item with its place: rank 1 is the best, the score in [0, 1] is calibrated where the model is."""

    item_id: str
    rank: int
    score: float
    margin: float
    explanation: ExplanationOut | None = None


class UsedProfile(BaseModel):
    """The profile that was read: `counted` from the items' fields until the model has written one."""

    source: Literal["model", "counted", "none"]
    version: int | None
    n_items: int = Field(description="How many of the oldest events it knows.")
    notes: bool = Field(description="Whether the user's notes were read before it.")


class RecommendOut(BaseModel):
    """The best items, best first."""

    model: str
    user_id: str | None
    profile: UsedProfile
    results: list[RecommendedItem]
    calibrated: bool = Field(description="Whether scores are calibrated; else they are sigmoid(margin).")
    usage: Usage


class Health(BaseModel):
    """Whether the server is there."""

    status: Literal["ok"] = "ok"


class Ready(Health):
    """What works, and what is behind."""

    model_answered_seconds: float = Field(description="Since the model's last answer that was seen.")
    oldest_pending_seconds: float = Field(description="That the oldest update of a profile has waited.")
    engine_failure: str | None = Field(
        description="Why the last update of a profile failed; null once one succeeds. Rankings go on."
    )
