"""Every answer has an id and its security headers; the log has neither users nor texts, unless requested."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sqlite3
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from anyio import CapacityLimiter, to_thread
from shop import Shop, open_shop
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trsr.serve.middleware import Metrics, RequestContext, name_request
from trsr.storage import translate_errors

SECRET = "a most private sentence"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/healthz", None),
        ("/nowhere", None),
        ("/v1/users/nobody", None),
        ("/openapi.json", None),
        ("/metrics", None),
        ("/metrics", "wrong"),
    ],
)
def test_every_answer_has_the_headers(shop: Shop, path: str, key: str | None) -> None:
    answer = shop.client.get(path, headers={"Authorization": key} if key else {})
    assert (answer.status_code == 401) == (key is not None)
    headers = answer.headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert len(headers["x-request-id"]) == 32


def test_a_caller_may_name_the_request(shop: Shop) -> None:
    answer = shop.client.get("/v1/users/nobody", headers={"X-Request-ID": "order-17.retry_2"})
    assert answer.headers["x-request-id"] == "order-17.retry_2"
    assert answer.json()["instance"] == "urn:trsr:request:order-17.retry_2"
    for strange in ("a b", "x" * 65, "<script>", "ü"):
        answer = shop.client.get("/healthz", headers=[(b"X-Request-ID", strange.encode())])
        assert len(answer.headers["x-request-id"]) == 32


def test_the_log_has_routes_and_times_but_no_people(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = shop.client
    shop.buy("jane-doe", "i1", "i2", "i3")
    client.put("/v1/users/jane-doe/notes", json={"text": SECRET})
    client.put("/v1/users/jane-doe/notes", json={"text": [SECRET], SECRET: SECRET})
    client.post("/v1/rerank", json={"query": SECRET, "documents": [SECRET]})
    client.post("/v1/recommend", json={"user_id": "jane-doe"})
    client.get("/v1/users/jane-doe")
    shop.follow()
    client.delete("/v1/users/jane-doe")
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("trsr")]
    lines = [json.loads(message) for message in messages if message.startswith("{")]
    user = "/v1/users/{user_id}"
    assert [line["route"] for line in lines][:2] == [f"{user}/events", f"{user}/notes"]
    assert [line["status"] for line in lines][:3] == [202, 200, 422]
    assert all(line["ms"] >= 0 and line["caller"].startswith("key-") for line in lines)
    assert SECRET not in " ".join(messages)
    assert "jane-doe" not in " ".join(messages)


def failing(shop: Shop, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let reading a user fail."""

    def fail(user_id: str) -> None:
        logging.getLogger("trsr.recommend").warning("in a thread")
        with translate_errors(Path("/srv/users.sqlite"), "database"):
            raise error

    monkeypatch.setattr(shop.service, "user", fail)


