"""The application in a real server: the official client of Cohere, and an end in order."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import cohere
import httpx2
import pytest
from cohere.core.api_error import ApiError
from shop import KEY, live, make_service, make_settings, running

from trsr.errors import OutputError
from trsr.serve import database
from trsr.serve.app import listen


def test_the_clients_of_cohere_work_unchanged_with_every_option(tmp_path: Path) -> None:
    texts: list[Any] = ["Clay pot", "Graphics card", "Garden hose " * 200]
    with (
        live(tmp_path / "serve.sqlite") as (address, service),
        cohere.ClientV2(base_url=address, api_key=KEY) as second,
        cohere.Client(base_url=address, api_key=KEY) as first,
        cohere.ClientV2(base_url=address, api_key="wrong") as stranger,
    ):
        plain = second.rerank(model="tiny-trsr", query="q", documents=texts, top_n=2)
        scored = service.ranker.recommender.rerank("q", texts).scores
        newer = second.rerank(
            model="tiny-trsr",
            query="q",
            documents=texts,
            top_n=9,
            max_tokens_per_doc=16,
            relevant_spans=cohere.RerankRelevantSpans(mode="enabled", threshold=0.1, max_spans=3),
            priority=1,
        )
        older = first.rerank(
            query="q",
            documents=[{"title": text, "id": str(i)} for i, text in enumerate(texts)],
            model="tiny-trsr",
            top_n=9,
            rank_fields=["title"],
            return_documents=True,
            max_chunks_per_doc=10,
        )
        with pytest.raises(ApiError) as caught:
            stranger.rerank(model="tiny-trsr", query="q", documents=texts)
    assert caught.value.status_code == 401
    best = sorted(range(3), key=lambda i: -scored[i])[:2]
    assert [result.index for result in plain.results] == best
    assert [result.relevance_score for result in plain.results] == pytest.approx(scored[best].tolist())
    for answer, version in ((newer, "2"), (older, "1")):
        assert answer.meta is not None
        assert answer.meta.api_version is not None
        assert answer.meta.billed_units is not None
        assert (answer.meta.api_version.version, answer.meta.billed_units.search_units) == (version, 1)
        assert sorted(result.index for result in answer.results) == [0, 1, 2]
    truncated = {result.index: getattr(result, "truncated", None) for result in newer.results}
    assert truncated == {0: False, 1: False, 2: True}
    shown = next(result.document for result in older.results if result.index == 0)
    assert shown is not None
    assert (shown.text, getattr(shown, "id", None)) == ("Title: Clay pot", "0")


def test_an_open_request_is_answered_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(port=0)
    service = make_service(tmp_path / "serve.sqlite", settings)
    inside, go = threading.Event(), threading.Event()
    add_events = service.add_events

    def slowly(*arguments: object) -> list[bool]:
        inside.set()
        assert go.wait(60)
        return add_events(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(service, "add_events", slowly)
    body = {"events": [{"event_id": "1", "item_id": "i1"}]}
    headers = {"Authorization": f"Bearer {KEY}"}
    with ThreadPoolExecutor(1) as pool:
        with running(service, settings) as address:
            url = f"{address}/v1/users/ann/events"
            answer = pool.submit(httpx2.post, url, json=body, headers=headers, timeout=60)
            assert inside.wait(60)
            threading.Timer(0.3, go.set).start()  # while the server is about to stop
        assert answer.result().status_code == 202
    again = make_service(tmp_path / "serve.sqlite", settings)
    assert [event.event_id for event in again.store.events("ann")] == ["1"]
    again.close()


@pytest.mark.parametrize(("proxies", "secure"), [("127.0.0.1,::1", True), ("10.0.0.1", False)])
def test_a_cookie_over_https_is_secure_where_a_known_proxy_says_so(
    tmp_path: Path, proxies: str, secure: bool
) -> None:
    with live(tmp_path / "serve.sqlite", forwarded_allow_ips=proxies) as (address, _):
        headers = {"Host": "shop.example", "Origin": "https://shop.example", "X-Forwarded-Proto": "https"}
        for proto, expected in (("https", secure), ("http", False)):
            headers["X-Forwarded-Proto"] = proto
            answer = httpx2.post(f"{address}/page/key", data={"key": KEY}, headers=headers, timeout=60)
            assert answer.status_code == 303
            assert ("; secure" in answer.headers["set-cookie"].lower()) == expected


POST = b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def until_the_end(address: str, *sent: bytes) -> bytes:
    """Send some bytes, the last of them again and again until the server closes; return its answer."""
    host, port = address.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port))) as client:
        client.settimeout(0.05)
        ends = time.monotonic() + 60
        for part in chain(sent, repeat(sent[-1])):
            assert time.monotonic() < ends, "the connection is still open"
            try:
                client.sendall(part)
                if not (received := client.recv(65_536)):
                    break
                answer += received
            except TimeoutError:
                continue
            except ConnectionError:
                break
    return answer


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ((b"",), b""),
        ((b"GET /healthz HTTP/1.1\r\nX-A: ", b"a"), b""),
        ((POST + b"Content-Length: 1000\r\n\r\n", b""), b"HTTP/1.1 408 "),
        ((POST + b"Content-Length: 10000000\r\n\r\n", b" "), b"HTTP/1.1 408 "),
        ((POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"), b"HTTP/1.1 408 "),
        (
            (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n", b" "),
            b"HTTP/1.1 200 ",
        ),
    ],
)
def test_headers_and_bodies_that_never_end_are_given_up(
    tmp_path: Path, sent: tuple[bytes, ...], status: bytes
) -> None:
    limits = {"request_seconds": 0.3, "max_body_bytes": 10**8}
    with live(tmp_path / "serve.sqlite", api_keys=(), **limits) as (address, _):
        answer = until_the_end(address, *sent)
    assert answer[: len(status) or None] == status
    assert (b"urn:trsr:problem:request-timeout" in answer) == (b"408" in status)


def test_a_slow_answer_is_no_slow_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with live(tmp_path / "serve.sqlite", api_keys=(), request_seconds=0.1) as (address, service):
        monkeypatch.setattr(service, "delete_user", lambda _: time.sleep(0.5))
        assert httpx2.delete(f"{address}/v1/users/ann", timeout=60).status_code == 204


def test_writes_that_wait_hold_up_neither_rankings_nor_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CHECK_SECONDS", 0.1)
    events = {"events": [{"event_id": "e1", "item_id": "i1"}]}
    with (
        live(tmp_path / "serve.sqlite", api_keys=()) as (address, service),
        httpx2.Client(timeout=10, base_url=address) as client,
        ThreadPoolExecutor(60) as pool,
    ):
        with service.store._write_lock:
            writes = [
                pool.submit(httpx2.post, f"{address}/v1/users/u{n}/events", json=events, timeout=60)
                for n in range(60)
            ]
            ends = time.monotonic() + 30
            while service._writers.statistics().tasks_waiting < 50 and time.monotonic() < ends:
                time.sleep(0.01)
            assert client.post("/v1/recommend", json={"history": ["i1"]}).status_code == 200
            assert client.get("/v1/users/u1").status_code == 404
            assert client.get("/?user=u1").status_code == 404
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["part"]) == (503, "database")
        assert {write.result().status_code for write in writes} == {202}


def test_open_connections_are_bounded_and_the_server_is_not_named(tmp_path: Path) -> None:
    with (
        live(tmp_path / "serve.sqlite", max_connections=2) as (address, _),
        httpx2.Client(timeout=60) as first,
        httpx2.Client(timeout=60) as second,
    ):
        assert {client.get(f"{address}/healthz").status_code for client in (first, second)} == {200}
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{address}/healthz", timeout=60)
        headers = first.get(f"{address}/healthz").headers
    assert "server" not in headers
    assert "content-security-policy" in headers


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = make_settings(port=taken.getsockname()[1])
        with pytest.raises(OutputError, match=r"cannot listen at 127\.0\.0\.1 port \d+ .*choose another"):
            listen(settings)
