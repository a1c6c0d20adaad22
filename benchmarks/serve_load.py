"""Load on `trsr serve`: clients that send events and ask for recommendations; print one JSON object.

python benchmarks/serve_load.py out/demo --clients 8 32 128 --seconds 60 --machine "2-core x86 VM"

Every second request of a client is an event, the others request the ten best items; users are drawn each
time. A refused client waits as long as the answer says.
Then eight clients request small rankings, alone and together with a request for 200 documents each second
whose client leaves after half a second: for the small ones it should make little difference.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from trsr.data.dataset import Dataset
from trsr.errors import EngineError
from trsr.experiment.run_folder import environment
from trsr.recommend.model_folder import read_adapter_info

SEED = 0
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
WORDS = "tent stove mat lamp rope ground sheet blue steel light strong field house "
LARGE = json.dumps({"query": "Buys tents.", "documents": [WORDS * 12 + str(i) for i in range(200)]}).encode()
Request = tuple[str, str, dict[str, Any]]


class Server:
    """`trsr serve` on a run folder with an empty database."""

    def __init__(self, data: Dataset, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self.users = [history.user_id for history in data.histories()]
        self.items = list(data.catalogue())

    def ask(
        self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any]
    ) -> tuple[int, float]:
        """Post a body; return the status, and the seconds after which to send the next one."""
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, float(answer.headers.get("Retry-After", 0))

    def status(self, path: str) -> int:
        """Return the status of a page."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status

    def memory(self) -> int:
        """Return the resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def load(
        self, n_clients: int, seconds: float, requests: Callable[[int], Iterator[Request]]
    ) -> dict[str, Any]:
        """Run clients that send requests one after another; return rates and times by kind."""
        taken: dict[str, list[float]] = {}
        statuses: Counter[str] = Counter()
        ends = time.monotonic() + seconds

        def run(number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            for kind, path, body in requests(number):
                if time.monotonic() > ends:
                    return
                started = time.monotonic()
                try:
                    status, again = self.ask(connection, path, body)
                except OSError as error:
                    connection.close()
                    statuses[type(error).__name__] += 1
                    continue
                statuses[str(status)] += 1
                if status < 300:
                    taken.setdefault(kind, []).append(time.monotonic() - started)
                elif again:
                    time.sleep(max(0.0, min(again, ends - time.monotonic())))

        threads = [threading.Thread(target=run, args=(number,)) for number in range(n_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kinds = {kind: {"per_s": round(len(s) / seconds, 2), **percentiles(s)} for kind, s in taken.items()}
        return {
            "clients": n_clients,
            "seconds": seconds,
            **kinds,
            "statuses": dict(statuses),
            "rss_mb": self.memory(),
        }


def percentiles(seconds: list[float]) -> dict[str, float]:
    found = sorted(seconds)
    return {f"p{p}_s": round(found[int(p / 100 * (len(found) - 1))], 3) for p in (50, 95, 99)}


def mixed(server: Server, number: int) -> Iterator[Request]:
    """Yield events and questions in turn."""
    draw = random.Random(f"{SEED} {number} {time.monotonic()}")
    for turn in range(10**9):
        user = draw.choice(server.users)
        if turn % 2:
            yield "recommend", "/v1/recommend", {"user_id": user, "top_n": 10}
        else:
            event = {"event_id": f"{draw.random()}", "item_id": draw.choice(server.items)}
            yield "event", f"/v1/users/{user}/events", {"events": [event]}


def small(number: int) -> Iterator[Request]:
    """Yield small rankings, none of which has the query of another."""
    for turn in range(10**9):
        query = f"Buys tents {number} {turn} {time.monotonic()}."
        yield "rerank", "/v1/rerank", {"query": query, "documents": ["Head torch", "Stove", "Rope", "Lamp"]}


@contextmanager
def attacked(server: Server) -> Iterator[None]:
    """Ask for 200 documents each second and leave after half of it."""
    ended = threading.Event()

    def attack() -> None:
        while not ended.wait(0.5):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                head = "POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                client.sendall(f"{head}Content-Length: {len(LARGE)}\r\n\r\n".encode() + LARGE)
                ended.wait(0.5)

    thread = threading.Thread(target=attack)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def served(run: Path, data: Path | None = None) -> Iterator[Server]:
    """Start `trsr serve` with an empty database, and wait until it is ready."""
    command = [sys.executable, "-m", "trsr", "serve", str(run), "--port", "0"]
    if data is not None:
        command += ["--data", str(data)]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--db", f"{folder}/s.sqlite", "--requests-per-minute", "10000000"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            port = None
            said = []
            for line in process.stderr:
                said.append(line.strip())
                if found := ADDRESS.search(line):
                    port = int(found[1])
                    break
            if port is None:
                raise EngineError(f"The server did not start: {' '.join(said[-3:]) or 'it said nothing'}.")
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
            server = Server(Dataset.open(data or run / "data"), process, port)
            try:
                while server.status("/readyz") != 200:
                    time.sleep(0.1)
                yield server
            finally:
                process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--clients", nargs="+", type=int, default=[8, 32, 128])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--machine", default="", help="for example '2-core x86 VM'")
    parser.add_argument("--out", type=Path, help="file to write")
    given = parser.parse_args()
    facts = environment()
    results = []
    for run in given.runs:
        with served(run) as server:
            server.load(1, 2.0, small)  # what is loaded late is loaded now
            loads = [
                server.load(n, given.seconds, lambda number: mixed(server, number)) for n in given.clients
            ]
        with served(run) as server:
            server.load(1, 2.0, small)
            alone = server.load(8, given.seconds, small)
            with attacked(server):
                beside = server.load(8, given.seconds, small)
        ratio = round(beside["rerank"]["p95_s"] / alone["rerank"]["p95_s"], 2)
        attack = {"alone": alone, "beside": beside, "p95_ratio": ratio}
        model = Path(read_adapter_info(run / "model").base_model).name
        results.append(
            {"served": run.name, "model": model, "loads": loads, "large_abandoned_requests": attack}
        )
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    content = {
        "name": "serve_load",
        "commands": [shlex.join(["python", "benchmarks/serve_load.py", *sys.argv[1:]])],
        "commit": facts["commit"],
        "seed": SEED,
        "machine": given.machine,
        "versions": {"python": facts["python"], **facts["versions"]},
        "note": "",
        "results": results,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if given.out is None:
        print(text, end="")
    else:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
