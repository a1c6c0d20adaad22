"""Times a running server from outside, against the engine inside it.

First the engine alone, in this process: the questions of warm users, one by one and eight together. Then the
server, in a process of its own: the same users and as many candidates over HTTP, by one client and by several
at once. What HTTP, queue and store cost is the difference.
"""

from __future__ import annotations

import gc
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trsr.errors import EngineError, InputError
from trsr.pipeline.serving import Serving, open_for_serving
from trsr.seeding import derive_rng
from trsr.serve.questions import Ask

_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
_START_SECONDS = 300.0
_METRIC = re.compile(r"^trsr_model_cache_(hits|misses)_total (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Known:
    """A user that the server knows: history and the items it has not met."""

    user_id: str
    history: tuple[str, ...]
    unmet: list[str]

    def candidates(self, n: int, turn: int) -> list[str]:
        """Return `n` items the user has not met, others each turn."""
        rng = derive_rng(turn, "bench-serve", self.user_id)
        return [self.unmet[i] for i in rng.choice(len(self.unmet), size=n, replace=False)]


@dataclass
class Load:
    """What clients measured: seconds of each request, and how many failed."""

    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    wall_seconds: float = 0.0

    def facts(self) -> dict[str, float | int]:
        """Return counts, rate and percentiles."""
        done = len(self.seconds)
        return {
            "requests": done,
            "errors": self.errors,
            "requests_per_s": round(done / self.wall_seconds, 3),
            **_percentiles(self.seconds),
        }


def bench_serve(
    model_or_run: Path, data: Path | None, *, users: int, seconds: float, clients: int, candidates: int
) -> dict[str, Any]:
    """Return what `trsr bench serve` prints.

    Args:
        model_or_run: As `trsr serve` takes it.
        data: As `trsr serve` takes it.
        users: Users whose prefixes are read before anything is timed.
        seconds: Of load; half of it from one client, half from several.
        clients: How many are several.
        candidates: Of each request.

    Raises:
        InputError: the data set has too few users or items.
        EngineError: the server did not start, or answered nothing.
    """
    serving = open_for_serving(model_or_run, data)
    known = _known_users(serving, users, candidates)
    engine = _engine_alone(serving, known, candidates, clients)
    del serving
    gc.collect()
    with _server(model_or_run, data) as port:
        _ask_in_turn(port, known, candidates, turn=0)
        before = _cache_counts(port)
        one = _load(port, known, candidates, n_clients=1, seconds=seconds / 2)
        several = _load(port, known, candidates, n_clients=clients, seconds=seconds / 2)
        hits, misses = (a - b for a, b in zip(_cache_counts(port), before, strict=True))
    if not one.seconds or not several.seconds:
        raise EngineError("The server answered no request under load; look at what it logs.")
    return {
        "benchmark": "serve",
        "served": model_or_run.name,
        "users": len(known),
        "candidates": candidates,
        "clients": clients,
        "engine": engine,
        "one_client": one.facts(),
        "several_clients": several.facts(),
        "cache_hit_rate": round(hits / max(1.0, hits + misses), 4),
        "p95_over_engine_median": round(_at(one.seconds, 95) / engine["p50_s"], 3),
        "p95_over_engine_p95": round(_at(one.seconds, 95) / engine["p95_s"], 3),
        "throughput_over_engine": round(several.facts()["requests_per_s"] / engine["users_per_s"], 3),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _known_users(serving: Serving, users: int, candidates: int) -> list[Known]:
    catalogue = list(serving.dataset.catalogue())
    known = []
    for history in serving.dataset.histories():
        met = set(history.item_ids)
        known.append(Known(history.user_id, history.item_ids, [i for i in catalogue if i not in met]))
        if len(known) == users:
            break
    short = min((len(user.unmet) for user in known), default=0)
    if not known or short < candidates:
        raise InputError(
            f"A user of the data set has {short} items not met yet, {candidates} are needed; "
            "lower --candidates or name another data set."
        )
    return known


def _engine_alone(
    serving: Serving, known: Sequence[Known], candidates: int, together: int
) -> dict[str, float]:
    """Time the engine's answers for users whose prefixes it has read."""

    def ask(user: Known, turn: int) -> Ask:
        return Ask(user.history, profiles[user.user_id], user.candidates(candidates, turn))

    counts = serving.summariser.config.method != "none"
    histories = {h.user_id: h for h in serving.dataset.histories()}
    profiles = {
        user.user_id: serving.summariser.counted(histories[user.user_id]) if counts else "" for user in known
    }
    serving.recommender.score([ask(user, 0) for user in known])
    each = []
    for user in known:
        started = time.perf_counter()
        serving.recommender.score([ask(user, 1)])
        each.append(time.perf_counter() - started)
    started = time.perf_counter()
    for place in range(0, len(known), together):
        serving.recommender.score([ask(user, 2) for user in known[place : place + together]])
    batched = time.perf_counter() - started
    return {
        "users_per_s": round(len(each) / sum(each), 3),
        "users_per_s_together": round(len(known) / batched, 3),
        **_percentiles(each),
    }


@contextmanager
def _server(model_or_run: Path, data: Path | None) -> Iterator[int]:
    """Start `trsr serve` with an empty database; give its port."""
    with tempfile.TemporaryDirectory(prefix="trsr-bench-") as folder:
        command = [sys.executable, "-m", "trsr", "serve", str(model_or_run), "--port", "0"]
        command += ["--db", f"{folder}/serve.sqlite", "--requests-per-minute", "1000000"]
        command += ["--data", str(data)] if data is not None else []
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield _port_of(process)
            finally:
                process.terminate()
                process.communicate()


def _port_of(process: subprocess.Popen[str]) -> int:
    """Return the port that the server says it listens at; what comes later is read and dropped."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line.strip())
        if found := _ADDRESS.search(line):
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
            _wait_until_ready(int(found[1]))
            return int(found[1])
    raise EngineError(f"The server did not start: {' '.join(said[-3:]) or 'it said nothing'}.")


def _connected(port: int) -> AbstractContextManager[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120))


def _wait_until_ready(port: int) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        try:
            with _connected(port) as connection:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise EngineError(f"The server was not ready within {_START_SECONDS:.0f} seconds.")


def _load(port: int, known: Sequence[Known], candidates: int, *, n_clients: int, seconds: float) -> Load:
    """Let clients ask, each one question after the other, until the time is over."""
    load = Load()
    started = time.perf_counter()

    def client(number: int) -> None:
        turn = 0
        with _connected(port) as connection:
            while time.perf_counter() - started < seconds:
                user = known[(number + turn * n_clients) % len(known)]
                turn += 1
                wanted = user.candidates(candidates, 10 + turn)
                asked = time.perf_counter()
                if _recommend(connection, user, wanted):
                    load.seconds.append(time.perf_counter() - asked)
                else:
                    load.errors += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.wall_seconds = time.perf_counter() - started
    return load


def _ask_in_turn(port: int, known: Sequence[Known], candidates: int, turn: int) -> None:
    with _connected(port) as connection:
        for user in known:
            if not _recommend(connection, user, user.candidates(candidates, turn)):
                raise EngineError(f"The server did not rank for the user {user.user_id!r}.")


def _recommend(connection: http.client.HTTPConnection, user: Known, candidates: Sequence[str]) -> bool:
    """Ask for a ranking; return whether it came."""
    body = json.dumps({"user_id": user.user_id, "candidates": list(candidates), "top_n": len(candidates)})
    try:
        connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status == 200 and len(json.loads(answer.read())["results"]) == len(candidates)
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        connection.close()
        return False


def _cache_counts(port: int) -> tuple[float, float]:
    with _connected(port) as connection:
        connection.request("GET", "/metrics")
        found = dict(_METRIC.findall(connection.getresponse().read().decode()))
    return float(found["hits"]), float(found["misses"])


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{p}_s": round(_at(seconds, p), 4) for p in (50, 95, 99)}


def _at(seconds: Sequence[float], percentile: float) -> float:
    return float(np.percentile(seconds, percentile))
