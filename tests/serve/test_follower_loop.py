"""The follower's loop follows, stops when told to, and is ended by nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import BreakingEngine, MeddlingEngine, events, follow, seen, summariser_of_many

from trsr.errors import EngineError
from trsr.llm.base import Generation
from trsr.llm.fake import FakeGenerator
from trsr.serve.profile_updater import ProfileUpdater
from trsr.serve.store import PendingUpdate, ServeStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ServeStore]:
    store = ServeStore(tmp_path / "serve.sqlite")
    yield store
    store.close()


def run_in_background(follower: ProfileUpdater, stop: threading.Event) -> threading.Thread:
    thread = threading.Thread(target=follower.run, args=(stop,))
    thread.start()
    return thread


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


def test_the_loop_follows_and_stops(store: ServeStore) -> None:
    stop = threading.Event()
    thread = run_in_background(ProfileUpdater(store, summariser_of_many(), FakeGenerator()), stop)
    store.add_events("u", events(0, 5))
    wait_until(lambda: seen(store) == [5])
    store.add_events("u", events(5, 6))
    wait_until(lambda: seen(store) == [5, 6])
    stop.set()
    store.wake()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_stopping_does_not_wait_for_a_long_history(store: ServeStore) -> None:
    stop = threading.Event()
    engine = MeddlingEngine(stop.set)
    store.add_events("u", events(0, 100))
    thread = run_in_background(ProfileUpdater(store, summariser_of_many(), engine), stop)
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert engine.n_calls == 1
    assert follow(store, summariser_of_many()) == 19, "the text that was written is not paid for again"


def test_nothing_ends_the_loop_and_no_text_of_a_user_is_logged(
    store: ServeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failures = store.pending, [RuntimeError("said: likes lamps"), RuntimeError("again")]

    def pending(limit: int) -> list[PendingUpdate]:
        if failures:
            raise failures.pop()
        return real(limit)

    monkeypatch.setattr(store, "pending", pending)
    stop = threading.Event()
    thread = run_in_background(ProfileUpdater(store, summariser_of_many(), BreakingEngine()), stop)
    store.add_events("u", events(0, 5))
    store.add_events("bad", events(50, 55))
    wait_until(lambda: store.facts()["failing"] and seen(store))
    stop.set()
    thread.join(timeout=60)
    assert "RuntimeError" in caplog.text
    assert "lamps" not in caplog.text
    assert "out of memory" not in caplog.text


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        (
            "The server http://e/v1 cannot be reached: start it.",
            "The server http://e/v1 cannot be reached: start it.",
        ),
        (
            "2 calls failed (first error: The server answered 500, at once: lamps); again",
            "The server answered 500",
        ),
        (
            "2 calls failed (first error: the model wrote no answer ('lamps')); again",
            "the model wrote no answer",
        ),
    ],
)
def test_the_log_says_why_an_engine_failed_but_not_what_it_said(
    said: str, logged: str, store: ServeStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Down(FakeGenerator):
        def generate(self, *_: object) -> Iterator[Generation]:
            raise EngineError(said)

    store.add_events("u", events(0, 5))
    follower = ProfileUpdater(store, summariser_of_many(), Down())
    follower.step()
    assert follower.last_failure == logged
    assert logged in caplog.text
    assert "lamps" not in caplog.text
    follower.engine = FakeGenerator()
    assert store.request_update("u")
    follower.step()
    assert follower.last_failure is None
    assert follower.n_failed == 1
