"""Acknowledged data is stored once and in order, also with concurrent writers."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from helpers import full_disk
from stores import add_profile, event, events, follow, seen, summarizer_of_many

from trsr.errors import OutputError, RunMismatchError, StoreError
from trsr.llm.fake import FakeGenerator
from trsr.serve.database import APPLICATION_ID, MIGRATIONS
from trsr.serve.profile_updater import ProfileUpdater
from trsr.serve.store import ServeStore
from trsr.storage import open_sqlite
from trsr.summarize.store import SqliteStore
from trsr.types import History

NOON = datetime(2024, 5, 6, 12, tzinfo=UTC)


def due(store: ServeStore) -> list[str]:
    return [update.user_id for update in store.pending(9)]


def test_events_are_kept_once_and_in_order(store: ServeStore) -> None:
    assert store.add_events("u", events(0, 3)) == [True, True, True]
    assert store.add_events("u", events(1, 5)) == [False, False, True, True]
    assert store.add_events("u", [event("e9", "i9"), event("e9", "i8")]) == [True, False]
    assert store.add_events("another", [event("e9", "i2")]) == [True], "ids are the user's own"
    numbers = [0, 1, 2, 3, 4, 9]
    stored = [(e.event_id, e.item_id, e.position) for e in store.events("u")]
    assert stored == [(f"e{n}", f"i{n}", place) for place, n in enumerate(numbers)]
    assert store.history("u") == tuple(f"i{n}" for n in numbers)


def test_commits_that_a_caller_relies_on_wait_for_the_disk(store: ServeStore) -> None:
    def synchronous() -> int:
        (found,) = store._db.execute("PRAGMA synchronous").fetchone()
        return int(found)

    normal, full = 1, 2
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA secure_delete").fetchone() == (1,)
    store.add_events("u", events(0, 1))
    assert synchronous() == full
    with closing(sqlite3.connect(store.path)) as other:
        assert other.execute("SELECT count(*) FROM pending").fetchone() == (1,)
    assert add_profile(store, "u", "Can be made again.", 1)
    assert synchronous() == normal
    store.put_notes("u", "Mine.")
    assert synchronous() == full


def test_times_come_back_to_the_microsecond_in_utc(store: ServeStore) -> None:
    east = datetime(2024, 5, 6, 14, 0, 0, 123457, tzinfo=timezone(timedelta(hours=2)))
    before_1970 = datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    store.import_histories([History("u", ("i2",), (before_1970,))], "data")
    store.add_events("u", [event("a", "i1", east), event("c", "i3")])
    times = [entry.timestamp for entry in store.events("u")]
    assert times == [before_1970, NOON.replace(microsecond=123457), None]
    assert times[1] is not None
    assert times[1].tzinfo is UTC


def test_threads_that_write_and_update_lose_nothing(store: ServeStore) -> None:
    n = 40
    stop = threading.Event()
    errors: list[BaseException] = []
    updater = ProfileUpdater(store, summarizer_of_many(), FakeGenerator())

    def add(name: str) -> None:
        try:
            for number in range(n):
                mine = event(f"{name}{number}", f"i{number}")
                assert store.add_events("both", [mine]) == [True]
                assert store.add_events(name, [mine, mine]) == [True, False]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=(name,)) for name in ("a", "b")]
    updating = threading.Thread(target=updater.run, args=(stop,))
    for thread in (*threads, updating):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    store.wake()
    updating.join()
    assert not errors
    shared = store.events("both")
    assert [entry.position for entry in shared] == list(range(2 * n))
    for name in ("a", "b"):
        ids = [f"{name}{number}" for number in range(n)]
        assert [entry.event_id for entry in shared if entry.event_id.startswith(name)] == ids
        assert [entry.event_id for entry in store.events(name)] == ids
    follow(store, summarizer_of_many())
    assert [seen(store, user)[-1] for user in ("a", "b", "both")] == [n, n, 2 * n]


def test_a_data_set_is_imported_once_and_another_one_refused(store: ServeStore) -> None:
    histories = [History("u", ("i1", "i2"), (NOON, NOON)), History("v", ("i3",))]
    assert store.import_histories(histories, "data") == 3
    assert [entry.event_id for entry in store.events("u")] == ["data:0", "data:1"]
    assert due(store) == []
    store.delete_user("u")
    assert store.import_histories(histories, "data") == 0
    assert not store.history("u"), "a deleted user does not come back"
    with pytest.raises(RunMismatchError, match=r"has the histories of another dataset.*--db"):
        store.import_histories(histories, "more")
    assert store.users() == ["v"]


def test_an_import_that_fails_leaves_nothing(store: ServeStore) -> None:
    def broken() -> Iterator[History]:
        yield History("u", ("i1", "i2"))
        raise RuntimeError("the file ends here")

    with pytest.raises(RuntimeError):
        store.import_histories(broken(), "data")
    assert store.users() == []
    assert store.import_histories([History("u", ("i1", "i2"))], "data") == 2


def test_a_profile_is_added_to_the_version_and_the_user_it_was_made_for(store: ServeStore) -> None:
    store.add_events("u", events(0, 4))
    (update,) = store.pending(9)
    assert store.add_profile(update, "One.", 3, "k", [], 0)
    (first,) = store.profiles("u")
    assert (first.version, first.n_items, first.key, first.created_at.tzinfo) == (1, 3, "k", UTC)
    assert store.pending(9) == [update], "it has not seen everything"
    stranger = update._replace(user_generation=update.user_generation + 1)
    assert not store.add_profile(update, "Late.", 4, None, [], 0)
    assert not store.add_profile(stranger, "Stranger.", 4, None, [], 1)
    assert not store.add_profile(update, "Has seen too much.", 5, None, [], 1)
    assert store.add_profile(update, "Two.", 4, None, [], 1)
    assert [profile.text for profile in store.profiles("u")] == ["One.", "Two."]
    assert store.latest_profile("u") == store.profiles("u")[-1]
    assert store.pending(9) == []


def test_an_update_is_not_finished_when_something_came_in_between(store: ServeStore) -> None:
    store.add_events("u", events(0, 4))
    (update,) = store.pending(9)
    store.add_events("u", events(4, 5))
    store.finish(update)
    assert due(store) == ["u"], "an event came"
    (update,) = store.pending(9)
    store.delete_user("u")
    store.add_events("u", events(0, 4))
    store.finish(update)
    assert due(store) == ["u"], "the user went and came back"
    store.finish(store.pending(9)[0])
    assert store.pending(9) == []


def test_a_failed_update_waits_longer_each_time(store: ServeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now)
    assert store.update_of("u") is None
    store.add_events("u", events(0, 1))
    (update,) = store.pending(9)
    waits = []
    for _ in range(12):
        store.fail(update, "no engine")
        assert store.pending(9) == []
        (at,) = store._db.execute("SELECT due FROM pending").fetchone()
        waits.append(at - now)
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300], abs=1e-3)
    assert store.update_of("u") == update._replace(n_attempts=12), "it can be looked at"
    store.add_events("u", events(1, 2))
    assert store.pending(9) == [], "events do not hurry it"
    assert store.facts()["failing"] == 1
    store.request_update("u")
    assert [update.n_attempts for update in store.pending(9)] == [12]


def test_those_who_wait_longest_come_first_but_for_those_put_back(store: ServeStore) -> None:
    for user in ("c", "a", "b"):
        store.add_events(user, events(0, 1))
    store.add_events("c", events(1, 2))
    assert [update.user_id for update in store.pending(2)] == ["c", "a"]
    store.put_back(store.pending(1)[0])
    assert due(store) == ["a", "b", "c"]


def test_a_clock_that_is_set_back_delays_nothing(store: ServeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 3600)
    store.add_events("new", events(0, 1))
    store.add_events("failed", events(0, 1))
    store.fail(store.pending(2)[1], "no engine")
    monkeypatch.setattr("time.time", lambda: now)
    assert due(store) == ["new", "failed"]
    store.fail(store.pending(2)[1], "no engine")
    assert due(store) == ["new"]


N_MIGRATIONS_WITH_EDITS = 13


def test_edits_of_an_older_database_become_notes(tmp_path: Path) -> None:
    file = tmp_path / "serve.sqlite"
    old = open_sqlite(file, "x", APPLICATION_ID, MIGRATIONS[:N_MIGRATIONS_WITH_EDITS])
    people = [("ann", "model"), ("ann", "person"), ("ann", "model"), ("bob", "model"), ("cat", "person")]
    for uid, user in enumerate(("ann", "bob", "cat"), start=1):
        old.execute("INSERT INTO users VALUES (?, ?, 6)", (uid, user))
        rows = [(uid, n, f"e{n}", f"i{n}") for n in range(6)]
        old.executemany("INSERT INTO events VALUES (?, ?, ?, ?, NULL)", rows)
        authors = [author for name, author in people if name == user]
        for version, author in enumerate(authors, start=1):
            row = (uid, version, f"{user}'s {version}" if user != "cat" else " \n", author)
            old.execute("INSERT INTO profiles VALUES (?, ?, ?, ?, 6, NULL, 1e9)", row)
    calls = ["before the edit", "after the edit"]
    for start, key in zip((0, 5), calls, strict=True):
        old.execute("INSERT INTO plans VALUES (1, ?, 0, ?, '[\"i0\"]')", (start, key))
        names = [row[1] for row in old.execute("PRAGMA table_info(summaries)") if row[1] != "error"]
        values = [key if name == "key" else 0 for name in names]
        marks = ", ".join("?" * len(names))
        old.execute(f"INSERT INTO summaries ({', '.join(names)}) VALUES ({marks})", values)
    old.close()
    with closing(ServeStore(file)) as store:
        notes = {user: store.notes(user) for user in store.users()}
        assert {user: note and note.text for user, note in notes.items()} == {
            "ann": "ann's 2",
            "bob": None,
            "cat": None,
        }
        assert [profile.text for profile in store.profiles("ann")] == ["ann's 1", "ann's 3"]
        assert store.profiles("cat") == []
        assert set(due(store)) == {"ann", "cat"}
        assert [summary.key for summary in store.user_summaries("ann")] == calls[:1]
        assert follow(store, summarizer_of_many()) == 2
        assert [seen(store, user) for user in ("ann", "cat")] == [[6, 6, 6], [6]]
        assert store.texts(calls) == {}, "what the edit led to goes with the next version"
        assert store.notes("ann") is not None


def test_another_kind_of_database_is_refused(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "summaries.sqlite").close()
    with pytest.raises(StoreError, match="is a database of another program"):
        ServeStore(tmp_path / "summaries.sqlite")


def test_a_full_disk_refuses_and_loses_nothing(store: ServeStore) -> None:
    store.add_events("u", events(0, 3))
    big = [event(f"big{number}" + 200 * "x", "i1") for number in range(999)]
    with full_disk(100_000), pytest.raises(OutputError, match=r"service database .* cannot be written"):
        store.add_events("u", big)
    assert len(store.events("u")) == 3
    assert store.add_events("u", events(2, 5)) == [False, True, True]
    assert [entry.position for entry in store.events("u")] == [0, 1, 2, 3, 4]


def test_a_damaged_database_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "serve.sqlite"
    with closing(ServeStore(file)) as store:
        store.add_events("u", events(0, 500))
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = b"\xff" * (len(content) - len(content) // 2)
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"service database .* is damaged .*backup"):
        ServeStore(file)
