"""A deleted user leaves no byte of theirs in the files, and takes nothing of others with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from stores import summariser_of_many

from trsr.llm.base import Generation, GenerationParams, Prompt, prompt_key
from trsr.llm.fake import FakeGenerator
from trsr.serve.follower import Follower
from trsr.serve.records import Event
from trsr.serve.sqlite_store import SqliteServeStore
from trsr.summarize.run import summarize
from trsr.summarize.store import StoredCall, SummaryStore
from trsr.types import History

EDIT = "Quaggas, above all striped ones, and never zebras. " * 200  # more than a page of the database


class TellingEngine(FakeGenerator):
    """Writes a text that nobody else gets."""

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        for index, prompt in enumerate(prompts):
            yield Generation(index, f"wrote {prompt_key(prompt, self.model_id, params)}", 1, 1, 0.0)


class SilentEngine(TellingEngine):
    """Has the same name, and must not be asked."""

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        assert not prompts, "all was written before"
        return super().generate(prompts, params)


def theirs(user: str, numbers: Sequence[int]) -> list[Event]:
    return [Event(f"event-of-{user}-{place}", f"i{number}") for place, number in enumerate(numbers)]


def bytes_on_disk(store: SqliteServeStore) -> bytes:
    folder, name = store.path.parent, store.path.name
    return b"".join(file.read_bytes() for file in sorted(folder.glob(f"{name}*")))


def found(store: SqliteServeStore, texts: Sequence[str]) -> list[str]:
    disk = bytes_on_disk(store)
    return [text for text in texts if text.encode() in disk]


def texts_of(store: SqliteServeStore, user: str) -> set[str]:
    return {p.text for p in store.profiles(user)} | {s.text for s in store.user_summaries(user)}


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_nothing_of_a_deleted_user_is_left_and_what_is_shared_stays(tmp_path: Path, method: str) -> None:
    """Two users begin alike, so they share summaries; then their ways part."""
    store = SqliteServeStore(tmp_path / "serve.sqlite")
    follower = Follower(store, summariser_of_many(method), TellingEngine())
    begin = list(range(10))
    for step in range(1, 6):  # versions and blocks come and go
        store.add_events("leaver", theirs("leaver", (begin + list(range(100, 300)))[: 40 * step]))
        store.add_events("stayer", theirs("stayer", (begin + list(range(300, 400)))[: 20 * step]))
        follower.step()
    store.add_profile("leaver", EDIT, "person", 150)
    store.add_profile("stayer", "Okapis.", "person", 100)
    follower.step()
    # The edit does not fit a page, so it is looked for by its words.
    leaving, staying = texts_of(store, "leaver") - {EDIT}, texts_of(store, "stayer")
    shared = leaving & staying
    assert len(shared) >= 2
    names = [event.event_id for event in store.events("leaver")]
    gone = ["leaver", "Quaggas", *names, *sorted(leaving - staying)]
    assert len(leaving - staying) > 40
    assert found(store, gone) == gone

    assert store.delete_user("leaver")
    assert (store.history("leaver"), texts_of(store, "leaver")) == (None, set())
    assert found(store, gone), "else this test would see nothing"
    store.vacuum()
    assert found(store, gone) == []
    assert texts_of(store, "stayer") == staying
    assert found(store, sorted(staying)) == sorted(staying)
    assert len(store.events("stayer")) == 100
    assert follower.step() == 0

    assert store.delete_user("stayer")
    store.vacuum()
    assert found(store, ["stayer", "Okapis", *sorted(staying)]) == []
    store.close()
    assert found(store, [*gone, *sorted(staying)]) == []


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
def test_what_was_written_elsewhere_is_used_copied_and_deleted_too(tmp_path: Path, method: str) -> None:
    """A run wrote for the first items; the service asks for what comes after them only."""
    file, summariser = tmp_path / "run" / "summaries.sqlite", summariser_of_many(method)
    numbers = list(range(20))
    with SummaryStore(file) as run:
        summarize([History("u", tuple(f"i{n}" for n in numbers))], summariser, TellingEngine(), run)

    def written(keys: Sequence[str]) -> dict[str, StoredCall]:
        with SummaryStore(file) as run:
            return run.calls(keys)

    store = SqliteServeStore(tmp_path / "serve.sqlite", written)
    engine = SilentEngine()
    follower = Follower(store, summariser, engine)
    store.add_events("u", theirs("u", numbers))
    assert follower.step() == 1
    assert follower.totals.n_calls_made == 0
    texts = sorted(texts_of(store, "u"))
    assert len(texts) >= 4
    assert found(store, texts) == texts
    file.unlink()  # what was copied does not need it
    assert texts_of(store, "u") == set(texts)
    store.delete_user("u")
    store.vacuum()
    assert found(store, texts) == []
    store.close()


def test_a_text_that_is_nowhere_any_more_makes_no_profile(tmp_path: Path) -> None:
    here = {"k": StoredCall("k", "Quaggas.", None, "m", "t", (), 1, 1, 0.0)}
    store = SqliteServeStore(tmp_path / "serve.sqlite", lambda keys: {k: here[k] for k in keys if k in here})
    store.add_events("u", theirs("u", range(2)))
    assert store.texts(["k", "other"]) == {"k": "Quaggas."}
    assert store.add_profile("u", "Quaggas.", "model", 2, "k", [("k", ["i0"]), ("other", ["i1"])]) is None
    assert found(store, ["Quaggas"]) == [], "nothing is copied that nobody has"
    assert store.add_profile("u", "Quaggas.", "model", 2, "k", [("k", ["i0", "i1"])]) is not None
    assert [summary.text for summary in store.user_summaries("u")] == ["Quaggas."]
    store.close()


def test_texts_that_later_ones_replaced_are_gone_too(tmp_path: Path) -> None:
    store = SqliteServeStore(tmp_path / "serve.sqlite")
    follower = Follower(store, summariser_of_many(), TellingEngine())
    kept: set[str] = set()
    for stop in range(1, 12):
        store.add_events("u", theirs("u", range(stop)))
        follower.step()
        kept |= texts_of(store, "u")
    store.delete_user("u")
    store.vacuum()
    assert found(store, sorted(kept)) == []
    (left,) = store._db.execute("SELECT count(*) FROM summaries").fetchone()
    assert left == 0
    store.close()


def test_a_failed_update_leaves_nothing_either(tmp_path: Path) -> None:
    class Babbling(FakeGenerator):
        def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
            for result in super().generate(prompts, params):
                yield dataclasses.replace(result, text="", error="It babbled of quaggas.")

    store = SqliteServeStore(tmp_path / "serve.sqlite")
    store.add_events("u", theirs("u", range(5)))
    Follower(store, summariser_of_many(), Babbling()).step()
    assert found(store, ["quaggas", "event-of-u"]) == ["quaggas", "event-of-u"]
    store.delete_user("u")
    store.vacuum()
    assert found(store, ["quaggas", "event-of-u"]) == []
    store.close()
