"""Requests without a key that may, from a strange host, too often or with too much are refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from shop import KEY, LOCAL, Shop, open_shop
from starlette.testclient import TestClient

from trsr.errors import ConfigError
from trsr.serve.app import create_app
from trsr.serve.database import add_key, remove_key
from trsr.serve.settings import Key, key_hash
from trsr.types import History

ADDRESSES = [
    ("POST", "/v1/users/u/events"),
    ("GET", "/v1/users/u"),
    ("PUT", "/v1/users/u/notes"),
    ("DELETE", "/v1/users/u"),
    ("POST", "/v1/rerank"),
    ("POST", "/v2/rerank"),
    ("POST", "/v1/recommend"),
    ("GET", "/v1/users"),
    ("PUT", "/v1/items"),
    ("GET", "/v1/items/i"),
    ("DELETE", "/v1/items/i"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
def test_every_address_needs_the_key(shop: Shop, method: str, path: str) -> None:
    del shop.client.headers["Authorization"]
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
        answer = shop.client.request(method, path, headers=headers, content=b"not even JSON")
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["type"] == "urn:trsr:problem:unauthorized"


def test_every_address_of_the_description_is_in_that_list(shop: Shop) -> None:
    paths = shop.client.get("/openapi.json").json()["paths"]
    described = {
        (method.upper(), path.replace("{user_id}", "u").replace("{item_id}", "i"))
        for path, ms in paths.items()
        for method in ms
    }
    assert described - {("GET", "/healthz"), ("GET", "/readyz")} <= set(ADDRESSES)


def test_health_needs_no_key(shop: Shop) -> None:
    del shop.client.headers["Authorization"]
    assert shop.client.get("/healthz").status_code == 200
    assert shop.client.get("/readyz").status_code == 503


@pytest.fixture
def keyed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop with two teams, which sees at once how its keys change."""
    monkeypatch.setattr("trsr.serve.settings._RELOAD_SECONDS", 0.0)
    users = ("team-a/ann", "team-b/bob")
    shop.service.store.import_histories([History(user, ("i1", "i2")) for user in users], "data")
    return shop


def as_holder(shop: Shop, *scopes: str, **more: Any) -> dict[str, str]:
    """Add a key named by its scopes, and return the header that shows it."""
    name = "-".join(scopes)
    add_key(shop.file, Key(name, key_hash(f"trsr_{name}"), frozenset(scopes), **more))
    return {"Authorization": f"Bearer trsr_{name}"}


@pytest.mark.parametrize("scope", ["rank", "events", "admin"])
def test_a_key_does_only_what_its_scopes_say(keyed: Shop, scope: str) -> None:
    headers = as_holder(keyed, scope)
    for method, path in ADDRESSES:
        answer = keyed.client.request(method, path, headers=headers, content=b"no JSON")
        needed = "rank" if path.startswith(("/v1/re", "/v2/re")) else "events" if "users" in path else "admin"
        may = scope in (needed, "admin") or path == "/openapi.json"
        assert (answer.status_code == 403) == (not may)
        if not may:
            assert answer.json()["type"] == "urn:trsr:problem:forbidden"
            assert answer.json()["detail"] == f"This needs the scope {needed}; the key '{scope}' has {scope}."


def test_a_key_reaches_and_lists_only_its_users(keyed: Shop) -> None:
    headers = as_holder(keyed, "rank", "events", user_prefix="team-a/")
    for user, status in (("team-a/ann", 200), ("team-a/new", 404), ("team-b/bob", 403), ("team-b/new", 403)):
        path = f"/v1/users/{user}"
        found = [
            keyed.client.get(path, headers=headers),
            keyed.client.post("/v1/recommend", json={"user_id": user}, headers=headers),
            keyed.client.put(f"{path}/notes", json={"text": "x"}, headers=headers),
        ]
        assert [answer.status_code for answer in found] == [status] * 3
        if status == 403:
            details = {answer.json()["detail"] for answer in found}
            assert details == {"The key 'rank-events' reaches only users whose ids begin with 'team-a/'."}
            events = {"events": [{"event_id": "1", "item_id": "i3"}]}
            assert keyed.client.post(f"{path}/events", json=events, headers=headers).status_code == 403
            assert keyed.client.delete(path, headers=headers).status_code == 403
    assert len(keyed.service.store.events("team-b/bob")) == 2
    assert keyed.service.store.users("new") == []
    assert keyed.client.post("/v1/recommend", json={"history": ["i1"]}, headers=headers).status_code == 200
    assert keyed.client.delete("/v1/users/team-a/ann", headers=headers).status_code == 204


