"""Request and response bodies of the API, whose docstrings appear in OpenAPI, and the kinds of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
"""An id that a request creates (of a user, an item, an event)."""
KnownId = Annotated[str, StringConstraints(min_length=1)]
"""An id of something that exists; ids of imported data follow no rules."""
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
    """An interaction of a user with an item; repeated with the same `event_id` it counts once."""

    model_config = _example(event_id="order-17", item_id="B001", timestamp="2026-11-23T09:30:00Z")

    event_id: Id
    item_id: KnownId
    timestamp: Time | None = None


class EventsIn(BaseModel):
    """One or more events of a user, oldest first."""

    model_config = _example(events=[{"event_id": "order-17", "item_id": "B001"}])

    events: list[EventIn] = Field(min_length=1, max_length=MAX_EVENTS)


class EventOut(BaseModel):
    """A stored event; `new` is false if it was known before."""

    event_id: str
    item_id: str
    new: bool


class EventsOut(BaseModel):
    """The stored events; the profile is updated in the background."""

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
    """A consecutive slice of the history, and its summary if there is one."""

    index: int
    start: int
    item_ids: list[str]
    complete: bool
    summary: str | None


class ProfileOut(BaseModel):
    """A version of a profile, generated from the oldest `n_items` events."""

    model_config = ConfigDict(json_schema_extra={"examples": [_PROFILE]})

    version: int
    text: str
    n_items: int
    created_at: datetime


class NotesIn(BaseModel):
    """A user's own notes; an empty text removes them."""

    model_config = _example(text="I look for presents now: toys for two children, and books.")

    text: str = Field(max_length=MAX_NOTES)


class NotesOut(BaseModel):
    """A user's notes; empty after removal."""

    text: str
    updated_at: datetime


class UserOut(BaseModel):
    """All stored data of a user."""

    user_id: str
    history: list[HistoryEntry]
    blocks: list[BlockOut]
    notes: NotesOut | None = Field(description="The user's own notes; null if there are none.")
    profile: ProfileOut | None = Field(description="The newest version; null until the first is generated.")
    versions: list[ProfileOut] = Field(description="Oldest first.")
    pending: bool = Field(description="Whether an update of the profile is pending.")


class UsersQuery(BaseModel):
    """A filter and a page of the list of users."""

    query: str = Field("", description="A part of the ids; case-sensitive.")
    limit: int = Field(100, ge=1, le=1000)
    after: str = Field("", description="List ids after this one.")


class UsersOut(BaseModel):
    """Users, sorted by id."""

    user_ids: list[str]
    after: str | None = Field(description="Value of `after` for the next page; null on the last.")


class ItemIn(BaseModel):
    """An item's text fields; missing fields of the catalogue are empty."""

    model_config = _example(item_id="B001", fields={"title": "Clay pot, 20 cm", "category": "Garden"})

    item_id: Id
    fields: dict[Field_, Text] = Field(max_length=100)


class ItemsIn(BaseModel):
    """Items to add or change."""

    model_config = _example(items=[{"item_id": "B001", "fields": {"title": "Clay pot, 20 cm"}}])

    items: list[ItemIn] = Field(min_length=1, max_length=MAX_ITEMS)


class ItemOut(BaseModel):
    """An item with its fields."""

    item_id: str
    fields: dict[str, str]


class ItemsOut(BaseModel):
    """Numbers of added and of changed items."""

    n_added: int
    n_changed: int


def document_text(document: str | Mapping[str, Any], rank_fields: Sequence[str] | None) -> str:
    """Return the text to rank: the document itself, its `text`, or its `rank_fields` formatted like an item.

    Raises:
        ValueError: a field is missing or not a string, or the text is too long.
    """
    if isinstance(document, str):
        return document
    fields = rank_fields or ("text",)
    if wrong := [name for name in fields if not isinstance(document.get(name), str)]:
        raise ValueError(f"every document that is an object needs a string in its field {wrong[0][:100]!r}")
    labelled = [f"{name.capitalize()}: {document[name]}" for name in fields]
    text = str(document["text"]) if rank_fields is None else "; ".join(labelled)
    if len(text) > MAX_TEXT:
        raise ValueError(f"a document has {len(text)} characters; send at most {MAX_TEXT}")
    return text


