"""Time a running server from outside, against the engine inside it; print one JSON object.

python benchmarks/serving.py out/demo --users 50 --seconds 60

The engine answers in this process, the server in one of its own, and they take turns with the same requests,
so that what else a machine does slows both. First one request at a time, then several clients at once against
as many requests in one call. The difference is the cost of HTTP, queue and store.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from serve_load import Server, served

from trsr.errors import InputError
from trsr.recommend.catalogue import Catalogue
from trsr.recommend.ranker import RankRequest
from trsr.recommend.retrieval import Retriever
from trsr.seeding import derive_rng
from trsr.serve.loading import Serving, open_for_serving
from trsr.types import Item

PARTS = 4
"""Of the load by several clients; the engine has its turn after each."""
PUTS = 1_500


@dataclass(frozen=True)
class Known:
    """A user that the server knows: the history, and the other items."""

    user_id: str
    history: tuple[str, ...]
    unmet: list[str]

    def candidates(self, n: int, turn: int) -> list[str]:
        """Return `n` items that are not in the history, different ones each time."""
        rng = derive_rng(turn, "bench-serve", self.user_id)
        return [self.unmet[i] for i in rng.choice(len(self.unmet), size=n, replace=False)]


@dataclass
class Load:
    """Seconds of each request, and how many failed."""

    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    wall_seconds: float = 0.0

    def rate(self) -> float:
        """Return answers a second."""
        return len(self.seconds) / self.wall_seconds

    def facts(self) -> dict[str, float | int]:
        """Return counts, rate and percentiles."""
        rate = round(self.rate(), 3)
        counts = {"requests": len(self.seconds), "errors": self.errors}
        return {**counts, "requests_per_s": rate, **percentiles(self.seconds)}


class Engine:
    """The engine inside the server, by itself: called as the server would call it for these users."""

    def __init__(self, serving: Serving, known: Sequence[Known]) -> None:
        self._recommender = serving.recommender
        histories = {h.user_id: h for h in serving.dataset.histories()}
        counts = serving.summarizer.config.method != "none"
        self._profiles = {
            user.user_id: serving.summarizer.counted(histories[user.user_id]) if counts else ""
            for user in known
        }

    def seconds(self, users: Sequence[Known], candidates: int, turn: int) -> float:
        """Return how long one call takes that answers these users together."""
        requests = [
            RankRequest(user.history, self._profiles[user.user_id], user.candidates(candidates, turn))
            for user in users
        ]
        started = time.perf_counter()
        self._recommender.score(requests)
        return time.perf_counter() - started


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return the times of a server and of its engine.

    Raises:
        InputError: the data set has too few users or items.
        EngineError: the server did not start.
    """
    candidates = given.candidates
    serving = open_for_serving(given.model_or_run, given.data)
    known = known_users(serving, given.users, candidates)
    engine = Engine(serving, known)
    with served(given.model_or_run, serving.dataset.path) as server:
        for user in known:  # one candidate is enough for the prefix to be kept
            engine.seconds([user], 1, turn=0)
            if not timed(server, user, 1, turn=0)[1]:
                raise InputError(f"The server did not rank for the user {user.user_id!r}.")
        before = cache_counts(server)
        alone, one = one_at_a_time(engine, server, known, candidates, given.seconds / 2)
        together, several = several_at_once(
            engine, server, known, candidates, given.clients, given.seconds / 2
        )
        hits, misses = (a - b for a, b in zip(cache_counts(server), before, strict=True))
    ratios = [ours / itself for ours, itself in zip(one.seconds, alone.seconds, strict=True)]
    puts = (
        {"catalogue": given.catalogue, **percentiles(put_seconds(given.catalogue))}
        if given.catalogue
        else None
    )
    return {
        "benchmark": "serve",
        "served": given.model_or_run.name,
        "users": len(known),
        "candidates": candidates,
        "clients": given.clients,
        "engine": {"users_per_s": round(alone.rate(), 3), **percentiles(alone.seconds)},
        "engine_together": {"users_per_s": round(together.rate(), 3)},
        "one_client": one.facts(),
        "several_clients": several.facts(),
        "cache_hit_rate": round(hits / max(1.0, hits + misses), 4),
        "p95_over_engine_median": round(at(one.seconds, 95) / at(alone.seconds, 50), 3),
        "p95_over_engine_p95": round(at(one.seconds, 95) / at(alone.seconds, 95), 3),
        "same_question_over_engine": {f"p{p}": round(at(ratios, p), 3) for p in (50, 95)},
        "put_item": puts,
        "throughput_over_engine": round(several.rate() / together.rate(), 3),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def known_users(serving: Serving, users: int, candidates: int) -> list[Known]:
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
            f"A user of the data set has {short} items outside the history, {candidates} are needed; "
            "lower --candidates or name another data set."
        )
    return known