def test_an_unexpected_error_is_a_problem_and_its_text_stays_out_of_the_log(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(shop, monkeypatch, RuntimeError(SECRET))
    answer = shop.client.get("/v1/users/jane-doe")
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:trsr:problem:internal")
    assert "content-security-policy" in answer.headers
    messages = "\n".join(record.getMessage() for record in caplog.records)
    assert "Failed with RuntimeError" in messages
    assert "test_request_context.py" in messages  # where it came from
    assert SECRET not in messages + answer.text


def test_texts_are_logged_where_that_is_requested(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    with open_shop(tmp_path / "serve.sqlite", log_texts=True) as shop:
        failing(shop, monkeypatch, RuntimeError(SECRET))
        shop.client.get("/v1/users/jane-doe")
    messages = "\n".join(record.getMessage() for record in caplog.records)
    assert SECRET in messages
    assert "/v1/users/jane-doe" in messages


@pytest.mark.parametrize(
    ("cause", "status", "kind"),
    [
        (sqlite3.OperationalError("database or disk is full"), 507, "storage-full"),
        (sqlite3.OperationalError("database is locked"), 503, "database-failed"),
        (sqlite3.DatabaseError("database disk image is malformed"), 503, "database-failed"),
    ],
)
def test_a_database_that_does_not_work_says_why_in_the_answer_and_in_the_log(
    cause: Exception,
    status: int,
    kind: str,
    shop: Shop,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(shop, monkeypatch, cause)
    answer = shop.client.get("/v1/users/jane-doe")
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:trsr:problem:{kind}")
    assert str(cause) in answer.json()["detail"]
    assert "/srv" not in answer.text
    assert "retry-after" in answer.headers
    assert str(cause) in caplog.text


def test_every_line_of_the_log_names_its_request(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(shop, monkeypatch, RuntimeError())
    handler = logging.StreamHandler(written := io.StringIO())
    handler.setFormatter(logging.Formatter("%(request)s %(name)s"))
    handler.addFilter(name_request)
    logger = logging.getLogger("trsr")
    monkeypatch.setattr(logger, "handlers", [handler])
    caplog.set_level(logging.INFO, "trsr")
    for name in ("r1", "r2"):
        shop.client.get("/v1/users/ann", headers={"X-Request-Id": name})
    logger.warning("between requests")
    lines = written.getvalue().splitlines()
    of_one = ["trsr.recommend", "trsr.serve", "trsr.serve"]
    assert lines == [f"{name} {logger}" for name in ("r1", "r2") for logger in of_one] + ["- trsr"]


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run in a thread of its own: a browser of other tests keeps a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, asyncio.wait_for(work, 30)).result()


class Client:
    """A client of an application by ASGI, which sends a request and may leave."""

    def __init__(
        self, app: ASGIApp, *, headers: tuple[tuple[bytes, bytes], ...] = (), sends: bool = True
    ) -> None:
        self.app = app
        self.scope = {"type": "http", "method": "POST", "path": "/", "headers": list(headers)}
        self.body: list[Message] = [{"type": "http.request", "body": b"{}", "more_body": False}] * sends
        self.leaves = asyncio.Event()
        self.log: list[str] = []
        self.answers: list[Message] = []

    async def receive(self) -> Message:
        self.log.append("asked for the body")
        if self.body:
            return self.body.pop(0)
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.answers.append(message)

    async def call(self) -> None:
        await RequestContext(self.app, Metrics(dict), False)(self.scope, self.receive, self.send)


def test_a_request_whose_client_left_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state: list[str] = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"{}"
        state.append("began")
        client.leaves.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            state.append("given up")
            raise

    client = Client(slow)
    run(client.call())
    assert state == ["began", "given up"]
    assert client.answers == []
    assert json.loads(caplog.messages[-1])["status"] == 499


def test_a_thread_is_waited_for_although_its_client_left() -> None:
    """Else a caller who asks and leaves, again and again, would have more and more of them."""
    begun, may_end = threading.Event(), threading.Event()
    threads = CapacityLimiter(1)
    most: list[int] = []

    def work() -> None:
        begun.set()
        assert may_end.wait(30)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await to_thread.run_sync(work, limiter=threads)
        await asyncio.Event().wait()

    async def main() -> None:
        answer = asyncio.ensure_future(client.call())
        while not begun.is_set():
            await asyncio.sleep(0.001)
        client.leaves.set()
        for _ in range(20):
            await asyncio.sleep(0)
            most.append(threads.borrowed_tokens)
        may_end.set()
        await answer

    client = Client(app, sends=False)
    run(main())
    assert set(most) == {1}
    assert client.answers == []


def test_a_body_is_not_requested_before_it_is_needed() -> None:
    """A server says `100 Continue` at the first `receive`; access control may refuse before."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.01)
        client.log.append("wanted")
        assert (await receive())["body"] == b"{}"

    client = Client(app, headers=((b"expect", b"100-continue"),))
    run(client.call())
    assert client.log[:2] == ["wanted", "asked for the body"]


@pytest.mark.parametrize("reads", [True, False])
def test_an_answer_that_has_begun_is_finished(reads: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if reads:
            await receive()
        await send({"type": "http.response.start", "status": 202, "headers": []})
        client.leaves.set()
        for _ in range(10):
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"x"})
        client.log.append("after the answer")

    client = Client(app)
    run(client.call())
    assert client.log[-1] == "after the answer"
    assert client.answers[-1]["body"] == b"x"
