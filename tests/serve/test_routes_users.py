"""Users over HTTP: events once and for good, profiles that follow, notes, forgetting."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from shop import Shop, open_shop
from stores import event

from trsr.serve import database
from trsr.types import History

ANN = "/v1/users/ann"
EVENTS = f"{ANN}/events"
JSON = {"Content-Type": "application/json"}


def posted(number: int, item: str | None = None, **more: Any) -> dict[str, Any]:
    """Return an event as it is posted."""
    return {"event_id": f"e{number}", "item_id": item or f"i{number}", **more}


def test_events_are_kept_in_order_and_once_however_often_they_are_sent(shop: Shop) -> None:
    time = "2026-11-23T09:30:00+02:00"
    answer = shop.client.post(EVENTS, json={"events": [posted(1, timestamp=time), posted(2)]})
    assert answer.status_code == 202
    assert answer.json() == {
        "user_id": "ann",
        "n_new": 2,
        "events": [
            {"event_id": "e1", "item_id": "i1", "new": True},
            {"event_id": "e2", "item_id": "i2", "new": True},
        ],
    }
    again = shop.client.post(EVENTS, json={"events": [posted(2), posted(3), posted(3)]}).json()
    assert [entry["new"] for entry in again["events"]] == [False, True, False]
    assert again["n_new"] == 1
    assert shop.client.get(ANN).json()["history"] == [
        {"position": 0, "event_id": "e1", "item_id": "i1", "timestamp": "2026-11-23T07:30:00Z"},
        {"position": 1, "event_id": "e2", "item_id": "i2", "timestamp": None},
        {"position": 2, "event_id": "e3", "item_id": "i3", "timestamp": None},
    ]


def test_unknown_items_are_refused_by_name_and_nothing_is_kept(shop: Shop) -> None:
    body = {"events": [posted(1), posted(2, "x9"), posted(3, "x8")]}
    problem = shop.refused(422, "unknown-items", "POST", EVENTS, json=body)
    assert problem["unknown_items"] == ["x9", "x8"]
    assert "'x9', 'x8'" in problem["detail"]
    assert shop.client.get(ANN).status_code == 404


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({"events": []}, "body/events"),
        ({"events": [{"item_id": "i1"}]}, "body/events/0/event_id"),
        ({"events": [posted(1, timestamp="2026-11-23T09:30:00")]}, "body/events/0/timestamp"),
        ({"events": [posted(1, timestamp="9999-12-31T23:59:59-12:00")]}, "body/events/0/timestamp"),
        ({"events": [posted(1, colour="red")]}, "body/events/0/colour"),
        ({"events": [posted(n) for n in range(1001)]}, "body/events"),
        ([], "body"),
    ],
)
def test_a_wrong_body_is_refused_and_the_place_named(shop: Shop, body: object, at: str) -> None:
    problem = shop.refused(422, "invalid-request", "POST", EVENTS, json=body)
    assert problem["errors"][0]["at"] == at


@pytest.mark.parametrize(
    ("content", "status", "kind"),
    [
        (b"{", 400, "bad-request"),
        (b"\xff\xfe\x00", 400, "bad-request"),
        (b"[" * 100_000, 400, "bad-request"),
        (b'{"events": [{"event_id": "\\ud800", "item_id": "i1"}]}', 422, "invalid-request"),
        (b'{"events": [{"event_id": "1", "item_id": "i1", "\\ud800": 1}]}', 422, "invalid-request"),
        (b"1" * 5000, 400, "bad-request"),
        (b'{"events": NaN}', 422, "invalid-request"),
    ],
)
def test_what_is_no_proper_json_is_refused(shop: Shop, content: bytes, status: int, kind: str) -> None:
    shop.refused(status, kind, "POST", EVENTS, content=content, headers=JSON)


@pytest.mark.parametrize("media_type", ["text/plain", ""])
def test_json_must_be_declared(shop: Shop, media_type: str) -> None:
    """Else a page of another site could post here without the browser asking first."""
    headers = {"Content-Type": media_type}
    shop.refused(400, "bad-request", "POST", EVENTS, content=b'{"events": []}', headers=headers)


def test_a_profile_follows_with_blocks_and_versions(shop: Shop) -> None:
    shop.service.store.import_histories([History("ann", ("i1", "i2"))], "data")
    assert shop.client.get(ANN).json()["pending"] is False, "until an event comes"
    shop.buy("ann", "i3")
    before = shop.client.get(ANN).json()
    assert (before["profile"], before["versions"], before["pending"]) == (None, [], True)
    shop.follow()
    shop.buy("ann", "i4", "i5")
    shop.follow()
    after = shop.client.get(ANN).json()
    assert after["pending"] is False
    assert [version["version"] for version in after["versions"]] == [1, 2]
    assert [version["n_items"] for version in after["versions"]] == [3, 5]
    assert after["profile"] == after["versions"][-1]
    assert [block["item_ids"] for block in after["blocks"]] == [["i1", "i2", "i3"], ["i4", "i5"]]
    assert [block["complete"] for block in after["blocks"]] == [True, False]
    assert after["blocks"][0]["summary"] == after["versions"][0]["text"]
    assert after["blocks"][1]["summary"] == after["profile"]["text"]


def test_notes_are_kept_and_no_update_changes_them(shop: Shop) -> None:
    shop.buy("ann", "i1", "i2", "i3")
    assert shop.client.get(ANN).json()["notes"] is None
    answer = shop.client.put(f"{ANN}/notes", json={"text": "I only look for\npresents."})
    assert (answer.status_code, answer.json()["text"]) == (200, "I only look for\npresents.")
    for item in ("i4", "i5"):
        shop.follow()
        shop.buy("ann", item)
        assert shop.client.get(ANN).json()["notes"] == answer.json()
    for empty in ("", " \n", "\u200b"):
        shop.client.put(f"{ANN}/notes", json={"text": "Only pots."})
        assert shop.client.get(ANN).json()["notes"]["text"] == "Only pots."
        assert shop.client.put(f"{ANN}/notes", json={"text": empty}).json()["text"] == ""
        assert shop.client.get(ANN).json()["notes"] is None


def test_wrong_notes_are_refused_without_repeating_them(shop: Shop) -> None:
    shop.buy("ann", "i1")
    for body in (
        {},
        {"text": "x" * 8001},
        {"text": None},
        {"text": "x", "version": 1},
        {"text": ["private"]},
    ):
        assert "private" not in str(shop.refused(422, "invalid-request", "PUT", f"{ANN}/notes", json=body))


def test_a_deletion_that_another_process_holds_up_says_so(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ERASE_SECONDS", 0.1)
    shop.buy("ann", "i1")
    with closing(sqlite3.connect(shop.file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM users").fetchall()
        answer = shop.client.delete(ANN)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:trsr:problem:not-erased")
    assert "The user is deleted. Texts of deleted users are still in" in answer.json()["detail"]
    assert "retry-after" in answer.headers
    shop.refused(404, "unknown-user", "DELETE", ANN)  # finishes it
    assert b"ann" not in shop.file.read_bytes()


def test_unknown_users_addresses_and_methods_are_problems(shop: Shop) -> None:
    nobody = "/v1/users/nobody"
    for method, path, body in (("GET", "", None), ("PUT", "/notes", {"text": "x"}), ("DELETE", "", None)):
        problem = shop.refused(404, "unknown-user", method, nobody + path, json=body)
        assert "'nobody'" in problem["detail"]
    shop.refused(404, "not-found", "GET", "/v2/nothing")
    answer = shop.client.patch(ANN)
    assert (answer.status_code, answer.json()["type"]) == (405, "urn:trsr:problem:method-not-allowed")
    assert "GET" in answer.headers["allow"]


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "serve.sqlite"
    with open_shop(file) as shop:
        shop.buy("ann", "i1", "i2", "i3")
        shop.follow()
        shop.client.put(f"{ANN}/notes", json={"text": "Presents."})
        shop.buy("ann", "i4")
        shop.client.put("/v1/items", json={"items": [{"item_id": "new", "fields": {"title": "A new thing"}}]})
        shop.client.delete("/v1/items/i9")
        before = shop.client.get(ANN).json()
    with open_shop(file) as shop:
        assert shop.client.get(ANN).json() == before
        answer = shop.client.post(EVENTS, json={"events": [posted(0, "i1"), posted(50, "new")]}).json()
        assert [entry["new"] for entry in answer["events"]] == [False, True]
        shop.follow()
        assert shop.client.get(ANN).json()["pending"] is False
        assert shop.client.get("/v1/items/i9").status_code == 404
        assert shop.client.delete(ANN).status_code == 204
        shop.client.post(EVENTS, json={"events": [posted(0, "i1")]})
        assert shop.client.get(ANN).json()["notes"] is None, "a user who comes back has written nothing"


@pytest.mark.parametrize("user", ["team/ann", "a//b", "/", "ann/events", "events", "x/notes", "50% off?"])
def test_any_id_can_be_named_in_an_address(shop: Shop, user: str) -> None:
    address = f"/v1/users/{quote(user, safe='')}"
    assert shop.client.post(f"{address}/events", json={"events": [posted(1)]}).json()["user_id"] == user
    assert shop.client.get(address).json()["user_id"] == user
    assert shop.client.put(f"{address}/notes", json={"text": "Pots."}).json()["text"] == "Pots."
    assert shop.client.delete(address).status_code == 204
    shop.refused(404, "unknown-user", "GET", address)


@pytest.mark.parametrize("user", ["a\tb", "u" * 300, " mike", "mike\u00a0", "m\ufffd", "\u202em", "\x00"])
def test_users_of_the_data_set_are_read_and_deleted_whatever_their_ids(shop: Shop, user: str) -> None:
    shop.service.store.add_events(user, [event("e1", "i1")])
    address = f"/v1/users/{quote(user, safe='')}"
    assert shop.client.post(f"{address}/events", json={"events": [posted(2)]}).status_code == 422
    assert shop.client.get(address).json()["user_id"] == user
    assert shop.client.post("/v1/recommend", json={"user_id": user}).status_code == 200
    assert shop.client.delete(address).status_code == 204


@pytest.mark.parametrize("wrong", [" x", "x\t", "x\u202e", "x\ufffd", f"x{chr(0xD800)}", "..", ""])
def test_new_ids_of_events_and_items_follow_the_same_rule(shop: Shop, wrong: str) -> None:
    for method, address, body in (
        ("POST", EVENTS, {"events": [{"event_id": wrong, "item_id": "i1"}]}),
        ("PUT", "/v1/items", {"items": [{"item_id": wrong, "fields": {"title": "x"}}]}),
    ):
        content = json.dumps(body)  # as ASCII: UTF-8 has no halves of surrogate pairs
        shop.refused(422, "invalid-request", method, address, content=content, headers=JSON)


@pytest.mark.parametrize("address", ["/v1/users/%ff%fe", "/v1/users/%E9", "/metrics?a=%c3", "/?user=%ff"])
def test_bytes_that_are_no_utf8_are_refused_in_every_address(shop: Shop, address: str) -> None:
    answer = shop.client.get(address)
    assert answer.status_code == 400
    assert "not UTF-8" in answer.text


def test_users_are_listed_page_by_page(shop: Shop) -> None:
    for user in ("carol", "ann/a", "bob", "anna", "50%"):
        shop.service.store.add_events(user, [event("e", "i1")])

    def listed(**query: Any) -> Any:
        return shop.client.get("/v1/users", params=query).json()

    assert listed() == {"user_ids": ["50%", "ann/a", "anna", "bob", "carol"], "after": None}
    assert listed(limit=4) == {"user_ids": ["50%", "ann/a", "anna", "bob"], "after": "bob"}
    assert listed(query="%") == {"user_ids": ["50%"], "after": None}
    assert listed(limit=3, after="bob") == {"user_ids": ["carol"], "after": None}
    assert listed(query="nn", limit=1) == {"user_ids": ["ann/a"], "after": "ann/a"}
    assert listed(query="nn", limit=1, after="ann/a") == {"user_ids": ["anna"], "after": None}
    assert shop.client.get("/v1/users?limit=0").status_code == 422