def put_seconds(n_items: int) -> list[float]:
    """Return the seconds of each of `PUTS` puts into a catalogue of this size."""
    rng = derive_rng(0, "bench-put")

    def item(name: str) -> Item:
        words = " ".join(f"word{n}" for n in rng.integers(20_000, size=12))
        return Item(name, {"category": f"kind {rng.integers(50)}", "title": words})

    items = {f"i{n}": item(f"i{n}") for n in range(n_items)}
    retriever = Retriever(Catalogue(items, ("category", "title")), ("category",))
    spent = []
    for n in range(PUTS):
        new = [item(f"new{n}")]
        started = time.perf_counter()
        retriever.put_items(new)
        spent.append(time.perf_counter() - started)
    return spent


def one_at_a_time(
    engine: Engine, server: Server, known: Sequence[Known], candidates: int, seconds: float
) -> tuple[Load, Load]:
    """Give engine and server the same requests in turn, until the server has worked for some seconds.

    Requests that the server failed count as errors, and not for the engine.
    """
    alone, ours = Load(), Load()
    turn = 0
    while ours.wall_seconds < seconds:
        turn += 1
        user = known[turn % len(known)]
        if server_first := turn % 2 == 0:
            spent, answered = timed(server, user, candidates, turn)
        itself = engine.seconds([user], candidates, turn)
        if not server_first:
            spent, answered = timed(server, user, candidates, turn)
        ours.wall_seconds += spent
        if answered:
            ours.seconds.append(spent)
            alone.seconds.append(itself)
            alone.wall_seconds += itself
        else:
            ours.errors += 1
    return alone, ours


def several_at_once(
    engine: Engine, server: Server, known: Sequence[Known], candidates: int, n_clients: int, seconds: float
) -> tuple[Load, Load]:
    """Load the server by clients for a while, then the engine by as many requests, `n_clients` a call."""
    together, ours = Load(), Load()
    for part in range(PARTS):
        first_turn = 10_000 * (part + 1)
        some = load(server, known, candidates, n_clients, seconds / PARTS, first_turn)
        ours.seconds += some.seconds
        ours.errors += some.errors
        ours.wall_seconds += some.wall_seconds
        for place in range(0, len(some.seconds), n_clients):
            users = [known[(place + i) % len(known)] for i in range(min(n_clients, len(known)))]
            itself = engine.seconds(users, candidates, turn=first_turn + place)
            together.seconds += [itself / len(users)] * len(users)
            together.wall_seconds += itself
    return together, ours


def load(
    server: Server, known: Sequence[Known], candidates: int, n_clients: int, seconds: float, first_turn: int
) -> Load:
    """Let clients send one request after the other until the time is over."""
    found = Load()
    started = time.perf_counter()

    def client(number: int) -> None:
        turn = 0
        while time.perf_counter() - started < seconds:
            user = known[(number + turn * n_clients) % len(known)]
            turn += 1
            spent, answered = timed(server, user, candidates, first_turn + turn)
            if answered:
                found.seconds.append(spent)
            else:
                found.errors += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.wall_seconds = time.perf_counter() - started
    return found


def timed(server: Server, user: Known, candidates: int, turn: int) -> tuple[float, bool]:
    """Request a ranking; return the seconds it took and whether it came."""
    wanted = user.candidates(candidates, turn)
    body = json.dumps({"user_id": user.user_id, "candidates": wanted, "top_n": len(wanted)})
    # A new connection each time: the server closes idle ones after some seconds.
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)) as connection:
        started = time.perf_counter()
        try:
            connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answered = answer.status == 200 and len(json.loads(answer.read())["results"]) == len(wanted)
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            answered = False
        return time.perf_counter() - started, answered


def cache_counts(server: Server) -> tuple[float, float]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    found = dict(line.split() for line in lines if line.startswith("trsr_model_cache_"))
    return float(found["trsr_model_cache_hits_total"]), float(found["trsr_model_cache_misses_total"])


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{p}_s": round(at(seconds, p), 4) for p in (50, 95, 99)}


def at(seconds: Sequence[float], percentile: float) -> float:
    return float(np.percentile(seconds, percentile))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_or_run", type=Path, help="run folder, or model folder")
    parser.add_argument("--data", type=Path, help="dataset folder; a run's own by default")
    parser.add_argument("--users", type=int, default=50, help="whose prefixes are read before")
    parser.add_argument("--seconds", type=float, default=30, help="of load: half from one client")
    parser.add_argument("--clients", type=int, default=8, help="how many send the other half")
    parser.add_argument("--candidates", type=int, default=20, help="of a request")
    parser.add_argument(
        "--catalogue", type=int, default=100_000, help="items into which others are put; 0 for none"
    )
    print(json.dumps(measure(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
