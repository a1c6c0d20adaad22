"""A small HTTP server that answers requests as a script says: well, badly, late or not at all."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def send(handler: BaseHTTPRequestHandler, status: int, body: str, **headers: str) -> None:
    """Answer with a JSON body, or another `Content_Type`."""
    handler.send_response(status)
    for name, value in {"Content_Type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body.encode())))
    handler.end_headers()
    handler.wfile.write(body.encode())


def send_json(content: Any) -> Answer:
    """Return an answer of some content."""
    return lambda handler, _request: send(handler, 200, json.dumps(content))


def say(text: str | None, *, finish: str = "stop", **message: Any) -> Answer:
    """Return a chat completion."""
    whole = {"role": "assistant", "content": text, **message}
    completion = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": whole}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    return send_json(completion)


def refuse(status: int, message: str = "because", **headers: str) -> Answer:
    """Return an error status with the server's reason."""
    body = json.dumps({"error": {"message": message, "code": status}})
    return lambda handler, _request: send(handler, status, body, **headers)


def garbage(handler: BaseHTTPRequestHandler, _request: dict[str, Any]) -> None:
    """Answer with a status of success and a body that is not JSON."""
    send(handler, 200, '{"choices": [')


def web_page(handler: BaseHTTPRequestHandler, _request: dict[str, Any]) -> None:
    """Answer as a proxy or a wrong base_url does."""
    send(handler, 200, "<html>Welcome</html>", Content_Type="text/html")


def cut(handler: BaseHTTPRequestHandler, _request: dict[str, Any]) -> None:
    """End the connection in the middle of the body."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def late(seconds: float, answer: Answer) -> Answer:
    """Return the same answer, given later."""

    def wait(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        time.sleep(seconds)
        try:
            answer(handler, request)
        except OSError:
            handler.close_connection = True  # the client is gone, as the test wants

    return wait


class ScriptedServer(ThreadingHTTPServer):
    """Answers request n with `script[n]`, later ones with the last; records requests, times, headers."""

    daemon_threads = True

    def __init__(self, *script: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        server, n_bytes = self.server, int(self.headers.get("Content-Length", 0))
        request = json.loads(self.rfile.read(n_bytes)) if n_bytes else {}
        with server.lock:
            answer = server.script[min(len(server.requests), len(server.script) - 1)]
            server.requests.append(request)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.times.append(time.monotonic())
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            answer(self, request)
        finally:
            with server.lock:
                server.in_flight -= 1

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def scripted(*script: Answer) -> Iterator[ScriptedServer]:
    """Run a `ScriptedServer` on a free loopback port."""
    server = ScriptedServer(*script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
