"""A whole service over forty items, with fake models, for the tests of its HTTP side."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from helpers import ITEMS, bind_summarizer, item_ids
from starlette.testclient import TestClient

from trsr.llm.base import LabelScorer
from trsr.llm.fake import FakeGenerator, FakeScorer, FakeTokenizer
from trsr.recommend.catalogue import Catalogue
from trsr.recommend.prompt import PromptBuilder, PromptConfig, load_ranking_template
from trsr.recommend.recommender import Recommender
from trsr.recommend.retrieval import Retriever
from trsr.serve.app import create_app, listen, make_server
from trsr.serve.model_queue import ModelQueue
from trsr.serve.profile_updater import ProfileUpdater
from trsr.serve.ranking_service import RankingService
from trsr.serve.service import Service
from trsr.serve.settings import Settings, key_hash
from trsr.serve.store import ServeStore

KEY = "trsr_a-key-for-tests"
FIELDS = ("category", "title")
LOCAL = "http://localhost"


@dataclass
class Shop:
    """A service that was not started, and a client that calls it in this process."""

    service: Service
    client: TestClient
    engine: FakeGenerator
    settings: Settings
    file: Path
    sent: dict[str, int] = field(default_factory=dict)

    def follow(self) -> None:
        """Let all profiles catch up."""
        while self.service.updater.step():
            pass

    def buy(self, user_id: str, *items: str) -> None:
        """Post one event for each item."""
        n = self.sent.get(user_id, 0)
        self.sent[user_id] = n + len(items)
        events = [{"event_id": f"e{n + k}", "item_id": item} for k, item in enumerate(items)]
        answer = self.client.post(f"/v1/users/{user_id}/events", json={"events": events})
        assert answer.status_code == 202, answer.text

    def refused(self, status: int, kind: str, method: str, path: str, **request: Any) -> dict[str, Any]:
        """Send a request, and return the problem that it is refused with."""
        answer = self.client.request(method, path, **request)
        problem: dict[str, Any] = answer.json()
        assert (answer.status_code, problem["type"]) == (status, f"urn:trsr:problem:{kind}")
        return problem


def make_settings(**changes: Any) -> Settings:
    """Return settings with one key, whatever the environment says."""
    return Settings(**{"api_keys": (key_hash(KEY),), **changes})


def make_service(
    file: Path, settings: Settings, *, scorer: LabelScorer | None = None, engine: FakeGenerator | None = None
) -> Service:
    """Return a service whose profiles are chains over blocks of three items."""
    catalogue = Catalogue({name: ITEMS[name] for name in item_ids(0, 40)}, FIELDS)
    tokenizer = FakeTokenizer()
    config = PromptConfig(n_recent=3, max_field_tokens=64, max_tokens=4096)
    template = load_ranking_template("products", "products")
    builder = PromptBuilder(template, config, tokenizer, catalogue.texts(None, 64, tokenizer))
    recommender = Recommender(scorer or FakeScorer(), builder, builder.labels(), catalogue, name="tiny-trsr")
    texts = catalogue.texts(None, 24, None)
    summarizer = replace(bind_summarizer("recurrent"), items=catalogue.items, item_text=texts)
    store = ServeStore(file)
    ranker = RankingService(
        recommender,
        ModelQueue(recommender, max_waiting=settings.max_waiting),
        Retriever(catalogue, ("category",)),
        n_ranked=settings.n_ranked or 50,
        max_candidates=settings.max_candidates,
        max_tokens=settings.max_tokens or 10**6,
        seconds=settings.request_seconds,
    )
    return Service(store, ProfileUpdater(store, summarizer, engine or FakeGenerator()), ranker, summarizer)


@contextmanager
def open_shop(file: Path, scorer: LabelScorer | None = None, **changes: Any) -> Iterator[Shop]:
    """Open a shop on a database file, and close it at the end; `changes` are settings."""
    settings = make_settings(**changes)
    engine = FakeGenerator()
    service = make_service(file, settings, scorer=scorer, engine=engine)
    headers = {"Authorization": f"Bearer {KEY}"} if settings.api_keys else {}
    client = TestClient(create_app(service, settings), base_url=LOCAL, headers=headers)
    try:
        yield Shop(service, client, engine, settings, file)
    finally:
        service.close()


@contextmanager
def running(service: Service, settings: Settings) -> Iterator[str]:
    """Serve in a thread; give the address, and stop in order at the end."""
    with listen(settings) as listening:
        server = make_server(service, settings)
        thread = threading.Thread(target=lambda: asyncio.run(server._serve([listening])))
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@contextmanager
def live(file: Path, **changes: Any) -> Iterator[tuple[str, Service]]:
    """Serve a new service on any free port; give the address and the service."""
    settings = make_settings(port=0, **changes)
    service = make_service(file, settings)
    with running(service, settings) as address:
        yield address, service
