"""The description of the interface is true: what fits it, and much that does not, never breaks the server."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from shop import LOCAL, Shop, open_shop

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OPERATIONS = [
    ("POST", "/v1/users/{user_id}/events"),
    ("GET", "/v1/users/{user_id}"),
    ("PUT", "/v1/users/{user_id}/notes"),
    ("DELETE", "/v1/users/{user_id}"),
    ("POST", "/v1/rerank"),
    ("POST", "/v2/rerank"),
    ("POST", "/v1/recommend"),
    ("GET", "/v1/users"),
    ("PUT", "/v1/items"),
    ("GET", "/v1/items/{item_id}"),
    ("DELETE", "/v1/items/{item_id}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A started service with a user."""
    file = tmp_path_factory.mktemp("shop") / "serve.sqlite"
    with open_shop(file, requests_per_minute=10**6) as shop, shop.client:
        shop.buy("ann", "i1", "i2", "i3", "i4")
        yield shop


@pytest.fixture(scope="module")
def description(running: Shop) -> dict[str, Any]:
    """The OpenAPI description."""
    found: dict[str, Any] = running.client.get("/openapi.json").json()
    return found


def examples(description: dict[str, Any], operation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the examples of an operation's body, if it has one."""
    if "requestBody" not in operation:
        return []
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    found: list[dict[str, Any]] = description["components"]["schemas"][reference.rpartition("/")[2]][
        "examples"
    ]
    return found


def test_every_operation_is_described_with_an_example_and_its_refusals(description: dict[str, Any]) -> None:
    found = {(m.upper(), path): what for path, ms in description["paths"].items() for m, what in ms.items()}
    assert set(found) == set(OPERATIONS)
    for (_, path), what in found.items():
        assert what["description"]
        assert "requestBody" not in what or examples(description, what)
        if path.startswith("/v"):
            assert {"400", "401", "413", "422", "429"} <= set(what["responses"])
            assert what["security"] == [{"HTTPBearer": []}]
            schema = what["responses"]["422"]["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}


def test_the_examples_are_valid(running: Shop, description: dict[str, Any]) -> None:
    items = [{"item_id": "B001", "fields": {"title": "Clay pot", "category": "Garden"}}]
    assert running.client.put("/v1/items", json={"items": items}).status_code == 200
    running.buy("u1", "i1")
    for method, path in OPERATIONS:
        for example in examples(description, description["paths"][path][method.lower()]):
            body = {**example, **({"model": None} if "model" in example else {})}
            answer = running.client.request(method, path.replace("{user_id}", "u1"), json=body)
            assert answer.status_code < 300, answer.text


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_nothing_breaks_the_server(
    running: Shop, description: dict[str, Any], method: str, path: str, mode: GenerationMode
) -> None:
    operation = schemathesis.openapi.from_dict(description)[path][method]
    has_input = "parameters" in operation.definition.raw or operation.body
    if mode is GenerationMode.NEGATIVE and not has_input:
        pytest.skip("there is nothing to get wrong")

    @seed(20_261_123)
    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case[Any]) -> None:
        send(running, case)
        if mode is GenerationMode.POSITIVE:  # and once more about a user and items that are there
            if "user_id" in case.path_parameters:
                case.path_parameters["user_id"] = "ann"
            case.body = at_home(case.body)
            send(running, case)

    ask()


def send(shop: Shop, case: Case[Any]) -> None:
    """Send a case in this process and check the answer against the description."""
    sent = requests.Request(**case.as_transport_kwargs(base_url=LOCAL)).prepare()
    headers = {name: value for name, value in sent.headers.items() if name.lower() != "content-length"}
    body = sent.body.encode() if isinstance(sent.body, str) else sent.body
    answer = shop.client.request(str(sent.method), str(sent.url), headers=headers, content=body)
    case.validate_response(answer, checks=CHECKS)


def at_home(value: Any, name: str = "") -> Any:
    """Return a body in which the ids are those of items and users that exist."""
    if isinstance(value, dict):
        return {key: at_home(entry, key) for key, entry in value.items()}
    if isinstance(value, list):
        found = [at_home(entry, name) for entry in value]
        return list(dict.fromkeys(found)) if name in ("history", "candidates") else found
    if isinstance(value, str) and name in ("item_id", "history", "candidates"):
        return f"i{zlib.crc32(value.encode('utf-8', 'replace')) % 40}"
    known = {"user_id": "ann", "model": "tiny-trsr"}
    return known.get(name, value) if isinstance(value, str) else value
