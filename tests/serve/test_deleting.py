"""A deleted user leaves no byte in the files, and takes nothing of others with them."""

from __future__ import annotations

import dataclasses
import random
import shutil
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
from stores import add_profile, event, follow, summarizer_of_many
from updater_process import Message, acknowledged, keep, start

from trsr.errors import NotErasedError, OutputError
from trsr.llm.base import Generation, GenerationParams, Prompt, prompt_key
from trsr.llm.fake import FakeGenerator
from trsr.seeding import derive_seed
from trsr.serve import database
from trsr.serve.database import DatabaseFile, add_key, read_keys
from trsr.serve.profile_updater import ProfileUpdater
from trsr.serve.schemas import EventIn
from trsr.serve.settings import Key
from trsr.serve.store import ServeStore
from trsr.summarize.executor import summarize
from trsr.summarize.store import SqliteStore, StoredCall
from trsr.types import History

NOTES = "Quaggas, above all striped ones, and never zebras. " * 200  # more than a page of the database
both_methods = pytest.mark.parametrize("method", ["recurrent", "hierarchical"])


class TellingEngine(FakeGenerator):
    """Writes a text that no other prompt gets."""

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        for index, prompt in enumerate(prompts):
            yield Generation(index, f"wrote {prompt_key(prompt, self.model_id, params)}", 1, 1, 0.0)


def theirs(user: str, numbers: Sequence[int]) -> list[EventIn]:
    return [event(f"event-of-{user}-{place}", f"i{number}") for place, number in enumerate(numbers)]


def found(store: ServeStore, texts: Sequence[str]) -> list[str]:
    """Return those of some texts that are on disk."""
    disk = b"".join(file.read_bytes() for file in sorted(store.path.parent.glob(f"{store.path.name}*")))
    return [text for text in texts if text.encode() in disk]


def texts_of(store: ServeStore, user: str) -> set[str]:
    return {p.text for p in store.profiles(user)} | {s.text for s in store.user_summaries(user)}


@both_methods
def test_nothing_of_a_deleted_user_is_left_and_what_is_shared_stays(store: ServeStore, method: str) -> None:
    """Two users begin alike, so they share summaries; then their ways part."""
    summarizer, engine = summarizer_of_many(method), TellingEngine()
    begin = list(range(10))
    written: set[str] = set()
    for step in range(1, 6):  # versions and blocks come and go
        store.add_events("leaver", theirs("leaver", (begin + list(range(100, 300)))[: 40 * step]))
        store.add_events("stayer", theirs("stayer", (begin + list(range(300, 400)))[: 20 * step]))
        follow(store, summarizer, engine)
        written |= texts_of(store, "leaver")
    store.put_notes("leaver", NOTES)  # they do not fit a page, so they are looked for by their words
    store.put_notes("stayer", "Okapis.")
    leaving, staying = texts_of(store, "leaver"), texts_of(store, "stayer")
    assert len(leaving & staying) >= 2
    names = [entry.event_id for entry in store.events("leaver")]
    gone = ["leaver", "Quaggas", *names, *sorted(leaving - staying)]
    assert len(leaving - staying) > 30
    assert found(store, gone) == gone

    assert store.delete_user("leaver")
    assert (store.history("leaver"), texts_of(store, "leaver")) == ((), set())
    assert found(store, [*gone, *sorted(written - staying)]) == []
    assert texts_of(store, "stayer") == staying
    assert found(store, ["Okapis", *sorted(staying)]) == ["Okapis", *sorted(staying)]
    assert len(store.events("stayer")) == 100
    assert follow(store, summarizer, engine) == 0

    assert store.delete_user("stayer")
    assert found(store, ["stayer", "Okapis", *sorted(staying)]) == []
    assert store._db.execute("SELECT count(*) FROM summaries").fetchone() == (0,)
    store.close()
    assert found(store, [*gone, *sorted(staying)]) == []


@both_methods
def test_what_was_written_elsewhere_is_used_copied_and_deleted_too(tmp_path: Path, method: str) -> None:
    """A run wrote for the first items; the service asks for what comes after them only."""
    file, summarizer = tmp_path / "run" / "summaries.sqlite", summarizer_of_many(method)
    with SqliteStore(file) as run:
        summarize([History("u", tuple(f"i{n}" for n in range(20)))], summarizer, TellingEngine(), run)

    def written(keys: Sequence[str]) -> dict[str, StoredCall]:
        with SqliteStore(file) as run:
            return run.calls(keys)

    store = ServeStore(tmp_path / "serve.sqlite", written)
    updater = ProfileUpdater(store, summarizer, TellingEngine())
    store.add_events("u", theirs("u", range(20)))
    assert updater.step() == 1
    assert updater.totals.n_calls_made == 0
    texts = sorted(texts_of(store, "u"))
    assert len(texts) >= 4
    assert found(store, texts) == texts
    file.unlink()  # what was copied does not need it
    assert texts_of(store, "u") == set(texts)
    store.delete_user("u")
    assert found(store, texts) == []
    store.close()