class RerankIn(BaseModel):
    """Documents to rank for a profile, in the format of Cohere and Jina."""

    model_config = _example(
        model="trsr",
        query="This shopper buys garden tools and clay pots.",
        documents=["Clay pot, 20 cm", "Graphics card", "Garden hose"],
        top_n=2,
    )

    model: str | None = Field(default=None, max_length=500, description="Name of the served model; optional.")
    query: Text = Field(min_length=1, description="The profile.")
    documents: list[Text | dict[Field_, Any]] = Field(
        min_length=1, description="Strings, or objects with a `text` or the `rank_fields`."
    )
    top_n: int | None = Field(default=None, ge=1, description="All by default.")
    return_documents: bool | None = False
    rank_fields: list[Field_] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="Fields of documents that are objects, in order.",
    )
    max_tokens_per_doc: int | None = Field(
        default=None, ge=1, description="Truncate documents to this many tokens, at most 256."
    )
    max_chunks_per_doc: int | None = Field(default=None, ge=1, description="Ignored: no splitting.")
    relevant_spans: dict[str, Any] | None = Field(default=None, description="Ignored.")
    priority: int | None = Field(default=None, description="Ignored.")
    truncation: bool | None = Field(default=None, description="Ignored: long ones are truncated and marked.")

    @model_validator(mode="after")
    def _texts_there(self) -> Self:
        for document in self.documents:
            if isinstance(document, dict):
                document_text(document, self.rank_fields)
        return self


class DocumentOut(BaseModel):
    """The submitted document; for an object, `text` is the ranked text."""

    model_config = ConfigDict(extra="allow")

    text: str


class RerankResult(BaseModel):
    """A ranked document: its `index` in the request, and its score in [0, 1]."""

    index: int
    relevance_score: float
    document: DocumentOut | None = None
    truncated: bool = Field(description="Whether the document was truncated.")


class Usage(BaseModel):
    """Token counts; `read_tokens` counts shared parts of the prompts once, or not at all if cached."""

    prompt_tokens: int
    total_tokens: int
    read_tokens: int
    cut_tokens: int = Field(description="Those of notes, profile and history that did not fit.")


class ApiVersion(BaseModel):
    """The version of Cohere's API in the address."""

    version: str


class BilledUnits(BaseModel):
    """One unit per 100 documents, rounded up."""

    search_units: int


