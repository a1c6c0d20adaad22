"""Nobody without a key, from a strange host, too often or with too much gets further than the gate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shop import KEY, Shop, open_shop
from starlette.testclient import TestClient

ADDRESSES = [
    ("POST", "/v1/users/u/events"),
    ("GET", "/v1/users/u"),
    ("PUT", "/v1/users/u/profile"),
    ("DELETE", "/v1/users/u"),
    ("POST", "/v1/rerank"),
    ("POST", "/v2/rerank"),
    ("POST", "/v1/recommend"),
    ("PUT", "/v1/items"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {KEY}"])
def test_every_address_needs_the_key(shop: Shop, method: str, path: str, header: str | None) -> None:
    del shop.client.headers["Authorization"]
    headers = {} if header is None else {"Authorization": header}
    answer = shop.client.request(method, path, headers=headers, content=b"not even JSON")
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["type"] == "urn:trsr:problem:unauthorized"


def test_every_address_of_the_description_is_in_that_list(shop: Shop) -> None:
    paths = shop.client.get("/openapi.json").json()["paths"]
    described = {
        (method.upper(), path.replace("{user_id}", "u")) for path, ms in paths.items() for method in ms
    }
    assert described - {("GET", "/healthz"), ("GET", "/readyz")} <= set(ADDRESSES)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_needs_no_key(shop: Shop, path: str) -> None:
    del shop.client.headers["Authorization"]
    assert shop.client.get(path).status_code in (200, 503)


@pytest.fixture
def open_house(tmp_path: Path) -> Iterator[TestClient]:
    """A client of a server without keys."""
    with open_shop(tmp_path / "serve.sqlite", api_keys=()) as shop:
        yield shop.client


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000"])
def test_without_keys_this_machine_is_answered(open_house: TestClient, host: str) -> None:
    assert open_house.get("/v1/users/u", headers={"Host": host}).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil:80"])
def test_without_keys_a_name_of_another_site_is_refused(open_house: TestClient, host: str) -> None:
    answer = open_house.get("/v1/users/u", headers={"Host": host})
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


def test_an_announced_body_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with open_shop(tmp_path / "serve.sqlite", max_body_bytes=1024) as shop:
        answer = shop.client.post("/v1/rerank", content=b"x" * 1025)
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:trsr:problem:too-large")


def test_a_body_that_grows_too_large_is_given_up(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    with open_shop(tmp_path / "serve.sqlite", max_body_bytes=1024) as shop:
        headers = {"Content-Type": "application/json"}
        answer = shop.client.post("/v1/rerank", content=pieces(), headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:trsr:problem:too-large")
    assert answer.headers["content-type"] == "application/problem+json"
