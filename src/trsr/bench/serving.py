"""Times a running server from outside, against the engine inside it.

The engine answers in this process, the server in one of its own, and they take turns with the same
questions, so that what else a machine does slows both. First one question at a time, then several clients at
once against as many questions in one call. What HTTP, queue and store cost is the difference.
"""

from __future__ import annotations

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
from trsr.recommend.catalogue import Catalogue
from trsr.recommend.questions import Ask
from trsr.recommend.retrieval import Retriever
from trsr.seeding import derive_rng
from trsr.serve.loading import Serving, open_for_serving
from trsr.types import Item

_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
_START_SECONDS = 300.0
_PARTS = 4
"""Of the load by several clients; the engine has its turn after each."""
_PUTS = 1_500
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

    def rate(self) -> float:
        """Return answers a second."""
        return len(self.seconds) / self.wall_seconds

    def facts(self) -> dict[str, float | int]:
        """Return counts, rate and percentiles."""
        return {
            "requests": len(self.seconds),
            "errors": self.errors,
            "requests_per_s": round(self.rate(), 3),
            **_percentiles(self.seconds),
        }


class Engine:
    """The engine inside the server, by itself: asked as the server would ask it for these users."""

    def __init__(self, serving: Serving, known: Sequence[Known]) -> None:
        self._recommender = serving.recommender
        histories = {h.user_id: h for h in serving.dataset.histories()}
        counts = serving.summariser.config.method != "none"
        self._profiles = {
            user.user_id: serving.summariser.counted(histories[user.user_id]) if counts else ""
            for user in known
        }

    def seconds(self, users: Sequence[Known], candidates: int, turn: int) -> float:
        """Return how long one call takes that answers these users together."""
        asks = [
            Ask(user.history, self._profiles[user.user_id], user.candidates(candidates, turn))
            for user in users
        ]
        started = time.perf_counter()
        self._recommender.score(asks)
        return time.perf_counter() - started