def test_a_text_that_is_nowhere_any_more_makes_no_profile(tmp_path: Path) -> None:
    here = {"k": StoredCall("k", "Quaggas.", None, "m", "t", (), 1, 1, 0.0)}
    with closing(
        ServeStore(tmp_path / "s.sqlite", lambda keys: {k: here[k] for k in keys if k in here})
    ) as store:
        store.add_events("u", theirs("u", range(2)))
        assert store.texts(["k", "other"]) == {"k": "Quaggas."}
        assert not add_profile(store, "u", "Quaggas.", 2, [("k", ["i0"]), ("other", ["i1"])])
        assert found(store, ["Quaggas"]) == [], "nothing is copied that no user has"
        assert add_profile(store, "u", "Quaggas.", 2, [("k", ["i0", "i1"])])
        assert [summary.text for summary in store.user_summaries("u")] == ["Quaggas."]


def test_a_failed_update_leaves_nothing_either(store: ServeStore) -> None:
    class Babbling(FakeGenerator):
        def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
            for result in super().generate(prompts, params):
                yield dataclasses.replace(result, text="", error="It babbled of quaggas.")

    store.add_events("u", theirs("u", range(5)))
    ProfileUpdater(store, summarizer_of_many(), Babbling()).step()
    assert found(store, ["quaggas", "event-of-u"]) == ["quaggas", "event-of-u"]
    store.delete_user("u")
    assert found(store, ["quaggas", "event-of-u"]) == []


def test_a_text_that_comes_after_its_user_has_left_is_not_kept(store: ServeStore) -> None:
    """Nor is it when somebody of the same id is there by then."""
    store.add_events("u", theirs("u", range(2)))
    (update,) = store.pending(1)
    store.delete_user("u")
    store.add_events("u", theirs("u", range(3)))
    user_ids = (str(update.user_generation),)
    store.put(StoredCall("k", "Quaggas.", None, "m", "t", (), 1, 1, 0.0, user_ids=user_ids))
    assert found(store, ["Quaggas"]) == []


def some_users() -> list[Message]:
    """Return messages of twelve users, whose rows go from page to page as the tables grow."""
    rng = random.Random(derive_seed(7, "users"))
    sent = []
    for number in range(1_000_000, 1_000_060):
        user = f"user-{rng.randrange(12):02}"
        kind: Literal["event", "notes"] = "notes" if rng.random() < 0.3 else "event"
        text = f"{user} likes accordions. " * rng.randrange(1, 30) if kind == "notes" else "i1"
        sent += [Message(number, "event", user, "i1"), Message(number + 1_000_000, kind, user, text)]
    return sent


def traces(sent: Sequence[Message], users: Sequence[str]) -> list[str]:
    events = [message for message in sent if message.kind == "event" and message.user_id in users]
    return [*users, *(f"event-{message.number}" for message in events)]