class Meta(BaseModel):
    """Metadata in Cohere's format."""

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
    """A user or a history, and the candidates: a list, or the catalogue with an optional filter."""

    model_config = _example(user_id="u1", filter={"category": "Garden"}, top_n=10, explain=False)

    user_id: KnownId | None = None
    history: list[KnownId] | None = Field(
        default=None, max_length=MAX_HISTORY, description="Items, oldest first."
    )
    candidates: list[KnownId] | None = Field(default=None, min_length=1)
    filter: dict[Field_, Text] | None = Field(
        default=None, max_length=20, description="Only items with these field values."
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
    """How much the margin (in logits) falls without this recent item."""

    item_id: str
    margin_moved: float


class MovedBySentence(BaseModel):
    """How much the margin (in logits) falls without this sentence."""

    sentence: str
    margin_moved: float


class ExplanationOut(BaseModel):
    """Effects on a score: above 0 if a part supports the item, below 0 if it speaks against it."""

    without_item: list[MovedByItem]
    without_note: list[MovedBySentence] = Field(description="Sentences of the user's notes.")
    without_sentence: list[MovedBySentence]


class RecommendedItem(BaseModel):
    """A ranked item: rank 1 is the best; the score is in [0, 1], calibrated if the model is."""

    item_id: str
    rank: int
    score: float
    margin: float
    explanation: ExplanationOut | None = None


class UsedProfile(BaseModel):
    """The profile in the prompt: `counted` from the items' fields until the model has generated one."""

    source: Literal["model", "counted", "none"]
    version: int | None
    n_items: int = Field(description="Number of the oldest events that it covers.")
    notes: bool = Field(description="Whether the prompt has the user's notes.")


class RecommendOut(BaseModel):
    """The recommended items, best first."""

    model: str
    user_id: str | None
    profile: UsedProfile
    results: list[RecommendedItem]
    calibrated: bool = Field(description="Whether scores are calibrated; else they are sigmoid(margin).")
    usage: Usage


class Health(BaseModel):
    """The server is alive."""

    status: Literal["ok"] = "ok"


class Ready(Health):
    """The server is ready; pending profile updates do not block it."""

    model_answered_seconds: float = Field(description="Seconds since the model's last known answer.")
    oldest_pending_seconds: float = Field(description="Seconds that the oldest profile update has waited.")
    engine_failure: str | None = Field(
        description="Why the last profile update failed; null after a success. Rankings continue."
    )


# Errors: problem details (RFC 9457). The detail may repeat the caller's ids, never texts.

MEDIA_TYPE = "application/problem+json"
KEY_PATH = "/page/key"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of error; clients should check its `type`."""

    name: str
    status: int
    title: str

    @property
    def type(self) -> str:
        """The URI that names this kind."""
        return f"urn:trsr:problem:{self.name}"


BAD_REQUEST = Kind("bad-request", 400, "The request cannot be read")
WRONG_HOST = Kind("wrong-host", 400, "The server is not known by this name")
UNAUTHORIZED = Kind("unauthorized", 401, "A key is needed")
FORBIDDEN = Kind("forbidden", 403, "The key does not allow this")
WRONG_ORIGIN = Kind("wrong-origin", 403, "The request comes from another site")
NOT_FOUND = Kind("not-found", 404, "There is no such address")
UNKNOWN_USER = Kind("unknown-user", 404, "The user is not known")
UNKNOWN_ITEM = Kind("unknown-item", 404, "The item is not known")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "The address does not do this")
REQUEST_TIMEOUT = Kind("request-timeout", 408, "The request did not arrive in time")
TOO_LARGE = Kind("too-large", 413, "The request is too large")
INVALID = Kind("invalid-request", 422, "The request is not as described")
UNKNOWN_ITEMS = Kind("unknown-items", 422, "The catalogue does not have these items")
UNKNOWN_FIELDS = Kind("unknown-fields", 422, "The items do not have these fields")
UNKNOWN_MODEL = Kind("unknown-model", 422, "This model is not served")
TOO_LONG = Kind("too-long", 422, "The texts do not fit the model's prompt")
TOO_MANY_REQUESTS = Kind("too-many-requests", 429, "Too many requests")
INTERNAL = Kind("internal", 500, "The server failed")
MODEL_FAILED = Kind("model-failed", 500, "The model gives no usable answer")
OVERLOADED = Kind("overloaded", 503, "The server is busy")
DATABASE_FAILED = Kind("database-failed", 503, "The database does not work")
NOT_ERASED = Kind("not-erased", 503, "The deletion is not finished")
STORAGE_FULL = Kind("storage-full", 507, "The server's disk is full")
NOT_READY = Kind("not-ready", 503, "The server is not ready")


class Problem(Exception):
    """An error response; `more` are further members, for example the ids of unknown items."""

    def __init__(self, kind: Kind, detail: str, *, retry_after: float | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.retry_after, self.more = kind, detail, retry_after, more


def is_page(path: str) -> bool:
    """Return whether an address belongs to the page, whose errors are HTML, and not to the API."""
    return path == "/" or path.startswith("/page/")


def refusals(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """Describe an address's error responses for OpenAPI: the common ones and `kinds`."""
    described: dict[int | str, dict[str, Any]] = {}
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for kind in (BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, TOO_LARGE, INVALID, TOO_MANY_REQUESTS, *kinds):
        text = f"{kind.title} (`{kind.type}`)"
        if kind.status in described:
            text = f"{described[kind.status]['description']}; {text}"
        described[kind.status] = {"description": text, "content": content}
    return described