def bench_serve(
    model_or_run: Path,
    data: Path | None,
    *,
    users: int,
    seconds: float,
    clients: int,
    candidates: int,
    catalogue: int,
) -> dict[str, Any]:
    """Return what `trsr bench serve` prints.

    Args:
        model_or_run: As `trsr serve` takes it.
        data: As `trsr serve` takes it.
        users: Users whose prefixes are read before anything is timed.
        seconds: Of load; half of it from one client, half from several. The engine's own take as long again.
        clients: How many are several.
        candidates: Of each request.
        catalogue: Items of a made-up catalogue into which others are put one by one; 0 to leave that out.

    Raises:
        InputError: the data set has too few users or items.
        EngineError: the server did not start, or answered nothing.
    """
    serving = open_for_serving(model_or_run, data)
    known = _known_users(serving, users, candidates)
    engine = Engine(serving, known)
    with _server(model_or_run, data) as port:
        for user in known:  # one candidate is enough for the prefix to be kept
            engine.seconds([user], 1, turn=0)
        _ask_in_turn(port, known, 1, turn=0)
        before = _cache_counts(port)
        alone, one = _one_at_a_time(engine, port, known, candidates, seconds / 2)
        together, several = _several_at_once(engine, port, known, candidates, clients, seconds / 2)
        hits, misses = (a - b for a, b in zip(_cache_counts(port), before, strict=True))
    if not one.seconds or not several.seconds:
        raise EngineError("The server answered no request under load; look at what it logs.")
    ratios = [served / itself for served, itself in zip(one.seconds, alone.seconds, strict=True)]
    return {
        "benchmark": "serve",
        "served": model_or_run.name,
        "users": len(known),
        "candidates": candidates,
        "clients": clients,
        "engine": {"users_per_s": round(alone.rate(), 3), **_percentiles(alone.seconds)},
        "engine_together": {"users_per_s": round(together.rate(), 3)},
        "one_client": one.facts(),
        "several_clients": several.facts(),
        "cache_hit_rate": round(hits / max(1.0, hits + misses), 4),
        "p95_over_engine_median": round(_at(one.seconds, 95) / _at(alone.seconds, 50), 3),
        "p95_over_engine_p95": round(_at(one.seconds, 95) / _at(alone.seconds, 95), 3),
        "same_question_over_engine": {f"p{p}": round(_at(ratios, p), 3) for p in (50, 95)},
        "put_item": {"catalogue": catalogue, **_percentiles(_put_seconds(catalogue))} if catalogue else None,
        "throughput_over_engine": round(several.rate() / together.rate(), 3),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _put_seconds(n_items: int) -> list[float]:
    """Return the seconds of each of so many puts that the search's index is made anew in their midst."""
    rng = derive_rng(0, "bench-put")

    def item(name: str) -> Item:
        words = " ".join(f"word{n}" for n in rng.integers(20_000, size=12))
        return Item(name, {"category": f"kind {rng.integers(50)}", "title": words})

    items = {f"i{n}": item(f"i{n}") for n in range(n_items)}
    retriever = Retriever(Catalogue(items, ("category", "title")), ("category",))
    spent = []
    for n in range(_PUTS):
        new = [item(f"new{n}")]
        started = time.perf_counter()
        retriever.put_items(new)
        spent.append(time.perf_counter() - started)
    return spent


def _one_at_a_time(
    engine: Engine, port: int, known: Sequence[Known], candidates: int, seconds: float
) -> tuple[Load, Load]:
    """Ask the engine and the server the same questions in turn, until the server was asked for some seconds.

    Questions that the server failed count as errors, and not for the engine.
    """
    alone, served = Load(), Load()
    turn = 0

    def ask(user: Known) -> tuple[float, bool]:
        with _connected(port) as connection:  # anew: a server ends those that were silent for some seconds
            return _timed(connection, user, candidates, turn)

    while served.wall_seconds < seconds:
        turn += 1
        user = known[turn % len(known)]
        if server_first := turn % 2 == 0:
            asked = ask(user)
        itself = engine.seconds([user], candidates, turn)
        if not server_first:
            asked = ask(user)
        spent, answered = asked
        served.wall_seconds += spent
        if answered:
            served.seconds.append(spent)
            alone.seconds.append(itself)
            alone.wall_seconds += itself
        else:
            served.errors += 1
    return alone, served


def _several_at_once(
    engine: Engine, port: int, known: Sequence[Known], candidates: int, n_clients: int, seconds: float
) -> tuple[Load, Load]:
    """Let clients ask at once for a while, then ask the engine as many questions, `n_clients` a call."""
    together, served = Load(), Load()
    for part in range(_PARTS):
        some = _load(port, known, candidates, n_clients, seconds / _PARTS, first_turn=10_000 * (part + 1))
        served.seconds += some.seconds
        served.errors += some.errors
        served.wall_seconds += some.wall_seconds
        for place in range(0, len(some.seconds), n_clients):
            users = [known[(place + i) % len(known)] for i in range(min(n_clients, len(known)))]
            itself = engine.seconds(users, candidates, turn=10_000 * (part + 1) + place)
            together.seconds += [itself / len(users)] * len(users)
            together.wall_seconds += itself
    return together, served


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


def _load(
    port: int, known: Sequence[Known], candidates: int, n_clients: int, seconds: float, first_turn: int
) -> Load:
    """Let clients ask, each one question after the other, until the time is over."""
    load = Load()
    started = time.perf_counter()

    def client(number: int) -> None:
        turn = 0
        with _connected(port) as connection:
            while time.perf_counter() - started < seconds:
                user = known[(number + turn * n_clients) % len(known)]
                turn += 1
                spent, answered = _timed(connection, user, candidates, first_turn + turn)
                if answered:
                    load.seconds.append(spent)
                else:
                    load.errors += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.wall_seconds = time.perf_counter() - started
    return load


def _timed(
    connection: http.client.HTTPConnection, user: Known, candidates: int, turn: int
) -> tuple[float, bool]:
    """Ask for a ranking; return the seconds it took and whether it came."""
    wanted = user.candidates(candidates, turn)
    started = time.perf_counter()
    answered = _recommend(connection, user, wanted)
    return time.perf_counter() - started, answered


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