def test_nothing_is_left_after_a_kill_right_after_the_answer(tmp_path: Path) -> None:
    file, sent = tmp_path / "serve.sqlite", some_users()
    leaving = [f"user-{number:02}" for number in range(0, 12, 3)]
    process, pipe = start(file, "counted")
    for message in [*sent, *(Message(-1, "delete", user) for user in leaving)]:
        pipe.send(message)
        acknowledged(pipe, at_least=1)
    process.kill()
    process.join()
    disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert [text for text in traces(sent, leaving) if text.encode() in disk] == []
    with closing(ServeStore(file)) as store:
        assert store.users(limit=99) == sorted({message.user_id for message in sent} - set(leaving))
        assert store._db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_the_copies_that_sqlite_leaves_of_moved_rows_are_zeroed(tmp_path: Path) -> None:
    path, rng = tmp_path / "serve.sqlite", random.Random(derive_seed(7, "rows"))
    with closing(DatabaseFile(path)) as file:
        db = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "secure_delete = ON", "synchronous = OFF"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("CREATE TABLE texts (key TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
        for number in range(4000):
            text = f"{'leaver' if number % 3 else 'stayer'} " + "x" * rng.randrange(50, 700)
            db.execute("INSERT INTO texts VALUES (?, ?)", (rng.randbytes(32).hex(), text))
        db.execute("DELETE FROM texts WHERE text LIKE 'leaver %'")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = db.execute("SELECT * FROM texts").fetchall()
        assert b"leaver" in path.read_bytes()
        file.zero_unused()
        assert b"leaver" not in path.read_bytes()
        db.close()
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert db.execute("SELECT * FROM texts").fetchall() == before


@pytest.mark.parametrize("at", ["delete_rows", "zero_unused"])
def test_a_start_finishes_a_deletion_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """What lies on disk in the middle of a deletion is what a killed process leaves."""
    now, later = tmp_path / "now", tmp_path / "later"
    sent = some_users()
    where: Any = DatabaseFile if at == "zero_unused" else database
    real = getattr(where, at)

    def copy_first(*args: Any) -> Any:
        if not later.exists():
            shutil.copytree(now, later)
        return real(*args)

    with closing(ServeStore(now / "serve.sqlite")) as store, monkeypatch.context() as patched:
        for message in sent:
            keep(store, message)
        patched.setattr(where, at, copy_first)
        store.delete_user("user-00")
    disk = (later / "serve.sqlite").read_bytes() + (later / "serve.sqlite-wal").read_bytes()
    gone = traces(sent, ["user-00"])
    assert at == "zero_unused" or [text for text in gone if text.encode() in disk] == gone
    with closing(ServeStore(later / "serve.sqlite")) as again:
        assert found(again, gone) == []
        assert again._db.execute("SELECT * FROM deleted").fetchall() == []


@pytest.fixture
def reader(store: ServeStore) -> Iterator[sqlite3.Connection]:
    """Another process, as one that makes a backup, in the midst of reading; `leaver` was there before."""
    store.add_events("leaver", theirs("leaver", range(3)))
    store.add_events("stayer", theirs("stayer", range(3)))
    with closing(sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM users").fetchall()
        yield reader


def test_a_deletion_that_waits_for_another_process_delays_no_request(
    store: ServeStore, reader: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ERASE_SECONDS", 60.0)
    monkeypatch.setattr(database, "PATIENCE", 60.0)
    with ThreadPoolExecutor(1) as pool:
        deletion = pool.submit(store.delete_user, "leaver")
        while store.history("leaver"):
            time.sleep(0.01)
        for _ in range(20):
            assert store.history("stayer")
            store.add_events("stayer", theirs("stayer", range(3)))
        assert not deletion.done()
        reader.execute("COMMIT")
        assert deletion.result(60)
    assert found(store, ["leaver"]) == []


def test_a_deletion_that_another_process_holds_up_too_long_is_finished_when_there_is_time(
    store: ServeStore, reader: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ERASE_SECONDS", 0.1)
    with pytest.raises(NotErasedError, match="which another process reads"):
        store.delete_user("leaver")
    assert not store.history("leaver")
    assert Path(f"{store.path}-reserve").stat().st_size, "the room is for full disks only"
    assert found(store, ["leaver"]) == ["leaver"]
    reader.execute("COMMIT")
    stop = threading.Event()
    updater = ProfileUpdater(store, summarizer_of_many(), FakeGenerator())
    thread = threading.Thread(target=updater.run, args=(stop,))
    thread.start()
    ends = time.monotonic() + 60
    while found(store, ["leaver"]) and time.monotonic() < ends:
        time.sleep(0.05)
    stop.set()
    thread.join()
    assert found(store, ["leaver"]) == []


def test_a_user_is_deleted_on_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        with closing(ServeStore(disk / "serve.sqlite")) as store:
            for number in range(9999):  # no checkpoint: all of it is in the -wal
                try:
                    store.add_events(f"user-{number % 5}", theirs(f"user-{number % 5}-{number}-", range(100)))
                except OutputError:
                    break
            with pytest.raises(OSError, match="space"):
                (disk / "other").write_bytes(bytes(10_000_000))
            assert found(store, ["user-1"])
            assert store.delete_user("user-1")
            assert store.delete_user("user-2")
            assert found(store, ["user-1", "user-2"]) == []
            assert store.events("user-3")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    file = tmp_path / "serve.sqlite"
    assert read_keys(file) == []
    add_key(file, Key("k", "0" * 64, frozenset({"read"})))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    with closing(ServeStore(file)) as store:
        store.add_events("u", theirs("u", range(2)))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    for suffix in ("", "-wal", "-shm", "-lock"):
        assert modes[f"serve.sqlite{suffix}"] == 0o600


def test_a_second_server_is_refused_and_other_commands_may_write(store: ServeStore, tmp_path: Path) -> None:
    link = tmp_path / "link.sqlite"
    link.symlink_to(store.path)
    for path in (store.path, link):
        with pytest.raises(OutputError, match=f"Another server uses the database {store.path}; stop it"):
            ServeStore(path)
    add_key(store.path, Key("k", "0" * 64, frozenset({"read"})))
    assert len(read_keys(store.path)) == 1
    store.add_events("u", theirs("u", range(2)))
    assert store.delete_user("u")
    store.close()
    ServeStore(store.path).close()


def test_a_database_whose_pages_deletions_do_not_support_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "foreign.sqlite"
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA auto_vacuum = FULL")
        db.execute("VACUUM")
    with pytest.raises(OutputError, match="auto_vacuum"):
        ServeStore(file)
