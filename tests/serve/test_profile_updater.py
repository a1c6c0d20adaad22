"""Profiles follow events at the price of the new blocks; nothing but `stop` ends the loop."""

from __future__ import annotations

import ctypes
import dataclasses
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import word
from stores import BreakingEngine, MeddlingEngine, events, follow, seen, summarizer_of_many

from trsr.errors import EngineError
from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.fake import FakeGenerator
from trsr.serve.profile_updater import CALLS_A_ROUND, ProfileUpdater, give_back, run_in_thread
from trsr.serve.store import PendingUpdate, ServeStore

NOTES = "I like accordions, never gloves."
both_methods = pytest.mark.parametrize("method", ["recurrent", "hierarchical"])


def text(store: ServeStore, user_id: str = "u") -> str:
    latest = store.latest_profile(user_id)
    assert latest is not None
    return latest.text


def waiting(store: ServeStore) -> list[PendingUpdate]:
    """Let the updates that wait after a failure be due now, and return them."""
    store._db.execute("UPDATE pending SET due = 0")
    return store.pending(9)


@pytest.mark.parametrize(
    ("method", "calls", "more"),
    [("recurrent", range(100, 101), [1]), ("hierarchical", range(101, 200), range(2, 6))],
)
def test_new_events_on_a_long_history_cost_one_path_of_calls(
    store: ServeStore, method: str, calls: Sequence[int], more: Sequence[int]
) -> None:
    summarizer = summarizer_of_many(method, fan_in=4)
    store.add_events("u", events(0, 500))
    assert follow(store, summarizer) in calls
    store.add_events("u", events(500, 505))
    assert follow(store, summarizer) in more  # of a tree of 101 leaves, one path
    assert seen(store) == [500, 505]


@both_methods
def test_the_profile_does_not_depend_on_when_it_followed(store: ServeStore, method: str) -> None:
    summarizer = summarizer_of_many(method, fan_in=2)
    store.add_events("at once", events(0, 23))
    follow(store, summarizer)
    for stop in (3, 4, 11, 23):
        store.add_events("bit by bit", events(0, stop))
        follow(store, summarizer)
    assert text(store, "at once") == text(store, "bit by bit")
    assert store.user_summaries("at once") == store.user_summaries("bit by bit")
    assert seen(store, "bit by bit") == [3, 4, 11, 23]


def test_many_users_are_updated_in_one_stream(store: ServeStore) -> None:
    sizes = []

    class Counting(FakeGenerator):
        def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
            sizes.append(len(prompts))
            yield from super().generate(prompts, params)

    for number in range(5):
        store.add_events(f"u{number}", events(10 * number, 10 * number + 5))
    updater = ProfileUpdater(store, summarizer_of_many(), Counting())
    assert [updater.step(limit=4) for _ in range(3)] == [4, 1, 0]
    assert sizes == [4, 1]
    assert (updater.n_updates, updater.totals.n_calls_made, updater.totals.n_calls_failed) == (5, 5, 0)
    assert updater.totals.n_generated_tokens > 0


@both_methods
def test_no_update_changes_the_notes_or_reads_them(store: ServeStore, method: str) -> None:
    for user in ("u", "without notes"):
        store.add_events(user, events(0, 5))
    notes = store.put_notes("u", NOTES)
    engine = MeddlingEngine()
    for stop in (5, 12, 17):
        for user in ("u", "without notes"):
            store.add_events(user, events(0, stop))
        follow(store, summarizer_of_many(method), engine)
        assert store.notes("u") == notes
    assert seen(store) == [5, 12, 17]
    assert not [heard for heard in engine.heard if "accordions" in heard]
    assert text(store) == text(store, "without notes")


def test_an_update_adds_only_what_is_new_and_drops_what_no_plan_reads(store: ServeStore) -> None:
    store.add_events("u", events(0, 7))
    follow(store, summarizer_of_many())
    store.request_update("u")
    assert follow(store, summarizer_of_many()) == 0
    assert (seen(store), store.pending(9)) == ([7], [])
    before = store.user_summaries("u")
    assert [len(summary.item_ids) for summary in before] == [5, 2]
    store.add_events("u", events(7, 9))
    follow(store, summarizer_of_many())
    assert [len(summary.item_ids) for summary in store.user_summaries("u")] == [5, 4]
    assert store.texts([before[1].key]) == {}, "the text of the shorter block is of no use any more"


@pytest.mark.parametrize(("method", "versions"), [("counted", [6, 9]), ("none", [])])
def test_methods_without_a_model_need_no_engine(store: ServeStore, method: str, versions: list[int]) -> None:
    updater = ProfileUpdater(store, summarizer_of_many(method), None)
    for stop in (6, 9):
        store.add_events("u", events(0, stop))
        assert updater.step() == bool(versions)
    assert (seen(store), store.pending(9)) == (versions, [])
    assert not versions or text(store).startswith("Most often: kind")


