"""What the store acknowledged is kept, in order and once, whoever writes at the same time."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from helpers import full_disk, item
from stores import events, follow, seen, summariser_of_many

from trsr.errors import OutputError, StoreError
from trsr.llm.fake import FakeGenerator
from trsr.serve.database import SqliteServeStore
from trsr.serve.database_steps import APPLICATION_ID, MIGRATIONS
from trsr.serve.profile_updater import Follower
from trsr.serve.store import Event, ServeStore
from trsr.storage import open_sqlite
from trsr.summarize.store import SqliteStore
from trsr.types import History, Item

NOON = datetime(2024, 5, 6, 12, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "serve.sqlite"


@pytest.fixture
def store(file: Path) -> Iterator[SqliteServeStore]:
    store = SqliteServeStore(file)
    yield store
    store.close()


def test_an_event_is_kept_once_and_in_order(store: ServeStore) -> None:
    assert store.add_events("u", events(0, 3)) == [True, True, True]
    assert store.add_events("u", events(1, 5)) == [False, False, True, True]
    assert store.add_events("u", [Event("e9", "i9"), Event("e9", "i9")]) == [True, False]
    stored = store.events("u")
    assert [(e.event_id, e.item_id, e.position) for e in stored] == [
        (f"e{n}", f"i{n}", place) for place, n in enumerate([0, 1, 2, 3, 4, 9])
    ]
    history = store.history("u")
    assert history is not None
    assert history.item_ids == ("i0", "i1", "i2", "i3", "i4", "i9")


def test_an_event_id_means_the_same_event_whatever_else_it_says(store: ServeStore) -> None:
    store.add_events("u", [Event("e", "i1", NOON)])
    assert store.add_events("u", [Event("e", "i2")]) == [False]
    assert store.events("u")[0].item_id == "i1"
    assert store.add_events("another", [Event("e", "i2")]) == [True], "ids are the user's own"


def test_what_was_acknowledged_is_on_disk_for_others_to_see(store: ServeStore, file: Path) -> None:
    store.add_events("u", events(0, 2))
    other = sqlite3.connect(file)
    assert other.execute("SELECT count(*) FROM events").fetchone() == (2,)
    assert other.execute("SELECT count(*) FROM pending").fetchone() == (1,)
    other.close()


def test_a_commit_that_somebody_relies_on_waits_for_the_disk(store: SqliteServeStore) -> None:
    normal, full = (1,), (2,)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA secure_delete").fetchone() == (1,)
    store.add_events("u", events(0, 1))
    assert store._db.execute("PRAGMA synchronous").fetchone() == full
    store.add_profile("u", "Can be made again.", 1)
    assert store._db.execute("PRAGMA synchronous").fetchone() == normal
    store.put_notes("u", "Mine.")
    assert store._db.execute("PRAGMA synchronous").fetchone() == full


def test_who_reads_does_not_wait_for_who_writes(store: SqliteServeStore) -> None:
    store.add_events("u", events(0, 1))
    with store._writing():
        assert len(store.events("u")) == 1


def test_everything_is_there_after_closing(store: SqliteServeStore, file: Path) -> None:
    store.add_events("u", events(0, 7))
    store.put_items([item(1)])
    follow(store, summariser_of_many())
    before = (store.events("u"), store.profiles("u"), store.user_summaries("u"), list(store.items()))
    store.close()
    store.close()
    again = SqliteServeStore(file)
    assert (
        again.events("u"),
        again.profiles("u"),
        again.user_summaries("u"),
        list(again.items()),
    ) == before
    assert before[1]
    assert len(before[2]) == 2
    again.close()


def test_times_come_back_to_the_microsecond_in_utc(store: ServeStore) -> None:
    east = datetime(2024, 5, 6, 14, 0, 0, 123457, tzinfo=timezone(timedelta(hours=2)))
    before_1970 = datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    store.add_events("u", [Event("a", "i1", east), Event("b", "i2", before_1970)])
    history = store.history("u")
    assert history is not None
    assert history.timestamps == (NOON.replace(microsecond=123457), before_1970)
    assert history.timestamps[0].tzinfo is UTC
    store.add_events("u", [Event("c", "i3")])
    history = store.history("u")
    assert history is not None
    assert history.timestamps is None


def test_a_time_without_a_zone_is_refused_and_nothing_is_kept(store: ServeStore) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        store.add_events("u", [Event("a", "i1"), Event("b", "i2", NOON.replace(tzinfo=None))])
    assert store.history("u") is None
    assert store.users() == []


def test_an_unknown_user_has_nothing(store: ServeStore) -> None:
    assert store.history("nobody") is None
    assert store.events("nobody") == []
    assert store.profiles("nobody") == []
    assert store.latest_profile("nobody") is None
    assert store.user_summaries("nobody") == []
    assert store.add_profile("nobody", "Likes lamps.", 0) is None
    assert store.notes("nobody") is None
    assert store.put_notes("nobody", "Mine.") is None
    assert not store.request_update("nobody")
    assert not store.delete_user("nobody")
    assert store.add_events("nobody", []) == []
    assert store.users() == []


def test_users_are_searched_by_any_part_of_their_id(store: ServeStore) -> None:
    for user in ("carol", "ann%a", "bob", "anna"):
        store.add_events(user, events(0, 1))
    assert store.users() == ["ann%a", "anna", "bob", "carol"]
    assert store.users("an") == ["ann%a", "anna"]
    assert store.users("%") == ["ann%a"]
    assert store.users("", limit=2) == ["ann%a", "anna"]


def test_two_threads_lose_nothing(store: ServeStore) -> None:
    """Both write to one user and to one of their own, while a third folds."""
    n = 40
    stop = threading.Event()
    errors: list[BaseException] = []
    follower = Follower(store, summariser_of_many(), FakeGenerator())

    def add(name: str) -> None:
        try:
            for number in range(n):
                mine = Event(f"{name}{number}", f"i{number}")
                assert store.add_events("both", [mine]) == [True]
                assert store.add_events(name, [mine, mine]) == [True, False]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=(name,)) for name in ("a", "b")]
    folding = threading.Thread(target=follower.run, args=(stop,))
    for thread in (*threads, folding):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    store.wake()
    folding.join()
    assert not errors
    shared = store.events("both")
    assert [event.position for event in shared] == list(range(2 * n))
    for name in ("a", "b"):
        ids = [f"{name}{number}" for number in range(n)]
        assert [event.event_id for event in shared if event.event_id.startswith(name)] == ids
        assert [event.event_id for event in store.events(name)] == ids
    follow(store, summariser_of_many())
    assert [p.n_items for user in ("a", "b", "both") if (p := store.latest_profile(user))] == [n, n, 2 * n]


def test_a_data_set_is_imported_once(store: ServeStore) -> None:
    histories = [History("u", ("i1", "i2"), (NOON, NOON)), History("v", ("i3",))]
    assert store.import_histories(histories) == 3
    assert [event.event_id for event in store.events("u")] == ["data:0", "data:1"]
    assert store.facts()["pending"] == 0
    store.delete_user("u")
    assert store.import_histories(histories) == 0
    assert store.history("u") is None, "a deleted user does not come back"
    assert store.import_histories([History("v", ("i4",))], source="more", follow=True) == 1
    assert [event.item_id for event in store.events("v")] == ["i3", "i4"]
    assert [update.user_id for update in store.pending(9)] == ["v"]
    assert store.sources() == ["data", "more"]


def test_an_import_that_fails_leaves_nothing(store: ServeStore) -> None:
    def broken() -> Iterator[History]:
        yield History("u", ("i1", "i2"))
        raise RuntimeError("the file ends here")

    with pytest.raises(RuntimeError):
        store.import_histories(broken())
    assert store.users() == []
    assert store.import_histories([History("u", ("i1", "i2"))]) == 2


def test_the_newest_version_is_compared_before_one_is_added(store: ServeStore) -> None:
    store.add_events("u", events(0, 4))
    (update,) = store.pending(9)
    first = store.add_profile("u", "One.", 2, "k", expected_version=0, ticket=update.ticket)
    assert first is not None
    assert (first.version, first.n_items, first.key, first.created_at.tzinfo) == (1, 2, "k", UTC)
    assert store.add_profile("u", "Late.", 4, expected_version=0) is None
    assert store.add_profile("u", "Stranger.", 4, ticket=update.ticket + 1) is None
    assert store.add_profile("u", "Has seen too much.", 5) is None
    second = store.add_profile("u", "Two.", 4, expected_version=1)
    assert second is not None
    assert store.profiles("u") == [first, second]
    assert store.latest_profile("u") == second


def test_an_update_stays_until_a_profile_has_seen_everything(store: ServeStore) -> None:
    store.add_events("u", events(0, 4))
    store.add_profile("u", "One.", 3)
    (update,) = store.pending(9)
    assert (update.n_items, update.n_attempts) == (4, 0)
    store.add_profile("u", "Two.", 4)
    assert store.pending(9) == []


def test_an_update_is_not_finished_when_something_came_in_between(store: ServeStore) -> None:
    store.add_events("u", events(0, 4))
    (update,) = store.pending(9)
    store.add_events("u", events(4, 5))
    store.finish(update)
    assert store.pending(9), "an event came"
    (update,) = store.pending(9)
    store.delete_user("u")
    store.add_events("u", events(0, 4))
    store.finish(update)
    assert store.pending(9), "the user went and came back"
    (update,) = store.pending(9)
    store.finish(update)
    assert store.pending(9) == []


def test_an_update_can_be_looked_at_while_it_is_put_off(store: SqliteServeStore) -> None:
    assert store.update_of("ann") is None
    store.add_events("ann", events(0, 2))
    (update,) = store.pending(10)
    assert store.update_of("ann") == update
    store.fail(update, "no answer")
    assert store.pending(10) == []
    found = store.update_of("ann")
    assert found is not None
    assert (found.n_attempts, found.n_items) == (1, 2)
    store.add_profile("ann", "Likes pots.", 2)
    assert store.update_of("ann") is None


def test_a_failed_update_is_put_off_for_longer_each_time(
    store: SqliteServeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now)
    store.add_events("u", events(0, 1))
    (update,) = store.pending(9)
    waits = []
    for _ in range(12):
        store.fail(update, "no engine")
        assert store.pending(9) == []
        (due,) = store._db.execute("SELECT due FROM pending").fetchone()
        waits.append(due - now)
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300], abs=1e-3)
    store.add_events("u", events(1, 2))
    assert store.pending(9) == [], "events do not hurry it"
    assert store.facts()["failing"] == 1
    store.request_update("u")
    assert [update.n_attempts for update in store.pending(9)] == [12]


def test_those_who_wait_longest_come_first(store: ServeStore) -> None:
    for user in ("c", "a", "b"):
        store.add_events(user, events(0, 1))
    store.add_events("c", events(1, 2))
    assert [update.user_id for update in store.pending(2)] == ["c", "a"]


def test_a_clock_that_is_set_back_delays_nothing(store: ServeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 3600)
    store.add_events("new", events(0, 1))
    store.add_events("failed", events(0, 1))
    store.fail(store.pending(2)[1], "no engine")
    monkeypatch.setattr("time.time", lambda: now)
    assert [update.user_id for update in store.pending(9)] == ["new", "failed"]
    store.fail(store.pending(2)[1], "no engine")
    assert [update.user_id for update in store.pending(9)] == ["new"]


def test_an_update_that_is_put_back_lets_others_go_first(store: ServeStore) -> None:
    for user in ("a", "b"):
        store.add_events(user, events(0, 1))
    store.put_back(store.pending(1)[0])
    assert [update.user_id for update in store.pending(9)] == ["b", "a"]


def test_waiting_ends_when_work_comes(store: ServeStore) -> None:
    store.add_events("u", events(0, 1))
    store.wait(60)
    waker = threading.Timer(0.05, store.wake)
    waker.start()
    store.wait(60)
    store.wait(0.01)


def test_items_are_added_and_changed(store: ServeStore) -> None:
    store.put_items([Item("b", {"title": "Lámp", "brand": "Acme"}), Item("a", {})])
    assert list(store.items()) == [Item("a", {}), Item("b", {"title": "Lámp", "brand": "Acme"})]
    store.put_items([Item("b", {"brand": "Acme"})])
    assert store.item("b") == Item("b", {"brand": "Acme"})
    assert store.item("c") is None


def test_facts_count_what_there_is(store: ServeStore) -> None:
    assert set(store.facts().values()) == {0}
    store.import_histories([History("old", ("i1", "i2"))])
    store.put_items([item(1), item(2)])
    store.add_events("u", events(0, 4))
    store.add_profile("u", "Likes pots.", 3)
    store.put_notes("u", "Mine.")
    facts = store.facts()
    assert 0 <= facts.pop("oldest_pending_seconds") < 60
    assert facts == {
        "users": 2,
        "events": 6,
        "items": 2,
        "profiles": 1,
        "notes": 1,
        "pending": 1,
        "failing": 0,
        "items_behind": 1,
    }


def test_notes_are_kept_until_they_are_changed_or_removed(store: ServeStore, file: Path) -> None:
    store.add_events("u", events(0, 1))
    assert store.notes("u") is None
    for text in ("Mine.", "Mine, and\nmore. "):
        notes = store.put_notes("u", text)
        assert notes is not None
        assert (notes.text, notes.updated_at.tzinfo) == (text, UTC)
        assert store.notes("u") == notes
    store.close()
    again = SqliteServeStore(file)
    assert again.notes("u") == notes
    removed = again.put_notes("u", "")
    assert removed is not None
    assert (removed.text, again.notes("u")) == ("", None)
    again.put_notes("u", "Mine.")
    again.delete_user("u")
    again.add_events("u", events(0, 1))
    assert again.notes("u") is None, "a user who comes back has written nothing"
    again.close()


N_MIGRATIONS_WITH_EDITS = 13


def test_edits_of_an_older_database_become_notes(file: Path) -> None:
    file.parent.mkdir()
    old = open_sqlite(file, "x", APPLICATION_ID, MIGRATIONS[:N_MIGRATIONS_WITH_EDITS])
    people = [("ann", "model"), ("ann", "person"), ("ann", "model"), ("bob", "model"), ("cat", "person")]
    for uid, user in enumerate(("ann", "bob", "cat"), start=1):
        old.execute("INSERT INTO users VALUES (?, ?, 6)", (uid, user))
        rows = [(uid, n, f"e{n}", f"i{n}") for n in range(6)]
        old.executemany("INSERT INTO events VALUES (?, ?, ?, ?, NULL)", rows)
        authors = [author for name, author in people if name == user]
        for version, author in enumerate(authors, start=1):
            text = f"{user}'s {version}" if user != "cat" else " \n"
            old.execute(
                "INSERT INTO profiles VALUES (?, ?, ?, ?, 6, NULL, 1e9)", (uid, version, text, author)
            )
    call = ["before the edit", "after the edit"]
    for start, key in zip((0, 5), call, strict=True):
        old.execute("INSERT INTO plans VALUES (1, ?, 0, ?, '[\"i0\"]')", (start, key))
        names = [row[1] for row in old.execute("PRAGMA table_info(summaries)") if row[1] != "error"]
        values = [key if name == "key" else 0 for name in names]
        marks = ", ".join("?" * len(names))
        old.execute(f"INSERT INTO summaries ({', '.join(names)}) VALUES ({marks})", values)
    old.close()
    store = SqliteServeStore(file)
    assert {user: notes and notes.text for user in store.users() if [notes := store.notes(user)]} == {
        "ann": "ann's 2",
        "bob": None,
        "cat": None,
    }
    assert [profile.text for profile in store.profiles("ann")] == ["ann's 1", "ann's 3"]
    assert store.profiles("cat") == []
    assert {update.user_id for update in store.pending(9)} == {"ann", "cat"}
    assert [summary.key for summary in store.user_summaries("ann")] == call[:1]
    assert follow(store, summariser_of_many()) == 2
    assert [seen(store, user) for user in ("ann", "cat")] == [[6, 6, 6], [6]]
    assert store.texts(call) == {}, "what the edit led to goes with the next version"
    assert store.notes("ann") is not None
    store.close()


def test_another_kind_of_store_is_refused(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "summaries.sqlite"):
        pass
    with pytest.raises(StoreError, match="is a database of another program"):
        SqliteServeStore(tmp_path / "summaries.sqlite")


def test_a_full_disk_refuses_and_loses_nothing(store: ServeStore, file: Path) -> None:
    store.add_events("u", events(0, 3))
    big = [Event(f"big{number}" + 2000 * "x", "i1") for number in range(100)]
    with full_disk(100_000), pytest.raises(OutputError, match=r"service database .* cannot be written"):
        store.add_events("u", big)
    assert len(store.events("u")) == 3
    assert store.add_events("u", events(2, 5)) == [False, True, True]
    assert [event.position for event in store.events("u")] == [0, 1, 2, 3, 4]


def test_a_damaged_database_is_refused_when_it_is_opened(file: Path) -> None:
    with closing(SqliteServeStore(file)) as store:
        store.add_events("u", events(0, 500))
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = b"\xff" * (len(content) - len(content) // 2)
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"service database .* is damaged .*backup"):
        SqliteServeStore(file)