def test_a_session_reaches_what_its_key_reaches_and_ends_with_it(keyed: Shop) -> None:
    browser = TestClient(keyed.client.app, base_url=LOCAL, headers={"Origin": LOCAL})
    as_holder(keyed, "rank")
    refused = browser.post("/page/key", data={"key": "trsr_rank"})
    assert (refused.status_code, "This needs the scope events" in refused.text) == (403, True)
    assert not browser.cookies
    as_holder(keyed, "rank", "events", user_prefix="team-a/")
    assert browser.post("/page/key", data={"key": "trsr_rank-events"}).status_code == 200
    for listed in ("/", "/?q=team", "/?q=team-b/bob", "/page/users?q=team-b/bob", "/page/users?q=b"):
        assert "team-b%2Fbob" not in browser.get(listed).text
    assert "user=team-a%2Fann" in browser.get("/").text
    parts = ("profile", "notes", "editor", "history", "items", "ranking", "compare", "why")
    for address in ("/?user=", *(f"/page/{part}?item=i9&user=" for part in parts)):
        assert browser.get(f"{address}team-a/ann").status_code == 200
        assert browser.get(f"{address}team-b/bob").status_code == 403
        assert browser.get(f"{address}team-b/new&user=team-a/ann").status_code == 403
    for action in ("events", "notes", "follow", "delete"):
        fields = {"user": "team-b/bob", "item": "i5", "event_id": "x", "text": "evil", "sure": "yes"}
        assert browser.post(f"/page/{action}", data=fields).status_code == 403
    remove_key(keyed.file, "rank-events")
    assert browser.get("/").status_code == 401


def test_an_expired_or_removed_key_is_refused(keyed: Shop) -> None:
    expired = keyed.client.get("/metrics", headers=as_holder(keyed, "admin", expires=time.time() - 1))
    assert (expired.status_code, expired.json()["type"]) == (401, "urn:trsr:problem:unauthorized")
    assert "The key 'admin' expired at " in expired.json()["detail"]
    headers = as_holder(keyed, "rank")
    body = {"query": "q", "documents": ["d"]}
    assert keyed.client.post("/v1/rerank", json=body, headers=headers).status_code == 200
    assert remove_key(keyed.file, "rank")
    assert keyed.client.post("/v1/rerank", json=body, headers=headers).status_code == 401


def test_a_first_key_closes_an_open_server_and_removing_it_does_not_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trsr.serve.settings._RELOAD_SECONDS", 0.0)
    with open_shop(tmp_path / "serve.sqlite", api_keys=()) as shop:
        assert shop.client.get("/v1/users/u").status_code == 404
        headers = as_holder(shop, "events")
        assert shop.client.get("/v1/users/u").status_code == 401
        assert shop.client.get("/v1/users/u", headers=headers).status_code == 404
        remove_key(shop.file, "events")
        assert shop.client.get("/v1/users/u").status_code == 401


def test_a_server_for_others_needs_a_key_in_its_settings_or_its_database(tmp_path: Path) -> None:
    with open_shop(tmp_path / "serve.sqlite", api_keys=()) as shop:
        settings = shop.settings.model_copy(update={"host": "0.0.0.0"})
        with pytest.raises(ConfigError, match="there is no key; create one with `trsr keys add`"):
            create_app(shop.service, settings)
        as_holder(shop, "rank")
        create_app(shop.service, settings)


def test_without_keys_only_names_of_this_machine_are_answered(tmp_path: Path) -> None:
    with open_shop(tmp_path / "serve.sqlite", api_keys=()) as shop:
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000"):
            assert shop.client.get("/v1/users/u", headers={"Host": host}).status_code == 404
        for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost.evil:80"):
            answer = shop.client.get("/v1/users/u", headers={"Host": host})
            assert (answer.status_code, answer.json()["type"]) == (400, "urn:trsr:problem:wrong-host")


def test_over_the_rate_is_429_until_later(tmp_path: Path) -> None:
    with open_shop(tmp_path / "serve.sqlite", requests_per_minute=12) as shop:
        statuses = [shop.client.get("/v1/users/u").status_code for _ in range(3)]
        assert statuses == [404, 404, 429]
        answer = shop.client.get("/v1/users/u")
        assert answer.json()["type"] == "urn:trsr:problem:too-many-requests"
        assert 1 <= int(answer.headers["retry-after"]) <= 5
        assert shop.client.get("/healthz").status_code == 200
        # another caller, who has no key at all, is counted apart
        assert shop.client.get("/v1/users/u", headers={"Authorization": ""}).status_code == 401


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_not_read(tmp_path: Path, announced: bool) -> None:
    content = b" " * 1025 if announced else iter([b" " * 100] * 100)
    with open_shop(tmp_path / "serve.sqlite", max_body_bytes=1024) as shop:
        headers = {"Content-Type": "application/json"}
        answer = shop.client.post("/v1/rerank", content=content, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:trsr:problem:too-large")
    assert answer.headers["content-type"] == "application/problem+json"