def test_a_second_updater_of_a_database_adds_no_version_twice(store: ServeStore) -> None:
    other = ProfileUpdater(store, summarizer_of_many(), FakeGenerator())
    store.add_events("u", events(0, 5))
    assert ProfileUpdater(store, summarizer_of_many(), MeddlingEngine(other.step)).step() == 0
    assert (other.n_updates, seen(store)) == (1, [5])


def test_events_that_come_while_a_profile_is_written_are_next(store: ServeStore) -> None:
    store.add_events("u", events(0, 5))
    engine = MeddlingEngine(lambda: store.add_events("u", events(5, 8)))
    updater = ProfileUpdater(store, summarizer_of_many(), engine)
    assert [updater.step(), updater.step(), updater.step()] == [1, 1, 0]
    assert (seen(store), engine.n_calls) == ([5, 8], 2)


@both_methods
def test_a_long_history_does_not_delay_later_users(store: ServeStore, method: str) -> None:
    store.add_events("long", events(0, 500))
    engine = MeddlingEngine(lambda: store.add_events("short", events(550, 555)))
    updater = ProfileUpdater(store, summarizer_of_many(method), engine)
    assert [updater.step(), updater.step()] == [0, 1]
    assert seen(store, "short") == [5]
    assert engine.n_calls <= 2 * CALLS_A_ROUND
    n_calls = engine.n_calls + follow(store, summarizer_of_many(method), engine)
    assert seen(store, "long") == [500]
    store.add_events("another", events(0, 500))
    assert follow(store, summarizer_of_many(method)) == 0, "rounds change no call"
    assert n_calls == len(store.user_summaries("long")) + 1


def test_a_profile_is_added_as_soon_as_its_calls_are_done(store: ServeStore) -> None:
    class Looking(FakeGenerator):
        def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
            for result in super().generate(prompts, params):
                there.append(store.latest_profile("short") is not None)
                yield result

    there: list[bool] = []
    store.add_events("long", events(0, 40))
    store.add_events("short", events(550, 555))
    assert ProfileUpdater(store, summarizer_of_many(), Looking()).step() == 2
    assert len(there) == 9
    assert there[:2] + there[3:] == [False] * 2 + [True] * 6


def test_a_user_whose_calls_fail_does_not_delay_others(store: ServeStore) -> None:
    bad = FakeGenerator(fail_on=lambda prompt: word(50) in prompt.messages[-1].content)
    store.add_events("bad", events(50, 55))
    store.add_events("good", events(0, 5))
    updater = ProfileUpdater(store, summarizer_of_many(), bad)
    assert [updater.step(), updater.step()] == [1, 0], "it is tried again later"
    assert seen(store, "good") == [5]
    assert updater.totals.n_calls_failed == store.facts()["failing"] == 1
    (error,) = store._db.execute("SELECT error FROM pending").fetchone()
    assert "set to fail" in error
    waiting(store)
    assert updater.step() == 0
    waiting(store)
    assert follow(store, summarizer_of_many()) == 1
    assert (seen(store, "bad"), store.pending(9)) == ([5], [])


def test_a_user_who_breaks_the_engine_holds_others_up_once(store: ServeStore) -> None:
    store.add_events("bad", events(50, 55))
    store.add_events("good", events(0, 5))
    updater = ProfileUpdater(store, summarizer_of_many(), BreakingEngine())
    assert updater.step() == 0
    waiting(store)
    assert updater.step() == 1
    assert [update.n_attempts for update in waiting(store)] == [2]


def test_histories_that_cannot_be_planned_or_written_are_tried_later(store: ServeStore) -> None:
    summarizer = summarizer_of_many()
    config = summarizer.config.model_validate({"segmentation": {"kind": "tokens"}})
    broken = dataclasses.replace(summarizer, config=config, n_tokens=lambda item_id: {"i0": 1}[item_id])
    store.add_events("bad", events(0, 2))
    store.add_events("good", events(0, 1))
    assert ProfileUpdater(store, broken, FakeGenerator()).step() == 1
    assert [update.user_id for update in waiting(store)] == ["bad"]
    store.delete_user("bad")
    store.add_events("long", events(50, 550))
    ProfileUpdater(store, summarizer_of_many("hierarchical"), BreakingEngine()).step()
    assert store.pending(9) == []
    assert [update.n_attempts for update in waiting(store)] == [1]


def test_a_user_deleted_while_their_profile_is_written_stays_deleted(store: ServeStore) -> None:
    store.add_events("u", events(0, 10))
    engine = MeddlingEngine(lambda: store.delete_user("u"))
    assert ProfileUpdater(store, summarizer_of_many(), engine).step() == 0
    assert engine.n_calls == 2
    for table in ("users", "events", "profiles", "pending", "plans", "drafts", "summaries"):
        assert store._db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


