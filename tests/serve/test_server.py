"""The application in a real server: the official client of Cohere, and an end in order."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import cohere
import httpx2
import pytest
from cohere.core.api_error import ApiError
from shop import KEY, make_service, make_settings, running

from trsr.errors import OutputError
from trsr.serve.server import listen


def test_the_client_of_cohere_works_unchanged(tmp_path: Path) -> None:
    settings = make_settings(port=0)
    documents = ["Clay pot", "Graphics card", "Garden hose"]
    service = make_service(tmp_path / "serve.sqlite", settings)
    with running(service, settings) as address:
        with cohere.ClientV2(base_url=address, api_key=KEY) as client:
            answer = client.rerank(model="tiny-trsr", query="Likes gardens.", documents=documents, top_n=2)
        scored = service.ranker.recommender.rerank("Likes gardens.", documents).scores
        best = sorted(range(3), key=lambda i: -scored[i])[:2]
        assert [result.index for result in answer.results] == best
        assert [result.relevance_score for result in answer.results] == pytest.approx(scored[best].tolist())
        assert answer.id
        with (
            cohere.ClientV2(base_url=address, api_key="wrong") as stranger,
            pytest.raises(ApiError) as caught,
        ):
            stranger.rerank(model="tiny-trsr", query="q", documents=documents)
        assert caught.value.status_code == 401


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
    found: list[int] = []
    body = {"events": [{"event_id": "1", "item_id": "i1"}]}
    with running(service, settings) as address:

        def post() -> None:
            headers = {"Authorization": f"Bearer {KEY}"}
            found.append(
                httpx2.post(
                    f"{address}/v1/users/ann/events", json=body, headers=headers, timeout=60
                ).status_code
            )

        thread = threading.Thread(target=post)
        thread.start()
        assert inside.wait(60)
        threading.Timer(0.3, go.set).start()  # while the server is about to stop
    thread.join(60)
    assert found == [202]
    again = make_service(tmp_path / "serve.sqlite", settings)
    assert [event.event_id for event in again.store.events("ann")] == ["1"]
    again.close()


@pytest.mark.parametrize(("proxies", "secure"), [("127.0.0.1,::1", True), ("10.0.0.1", False)])
def test_a_cookie_over_https_is_secure_where_a_known_proxy_says_so(
    tmp_path: Path, proxies: str, secure: bool
) -> None:
    settings = make_settings(port=0, forwarded_allow_ips=proxies)
    with running(make_service(tmp_path / "serve.sqlite", settings), settings) as address:
        headers = {"Host": "shop.example", "Origin": "https://shop.example", "X-Forwarded-Proto": "https"}
        for proto, expected in (("https", secure), ("http", False)):
            headers["X-Forwarded-Proto"] = proto
            answer = httpx2.post(f"{address}/page/key", data={"key": KEY}, headers=headers, timeout=60)
            assert answer.status_code == 303
            assert ("; secure" in answer.headers["set-cookie"].lower()) == expected


def test_the_server_says_neither_its_name_nor_its_version(tmp_path: Path) -> None:
    settings = make_settings(port=0)
    with running(make_service(tmp_path / "serve.sqlite", settings), settings) as address:
        headers = httpx2.get(f"{address}/healthz", timeout=60).headers
    assert "server" not in headers
    assert "content-security-policy" in headers


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = make_settings(port=taken.getsockname()[1])
        with pytest.raises(OutputError, match=r"cannot listen at 127\.0\.0\.1 port \d+ .*choose another"):
            listen(settings)