def test_a_user_who_comes_back_meanwhile_gets_nothing_of_the_old_profile(store: ServeStore) -> None:
    def leave_and_come_back() -> None:
        store.delete_user("u")
        store.add_events("u", events(20, 30))

    store.add_events("u", events(0, 10))
    updater = ProfileUpdater(store, summarizer_of_many(), MeddlingEngine(leave_and_come_back))
    assert updater.step() == 0
    assert store.profiles("u") == []
    assert updater.step() == 1
    (keys,) = store._db.execute("SELECT count(*) FROM summaries").fetchone()
    assert keys == len(store.user_summaries("u")) == 2
    items = {item for summary in store.user_summaries("u") for item in summary.item_ids}
    assert items == {f"i{n}" for n in range(20, 30)}


def test_a_text_that_two_share_names_each_ones_own_items(store: ServeStore) -> None:
    """Merges read texts only, so two users come to the same call by different items."""

    class Laconic(FakeGenerator):
        def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
            for result in super().generate(prompts, params):
                yield dataclasses.replace(result, text="lamps.")

    for user, start in (("a", 0), ("b", 100)):
        store.add_events(user, events(start, start + 10))
        ProfileUpdater(store, summarizer_of_many("hierarchical"), Laconic()).step()
    one, other = store.user_summaries("a")[-1], store.user_summaries("b")[-1]
    assert one.key == other.key
    assert one.item_ids == tuple(f"i{n}" for n in range(10))
    assert other.item_ids == tuple(f"i{n}" for n in range(100, 110))


def test_a_shared_text_that_goes_meanwhile_is_written_again(store: ServeStore) -> None:
    """One user has read it, the other is deleted before the profile of the first is done."""
    summarizer = summarizer_of_many()
    store.add_events("leaver", events(0, 5))
    follow(store, summarizer)
    store.add_events("stayer", events(0, 10))
    engine = MeddlingEngine(lambda: store.delete_user("leaver"))
    updater = ProfileUpdater(store, summarizer, engine)
    assert updater.step() == 0
    assert store.profiles("stayer") == []
    assert updater.step() == 1
    assert engine.n_calls == 2
    assert [len(summary.item_ids) for summary in store.user_summaries("stayer")] == [5, 5]


def test_memory_is_given_back_now_and_then(store: ServeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[None] = []
    monkeypatch.setattr("trsr.serve.profile_updater.give_back", lambda: given.append(None))
    updater = ProfileUpdater(store, summarizer_of_many(), FakeGenerator())
    for stop in (3, 6, 9, 12):
        if stop == 12:
            assert len(given) == 1
            monkeypatch.setattr("trsr.serve.profile_updater.GIVE_BACK_SECONDS", -1.0)
        store.add_events("u", events(stop - 3, stop))
        updater.step()
    assert len(given) == 2


# The loop


def run_in_background(updater: ProfileUpdater, stop: threading.Event) -> threading.Thread:
    thread = threading.Thread(target=updater.run, args=(stop,))
    thread.start()
    return thread


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


def test_the_loop_follows_and_stops(store: ServeStore) -> None:
    stop = threading.Event()
    thread = run_in_background(ProfileUpdater(store, summarizer_of_many(), FakeGenerator()), stop)
    for n in (5, 6):
        store.add_events("u", events(0, n))
        wait_until(lambda: n in seen(store))  # noqa: B023
    stop.set()
    store.wake()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_stopping_does_not_wait_for_a_long_history(store: ServeStore) -> None:
    stop = threading.Event()
    engine = MeddlingEngine(stop.set)
    store.add_events("u", events(0, 100))
    thread = run_in_background(ProfileUpdater(store, summarizer_of_many(), engine), stop)
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert engine.n_calls == 1
    assert follow(store, summarizer_of_many()) == 19, "the text that was written is not paid for again"


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
    thread = run_in_background(ProfileUpdater(store, summarizer_of_many(), BreakingEngine()), stop)
    store.add_events("u", events(0, 5))
    store.add_events("bad", events(50, 55))
    wait_until(lambda: store.facts()["failing"] and seen(store))
    stop.set()
    thread.join(timeout=60)
    assert "RuntimeError" in caplog.text
    assert "lamps" not in caplog.text
    assert "out of memory" not in caplog.text


UNREACHABLE = "The server http://e/v1 cannot be reached: start it."


@pytest.mark.parametrize(
    ("message", "logged"),
    [
        (UNREACHABLE, UNREACHABLE),
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
    message: str, logged: str, store: ServeStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Down(FakeGenerator):
        def generate(self, *_: object) -> Iterator[Generation]:
            raise EngineError(message)

    store.add_events("u", events(0, 5))
    updater = ProfileUpdater(store, summarizer_of_many(), Down())
    updater.step()
    assert updater.last_failure == logged
    assert logged in caplog.text
    assert "lamps" not in caplog.text
    updater.engine = FakeGenerator()
    assert store.request_update("u")
    updater.step()
    assert updater.last_failure is None
    assert updater.n_failed == 1


def test_give_back_trims_glibc_and_leaves_other_c_libraries_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=trims.append))
    for library in ("glibc", ""):
        monkeypatch.setattr(platform, "libc_ver", lambda name=library: (name, ""))
        give_back()
    assert trims == [0]


def test_run_in_thread_returns_what_was_done_in_a_thread_that_has_ended() -> None:
    thread = run_in_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 / 0)
